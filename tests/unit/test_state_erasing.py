"""Which rows of the state store name a user, and that these alone are dropped."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analytics_core.errors import FencedError
from analytics_core.records import Insight, Message, Metric, Pattern, Window
from analytics_core.state import Outputs
from analytics_core.state.erasing import names
from analytics_core.state.sqlite import SqliteState
from analytics_core.state.sqlite_erasing import SqliteErasing

ADA = "ada-0815-x"
AT = datetime(2025, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (ADA, True),
        ({"who": ADA}, True),
        ({ADA: 3}, True),
        ([{"deep": [{"er": ADA}]}], True),
        ({"title": f"what {ADA} did"}, True),
        ({"key": f"of:{ADA}"}, True),
        ("bob", True),
        ({"bob": 1}, True),
        ("what bob did", False),
        ("bobby", False),
        ({"n": 42}, False),
        (f"{ADA}9", True),
        (f"{ADA}yz", False),
        ("u-42", True),
        ("what u-42 did", True),
        ("what u-421 did", False),
        ("what Bu-42 did", False),
        ({"who": "customer1"}, True),
        ({"who": "customer12"}, False),
        ("of:customer1_seen", True),
        ("xcustomer1", False),
        ("42", True),
        (None, False),
        ({}, False),
    ],
)
def test_an_id_is_a_whole_word_or_when_it_is_telling_a_part_that_does_not_go_on(value: Any, named: bool) -> None:
    assert names(msgspec.json.encode(value), [ADA, "bob", "42", "u-42", "customer1"]) is named


def test_what_is_no_json_is_one_word() -> None:
    assert names(b"\x93 " + ADA.encode(), [ADA])
    assert not names(b"{ bob", ["bob"])


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    made = SqliteState(tmp_path / "state.db")
    yield made
    made.close()


def test_rows_that_name_a_user_are_dropped_and_no_others(state: SqliteState) -> None:
    window = Window(AT)
    metrics = [Metric(name=f"m-{who}", value=1, window=window, labels={"who": who}) for who in (ADA, "bob", "x")]
    found = {
        tenant: Outputs(
            tenant=tenant,
            metrics=[*metrics, Metric(name="total", value=3, window=window)],
            patterns=[Pattern(key=who, name="p", description="", count=1) for who in (ADA, 'b"ob', "x")],
            insights=[Insight(key=f"of:{who}", title="", description="") for who in (ADA, "bob")],
        )
        for tenant in ("a", "b")
    }
    pushes = [Message(id=who, topic="metric", tenant="a", body=msgspec.json.encode({"w": who})) for who in (ADA, "x")]
    claimed = state.claim("lane")
    state.commit(msgspec.structs.replace(claimed, position=7), list(found.values()), pushes)
    for key, body in (("1", {"users": [ADA]}), ("2", {"users": ["x"]})):
        state.document("a", "analysis", key, msgspec.json.encode(body))
    eraser = SqliteErasing(state)
    expected = {"points": 2, "insights": 1, "patterns": 2, "documents": 1, "pushes": 1}
    assert eraser.positions() == {"lane": 7}
    assert eraser.find("a", [ADA, "bob", 'b"ob']) == expected
    assert eraser.erase("a", [ADA, "bob", 'b"ob']) == expected
    assert sum(eraser.find("a", [ADA, "bob", 'b"ob']).values()) == 0
    assert {name for _, name, _ in state.catalogue("a")} == {"m-x", "total"}
    assert [record["key"] for record in state.records("a", "pattern")] == ["x"]
    assert [record["key"] for record in state.records("a", "insight")] == ["of:bob"], "a short id inside a word"
    assert [message.id for message in state.outbox(0)] == ["x"]
    assert (state.document("a", "analysis", "1"), state.document("a", "analysis", "2") is not None) == (None, True)
    assert len(state.catalogue("b")) == 4
    assert len(state.records("b", "pattern")) == 3


def test_what_was_dropped_or_replaced_is_in_no_file_once_the_journal_is_empty(state: SqliteState) -> None:
    claimed = state.claim("lane")
    found = Outputs(tenant="a", insights=[Insight(key=f"of:{ADA}", title="", description="")])
    state.commit(msgspec.structs.replace(claimed, position=7, state=ADA.encode() * 99), [found])
    state.commit(msgspec.structs.replace(claimed, position=8, state=b"nobody"))
    eraser = SqliteErasing(state)
    eraser.erase("a", [ADA])

    def holders() -> list[str]:
        return [path.name for path in state.path.parent.iterdir() if ADA.encode() in path.read_bytes()]

    assert holders() == ["state.db-wal"]
    with closing(sqlite3.connect(state.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM cursors").fetchone()
        assert not eraser.settle()
    assert eraser.settle()
    assert holders() == []


def test_a_lane_whose_state_was_dropped_begins_anew_and_its_earlier_life_writes_no_more(state: SqliteState) -> None:
    claimed = state.claim("lane")
    state.commit(msgspec.structs.replace(claimed, position=7, events=5, state=b"of ada", state_version=3))
    eraser = SqliteErasing(state)
    eraser.drop_lane("lane")
    assert eraser.positions() == {"lane": 0}
    with pytest.raises(FencedError):
        state.commit(msgspec.structs.replace(claimed, position=9))
    again = state.claim("lane")
    assert (again.position, again.events, again.state, again.state_version) == (0, 0, None, 1)
    assert again.epoch > claimed.epoch + 1
