"""Frequency and breakdown against counting by hand."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analytics_core import Answer, ParameterError, TimeRange
from analytics_user_behavior.counts import quantile, quantiles
from analytics_user_behavior.frequency import QUANTILES

Ask = Callable[..., Answer]
Over = Callable[..., AbstractContextManager[Ask]]
Row = dict[str, Any]

LIGHT = settings(deadline=None, phases=[Phase.generate])
"""Each example opens a database, so a failing one is not made smaller: it is small enough."""

START = datetime(2025, 3, 7, 18, 30, tzinfo=UTC)  # midnight in Kolkata
RANGE = TimeRange(START, START + timedelta(days=5), "Asia/Kolkata")
HALF_HOUR = timedelta(minutes=30)

rows_of_few = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(["view", "buy"]),
            "user_id": st.sampled_from(["u1", "u2", "u3", None]),
            "anonymous_id": st.sampled_from(["a1", None]),
            "session_id": st.sampled_from(["s1", "s2", None]),
            "timestamp": st.integers(-10, 260).map(lambda n: START + n * HALF_HOUR),
            "properties": st.sampled_from(
                [{}, {"plan": "pro"}, {"plan": "free"}, {"plan": None}, {"plan": 3}, {"plan": "(none)"}, {"plan": ""}]
            ),
        }
    ),
    max_size=40,
)


def person(row: Row) -> str | None:
    return row["user_id"] or row["anonymous_id"]


def in_range(rows: list[Row], name: str | None) -> list[Row]:
    kept = [row for row in rows if RANGE.start <= row["timestamp"] < RANGE.end and name in (None, row["event"])]
    return sorted(kept, key=lambda row: row["timestamp"])


# --- frequency -------------------------------------------------------------------------------------------------------


def counts_of(rows: list[Row], counted: str) -> list[int]:
    mine = defaultdict(list)
    for row in rows:
        if person(row):
            mine[person(row)].append(row)
    if counted == "events":
        return [len(own) for own in mine.values()]
    if counted == "days":
        return [
            len({row["timestamp"].astimezone(ZoneInfo(RANGE.timezone)).date() for row in own}) for own in mine.values()
        ]
    found = []
    for own in mine.values():
        named = {row["session_id"] for row in own if row["session_id"]}
        unnamed = [row["timestamp"] for row in own if not row["session_id"]]
        gaps = sum(b - a > HALF_HOUR for a, b in pairwise(unnamed))
        found.append(len(named) + gaps + bool(unnamed))
    return found


@settings(LIGHT, max_examples=10)
@given(rows_of_few)
def test_frequency_is_counting_each_visitor(over: Over, rows: list[Row]) -> None:
    with over(rows, RANGE) as ask:
        for counted, name in product(("events", "sessions", "days"), (None, "buy")):
            given_ = {"event": name} if name else {}
            table = ask("frequency", count=counted, **given_).table.to_pylist()
            check_frequency(table, counts_of(in_range(rows, name), counted))


def check_frequency(table: list[Row], counts: list[int]) -> None:
    assert sum(row["users"] for row in table) == len(counts)
    last = 0
    for row in table:
        assert row["at_least"] == last + 1
        last = row["at_most"]
        inside = [count for count in counts if row["at_least"] <= count <= row["at_most"]]
        assert (row["users"], row["total"]) == (len(inside), sum(inside))
        assert row["share"] == len(inside) / len(counts)
        assert row["share_up_to"] == sum(count <= last for count in counts) / len(counts)
        assert row["share_of_total"] == sum(inside) / sum(counts)
    if counts:
        assert table[-1]["at_least"] <= max(counts) <= table[-1]["at_most"]


@settings(LIGHT, max_examples=5)
@given(st.lists(st.integers(1, 230), min_size=20, max_size=25))
def test_bins_widen_and_quantiles_are_counts(ask: Ask, counts: list[int]) -> None:
    rows = [
        {"event": "a", "user_id": f"u{user}", "timestamp": START}
        for user, count in enumerate(counts)
        for _ in range(count)
    ]
    answer = ask(rows, "frequency", RANGE)
    bins = [(row["at_least"], row["at_most"]) for row in answer.table.to_pylist()]
    assert bins == [
        *((n, n) for n in range(1, 6)), (6, 10), (11, 20), (21, 50), (51, 100), (101, 200), (201, 500)
    ][: len(bins)]  # fmt: skip
    data = answer.insights[0].data
    for q in QUANTILES:
        assert data[f"p{q * 100:.0f}"] == sorted(counts)[math.ceil(q * len(counts) - 1e-9) - 1]
    assert (data["mean"], data["max"]) == (sum(counts) / len(counts), max(counts))


def test_a_session_of_nobody_is_no_visitor(ask: Ask) -> None:
    rows = [{"event": "a", "timestamp": START, "session_id": "s"}, {"event": "a", "timestamp": START, "user_id": "u"}]
    for counted in ("events", "sessions", "days"):
        assert ask(rows, "frequency", RANGE, count=counted).table["users"].to_pylist() == [1]


def test_frequency_of_nothing(ask: Ask) -> None:
    answer = ask([], "frequency", RANGE)
    assert answer.table.to_pylist() == []
    assert not answer.insights


# --- breakdown -------------------------------------------------------------------------------------------------------


def text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


@settings(LIGHT, max_examples=6)
@given(rows_of_few)
def test_breakdown_is_counting_each_value(over: Over, rows: list[Row]) -> None:
    with over(rows, RANGE) as ask:
        for (by, limit), name in product((("properties.plan", 3), ("event", 1), ("userId", 2)), (None, "buy")):
            given_ = {"event": [name, "no such name"]} if name else {}
            table = ask("breakdown", by=by, limit=limit, **given_).table.to_pylist()
            check_breakdown(table, in_range(rows, name), by, limit)


def check_breakdown(table: list[Row], kept: list[Row], by: str, limit: int) -> None:
    def value_of(row: Row) -> str | None:
        if by.startswith("properties"):
            return text(row["properties"].get("plan"))
        return row["event"] if by == "event" else row["user_id"]

    counted = Counter(map(value_of, kept))
    ranked = sorted((item for item in counted.items() if item[0] is not None), key=lambda item: (-item[1], item[0]))
    groups = [("value", value, {value}) for value, _ in ranked[:limit]]
    if ranked[limit:]:
        groups.append(("other", "(other)", {value for value, _ in ranked[limit:]}))
    if None in counted:
        groups.append(("none", "(none)", {None}))
    everybody = {person(row) for row in kept} - {None}
    expected = []
    for kind, shown, values in groups:
        own = [row for row in kept if value_of(row) in values]
        users = len({person(row) for row in own} - {None})
        share = users / len(everybody) if everybody else None
        expected.append((kind, shown, len(own), len(own) / len(kept), users, share))
    names = ("kind", "value", "events", "share", "users", "share_of_users")
    assert [tuple(row[name] for name in names) for row in table] == expected


def test_any_scalar_is_text_and_paths_lead_into_objects(ask: Ask) -> None:
    rows = [
        {"event": "a", "properties": {"x": {"y": value}, "a/b": "~"}, "timestamp": START}
        for value in (True, 1.5, "1.5", [1], None)
    ]
    table = ask(rows, "breakdown", RANGE, by="properties.x.y").table.to_pylist()
    assert {row["value"]: row["events"] for row in table} == {"1.5": 2, "true": 1, "[1]": 1, "(none)": 1}
    assert [row["users"] for row in table] == [0, 0, 0, 0]
    assert [row["share_of_users"] for row in table] == [None] * 4
    assert ask(rows, "breakdown", RANGE, by="properties.a/b").table["value"].to_pylist() == ["~"]


def test_a_property_that_most_events_lack_is_told_with_advice(ask: Ask) -> None:
    rows = [
        {"event": "a", "user_id": "u", "timestamp": START, "properties": {"x": 1} if n < 30 else {}} for n in range(120)
    ]
    answer = ask(rows, "breakdown", RANGE, by="properties.x")
    assert [insight.key for insight in answer.insights] == ["top", "absent"]
    assert answer.insights[1].data == {"by": "properties.x", "events": 90, "share": 0.75}
    assert answer.recommendations[0].insight == "absent"
    assert not ask(rows[:50], "breakdown", RANGE, by="properties.x").insights


@pytest.mark.parametrize(
    ("by", "problem"),
    [
        ("properties.", "valid are properties.x, context.x, event"),
        ("properties..x", "valid are properties.x, context.x, event"),
        ("timestamp", "'timestamp' cannot be asked for here"),
        ("plan", "valid are properties.plan, context.x, event"),
    ],
)
def test_what_is_no_field_is_refused(ask: Ask, by: str, problem: str) -> None:
    for analysis, asked in (("breakdown", {"by": by}), ("patterns", {"kind": "repeats", "breakdown": by})):
        with pytest.raises(ParameterError, match=re.escape(problem)) as raised:
            ask([], analysis, RANGE, **asked)
        assert raised.value.parameter == list(asked)[-1]


def test_a_finding_says_which_events_count(ask: Ask) -> None:
    rows = [{"event": "buy", "user_id": f"u{n}", "timestamp": RANGE.start + timedelta(hours=1)} for n in range(120)]
    (told,) = ask(rows, "frequency", RANGE, event="buy").insights
    assert told.title == "Half of the visitors with buy have 1 such events or fewer"
    assert ask(rows, "engagement", RANGE, event="buy").insights[0].title == "A visitor with buy was active on 1.0 days"


# --- quantiles -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_a_selected_quantile_is_the_sorted_one(values: list[int], zeros: int, wanted: float) -> None:
    size = len(values) + zeros
    if size:
        given_values, all_values = np.array(values, np.int64), np.array([*values, *[0] * zeros])
        by_group = quantiles(given_values, np.zeros(len(values), np.int64), np.array([size]), (wanted,))[0, 0]
        assert quantile(given_values, size, wanted) == pytest.approx(by_group)
        assert by_group == pytest.approx(np.quantile(all_values, wanted))
