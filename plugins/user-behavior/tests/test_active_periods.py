"""Engagement, stickiness and lifecycle against sets of visitors and days."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, time, timedelta
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analytics_core import Answer, TimeRange

Ask = Callable[..., Answer]
Over = Callable[..., AbstractContextManager[Ask]]
Row = dict[str, Any]

LIGHT = settings(deadline=None, phases=[Phase.generate])
"""Each example opens a database, so a failing one is not made smaller: it is small enough."""

ZONE = ZoneInfo("Australia/Lord_Howe")  # clocks go back by half an hour on 6 April 2025
FIRST = date(2025, 3, 24)  # a Monday
DAY = timedelta(days=1)

visits = st.sets(st.tuples(st.sampled_from("abcde"), st.integers(-45, 44)), max_size=60)
"""(visitor, local day from `FIRST`)."""


def midnight(day: int) -> datetime:
    return datetime.combine(FIRST + day * DAY, time(), ZONE).astimezone(UTC)


def event(user: str | None, day: int, name: str = "view", hours: float = 12, **more: Any) -> Row:
    return {"event": name, "user_id": user, "timestamp": midnight(day) + timedelta(hours=hours), **more}


def days(count: int, extra: float = 0) -> TimeRange:
    return TimeRange(midnight(0), midnight(count) + timedelta(hours=extra), ZONE.key)


# --- engagement ------------------------------------------------------------------------------------------------------


@settings(LIGHT, max_examples=10)
@given(visits)
def test_engagement_equals_sets_of_visitors(ask: Ask, active: set[tuple[str, int]]) -> None:
    rows = [event(user, day) for user, day in sorted(active)]
    table = ask(rows, "engagement", days(45), midnight(40)).table.to_pylist()
    assert [row["day"] for row in table] == [FIRST + day * DAY for day in range(45)]
    begun = min((day for user, day in active if any(u == user and d >= -29 for u, d in active)), default=99)
    for day, row in enumerate(table):

        def during(width: int, day: int = day) -> set[str]:
            return {user for user, when in active if day - width < when <= day}

        today = during(1)
        earlier = {user for user, when in active if when < day}
        assert (row["dau"], row["wau"], row["mau"]) == (len(today), len(during(7)), len(during(30)))
        assert (row["new"], row["returning"]) == (len(today - earlier), len(today & earlier))
        assert row["stickiness"] == (len(today) / len(during(30)) if during(30) else None)
        assert row["days_covered"] == min(max(day + 1 - begun, 0), 30)
        assert row["complete"] == (day < 40)


def test_engagement_counts_the_events_that_are_meant(ask: Ask) -> None:
    rows = [
        event("a", 0),
        event("a", 0, "buy"),
        event("b", 0),
        event(None, 0, "buy", session_id="s"),
        event("b", 1, "buy"),
    ]
    table = ask(rows, "engagement", days(2), event="buy").table.to_pylist()
    assert [(row["dau"], row["mau"], row["new"], row["returning"]) for row in table] == [(1, 1, 1, 0), (1, 2, 0, 1)]


def test_a_range_that_begins_at_noon_has_the_whole_first_day(ask: Ask) -> None:
    noon = TimeRange(midnight(0) + timedelta(hours=12), midnight(1), ZONE.key)
    assert ask([event("a", 0, hours=3)], "engagement", noon).table["dau"].to_pylist() == [1]


def test_engagement_tells_stickiness_of_whole_months_only(ask: Ask) -> None:
    short = ask([event("a", 0), event("a", 1), event("b", 1)], "engagement", days(4))
    assert [insight.key for insight in short.insights] == ["visits"]
    long = ask([event("a", day) for day in range(40)], "engagement", days(40), midnight(40))
    told = {insight.key: insight.data for insight in long.insights}
    assert told["stickiness"] == {"stickiness": 1.0, "days": 11}
    assert told["visits"] == {"visitors": 1, "visitor_days": 40, "days": 40}


# --- lifecycle -------------------------------------------------------------------------------------------------------


def week_of(day: int) -> int:
    return day // 7


@settings(LIGHT, max_examples=10)
@given(visits)
def test_lifecycle_equals_sets_of_visitors(over: Over, active: set[tuple[str, int]]) -> None:
    rows = [event(user, day, "buy" if day % 3 else "view") for user, day in sorted(active)]
    with over(rows, days(21), midnight(16)) as ask:
        for period, meant in product(("day", "week"), ("view", "buy")):
            table = ask("lifecycle", period=period, event=meant).table.to_pylist()
            check_lifecycle(table, active, period, meant)


def check_lifecycle(table: list[Row], active: set[tuple[str, int]], period: str, meant: str) -> None:
    def of(day: int) -> int:
        return week_of(day) if period == "week" else day

    there = {
        span: {user for user, day in active if of(day) == span and day < 21 and ("buy" if day % 3 else "view") == meant}
        for span in range(-1, of(20) + 1)
    }
    first = {user: of(min(day for other, day in active if other == user)) for user, _ in active}
    for span, row in enumerate(table):
        now, before = there[span], there[span - 1]
        new = {user for user in now if first[user] == span}
        assert row["active"] == len(now)
        assert row["new"] == len(new)
        assert row["returning"] == len(now & before)
        assert row["resurrecting"] == len(now - before - new)
        over = midnight((span + 1) * (7 if period == "week" else 1)) <= midnight(16)
        assert row["complete"] == over
        assert row["dormant"] == (len(before - now) if over else None)
    assert table[0]["begins"] == FIRST
    assert len(table) == of(20) + 1


def test_more_who_go_than_come_are_told_with_advice(ask: Ask) -> None:
    rows = [event(f"u{n}", -3) for n in range(150)] + [event(f"u{n}", 1) for n in range(30)]
    answer = ask(rows, "lifecycle", days(14), midnight(14), period="week")
    counts = {"new": 0, "resurrecting": 0, "dormant": 150, "net": -150, "periods": 2}
    assert answer.insights[0].data == counts | {"since": FIRST.isoformat(), "p_value": pytest.approx(0, abs=1e-9)}
    assert answer.recommendations[0].insight == answer.insights[0].key
    assert not ask(rows[:50], "lifecycle", days(14), midnight(14), period="week").insights


def test_a_balance_that_may_be_chance_is_not_told(ask: Ask) -> None:
    rows = [event(f"old{n}", -3) for n in range(60)] + [event(f"new{n}", 1) for n in range(100)]
    (found,) = ask(rows, "lifecycle", days(7), midnight(7), period="week").insights
    assert (found.title, found.data["net"]) == ("The active visitors grew by 40", 40)
    assert not ask(rows[:130], "lifecycle", days(7), midnight(7), period="week").insights


def test_the_balance_of_days_is_that_of_whole_weeks(ask: Ask) -> None:
    """A hundred visitors on Saturdays and Sundays: from a Monday to a Friday they are gone twice and come once."""
    rows = [event(f"u{n}", day) for n in range(100) for day in range(-2, 12) if (FIRST + day * DAY).weekday() >= 5]
    answer = ask(rows, "lifecycle", days(12), midnight(12), period="day")
    assert sum(row["dormant"] for row in answer.table.to_pylist()) == 200
    assert not answer.insights


def test_the_begin_of_history_is_no_growth(ask: Ask) -> None:
    assert not ask([event(f"u{n}", 1) for n in range(150)], "lifecycle", days(7), midnight(7), period="week").insights


# --- stickiness ------------------------------------------------------------------------------------------------------


@settings(LIGHT, max_examples=10)
@given(visits)
def test_stickiness_counts_days_of_weeks(over: Over, active: set[tuple[str, int]]) -> None:
    rows = [event(user, day, hours=hour) for user, day in sorted(active) for hour in (1, 23)]
    with over(rows, days(17), midnight(15)) as ask:
        for week_start in ("monday", "sunday", "thursday"):
            check_stickiness(ask("stickiness", weekStart=week_start).table.to_pylist(), active, week_start)


def check_stickiness(table: list[Row], active: set[tuple[str, int]], week_start: str) -> None:
    begin = FIRST - {"monday": 0, "sunday": 1, "thursday": 4}[week_start] * DAY
    weeks = sorted({row["begins"] for row in table})
    assert weeks == [begin + 7 * n * DAY for n in range(len(weeks))]
    assert [row["days"] for row in table] == [1, 2, 3, 4, 5, 6, 7] * len(weeks)
    for row in table:
        first = (row["begins"] - FIRST).days
        counts = [
            len({day for other, day in active if other == user and first <= day < min(first + 7, 17)})
            for user in "abcde"
        ]
        exactly, at_least = counts.count(row["days"]), sum(count >= row["days"] for count in counts)
        everybody = sum(count > 0 for count in counts)
        assert (row["users"], row["users_at_least"]) == (exactly, at_least)
        assert row["share"] == (exactly / everybody if everybody else None)
        assert row["share_at_least"] == (at_least / everybody if everybody else None)
        assert row["complete"] == (first + 7 <= 15)


def test_months_have_as_many_rows_as_days(ask: Ask) -> None:
    asked = TimeRange(datetime(2025, 2, 10, tzinfo=UTC), datetime(2025, 3, 10, tzinfo=UTC))
    rows = [
        {"event": "a", "user_id": f"u{n}", "timestamp": datetime(2025, 2, 1 + n % 3, tzinfo=UTC)} for n in range(120)
    ]
    answer = ask(rows, "stickiness", asked, asked.end, period="month")
    assert [row["days"] for row in answer.table.to_pylist()] == [*range(1, 29), *range(1, 32)]
    assert answer.insights[0].data == {"mean_days": 1.0, "users": 120, "one_day": 120, "periods": 1}
