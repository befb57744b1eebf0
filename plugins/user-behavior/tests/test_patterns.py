"""Patterns against the definitions, session by session and visitor by visitor in plain Python."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, ParameterError, TimeRange
from analytics_user_behavior.patterns import patterns

START = datetime(2025, 3, 1, tzinfo=UTC)
RANGE = TimeRange(START, START + timedelta(days=1))
GAP = 30

Row = dict[str, Any]
Ask = Callable[..., Answer]
Visitor = tuple[bool, str]
Step = tuple[str, datetime]


def rows_of(seconds: int) -> st.SearchStrategy[list[Row]]:
    """Up to 20 steps of ``seconds`` apart, with ties, two tabs at once and sessions of nobody."""
    return st.lists(
        st.fixed_dictionaries(
            {
                "event": st.sampled_from("aabbc"),
                "user_id": st.sampled_from(["u1", "u2", "u3", None]),
                "session_id": st.sampled_from(["s1", "s2", None]),
                "timestamp": st.integers(0, 20).map(lambda n: START + timedelta(seconds=seconds * n)),
                "properties": st.sampled_from([{}, {"path": "x"}, {"path": "y"}]),
            }
        ),
        max_size=40,
    )


def by_visitor(rows: list[Row]) -> dict[Visitor, list[Row]]:
    found: dict[Visitor, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["timestamp"]):
        if row["user_id"] or row["session_id"]:
            found[bool(row["user_id"]), row["user_id"] or row["session_id"]].append(row)
    return found


def sessions(rows: list[Row], collapse: bool) -> list[tuple[Visitor, list[Step]]]:
    found = []
    for visitor, mine in by_visitor(rows).items():
        named: dict[str, list[Step]] = defaultdict(list)
        unnamed: list[list[Step]] = []
        for row in mine:
            step = (row["event"], row["timestamp"])
            if row["session_id"]:
                named[row["session_id"]].append(step)
            elif unnamed and step[1] - unnamed[-1][-1][1] <= timedelta(minutes=GAP):
                unnamed[-1].append(step)
            else:
                unnamed.append([step])
        found += [(visitor, session) for session in (*named.values(), *unnamed)]
    if collapse:
        return [
            (visitor, [step for n, step in enumerate(some) if n == 0 or some[n - 1][0] != step[0]])
            for visitor, some in found
        ]
    return found


def supports(
    some: list[tuple[Visitor, list[Step]]], length: int
) -> dict[tuple[str, ...], list[tuple[int, Visitor, float]]]:
    """By sequence: each place, as (session, visitor, seconds)."""
    found = defaultdict(list)
    for number, (visitor, steps) in enumerate(some):
        for n in range(len(steps) - length + 1):
            window = steps[n : n + length]
            found[tuple(name for name, _ in window)].append(
                (number, visitor, (window[-1][1] - window[0][1]).total_seconds())
            )
    return found


def persons(places: list[tuple[int, Visitor, float]]) -> int:
    return len({visitor for _, visitor, _ in places if visitor[0]})


@settings(max_examples=40, deadline=None)
@given(rows_of(600), st.booleans(), st.integers(2, 4), st.integers(1, 3))
def test_sequences_equal_the_definition(
    visitors: Any, rows: list[Row], collapse: bool, longest: int, each: int
) -> None:
    some = sessions(rows, collapse)
    names = Counter(name for _, steps in some for name, _ in steps)
    every = Counter(row["event"] for mine in by_visitor(rows).values() for row in mine)
    chance = {name: count / every.total() for name, count in every.items()}
    expected = {}
    for length in range(2, longest + 1):
        found = supports(some, length)
        for names_of, places in found.items():
            drawn = names[names_of[0]] / names.total()
            for before, after in pairwise(names_of):
                drawn *= chance[after] / (1 - chance[before] if collapse else 1)
            expected[" > ".join(names_of)] = {
                "length": length,
                "occurrences": len(places),
                "sessions": len({number for number, _, _ in places}),
                "share": len({number for number, _, _ in places}) / len(some),
                "users": persons(places),
                "lift": pytest.approx(len(places) / (sum(map(len, found.values())) * drawn)),
            }
    asked = {"longest": longest, "collapse": collapse, "limit": 1000}
    listed = patterns(visitors(rows, each), asked, GAP).table.to_pylist()
    assert {row.pop("sequence"): row for row in listed} == expected
    for one, other in pairwise(listed):
        assert one["length"] < other["length"] or one["sessions"] >= other["sessions"]
    fewest = patterns(visitors(rows, each), {**asked, "limit": 1}, GAP).table
    assert len(fewest) == len({row["length"] for row in listed})


@settings(max_examples=40, deadline=None)
@given(rows_of(600), st.integers(2, 4), st.integers(1, 3))
def test_loops_equal_the_definition(visitors: Any, rows: list[Row], steps: int, each: int) -> None:
    some = sessions(rows, collapse=True)
    expected = {}
    for length in range(3, steps + 2):
        for names, places in supports(some, length).items():
            if names[0] == names[-1] and names[0] not in names[1:-1]:
                having = sum(any(name == names[0] for name, _ in walk) for _, walk in some)
                expected[" > ".join(names)] = {
                    "event": names[0],
                    "steps": length - 1,
                    "loops": len(places),
                    "sessions": len({number for number, _, _ in places}),
                    "share": len({number for number, _, _ in places}) / having,
                    "users": persons(places),
                    "mean_seconds": pytest.approx(statistics.fmean(seconds for _, _, seconds in places)),
                }
    listed = patterns(visitors(rows, each), {"kind": "loops", "steps": steps, "limit": 1000}, GAP).table.to_pylist()
    assert {row.pop("sequence"): row for row in listed} == expected


@settings(max_examples=60, deadline=None)
@given(rows_of(1), st.integers(2, 4), st.integers(1, 4), st.booleans(), st.integers(1, 3))
def test_repeats_equal_the_definition(
    visitors: Any, rows: list[Row], times: int, seconds: int, by_path: bool, each: int
) -> None:
    groups: dict[tuple[str, str], dict[Visitor, list[datetime]]] = defaultdict(lambda: defaultdict(list))
    for visitor, mine in by_visitor(rows).items():
        for row in mine:
            groups[row["event"], row["properties"].get("path", "(none)") if by_path else ""][visitor].append(
                row["timestamp"]
            )
    expected = {}
    for key, who in groups.items():
        found = {visitor: episodes(at, times, seconds) for visitor, at in who.items()}
        lengths = [length for some in found.values() for length in some]
        acting, able = (sum(known for known, _ in some) for some in ((v for v in found if found[v]), found))
        if lengths:
            expected[key] = {
                "episodes": len(lengths),
                "repeats": sum(lengths),
                "longest": max(lengths),
                "users": acting,
                "share": acting / able if able else None,
            }
    asked = {"kind": "repeats", "times": times, "seconds": seconds, "limit": 1000}
    if by_path:
        asked["breakdown"] = "properties.path"
    listed = patterns(visitors(rows, each), asked, GAP).table.to_pylist()
    assert {(row.pop("event"), row.pop("breakdown", "")): row for row in listed} == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((0, 1, 10, 11), (2, 4, 2)), ((0, 1, 2), (1, 3, 3)), ((0, 2, 4), None), ((0, 0), (1, 2, 2))],
)
def test_bursts_that_share_no_event_are_apart(
    visitors: Any, seconds: tuple[int, ...], expected: tuple[int, int, int] | None
) -> None:
    rows = [{"event": "click", "user_id": "u", "timestamp": START + timedelta(seconds=at)} for at in seconds]
    listed = patterns(visitors(rows, 1), {"kind": "repeats", "times": 2, "seconds": 1}, GAP).table.to_pylist()
    assert [(row["episodes"], row["repeats"], row["longest"]) for row in listed] == ([expected] if expected else [])


def episodes(at: list[datetime], times: int, seconds: int) -> list[int]:
    """How many events each has: bursts that share an event are one."""
    sets: list[set[int]] = []
    for n in range(len(at) - times + 1):
        if at[n + times - 1] - at[n] <= timedelta(seconds=seconds):
            burst = set(range(n, n + times))
            if sets and sets[-1] & burst:
                sets[-1] |= burst
            else:
                sets.append(burst)
    return [len(one) for one in sets]


@settings(max_examples=40, deadline=None)
@given(rows_of(600), st.integers(1, 3))
def test_separators_count_what_was_before_the_goal(visitors: Any, rows: list[Row], each: int) -> None:
    did: dict[bool, list[set[str]]] = {True: [], False: []}
    for (known, _), mine in by_visitor(rows).items():
        goal = next((n for n, row in enumerate(mine) if row["event"] == "c"), None)
        if known:
            did[goal is not None].append({row["event"] for row in mine[:goal]})
    listed = patterns(visitors(rows, each), {"kind": "separators", "goal": "c", "least": 1}, GAP).table.to_pylist()
    if not did[True] or not did[False]:
        assert listed == []
        return
    expected = {}
    for name in set().union(*did[True], *did[False]):
        hits, others = (sum(name in one for one in did[which]) for which in (True, False))
        share, other_share = hits / len(did[True]), others / len(did[False])
        lift = share / other_share if others else None
        expected[name] = (hits, share, others, other_share, lift)
    columns = ("converters", "converter_share", "others", "other_share", "lift")
    assert {row["event"]: tuple(row[column] for column in columns) for row in listed} == expected
    for row in listed:
        assert row["p_value"] <= row["q_value"] <= 1
        if row["lift_low"] is not None:
            assert row["lift_low"] <= row["lift"] <= row["lift_high"]


def journeys(users: int, prefix: str, *names: str) -> list[Row]:
    return [
        {"event": name, "user_id": f"{prefix}{n}", "timestamp": START + timedelta(minutes=k)}
        for n in range(users)
        for k, name in enumerate(names)
    ]


def test_what_separates_is_told_with_its_interval_and_without_a_cause(visitors: Any) -> None:
    rows = [
        *journeys(80, "a", "view", "search", "buy"),
        *journeys(20, "b", "view", "buy", "help"),
        *journeys(80, "c", "view"),
        *journeys(20, "d", "view", "search", "help"),
    ]
    answer = patterns(visitors(rows, 50), {"kind": "separators", "goal": "buy"}, GAP)
    first, *rest = answer.table.to_pylist()
    assert (first["event"], first["lift"]) == ("search", 4.0)
    factor = math.exp(1.959964 * math.sqrt(1 / 80 - 1 / 100 + 1 / 20 - 1 / 100))
    assert (first["lift_low"], first["lift_high"]) == pytest.approx((4 / factor, 4 * factor))
    assert {row["event"]: row["converters"] for row in rest} == {"view": 100, "help": 0}
    assert answer.insights[0].data["event"] == "search"
    assert "does not say why" in answer.insights[0].description
    assert [each.insight for each in answer.recommendations] == ["separator"]
    few = patterns(visitors(rows[:60], 50), {"kind": "separators", "goal": "buy"}, GAP)
    assert few.insights == []


def test_events_in_no_order_are_no_sequence(visitors: Any) -> None:
    draw = random.Random(7)
    rows = [
        {"event": draw.choice("aaabbcd"), "user_id": f"u{n % 200}", "timestamp": START + timedelta(seconds=n)}
        for n in range(8000)
    ]
    for collapse in (True, False):
        answer = patterns(visitors(rows, 50), {"longest": 2, "collapse": collapse}, GAP)
        assert all(0.85 < row["lift"] < 1.15 for row in answer.table.to_pylist())
        assert answer.insights == []


def test_sequences_and_loops_tell_what_is_above_chance(visitors: Any) -> None:
    rows = journeys(60, "a", "view", "cart", "view", "cart", "help")
    (told,) = patterns(visitors(rows, 50), {}, GAP).insights
    assert (told.key, told.data["sessions"]) == ("sequence", 60)
    (loop,) = patterns(visitors(rows, 50), {"kind": "loops"}, GAP).insights
    assert (loop.data["steps"], loop.data["share"]) == (2, 1.0)
    assert patterns(visitors(rows[:20], 50), {}, GAP).insights == []
    assert patterns(visitors(rows[:20], 50), {"kind": "loops"}, GAP).insights == []


def test_repeats_of_many_are_told(visitors: Any) -> None:
    def clicks(users: int) -> list[Row]:
        return [
            {"event": "click", "user_id": f"u{n}", "timestamp": START + timedelta(seconds=k)}
            for n in range(users)
            for k in range(4)
        ]

    answer = patterns(visitors(clicks(40), 7), {"kind": "repeats"}, GAP)
    assert (answer.insights[0].data["users"], answer.insights[0].data["longest"]) == (40, 4)
    assert patterns(visitors(clicks(5), 7), {"kind": "repeats"}, GAP).insights == []


def test_the_host_asks_for_patterns(ask: Ask) -> None:
    rows = journeys(3, "a", "view", "cart", "buy")
    assert ask(rows, "patterns", RANGE).table["sequence"].to_pylist()[0] in ("view > cart", "cart > buy")
    for asked in ({"kind": "repeats", "event": {"event": "view", "where": {"properties.x": 1}}}, {"kind": "loops"}):
        assert ask(rows, "patterns", RANGE, **asked).table.num_rows == 0
    assert ask([], "patterns", RANGE, kind="separators", goal="buy").table.num_rows == 0
    unknown = ask(rows, "patterns", RANGE, kind="separators", goal="buyy").insights
    assert unknown[0].data["near"] == ["buy"]
    with pytest.raises(ParameterError, match="goal: is needed for separators"):
        ask(rows, "patterns", RANGE, kind="separators")


def test_sequences_too_long_for_their_names_are_refused(visitors: Any) -> None:
    rows = [{"event": f"e{n}", "user_id": "u", "timestamp": START} for n in range(2000)]
    with pytest.raises(ParameterError, match="with 2000 event names at most 5"):
        patterns(visitors(rows, 1), {"longest": 6}, GAP)
