"""Live windows give the figures that counting event by event gives, whatever the batches are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.events import MINUTE, EventBatch, micros
from analytics_core.lanes.live_metrics import Change
from analytics_core.manifest import MetricManifest
from analytics_core.metrics import live
from analytics_core.metrics.definition import Definition, define
from analytics_core.metrics.filters import Field, Filter
from analytics_core.metrics.live import LiveWindows
from analytics_core.sketches import HistogramSketch
from analytics_core.testing import START, batch

Row = dict[str, Any]
LABELS = 3
KEEP = 3


def x(row: Row) -> Any:
    return row["properties"].get("x")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower()


def person(row: Row) -> str | None:
    return row["user_id"] or row["anonymous_id"]


@dataclass
class Metric:
    """A definition, and in plain Python which events it counts, what of them, and by what it splits them."""

    keys: dict[str, Any]
    takes: Callable[[Row], bool] = lambda row: True
    value: Callable[[Row], Any] = lambda row: True
    labels: tuple[tuple[str, Callable[[Row], Any]], ...] = ()


def number(row: Row) -> float | None:
    return x(row) if is_number(x(row)) else None


METRICS = {
    "all": Metric({}),
    "a": Metric({"event": "a"}, lambda r: r["event"] == "a"),
    "a twice": Metric({"events": ("a", "b", "a")}, lambda r: r["event"] in "ab"),
    "absent": Metric({"event": "never"}, lambda r: False),
    "one": Metric({"where": {"properties.x": 1}}, lambda r: is_number(x(r)) and x(r) == 1),
    "one by session": Metric(
        {"where": {"properties.x": 1}, "breakdown": ("session_id",)},
        lambda r: is_number(x(r)) and x(r) == 1,
        labels=(("session_id", lambda r: r["session_id"]),),
    ),
    "true": Metric({"where": {"properties.x": True}}, lambda r: x(r) is True),
    "text": Metric({"event": "a", "where": {"properties.x": "1"}}, lambda r: r["event"] == "a" and x(r) == "1"),
    "two": Metric(
        {"where": {"event": ["a", "c"], "properties.x": {">": 1}}},
        lambda r: r["event"] in "ac" and is_number(x(r)) and x(r) > 1,
    ),
    "unknown": Metric({"aggregate": "unique", "where": {"user_id": None}}, lambda r: r["user_id"] is None, person),
    "people": Metric({"aggregate": "unique", "property": "user_id"}, value=person),
    "sessions": Metric({"aggregate": "unique", "property": "session_id"}, value=lambda r: r["session_id"]),
    "names": Metric(
        {"aggregate": "unique", "property": "event", "events": ("a", "b")},
        lambda r: r["event"] in "ab",
        lambda r: r["event"],
    ),
    "kinds": Metric(
        {"aggregate": "unique", "property": "x", "event": "b"}, lambda r: r["event"] == "b", lambda r: text(x(r))
    ),
    "given": Metric({"property": "x"}, value=x),
    "sum": Metric({"aggregate": "sum", "property": "x", "event": "a"}, lambda r: r["event"] == "a", number),
    "avg": Metric({"aggregate": "avg", "property": "x"}, value=number),
    "min": Metric({"aggregate": "min", "property": "x", "event": "c"}, lambda r: r["event"] == "c", number),
    "max": Metric({"aggregate": "max", "property": "x"}, value=number),
    "p75": Metric({"aggregate": "p75", "property": "x"}, value=number),
    "by x": Metric({"breakdown": ("x",)}, labels=(("x", x),)),
    "sum by": Metric(
        {"aggregate": "sum", "property": "x", "breakdown": ("session_id", "event")},
        value=number,
        labels=(("session_id", lambda r: r["session_id"]), ("event", lambda r: r["event"])),
    ),
    "people by": Metric(
        {"aggregate": "unique", "events": ("a", "b"), "breakdown": ("session_id",)},
        lambda r: r["event"] in "ab",
        person,
        (("session_id", lambda r: r["session_id"]),),
    ),
}
DEFINITIONS = [define(MetricManifest(**{"name": name, **metric.keys})) for name, metric in METRICS.items()]


def figure(aggregate: str, values: list[Any]) -> float:
    if aggregate == "p75":
        sketch = HistogramSketch()
        sketch.add(values)
        return sketch.quantile(0.75)
    of: dict[str, Callable[[list[Any]], float]] = {
        "count": len,
        "unique": lambda found: len(set(found)),
        "sum": sum,
        "avg": lambda found: sum(found) / len(found),
        "min": min,
        "max": max,
    }
    return float(of[aggregate](values))


@dataclass
class Plain:
    """The same windows, one event after the other; what they hold is every value by tenant, minute, metric, labels."""

    since: int
    clock: int = 0
    held: dict[tuple[str, int, str, tuple[tuple[str, str], ...]], list[Any]] = field(default_factory=dict)
    told: dict[Any, float] = field(default_factory=dict)

    @property
    def oldest(self) -> int:
        return self.clock // MINUTE * MINUTE - (KEEP - 1) * MINUTE

    def add(self, tenant: str, rows: list[Row], now: int) -> None:
        self.clock = max(self.clock, now)
        self.held = {key: values for key, values in self.held.items() if key[1] >= self.oldest}
        by_minute: dict[int, list[Row]] = {}
        for row in rows:
            at = micros(row["timestamp"])
            if max(self.since, self.oldest) <= at < self.clock + KEEP * MINUTE:
                by_minute.setdefault(at // MINUTE * MINUTE, []).append(row)
        for minute, inside in by_minute.items():
            for row in (row for row in inside if row["event"] not in METRICS):
                self.held.setdefault((tenant, minute, row["event"], ()), []).append(True)
            for name, metric in METRICS.items():
                self.fold(tenant, minute, name, metric, [row for row in inside if metric.takes(row)])

    def fold(self, tenant: str, minute: int, name: str, metric: Metric, rows: list[Row]) -> None:
        groups: dict[tuple[tuple[str, str], ...], list[Any]] = {(): [metric.value(row) for row in rows]}
        for row in rows if metric.labels else ():
            groups.setdefault(tuple((n, text(of(row)) or "") for n, of in metric.labels), []).append(metric.value(row))
        for labels, values in groups.items():
            present = [value for value in values if value is not None]
            key = (tenant, minute, name, labels)
            full = sum(k[:3] == key[:3] for k in self.held) > LABELS
            if present and (key in self.held or not full):
                self.held.setdefault(key, []).extend(present)

    def changes(self) -> list[Change]:
        found = []
        for key, values in self.held.items():
            tenant, minute, name, labels = key
            value = figure(METRICS[name].keys.get("aggregate", "count") if name in METRICS else "count", values)
            if self.told.get(key) != value:
                self.told[key] = value
                found.append(Change(tenant, name, dict(labels), minute, MINUTE, value))
        return found


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from("abcd"),
            "user_id": st.sampled_from([None, "u1", "u2", "user-11"]),
            "anonymous_id": st.sampled_from([None, "a1", "u1"]),
            "session_id": st.sampled_from([None, "s1", "s2", "s3", "s4"]),
            "properties": st.sampled_from([{}, *({"x": v} for v in (1, True, False, "1", "true", 1.5, -2, None, 7))]),
            "timestamp": st.sampled_from([-150, -61, 0, 1, 1, 1, 2, 59, 60, 125, 179, 180]),
        }
    ),
    max_size=12,
)
STEPS = st.lists(st.tuples(st.sampled_from(["acme", "globex"]), ROWS, st.integers(-30, 100), st.booleans()), max_size=8)


def order(change: Change) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    return change.start, change.metric, tuple(change.labels.items())


@settings(deadline=None, max_examples=80)
@given(STEPS, st.integers(-3, 2))
def test_figures_are_those_of_counting_one_event_after_the_other(
    steps: list[tuple[str, list[Row], int, bool]], since: int
) -> None:
    begin = START + timedelta(minutes=since)
    windows, plain = LiveWindows(DEFINITIONS, keep=KEEP), Plain(micros(begin))
    windows.begin(begin)
    now = START
    with mock.patch.object(live, "MAX_LABELS", LABELS):
        for tenant, drawn, passed, asked in steps:
            now += timedelta(seconds=passed)
            rows = [{**row, "timestamp": now + timedelta(seconds=row["timestamp"])} for row in drawn]
            windows.add(batch(rows, tenant, watermark=now) if rows else EventBatch.empty(tenant, now))
            plain.add(tenant, rows, micros(now))
            if asked:
                found, expected = list(windows.changes()), plain.changes()
                for one in ("acme", "globex"):
                    mine = [change for change in found if change.tenant == one]
                    assert mine == sorted((change for change in expected if change.tenant == one), key=order)
    assert windows.problem == ""


def test_a_metric_that_fails_costs_none_of_those_that_count_the_same_events() -> None:
    chosen = (Filter(Field("name"), "=", "a"),)
    held = LiveWindows(
        [
            Definition("before", "unique", ("a",), where=chosen),
            Definition("broken", "sum", ("a",), value=Field("user_id"), where=chosen),  # no manifest can say so
            Definition("after", "unique", ("a",), where=chosen),
        ]
    )
    held.add(batch([{"event": "b", "user_id": "u1"}, {"event": "b"}]))
    assert held.problem == ""
    held.add(batch([{"event": "a", "user_id": "u1"}, {"event": "b"}]))
    assert {c.metric: c.value for c in held.changes()} == {"before": 1, "after": 1, "a": 1, "b": 3}
    assert held.problem.startswith("metric 'broken' cannot be counted (")


def test_labels_beyond_the_most_count_in_the_total_alone() -> None:
    held = LiveWindows([define(MetricManifest(name="m", aggregate="sum", property="x", breakdown=("user_id",)))])
    for first in (0, 60):
        rows = [{"event": "a", "user_id": f"u{n}", "properties": {"x": 1}} for n in range(first, first + 70)]
        held.add(batch([{**row, "timestamp": START} for row in rows]))
    found = {tuple(c.labels.values()): c.value for c in held.changes() if c.metric == "m"}
    expected = {(f"u{n}",): 2.0 if 60 <= n < 70 else 1.0 for n in range(live.MAX_LABELS)}
    assert found == {(): 140.0, **expected}


@pytest.mark.parametrize("top", [1, 2, 3])
def test_of_names_that_are_as_frequent_the_first_are_shown(top: int) -> None:
    held = LiveWindows([], top_names=top)
    held.add(batch([{"event": name, "timestamp": START} for name in "cabab"]))
    assert [c.metric for c in held.changes()] == sorted("abc"[:top])
