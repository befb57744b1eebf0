"""Whose an event is: by its columns and in SQL the same, and by a plain reading of the rule."""

from __future__ import annotations

from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.events.owners import Bound, Owners

IDS = ("ada", "phone", "bob", "7")
ids = st.sampled_from([*IDS, None])
former = st.one_of(ids, st.sampled_from([7, 7.0, True, ["ada"], {"previousId": "ada"}]))
events = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["alias", "identify", "view"]),
        "user_id": ids,
        "anonymous_id": ids,
        "properties": st.one_of(st.just({}), former.map(lambda id_: {"previousId": id_})),
    }
)
asked = st.lists(st.sampled_from(IDS), min_size=1, max_size=2, unique=True)
linked = st.lists(st.sampled_from(IDS), max_size=2, unique=True)
duck = duckdb.connect(config={"threads": 1})


def theirs(event: dict[str, Any], owners: Owners) -> bool:
    user, anonymous, former = event["user_id"], event["anonymous_id"], event["properties"].get("previousId")
    named = isinstance(former, str) or type(former) is int
    return (
        user in owners.ids
        or anonymous in owners.asked
        or (user is None and anonymous in owners.linked)
        or (event["name"] == "alias" and named and str(former) in owners.ids)
    )


@pytest.mark.parametrize("words", [False, True])
@settings(max_examples=40)
@given(st.lists(events, min_size=1, max_size=8), asked, linked)
def test_columns_sql_and_a_plain_reading_agree(
    words: bool, rows: list[dict[str, Any]], asked: list[str], linked: list[str]
) -> None:
    owners = Owners(tuple(asked), tuple(linked))
    text = pa.dictionary(pa.int32(), pa.string()) if words else pa.string()
    columns = [pa.array([row[name] for row in rows], text) for name in ("name", "user_id", "anonymous_id")]
    properties = pa.array([msgspec.json.encode(row["properties"]).decode() for row in rows])
    table = pa.RecordBatch.from_arrays(
        [pa.array(range(len(rows)), pa.int64()), *columns, properties],
        names=["seq", "name", "user_id", "anonymous_id", "properties"],
    )
    expected = [theirs(row, owners) for row in rows]
    assert owners.mask(table, len(rows)).to_pylist() == expected
    assert not any(owners.mask(table, 0).to_pylist())
    bound = Bound()
    duck.register("events", pa.Table.from_batches([table]))
    found = duck.execute(f"SELECT {owners.sql(bound)} FROM events ORDER BY seq", bound.parameters).fetchall()
    assert [bool(one) for (one,) in found] == expected
