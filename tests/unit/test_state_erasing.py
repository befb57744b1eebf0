"""Which rows of the state store name a user, and that these alone are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

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
        ("42", True),
        (None, False),
        ({}, False),
    ],
)
def test_a_long_id_is_found_inside_words_and_a_short_one_as_a_whole_word(value: Any, named: bool) -> None:
    assert names(msgspec.json.encode(value), [ADA, "bob", "42"]) is named


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
