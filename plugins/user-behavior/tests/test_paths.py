"""Paths against the definition, path by path in plain Python."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, TimeRange
from analytics_user_behavior.paths import paths

START = datetime(2025, 3, 1, tzinfo=UTC)
RANGE = TimeRange(START, START + timedelta(days=1))
GAP = 30

Row = dict[str, Any]
Ask = Callable[..., Answer]
Step = tuple[str, datetime]

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from("aabcd"),
            "user_id": st.sampled_from(["u1", "u2", None]),
            "session_id": st.sampled_from(["s1", "s2", None]),
            "timestamp": st.integers(0, 20).map(lambda tens: START + timedelta(minutes=10 * tens)),
        }
    ),
    max_size=40,
)
ASKED = st.fixed_dictionaries(
    {"by": st.sampled_from(["session", "user"]), "collapse": st.booleans(), "limit": st.integers(1, 5)},
    optional={"start": st.sampled_from("ab"), "end": st.sampled_from(["a", {"event": ["c", "b"]}])},
)


def journeys(rows: list[Row], asked: dict[str, Any]) -> list[list[Step]]:
    """The path of every session or user that has one."""
    units: dict[tuple[str, ...], list[list[Step]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["timestamp"]):
        user, session = row["user_id"], row["session_id"]
        step = (row["event"], row["timestamp"])
        if asked["by"] == "user":
            key = ("user", user) if user else None
        else:
            key = (str(user), str(session)) if user or session else None
        if key is None:
            continue
        mine = units[key]
        apart = asked["by"] == "session" and not session
        if mine and not (apart and step[1] - mine[-1][-1][1] > timedelta(minutes=GAP)):
            mine[-1].append(step)
        else:
            mine.append([step])
    return [path for mine in units.values() for unit in mine if (path := cut(unit, asked))]


def cut(unit: list[Step], asked: dict[str, Any]) -> list[Step]:
    def fits(step: Step, meant: Any) -> bool:
        return step[0] in (meant["event"] if isinstance(meant, dict) else [meant])

    if "start" in asked:
        first = next((n for n, step in enumerate(unit) if fits(step, asked["start"])), len(unit))
        unit = unit[first:]
    if "end" in asked:
        last = next((n for n in reversed(range(len(unit))) if fits(unit[n], asked["end"])), -1)
        unit = unit[: last + 1]
    if not asked["collapse"]:
        return unit
    return [step for n, step in enumerate(unit) if n == 0 or step[0] != unit[n - 1][0]]


def named(counts: Counter[str], limit: int) -> set[str]:
    return {name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]}


def edges(walks: list[list[Step]], depth: int, limit: int, outside: str) -> dict[tuple[int, str, str], dict[str, Any]]:
    """By depth and the names in the order of reading."""
    tops = [named(Counter(walk[d][0] for walk in walks if len(walk) > d), limit) for d in range(depth)]

    def shown(walk: list[Step], d: int) -> str:
        if d >= len(walk):
            return outside
        return walk[d][0] if walk[d][0] in tops[d] else "(other)"

    seconds: dict[tuple[int, str, str], list[float | None]] = defaultdict(list)
    for walk in walks:
        for d in range(min(depth - 1, len(walk))):
            took = abs((walk[d + 1][1] - walk[d][1]).total_seconds()) if d + 1 < len(walk) else None
            seconds[d + 1, shown(walk, d), shown(walk, d + 1)].append(took)
    return {
        key: {
            "paths": len(some),
            "share": pytest.approx(len(some) / sum(len(n) for k, n in seconds.items() if k[:2] == key[:2])),
            "median_seconds": None if key[2] == outside else statistics.median([each or 0.0 for each in some]),
        }
        for key, some in seconds.items()
    }


@settings(max_examples=60, deadline=None)
@given(ROWS, ASKED, st.integers(2, 6), st.integers(1, 3))
def test_steps_equal_the_definition(
    visitors: Any, rows: list[Row], asked: dict[str, Any], depth: int, each: int
) -> None:
    backwards = "end" in asked and "start" not in asked
    walks = [path[::-1] if backwards else path for path in journeys(rows, asked)]
    expected = edges(walks, depth, asked["limit"], "(entry)" if backwards else "(exit)")
    found = {}
    for row in paths(visitors(rows, each), {**asked, "depth": depth}, GAP).table.to_pylist():
        origin, target, at = row.pop("from"), row.pop("to"), row.pop("depth")
        nodes = row.pop("from_node"), row.pop("to_node")
        near, far = (target, origin) if backwards else (origin, target)
        assert nodes[:: -1 if backwards else 1] == (f"{at}: {near}", f"{at + 1}: {far}")
        found[at, near, far] = row
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(ROWS, ASKED, st.integers(1, 3))
def test_transitions_equal_the_definition(visitors: Any, rows: list[Row], asked: dict[str, Any], each: int) -> None:
    walks = journeys(rows, asked)
    top = named(Counter(name for walk in walks for name, _ in walk), asked["limit"])
    seconds: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    for walk in walks:
        names = ["(entry)", *(name if name in top else "(other)" for name, _ in walk), "(exit)"]
        took = [None, *((b[1] - a[1]).total_seconds() for a, b in pairwise(walk)), None]
        for n, some in enumerate(took):
            seconds[names[n], names[n + 1]].append(some)
    found = paths(visitors(rows, each), {**asked, "mode": "transitions"}, GAP).table.to_pylist()
    assert {(row["from"], row["to"]): row["transitions"] for row in found} == {k: len(v) for k, v in seconds.items()}
    for row in found:
        some = [took for took in seconds[row["from"], row["to"]] if took is not None]
        assert row["mean_seconds"] == (pytest.approx(statistics.fmean(some)) if some else None)
        assert row["share"] == row["transitions"] / sum(len(n) for k, n in seconds.items() if k[0] == row["from"])


def shop(users: int, *names: str) -> list[Row]:
    return [
        {"event": name, "user_id": f"{names}{n}", "timestamp": START + timedelta(minutes=k)}
        for n in range(users)
        for k, name in enumerate(names)
    ]


def test_the_main_way_and_the_end_are_told_with_their_figures(visitors: Any) -> None:
    rows = [*shop(80, "view", "cart"), *shop(20, "view", "cart", "buy"), *shop(10, "view")]
    answer = paths(visitors(rows, 9), {}, GAP)
    assert [(each.key, each.data["size"]) for each in answer.insights] == [
        ("main-way", pytest.approx(100 / 110)),
        ("path-end", 0.8),
    ]
    assert answer.insights[1].data == {"depth": 2, "event": "cart", "ended": 80, "reached": 100, "size": 0.8}
    assert [each.insight for each in answer.recommendations] == ["path-end"]
    assert answer.chart is not None
    assert answer.chart.kind == "sankey"


def test_of_few_paths_nothing_is_told(visitors: Any) -> None:
    answer = paths(visitors(shop(8, "view", "cart"), 9), {}, GAP)
    assert (answer.insights, answer.recommendations) == ([], [])


def test_an_event_that_nobody_knows_is_said_with_those_near(ask: Ask) -> None:
    answer = ask(shop(2, "view", "cart"), "paths", RANGE, start={"event": "carts"})
    assert answer.table.num_rows == 0
    assert answer.insights[0].data == {"parameter": "start", "event": "carts", "near": ["cart"]}
    assert ask(shop(2, "view", "cart"), "paths", RANGE, end="cart").table.num_rows == 2
    assert ask([], "paths", RANGE).table.num_rows == 0
    assert ask([], "paths", RANGE, mode="transitions").table.num_rows == 0


@pytest.mark.parametrize("wrong", [{"depth": 21}, {"depth": 1}, {"limit": 0}, {"by": "visit"}, {"ends": "a"}])
def test_wrong_parameters_are_refused(ask: Ask, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ask([], "paths", RANGE, **wrong)
