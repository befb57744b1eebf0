"""The analysis ``changes``: its statistics against plain definitions, what it finds, and that chance finds little."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analytics_core import Answer, Question, TimeRange
from analytics_core.testing import MemoryReader, batch, started
from analytics_user_behavior.change_tallies import compared_days
from analytics_user_behavior.changes import FALSE_FINDINGS
from analytics_user_behavior.plugin import UserBehavior
from analytics_user_behavior.shifts import (
    adjusted,
    count_shift,
    dispersion,
    share_shift,
    turning_point,
    visitor_shift,
)

END = datetime(2025, 3, 15, tzinfo=UTC)


def asked(days: float, end: datetime = END, timezone: str = "UTC") -> TimeRange:
    return TimeRange(end - timedelta(days=days), end, timezone)


def changes(rows: Sequence[dict[str, Any]], span: TimeRange, now: datetime | None = None) -> Answer:
    """``now`` defaults to the end of the range."""
    question = Question(analysis="changes", tenant="default", range=span, parameters={})
    listed = sorted(rows, key=lambda row: row["timestamp"])
    with MemoryReader([batch(listed, watermark=span.end if now is None else now)], span) as events:
        answer: Answer = started(UserBehavior).insight(question, events)
        return answer


def event(name: str, days_ago: float, user: str | None = None, **properties: Any) -> dict[str, Any]:
    return {"event": name, "user_id": user, "timestamp": END - timedelta(days=days_ago), "properties": properties}


def spread(name: str, per_day: Sequence[int], **properties: Any) -> list[dict[str, Any]]:
    """So many events on each of the last days, the oldest first, each of somebody else."""
    days = len(per_day)
    return [
        event(name, days - day - (n + 0.5) / count, f"{name}-{day}-{n}", **properties)
        for day, count in enumerate(per_day)
        for n in range(count)
    ]


def row(answer: Answer, what: str) -> dict[str, Any]:
    (found,) = [each for each in answer.table.to_pylist() if each["what"] == what]
    return found


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_fall_is_found_with_its_figures_its_day_and_its_segment() -> None:
    rows = spread("order", [40] * 14, platform="web") + spread("order", [40] * 10 + [4] * 4, platform="ios")
    answer = changes(rows, asked(14))
    found = row(answer, "order")
    assert (found["kind"], found["before"], found["after"]) == ("events", 560, 40 * 7 + 40 * 3 + 4 * 4)
    assert found["change"] == pytest.approx(416 / 560 - 1)
    assert found["low"] < found["change"] < found["high"] < 0
    assert found["p"] <= found["p_adjusted"] < 0.001
    assert found["since"] == END - timedelta(days=4)
    assert (found["segment"], found["share_explained"]) == ("properties.platform = ios", 1.0)
    insight = next(each for each in answer.insights if each.key == "events:order")
    assert insight.title == "order events fell by 26%"
    assert "416 order events in the 7 days from 2025-03-08, 560 in the 7 days before (-35% to -16% at 95 %)" in (
        insight.description
    )
    assert "Most likely since 2025-03-11. properties.platform = ios explains 100% of the change." in insight.description
    assert (insight.severity, insight.confidence) == ("medium", 0.99)
    assert insight.data["first_half"] == ["2025-03-01T00:00:00+00:00", "2025-03-08T00:00:00+00:00"]
    advice = next(each for each in answer.recommendations if each.insight == insight.key)
    assert '"filters": {"properties.platform": "ios"}' in advice.description
    assert '{"start": "2025-03-11T00:00:00+00:00", "end": "2025-03-15T00:00:00+00:00"}' in advice.description


def test_a_conversion_that_falls_names_the_step_and_the_funnel_to_ask() -> None:
    rows = []
    for n in range(1200):
        ago, plan = 14 - n * 14 / 1200, ("pro", "free")[n % 2]
        rows.append(event("cart", ago, f"u{n}", plan=plan))
        if n % 5 > (3 if ago <= 7 and plan == "pro" else 1):
            rows.append(event("purchase", ago - 0.001, f"u{n}", plan=plan))
    answer = changes(rows, asked(14))
    found = row(answer, "cart → purchase")
    assert (found["kind"], found["before"], found["after"]) == ("conversion", 0.6, 0.4)
    assert found["change"] == pytest.approx(-0.2)
    assert found["low"] < -0.2 < found["high"] < 0
    assert found["since"] == END - timedelta(days=7)
    assert (found["segment"], found["share_explained"]) == ("properties.plan = pro", pytest.approx(1))
    advice = next(each for each in answer.recommendations if "funnel" in each.description)
    assert '"steps": [{"event": "cart"}, {"event": "purchase"}]' in advice.description
    assert {row(answer, what)["segment"] for what in ("cart", "visitors", "sessions")} == {None}


def test_a_day_on_which_the_clocks_change_is_a_day() -> None:
    end = datetime(2025, 4, 6, tzinfo=ZoneInfo("Europe/Berlin"))  # clocks went on on 30 March
    first = datetime(2025, 3, 23, tzinfo=ZoneInfo("Europe/Berlin"))
    hours = [first.astimezone(UTC) + timedelta(hours=n, minutes=30) for n in range(7 * 24 + 7 * 24 - 1)]
    rows = [{"event": "tick", "user_id": f"u{n}", "timestamp": at} for n, at in enumerate(hours)]
    answer = changes(rows, TimeRange(first.astimezone(UTC), end.astimezone(UTC), "Europe/Berlin"))
    for what in ("tick", "visitors", "sessions"):
        assert (row(answer, what)["before"], row(answer, what)["after"]) == (168, 167)


def test_days_that_are_yet_to_come_are_no_fall() -> None:
    """It is noon of the eleventh of fourteen days: the ten that are over are compared."""
    now = END - timedelta(days=3, hours=12)
    rows = [row for row in spread("order", [40] * 14) if row["timestamp"] < now]
    answer = changes(rows, asked(14), now)
    assert (row(answer, "order")["before"], row(answer, "order")["after"]) == (200, 200)
    assert answer.insights == []
    nearly = changes(spread("order", [40] * 14), asked(14), END - timedelta(minutes=1))
    assert row(nearly, "order")["after"] == 280, "up to now, as far as the clock tells"


def test_what_is_new_and_what_is_gone() -> None:
    answer = changes([*spread("old", [30] * 3 + [0] * 3), *spread("new", [0] * 3 + [30] * 3)], asked(6))
    new, old = row(answer, "new"), row(answer, "old")
    assert (new["before"], new["after"], new["change"], new["since"]) == (0, 90, None, END - timedelta(days=3))
    assert (old["before"], old["after"], old["change"], old["since"]) == (90, 0, -1, END - timedelta(days=3))
    assert {"new events are new", "old events fell by 100%"} <= {each.title for each in answer.insights}
    (told,) = [each for each in answer.insights if each.key == "events:new"]
    assert told.severity == "medium"
    assert "The two hold different weekdays." in told.description


def test_all_that_changes_alike_is_explained_by_no_segment() -> None:
    rows = [each for plan in ("pro", "free") for each in spread("order", [40] * 7 + [20] * 7, plan=plan)]
    found = row(changes(rows, asked(14)), "order")
    assert found["p_adjusted"] < 0.001
    assert (found["segment"], found["share_explained"]) == (None, None)


def test_events_of_nobody_count() -> None:
    rows = [{**each, "user_id": None} for each in spread("tick", [30] * 7 + [60] * 7)]
    answer = changes(rows, asked(14))
    assert (row(answer, "tick")["before"], row(answer, "tick")["after"]) == (210, 420)
    assert [each["what"] for each in answer.table.to_pylist()] == ["tick"]


@pytest.mark.parametrize(
    ("rows", "days"),
    [
        ([], 14),
        (spread("order", [1] * 14), 14),
        (spread("order", [100, 100]), 1.9),
        (spread("order", [100]), 14),
    ],
)
def test_too_little_says_nothing(rows: list[dict[str, Any]], days: float) -> None:
    answer = changes(rows, asked(days))
    assert (len(answer.table), list(answer.insights), list(answer.recommendations)) == (0, [], [])


def test_every_insight_says_what_its_row_shows() -> None:
    rows = spread("a", [30] * 7 + [60] * 7) + spread("b", [50] * 14) + spread("c", [60] * 7 + [20] * 7)
    answer = changes(rows, asked(14))
    table = {(each["kind"], each["what"]): each for each in answer.table.to_pylist()}
    assert answer.insights
    for insight in answer.insights:
        shown = table[insight.data["kind"], insight.data["what"]]
        assert shown["p_adjusted"] <= FALSE_FINDINGS
        assert insight.confidence == min(1 - shown["p_adjusted"], 0.99)
        assert {key: insight.data[key] for key in ("before", "after", "p", "low", "high")} == {
            key: shown[key] for key in ("before", "after", "p", "low", "high")
        }
    assert "b" not in {insight.data["what"] for insight in answer.insights}
    assert {each.insight for each in answer.recommendations} <= {each.key for each in answer.insights}


# --- against plain counting ------------------------------------------------------------------------------------------


NEARBY = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 8), st.sampled_from("ab"))
"""A visitor, a day, a quarter of an hour of it, and an event's name: pauses around the gap of 30 minutes."""


@given(st.lists(NEARBY, max_size=40))
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_visitors_sessions_and_conversions_are_those_of_plain_counting(near: list[tuple[int, int, int, str]]) -> None:
    """Repeated thirty times over with other visitors, so that there is enough to be tested."""
    listed = [(user, 96 * day + quarter, name) for user, day, quarter, name in near]
    rows = [
        event(name, 6 - quarter / 96 - 1e-6, f"{copy}-{user}") for copy in range(30) for user, quarter, name in listed
    ]
    rows = [event("begin", 6), *rows]
    shown = {
        (each["kind"], each["what"]): (each["before"], each["after"])
        for each in changes(rows, asked(6)).table.to_pylist()
    }
    history = defaultdict(list)
    for user, quarter, name in sorted(listed, key=lambda each: each[1]):
        history[user].append((quarter, name))
    half = 3 * 24 * 4
    visitors = [sum(any((q >= half) == side for q, _ in seen) for seen in history.values()) for side in (False, True)]
    sessions = [0, 0]
    for seen in history.values():
        for before, (quarter, _) in zip([None, *seen], seen, strict=False):
            if before is None or quarter - before[0] > 2:
                sessions[quarter >= half] += 1
    if ("visitors", "visitors") in shown:
        assert shown["visitors", "visitors"] == tuple(30 * n for n in visitors)
    if ("sessions", "sessions") in shown:
        assert shown["sessions", "sessions"] == tuple(30 * n for n in sessions)
    for first, second in (("a", "b"), ("b", "a")):
        if ("conversion", f"{first} → {second}") in shown:
            assert shown["conversion", f"{first} → {second}"] == pytest.approx(
                [converted(list(history.values()), first, second, half, side) for side in (False, True)]
            )


def converted(histories: list[list[tuple[int, str]]], first: str, second: str, half: int, late: bool) -> float:
    tried = went_on = 0
    for seen in histories:
        here = [at for at, (quarter, name) in enumerate(seen) if name == first and (quarter >= half) == late]
        tried += bool(here)
        went_on += any(
            at + 1 < len(seen) and seen[at + 1][1] == second and seen[at + 1][0] - seen[at][0] <= 2 for at in here
        )
    return went_on / tried


@given(
    st.datetimes(datetime(2024, 1, 1), datetime(2026, 1, 1)),  # noqa: DTZ001  made aware below
    st.integers(0, 60 * 24 * 60),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", "Australia/Lord_Howe"]),
)
def test_the_days_are_whole_by_the_wall_clock_and_halves_are_equal(end: datetime, minutes: int, zone: str) -> None:
    stop = end.replace(tzinfo=UTC)
    span = TimeRange(stop - timedelta(minutes=minutes + 1), stop, zone)
    days = compared_days(span, span.start, stop)
    if days is None:
        assert minutes < 2 * 24 * 60 + 60
        return
    walls = [days.begin(day).astimezone(ZoneInfo(zone)).replace(tzinfo=None) for day in range(len(days) + 1)]
    assert days.begin(len(days)) == stop
    assert len(days) % 2 == 0
    assert days.half < 7 or days.half % 7 == 0
    assert all(timedelta(hours=23) <= later - earlier <= timedelta(hours=25) for earlier, later in pairwise(walls))
    assert days.begin(0) >= span.start - timedelta(hours=1)
    assert (days.half + 1) * 2 > (minutes + 1) / 1440 - 0.1 or days.half >= 7


# --- chance ----------------------------------------------------------------------------------------------------------


def test_chance_alone_finds_something_as_rarely_as_is_said() -> None:
    """Twenty figures of equal Poisson rates on fourteen days, two hundred times; with findings, all are false."""
    random = np.random.default_rng(7)
    false = 0
    for _ in range(200):
        p = []
        for rate in np.geomspace(2, 500, 20):
            daily = random.poisson(rate, 14)
            p.append(count_shift(int(daily[:7].sum()), int(daily[7:].sum()), dispersion(daily, turning_point(daily))).p)
        false += bool((adjusted(np.array(p)) <= FALSE_FINDINGS).any())
    assert false <= 200 * FALSE_FINDINGS


def test_chance_alone_finds_something_as_rarely_when_visitors_and_shares_are_compared() -> None:
    random = np.random.default_rng(8)
    false = 0
    for _ in range(400):
        seen = random.random((2, 300)) < 0.4
        before, after, both = int(seen[0].sum()), int(seen[1].sum()), int((seen[0] & seen[1]).sum())
        shares = [(n, int(random.binomial(n, share))) for n in (30, 200, 1000) for share in (0.5, 0.5, 0.2, 0.2)]
        p = [visitor_shift(before, after, both).p]
        p += [share_shift(a[1], a[0], b[1], b[0]).p for a, b in zip(shares[::2], shares[1::2], strict=True)]
        false += bool((adjusted(np.array(p)) <= FALSE_FINDINGS).any())
    assert false <= 400 * FALSE_FINDINGS


def test_chance_alone_says_nothing_of_whole_histories() -> None:
    random = np.random.default_rng(9)
    found = 0
    for _ in range(5):
        rows = []
        for user in range(40):
            for day in np.flatnonzero(random.random(14) < 0.4).tolist():
                ago = 14 - day - float(random.random()) * 0.9
                names = [name for name, share in (("view", 1), ("cart", 0.6), ("buy", 0.5)) if random.random() < share]
                rows += [event(name, ago - n / 1000, f"u{user}") for n, name in enumerate(names)]
        found += len(changes(rows, asked(14)).insights) > 0
    assert found <= 1


def test_days_that_scatter_more_than_poisson_need_more_of_a_change() -> None:
    calm = [50, 50, 50, 50, 50, 50, 50, 70, 70, 70, 70, 70, 70, 70]
    wild = [5, 90, 10, 120, 30, 80, 15, 130, 10, 110, 60, 5, 120, 55]
    assert (sum(wild[:7]), sum(wild[7:])) == (sum(calm[:7]), sum(calm[7:]))
    assert row(changes(spread("x", calm), asked(14)), "x")["p"] < 0.001
    assert row(changes(spread("x", wild), asked(14)), "x")["p"] > 0.05


# --- statistics ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_test_of_counts_is_no_bolder_than_the_exact_one(before: int, after: int) -> None:
    if before + after < 20:
        return
    n, least = before + after, min(before, after)
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)
    shift = count_shift(before, after)
    assert shift.p >= exact * 0.8 or shift.p > 0.2 or exact < 1e-6
    assert shift.low <= (after + 0.5) / (before + 0.5) - 1 + 0.5 / (before + 0.5)
    if before and after:
        assert shift.low < shift.change < shift.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_adjustment_is_that_of_benjamini_and_hochberg(listed: list[float]) -> None:
    n = len(listed)
    for level in (0.01, 0.05, 0.2):
        ordered = sorted(listed)
        passing = [rank for rank, p in enumerate(ordered, 1) if p <= level * rank / n * (1 + 1e-12)]
        bound = ordered[max(passing) - 1] if passing else -1.0
        found = adjusted(np.array(listed))
        assert [bool(q <= level * (1 + 1e-9)) for q in found] == [p <= bound for p in listed]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=12), st.booleans())
def test_the_turning_point_is_the_likeliest(listed: list[tuple[int, int]], shares: bool) -> None:
    daily = np.array([min(pair) for pair in listed])
    of = np.array([max(pair) for pair in listed])

    def likelihood(turn: int) -> float:
        total = 0.0
        for side in (slice(None, turn), slice(turn, None)):
            count, among = int(daily[side].sum()), int(of[side].sum() if shares else len(daily[side]))
            total += count * math.log(count / among) if count else 0
            total += (among - count) * math.log((among - count) / among) if shares and among > count else 0
        return total

    found = turning_point(daily, of if shares else None)
    best = max(map(likelihood, range(1, len(daily))))
    assert likelihood(found) == pytest.approx(best, abs=1e-6)


def test_intervals_by_the_book() -> None:
    """Newcombe 1998, table II (a): 56/70 and 48/80 differ by 0.0524 to 0.3339."""
    shift = share_shift(48, 80, 56, 70)
    assert (shift.low, shift.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    counts = count_shift(100, 150)
    assert counts.low == pytest.approx(1.5 * math.exp(-1.959964 * math.sqrt(1 / 100 + 1 / 150)) - 1, abs=1e-6)
    assert visitor_shift(60, 40, 30).p == pytest.approx(math.erfc(19 / math.sqrt(40) / math.sqrt(2)))
