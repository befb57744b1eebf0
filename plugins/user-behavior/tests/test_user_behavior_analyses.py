"""The analyses against references that follow the definitions visitor by visitor."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, Question, TimeRange
from analytics_core.testing import MemoryReader, batch, started
from analytics_user_behavior.funnel import chains
from analytics_user_behavior.plugin import UserBehavior

START = datetime(2025, 3, 28, 23, tzinfo=UTC)  # 29 March, 00:00 in Berlin; clocks change on the 30th
RANGE = TimeRange(START, datetime(2025, 4, 1, 22, tzinfo=UTC), "Europe/Berlin")


def ask(rows: list[dict[str, Any]], analysis: str, asked: TimeRange = RANGE, **parameters: Any) -> Answer:
    question = Question(analysis=analysis, tenant="default", range=asked, parameters=parameters)
    with MemoryReader([batch(rows)], asked) as events:
        return started(UserBehavior).insight(question, events)


def event(user: str | None, hours: float, name: str = "view", **more: Any) -> dict[str, Any]:
    return {"event": name, "user_id": user, "timestamp": START + timedelta(hours=hours), **more}


# --- sessions --------------------------------------------------------------------------------------------------------


def test_sessions_by_hand() -> None:
    rows = [
        event("a", 23.8),
        event("a", 24.1),  # across local midnight: the session of its first event's day
        event("a", 24.7),
        event("b", 30, session_id="s"),
        event("b", 36, session_id="s"),
        event("c", 30, session_id="s"),
        event(None, 30),
        event("a", -0.1),  # before the range
    ]
    table = ask(rows, "sessions").table.to_pylist()
    assert [row["day"] for row in table] == [date(2025, 3, 29) + timedelta(days=n) for n in range(4)]
    assert [row["sessions"] for row in table] == [1, 3, 0, 0]
    assert [row["users"] for row in table] == [1, 3, 0, 0]
    assert table[0]["median_duration"] == pytest.approx(0.3 * 3600)
    assert table[1]["mean_duration"] == pytest.approx(6 * 3600 / 3)
    assert table[1]["p90_duration"] == pytest.approx(0.8 * 6 * 3600)
    assert table[1]["events_per_session"] == pytest.approx(4 / 3)
    assert table[1]["bounce_rate"] == pytest.approx(2 / 3)
    assert table[2]["bounce_rate"] is None


def test_sessions_of_nothing() -> None:
    answer = ask([], "sessions")
    assert answer.table["sessions"].to_pylist() == [0, 0, 0, 0]
    assert answer.insights == []


def test_the_sessions_insight_has_the_totals() -> None:
    answer = ask([event("a", 1), event("a", 9), event("b", 1), event("b", 1.1)], "sessions")
    assert answer.insights[0].data == {"sessions": 3, "bounces": 2, "bounce_rate": 2 / 3, "events": 4}
    assert answer.recommendations[0].insight == answer.insights[0].key


# --- engagement ------------------------------------------------------------------------------------------------------


@given(st.sets(st.tuples(st.sampled_from("abcde"), st.integers(0, 44)), max_size=60))
@settings(deadline=None, max_examples=40)
def test_engagement_equals_sets_of_visitors(active: set[tuple[str, int]]) -> None:
    asked = TimeRange(START, START + timedelta(days=45, hours=-1), "Europe/Berlin")
    rows = [event(user, day * 24 + 12) for user, day in sorted(active)]
    table = ask(rows, "engagement", asked).table.to_pylist()
    assert len(table) == 45
    for day, row in enumerate(table):

        def during(width: int, day: int = day) -> set[str]:
            return {user for user, when in active if day - width < when <= day}

        today = during(1)
        earlier = {user for user, when in active if when < day}
        assert (row["dau"], row["wau"], row["mau"]) == (len(today), len(during(7)), len(during(30)))
        assert (row["new"], row["returning"]) == (len(today - earlier), len(today & earlier))
        assert row["stickiness"] == (len(today) / len(during(30)) if during(30) else None)
        assert row["days_covered"] == min(day + 1, 30)


def test_engagement_tells_stickiness_of_whole_months_only() -> None:
    rows = [event("a", 12), event("a", 36), event("b", 36)]
    assert [i.key for i in ask(rows, "engagement").insights] == ["visits"]
    long = TimeRange(START, START + timedelta(days=40, hours=-1), "Europe/Berlin")
    told = {i.key: i.data for i in ask([event("a", 24 * n + 12) for n in range(40)], "engagement", long).insights}
    assert told["stickiness"] == {"stickiness": 1.0, "days": 11}
    assert told["visits"] == {"visitors": 1, "visitor_days": 40, "days": 40}


# --- funnel ----------------------------------------------------------------------------------------------------------

STEPS = [{"event": "view", "where": {}}, {"event": "cart", "where": {}}, {"event": "buy", "where": {}}]


def funnel(rows: list[dict[str, Any]], steps: list[dict[str, Any]] = STEPS, window: str = "1d") -> Answer:
    return ask(rows, "funnel", steps=steps, window=window)


def reached(rows: list[dict[str, Any]], steps: list[dict[str, Any]] = STEPS, window: str = "1d") -> list[int]:
    return funnel(rows, steps, window).table["users"].to_pylist()


def test_a_funnel_by_hand() -> None:
    rows = [
        *(event("a", h, name) for h, name in ((1, "view"), (2, "other"), (3, "cart"), (4, "buy"))),
        *(event("b", h, name) for h, name in ((1, "cart"), (2, "view"), (4, "cart"))),
        event("c", 1, "view"),
        event("d", 1, "buy"),
    ]
    table = funnel(rows).table.to_pylist()
    assert [row["users"] for row in table] == [3, 2, 1]
    assert [row["conversion_from_start"] for row in table] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [row["conversion_from_previous"] for row in table] == pytest.approx([1, 2 / 3, 1 / 2])
    assert [row["median_seconds"] for row in table] == [None, 7200, 10800]


def test_a_later_begin_rescues_a_chain_that_would_be_too_long() -> None:
    rows = [event("a", h, name) for h, name in ((0, "view"), (20, "view"), (21, "cart"), (30, "buy"))]
    assert reached(rows) == [1, 1, 1]


def test_the_window_counts_from_the_first_step_and_includes_its_end() -> None:
    rows = [event("a", h, name) for h, name in ((0, "view"), (1, "cart"), (24, "buy"))]
    assert reached(rows) == [1, 1, 1]
    assert reached(rows, window="1439m") == [1, 1, 0]


def test_one_event_is_never_two_steps_and_ties_go_by_seq() -> None:
    twice = [{"event": "view"}, {"event": "view"}]
    assert reached([event("a", 1)], twice) == [1, 0]
    assert reached([event("a", 1), event("a", 1)], twice) == [1, 1]
    assert reached([event("a", 1, "view"), event("a", 1, "cart")], STEPS[:2]) == [1, 1]
    assert reached([event("a", 1, "cart"), event("a", 1, "view")], STEPS[:2]) == [1, 0]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"properties.plan": "pro"}, 1),
        ({"properties.plan": ["pro", "free"]}, 2),
        ({"properties.n": 5}, 1),
        ({"properties.n": "5"}, 1),
        ({"properties.ok": True}, 1),
        ({"properties.cart.total": 1.5}, 1),
        ({"properties.plan": None}, 1),
        ({"source": "native", "properties.plan": "free"}, 1),
        ({"user_id": "a"}, 1),
        ({'properties.it\'s "x"': "pro"}, 0),
    ],
)
def test_a_step_takes_conditions(where: dict[str, Any], expected: int) -> None:
    rows = [
        event("a", 1, properties={"plan": "pro", "n": 5, "ok": True, "cart": {"total": 1.5}}),
        event("b", 1, properties={"plan": "free", "n": "5", "ok": "true"}),
        event("c", 1, properties={"n": 6}),
    ]
    assert reached(rows, [{"event": "view", "where": where}, {"event": "cart"}]) == [expected, 0]


def test_the_biggest_drop_off_is_told_with_its_figures() -> None:
    rows = [event(u, 1) for u in "abcd"] + [event(u, 2, "cart") for u in "abc"] + [event("a", 3, "buy")]
    answer = funnel(rows)
    assert answer.insights[0].data == {"from": "cart", "to": "buy", "lost": 2, "reached": 3, "share": 2 / 3}
    assert answer.recommendations[0].insight == "drop-off"


def test_a_funnel_that_nobody_enters_claims_nothing() -> None:
    answer = funnel([event("a", 1, "buy")])
    assert answer.table["users"].to_pylist() == [0, 0, 0]
    assert answer.table["conversion_from_start"].to_pylist() == [None, None, None]
    assert answer.insights == []


@pytest.mark.parametrize(
    ("steps", "window", "problem"),
    [
        (STEPS[:1], "1d", "1 given; valid are 2 to 20"),
        (STEPS, "day", "'day' is no duration"),
        ([{"event": "a", "where": {"plan": 1}}, *STEPS], "1d", "where plan: valid are properties.x"),
        ([{"event": "a", "where": {"properties.x": []}}, *STEPS], "1d", "an empty list fits no event"),
    ],
)
def test_a_wrong_funnel_is_refused(steps: list[dict[str, Any]], window: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        funnel([], steps, window)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.sets(st.integers(0, 3))), max_size=24),
    st.integers(2, 4),
    st.integers(0, 8),
)
@settings(max_examples=300, deadline=None)
def test_chains_equal_the_definition(listed: list[tuple[int, int, set[int]]], steps: int, window: int) -> None:
    listed.sort(key=lambda row: row[:2])
    who = np.array([row[0] for row in listed], np.int64)
    at = np.array([row[1] for row in listed], np.int64) * 1_000_000
    matches = [np.array([k in row[2] for row in listed], np.bool_) for k in range(steps)]
    found = chains(who, at, matches, window * 1_000_000)
    by_user = defaultdict(list)
    for user, when, fits in listed:
        by_user[user].append((when, fits))
    expected = [naive(events, steps, window) for events in by_user.values()]
    for k in range(steps):
        seconds = sorted(levels[k] for levels in expected if k in levels)
        assert found[k].visitors == len(seconds)
        assert sorted(found[k].seconds.tolist()) == seconds


def naive(events: list[tuple[int, set[int]]], steps: int, window: int) -> dict[int, int]:
    """By step: seconds from the latest possible begin to the first event that ends a chain of that length."""
    reached: dict[int, int] = {}

    def extend(chain: list[int]) -> None:
        begin, end = events[chain[0]][0], events[chain[-1]][0]
        if end - begin > window:
            return
        ends[len(chain) - 1].append((chain[-1], -begin, end - begin))
        if len(chain) < steps:
            for following in range(chain[-1] + 1, len(events)):
                if len(chain) in events[following][1]:
                    extend([*chain, following])

    ends: list[list[tuple[int, int, int]]] = [[] for _ in range(steps)]
    for first, (_, fits) in enumerate(events):
        if 0 in fits:
            extend([first])
    for k, found in enumerate(ends):
        if found:
            reached[k] = min(found)[2]
    return reached


def test_an_unknown_analysis_is_refused() -> None:
    with pytest.raises(ValueError, match="analysis 'paths' is not provided; valid are: sessions"):
        ask([], "paths")
