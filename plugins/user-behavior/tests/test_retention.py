"""Retention against its definition, visitor by visitor."""

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

from analytics_core import Answer, ParameterError, TimeRange

Ask = Callable[..., Answer]
Over = Callable[..., AbstractContextManager[Ask]]
Row = dict[str, Any]

LIGHT = settings(deadline=None, phases=[Phase.generate])
"""Each example opens a database, so a failing one is not made smaller: it is small enough."""

BASE = datetime(2025, 3, 27, 20, tzinfo=UTC)
"""Soon the clocks change in Berlin (30 March), then at Lord Howe (6 April); New York has just done so."""
HALF_HOUR = timedelta(minutes=30)
DAY = timedelta(days=1)
PERIODS = {"day": 1, "week": 7, "month": 31}

rows_of_few = st.lists(
    st.builds(
        lambda user, half_hours, name: {"user_id": user, "event": name, "timestamp": BASE + half_hours * HALF_HOUR},
        st.sampled_from(["u1", "u2", "u3"]),
        st.integers(-480, 1200),
        st.sampled_from(["signup", "view"]),
    ),
    max_size=30,
)


def begin(at: datetime, zone: ZoneInfo, period: str) -> date:
    day = at.astimezone(zone).date()
    if period == "month":
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if period == "week" else day


def naive(rows: list[Row], asked: TimeRange, now: datetime, given: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(cohort, period, users, returned, complete) of each cohort."""
    zone, period = ZoneInfo(asked.timezone), given["period"]
    days = [begin(asked.start, zone, period)]
    while days[-1] <= begin(asked.end - HALF_HOUR, zone, period):
        days.append(begin(datetime.combine(days[-1], time(12), zone) + PERIODS[period] * DAY,
                          zone, period))  # fmt: skip
    spans, ends = days[:-1], [datetime.combine(day, time(), zone).astimezone(UTC) for day in days[1:]]
    started: dict[str, list[int]] = {}
    there: dict[str, set[int]] = {}
    for user in {row["user_id"] for row in rows}:
        mine = sorted(
            (row for row in rows if row["user_id"] == user and row["timestamp"] < asked.end),
            key=lambda row: row["timestamp"],
        )
        begins = [
            begin(row["timestamp"], zone, period) for row in mine if row["event"] == given.get("start", row["event"])
        ]
        wanted = begins[:1] if given["cohorts"] == "first-time" else sorted(set(begins))
        started[user] = [spans.index(day) for day in wanted if day in spans]
        returns = {begin(row["timestamp"], zone, period) for row in mine
                   if row["event"] == given.get("return", row["event"])}  # fmt: skip
        there[user] = {spans.index(day) for day in returns if day in spans}
    found = []
    for c, cohort in enumerate(spans):
        users = [user for user in started if c in started[user]]
        for k in range(min(given["periods"] + 1, len(spans) - c)):
            if given["kind"] == "on":
                back = [user for user in users if k == 0 or c + k in there[user]]
            else:
                back = [user for user in users if k == 0 or any(p >= c + k for p in there[user])]
            found.append((cohort, k, len(users), len(back), ends[c + k] <= min(asked.end, now)))
    return found


@settings(LIGHT, max_examples=12)
@given(
    rows_of_few,
    st.integers(0, 60),
    st.integers(1, 1000),
    st.integers(0, 1100),
    st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"]),
    st.fixed_dictionaries(
        {"periods": st.integers(1, 6)}, optional={"start": st.just("signup"), "return": st.just("view")}
    ),
)
def test_retention_is_that_of_its_definition(
    over: Over, rows: list[Row], first: int, length: int, now: int, zone: str, more: dict[str, Any]
) -> None:
    start = BASE + first * HALF_HOUR
    asked = TimeRange(start, start + length * HALF_HOUR, zone)
    watermark = BASE + now * HALF_HOUR
    with over(rows, asked, watermark) as ask:
        for period, cohorts, kind in product(PERIODS, ("first-time", "recurring"), ("on", "on-or-after")):
            given_ = {"period": period, "cohorts": cohorts, "kind": kind, **more}
            check(ask("retention", **given_).table.to_pylist(), naive(rows, asked, watermark, given_))


def check(table: list[Row], expected: list[tuple[Any, ...]]) -> None:
    cohorts = [row for row in table if row["cohort"] is not None]
    names = ("cohort", "period", "users", "returned", "complete")
    assert [tuple(row[name] for name in names) for row in cohorts] == expected
    for row in cohorts:
        known = row["complete"] and row["users"]
        assert row["retention"] == (row["returned"] / row["users"] if known else None)
    for row in [row for row in table if row["cohort"] is None]:
        whole = [each for each in cohorts if each["period"] == row["period"] and each["complete"]]
        users, returned = (sum(each[name] for each in whole) for name in ("users", "returned"))
        assert (row["users"], row["returned"], row["complete"]) == (users, returned, bool(whole))
        assert row["retention"] == (returned / users if users else None)


# --- by hand ---------------------------------------------------------------------------------------------------------

START = datetime(2025, 1, 6, tzinfo=UTC)
WEEKS = TimeRange(START, START + timedelta(days=28))


def event(user: str | None, day: float, name: str = "view", **more: Any) -> Row:
    return {"event": name, "user_id": user, "timestamp": START + timedelta(days=day), **more}


def curve(answer: Answer, cohort: date | None) -> list[Any]:
    return [row["retention"] for row in answer.table.to_pylist() if row["cohort"] == cohort]


def test_cohorts_by_hand(ask: Ask) -> None:
    rows = [
        *(event("a", day) for day in (0, 8, 22)),
        *(event("b", day) for day in (1, 15)),
        *(event("c", day) for day in (-3, 9)),  # was there before: of no cohort
        event(None, 2, session_id="s"),  # a session of nobody
    ]
    answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=3)
    assert curve(answer, START.date()) == [1, 0.5, 0.5, 0.5]
    assert curve(answer, START.date() + 7 * DAY) == [None, None, None]
    assert curve(answer, None) == [1, 0.5, 0.5, 0.5]
    assert answer.chart is not None
    assert answer.chart.kind == "heatmap"
    later = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=3, kind="on-or-after")
    assert curve(later, START.date()) == [1, 1, 1, 0.5]


def test_the_first_start_is_sought_in_all_of_history(ask: Ask) -> None:
    rows = [event("a", -300, "signup"), event("a", 1, "signup"), event("b", -300), event("b", 1, "signup")]
    answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1, start="signup")
    assert answer.table.to_pylist()[2]["users"] == 1


def test_conditions_on_start_and_return(ask: Ask) -> None:
    rows = [
        *(event(user, 0, "signup", properties={"plan": plan}) for user, plan in (("a", "pro"), ("b", "free"))),
        *(event(user, 8, "buy", properties={"sum": total}) for user, total in (("a", 5), ("b", 50))),
    ]
    pro = {"event": "signup", "where": {"properties.plan": "pro"}}
    much = {"event": "buy", "where": [{"field": "properties.sum", "op": ">", "value": 10}]}
    for given_, expected in (
        ({"start": pro}, [1, 1]),
        ({"start": pro, "return": much}, [1, 0]),
        ({"return": much}, [1, 0.5]),
        ({"start": "nothing of that name"}, [None, None]),
    ):
        answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1, **given_)
        assert curve(answer, START.date()) == expected


def test_what_is_not_over_is_no_rate(ask: Ask) -> None:
    rows = [event("a", 0), event("a", 8)]
    answer = ask(rows, "retention", WEEKS, START + 8 * DAY, period="week", periods=2)
    first = answer.table.to_pylist()[3:6]
    assert [row["returned"] for row in first] == [1, 1, 0]
    assert [row["retention"] for row in first] == [1, None, None]
    assert [row["complete"] for row in first] == [True, False, False]


def test_no_events_at_all(ask: Ask) -> None:
    answer = ask([], "retention", WEEKS, WEEKS.end)
    assert {row["users"] for row in answer.table.to_pylist()} == {0}
    assert not answer.insights


def test_too_many_periods_are_refused(ask: Ask) -> None:
    decades = TimeRange(datetime(2000, 1, 1, tzinfo=UTC), START)
    with pytest.raises(ParameterError, match="more than 1000; narrow timeRange"):
        ask([event("a", 0)], "retention", decades)
    assert ask([event("a", -30)], "retention", decades, START, period="month").table["users"][0].as_py() == 1


def crowd(first: int, users: int, returned: int) -> list[Row]:
    begun = [event(f"{first}-{user}", first) for user in range(users)]
    return begun + [event(f"{first}-{user}", first + 7) for user in range(returned)]


def test_a_fall_by_more_than_chance_is_told_with_advice(ask: Ask) -> None:
    rows = [event("old", -28), event("old", 20), *crowd(0, 120, 60), *crowd(14, 120, 20)]
    answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1)
    told = {insight.key: insight for insight in answer.insights}
    assert told["return"].data["users"] == 240
    assert told["return"].data["returned"] == 80
    assert (told["return-change"].data["before"], told["return-change"].data["after"]) == (0.5, 20 / 120)
    assert told["return-change"].data["since"] == (START + 14 * DAY).date().isoformat()
    assert [advice.insight for advice in answer.recommendations] == ["return-change"]


def test_the_begin_of_history_is_no_fall(ask: Ask) -> None:
    """Who is first seen in the first weeks may be an old visitor; with a start event the first one is what it says."""
    rows = [event("old", -27), event("old", 20), *crowd(0, 120, 60), *crowd(14, 120, 20)]
    answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1)
    assert [insight.key for insight in answer.insights] == ["return"]
    begun = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1, start=rows[0]["event"])
    assert [insight.key for insight in begun.insights] == ["return", "return-change"]


def test_wrong_filters_are_named_where_they_stand(ask: Ask) -> None:
    with pytest.raises(ParameterError, match=r"start\.where\.plan.*properties\.plan"):
        ask([event("a", 0)], "retention", WEEKS, start={"where": {"plan": 1}})


def test_of_recurring_cohorts_it_is_said_that_a_visitor_counts_in_several(ask: Ask) -> None:
    answer = ask(crowd(0, 120, 60), "retention", WEEKS, WEEKS.end, period="week", periods=1, cohorts="recurring")
    assert "Of 180 visitors, each counted in every cohort that it is of, in 2 cohorts" in answer.insights[0].description


def test_an_insight_names_the_filters_that_were_asked_with(ask: Ask) -> None:
    where = {"properties.plan": {"exists": False}}
    answer = ask(crowd(0, 120, 60), "retention", WEEKS, WEEKS.end, period="week", periods=1, start={"where": where})
    assert 'began with any event where {"properties.plan": {"exists": false}}, 60' in answer.insights[0].description


@pytest.mark.parametrize(("users", "returned", "keys"), [(120, 56, ["return"]), (20, 2, ["return"])])
def test_chance_and_few_visitors_are_no_change(ask: Ask, users: int, returned: int, keys: list[str]) -> None:
    rows = [event("old", -28), event("old", 20), *crowd(0, 120, 60), *crowd(14, users, returned)]
    answer = ask(rows, "retention", WEEKS, WEEKS.end, period="week", periods=1)
    assert [insight.key for insight in answer.insights] == keys
    assert not answer.recommendations
