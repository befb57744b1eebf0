"""Figures from columns are those of SQL, whatever the values, the zone and the pieces in which they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import BudgetError, StoppingError
from analytics_core.manifest import MetricManifest
from analytics_core.metrics.buckets import buckets
from analytics_core.metrics.definition import Definition, define
from analytics_core.queries import labels, user_order
from analytics_core.queries.figures import Figures, over_events
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.grid import MAX_SERIES
from analytics_core.queries.reader import Reader
from analytics_core.queries.user_order import Events, Quality, View, view_of
from analytics_core.queries.value_columns import ValueColumns
from analytics_core.records import TimeRange
from analytics_core.testing import MemoryReader, batch

CHANGE = datetime(2025, 10, 26, 0, 30, tzinfo=UTC)
"""The clocks go back in Berlin half an hour later; on Lord Howe they went forward by half an hour three weeks ago."""
ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"]
NUMBERS = [0, -0.0, 1, 2.5, -3, 0.1, 10**16 + 1, 10**30, 1e300, 5e-324]
VALUES = [*NUMBERS, "", "5", "inf", "nan", "1e3", "é\n", True, False, None, [1], {"a": 1}, {}]

rows = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(["buy", "view"]),
            "user_id": st.sampled_from(["u1", "u2", None]),
            "anonymous_id": st.sampled_from(["u1", "a1", None]),
            "session_id": st.sampled_from(["s1", None]),
            "timestamp": st.integers(-300, 300).map(lambda minutes: CHANGE + timedelta(minutes=minutes)),
            "properties": st.fixed_dictionaries(
                {}, optional={"x": st.sampled_from(VALUES), "y": st.sampled_from("ab")}
            ),
        }
    ),
    max_size=40,
)
metrics = st.builds(
    lambda aggregate, keys: define(
        MetricManifest(
            name=f"{aggregate}",
            aggregate=aggregate,
            property=None if aggregate in ("count", "unique") and not keys.pop("of", True) else "x",
            **{key: value for key, value in keys.items() if key != "of"},
        )
    ),
    st.sampled_from(["count", "unique", "sum", "avg", "min", "max", "p50", "p95"]),
    st.fixed_dictionaries(
        {},
        optional={
            "event": st.just("buy"),
            "of": st.booleans(),
            "where": st.sampled_from([{"properties.y": "a"}, {"properties.x": {">": 1}}, {"event": ["view", "none"]}]),
        },
    ),
)


class Columns(MemoryReader):
    """Has columns at hand, and may be asked nothing else."""

    directory: Path

    def at_hand(self) -> View | None:
        view, kept = view_of(self.snapshot), ValueColumns(self.directory, self.tenant)
        return View(view.levels, view.names, lambda field: kept.column(field, self.snapshot) if field.path else None)

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        raise AssertionError(f"SQL was asked: {query}")


def both(
    given_rows: list[dict[str, Any]], asked: TimeRange, definitions: list[Definition], interval: str, by: list[str]
) -> Iterator[dict[str, list[Figures]]]:
    """What SQL says, and what the columns say."""
    spans = buckets(asked.start, asked.end, interval, asked.timezone)
    with TemporaryDirectory() as directory:
        for kind in (MemoryReader, Columns):
            with kind([batch(given_rows)], asked, filters=parse_filters({"event": ["buy", "view"]})) as reader:
                if isinstance(reader, Columns):
                    reader.directory = Path(directory)
                yield over_events(reader, definitions, spans, by)


def same(mine: Figures, theirs: Figures) -> bool:
    """But for the order in which numbers were added, and the last bit of a quantile."""
    values = [*mine.values, np.nan if mine.value is None else mine.value]
    others = [*theirs.values, np.nan if theirs.value is None else theirs.value]
    top = max([1.0, *(abs(v) for v in others if np.isfinite(v))])
    near = [
        a == b or abs(a - b) <= 1e-14 * top or (np.isnan(a) and np.isnan(b))
        for a, b in zip(values, others, strict=True)
    ]
    return (mine.metric, mine.labels) == (theirs.metric, theirs.labels) and all(near)


@settings(max_examples=25)
@given(
    rows,
    st.lists(metrics, min_size=1, max_size=3, unique_by=lambda d: d.name),
    st.sampled_from(ZONES),
    st.sampled_from(["minute", "hour", "day", "month"]),
    st.sampled_from([[], ["properties.x"], ["event", "properties.y"]]),
    st.integers(1, 9),
)
def test_columns_say_what_sql_says(
    given_rows: list[dict[str, Any]], asked: list[Definition], zone: str, interval: str, by: list[str], piece: int
) -> None:
    span = TimeRange(CHANGE - timedelta(hours=3, minutes=7), CHANGE + timedelta(hours=4), zone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_order, "PIECE", piece)
        by_sql, by_column = both(given_rows, span, asked, interval, by)
    assert list(by_sql) == [d.name for d in asked]
    for name, figures in by_sql.items():
        found = sorted(by_column[name], key=lambda each: list(each.labels.values()))
        expected = sorted(figures, key=lambda each: list(each.labels.values()))
        assert len(found) == len(expected)
        assert all(map(same, found, expected)), (found, expected)


def event(minute: int, **properties: Any) -> dict[str, Any]:
    return {"event": "buy", "timestamp": CHANGE + timedelta(minutes=minute), "properties": properties}


WHOLE = TimeRange(CHANGE, CHANGE + timedelta(hours=2))


def test_quantiles_lie_between_two_values() -> None:
    given_rows = [event(i // 4, x=x) for i, x in enumerate([4, 1, 3, 2, 10, 10, "9", 30])]
    definition = define(MetricManifest(name="m", aggregate="p90", property="x"))
    for found in both(given_rows, WHOLE, [definition], "minute", []):
        assert found["m"][0].values[:3] == pytest.approx([3.7, 26, np.nan], nan_ok=True)
        assert found["m"][0].value == pytest.approx(18)  # of 1 2 3 4 10 10 30


def test_the_most_frequent_combinations_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given_rows = [event(0, y=f"{i:03}") for i in range(MAX_SERIES + 3) for _ in range(1 + (i == 101))]
    asked = [define(MetricManifest(name=name, event=only)) for name, only in (("bought", "buy"), ("seen", "view"))]
    for found in both(given_rows, WHOLE, asked, "hour", ["properties.y"]):
        total, *shown = found["bought"]
        assert total.value == MAX_SERIES + 4
        expected = ["101", *(f"{i:03}" for i in range(MAX_SERIES - 1))]
        assert [each.labels["properties.y"] for each in shown] == expected
        assert [each.value for each in found["seen"]] == [0] * (MAX_SERIES + 1)
    monkeypatch.setattr(labels, "MOST", MAX_SERIES)
    with pytest.raises(AssertionError, match="SQL was asked"):  # too many to count them one by one
        list(both(given_rows, WHOLE, asked, "hour", ["properties.y"]))


@pytest.mark.parametrize(
    ("keys", "by"),
    [
        ({"aggregate": "unique", "property": "anonymous_id"}, []),
        ({"where": {"user_id": "u1"}}, []),
        ({"property": "user_id"}, []),
        ({}, ["user_id"]),
    ],
)
def test_what_columns_do_not_tell_is_asked_of_sql(keys: dict[str, Any], by: list[str]) -> None:
    definitions = [define(MetricManifest(name="m", **keys)), define(MetricManifest(name="plain"))]
    found = both([event(0)], WHOLE, definitions, "hour", by)
    assert next(found)["plain"][0].value == 1
    with pytest.raises(AssertionError, match="SQL was asked"):
        next(found)


# --- scans -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def view(monkeypatch: pytest.MonkeyPatch) -> View:
    monkeypatch.setattr(user_order, "PIECE", 3)
    some: Iterable[dict[str, Any]] = (event(i % 5) | {"user_id": f"u{i}" if i % 3 else None} for i in range(20))
    with MemoryReader([batch(list(some))]) as reader:
        return view_of(reader.snapshot)


@pytest.mark.parametrize("threads", [1, 2, 50])
def test_a_scan_gives_each_event_once(view: View, threads: int) -> None:
    def places(pieces: Iterable[Events]) -> list[int]:
        return [place for piece in pieces for place in piece.place.tolist()]

    found = view.scan(places, threads)
    assert 1 <= len(found) <= threads
    assert sorted(chain.from_iterable(found)) == list(range(20))
    minute = int(CHANGE.timestamp() * 1_000_000) + 60_000_000
    assert view.quality(minute, minute + 1, threads) == Quality(events=4)


def test_a_scan_ends_when_it_is_told_to(view: View) -> None:
    left = iter(range(3))

    def go_on() -> None:
        if next(left, None) is None:
            raise StoppingError

    with pytest.raises(StoppingError):
        view.scan(list, 2, go_on)


def test_a_budget_is_that_of_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Reader
    with MemoryReader([batch([event(0)])]) as reader:
        now = 0.0
        monkeypatch.setattr("analytics_core.queries.snapshot.time.monotonic", lambda: now)
        go_on = reader.snapshot.budget()
        go_on()
        now = reader.snapshot.limits.seconds + 1
        with pytest.raises(BudgetError):
            go_on()
