"""The funnel against a reference that tries every chain of every visitor, and by hand where a rule is subtle."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, ParameterError, TimeRange
from analytics_core.queries import user_order
from analytics_core.testing import MemoryReader, batch
from analytics_user_behavior.funnel import funnel

START = datetime(2025, 1, 1, tzinfo=UTC)
GAP = 2
"""Minutes after which a session without an id is over."""

Row = dict[str, Any]


def event(user: str | None, minute: float, name: str, **more: Any) -> Row:
    return {"event": name, "user_id": user, "timestamp": START + timedelta(minutes=minute), **more}


def read(rows: Sequence[Row], minutes: int = 10_000) -> MemoryReader:
    return MemoryReader([batch(rows)], TimeRange(START, START + timedelta(minutes=minutes)))


def asking(rows: Sequence[Row], minutes: int = 10_000, **asked: Any) -> Answer:
    with read(rows, minutes) as reader:
        return funnel(reader, {"window": "1d", **asked}, GAP)


def users(rows: Sequence[Row], steps: str | Sequence[Mapping[str, Any]], **asked: Any) -> list[int]:
    """``steps`` may be letters, each the name of an event."""
    listed = [{"event": step} for step in steps] if isinstance(steps, str) else steps
    found: list[int] = asking(rows, steps=listed, **asked).table["users"].to_pylist()
    return found


def one(names: str) -> list[Row]:
    """One visitor's events, a minute apart."""
    return [event("u", minute, name) for minute, name in enumerate(names)]


# --- the reference ---------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One event of one group: minutes, position in the unit, which steps and exclusions it fits, its value."""

    at: int
    place: int
    steps: frozenset[int]
    excluded: frozenset[int]
    value: str | None


class Chain(NamedTuple):
    first: Seen
    previous: Seen
    last: Seen


def fits(row: Row, wanted: Mapping[str, Any]) -> bool:
    bound = wanted.get("where", {}).get("properties.n", {}).get(">")
    return row["event"] == wanted["event"] and (bound is None or row["properties"]["n"] > bound)


def units(rows: Sequence[Row], by: str) -> list[list[Row]]:
    """The events of each person, or of each session, in order."""
    visitors: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["timestamp"]):
        if row["user_id"] or row["session_id"]:
            visitors.setdefault(row["user_id"] or ("nobody", row["session_id"]), []).append(row)
    if by == "user":
        return [own for key, own in visitors.items() if isinstance(key, str)]
    sessions: list[list[Row]] = []
    for own in visitors.values():
        named: dict[str, list[Row]] = {}
        unnamed: list[list[Row]] = []
        for row in own:
            if row["session_id"]:
                named.setdefault(row["session_id"], []).append(row)
            elif unnamed and row["timestamp"] - unnamed[-1][-1]["timestamp"] <= timedelta(minutes=GAP):
                unnamed[-1].append(row)
            else:
                unnamed.append([row])
        sessions += [*named.values(), *unnamed]
    return sessions


def groups(unit: Sequence[Row], asked: Mapping[str, Any]) -> list[list[Seen]]:
    exclude = asked.get("exclude", [])
    field = asked.get("breakdown", "").removeprefix("properties.")
    held = asked.get("hold", "").removeprefix("properties.")
    found: dict[Any, list[Seen]] = {}
    for place, row in enumerate(unit):
        seen = Seen(
            at=minute(row),
            place=place,
            steps=frozenset(k for k, step in enumerate(asked["steps"]) if fits(row, step)),
            excluded=frozenset(x for x, entry in enumerate(exclude) if fits(row, entry)),
            value=row["properties"].get(field),
        )
        key = row["properties"].get(held) if held else ""
        if key is not None:
            found.setdefault(key, []).append(seen)
    return list(found.values())


def in_force(seen: Seen, k: int, asked: Mapping[str, Any]) -> bool:
    """Whether an event ends a chain between the steps k and k + 1, counted from 1."""
    if any(asked["exclude"][x].get("after") in (None, k) for x in seen.excluded):
        return True
    return asked["order"] == "strict" and not any(step < k for step in seen.steps)


def ordered_chains(events: Sequence[Seen], asked: Mapping[str, Any], window: int) -> Iterator[list[Seen]]:
    def further(chain: list[Seen]) -> Iterator[list[Seen]]:
        yield chain
        k, last = len(chain), events.index(chain[-1])
        for place in range(last + 1, len(events)):
            following = events[place]
            if (
                k in following.steps
                and following.at - chain[0].at <= window
                and not any(in_force(between, k, asked) for between in events[last + 1 : place])
            ):
                yield from further([*chain, following])

    for begin in events:
        if 0 in begin.steps:
            yield from further([begin])


def unordered_chains(events: Sequence[Seen], asked: Mapping[str, Any], window: int) -> Iterator[list[Seen]]:
    listed = [f"{step['event']} {step.get('where') or ''}" for step in asked["steps"]]
    sizes = Counter(listed)

    def stands_for(seen: Seen) -> str:
        return listed[min(seen.steps)]

    for size in range(1, len(listed) + 1):
        for chain in combinations([seen for seen in events if seen.steps], size):
            between = events[events.index(chain[0]) + 1 : events.index(chain[-1])]
            if (
                chain[-1].at - chain[0].at <= window
                and not any(seen.excluded for seen in between)
                and Counter(map(stands_for, chain)) <= sizes
            ):
                yield list(chain)


class Came(NamedTuple):
    """What became of one unit: by number of steps the chain that ends first; whether it may get further."""

    chains: dict[int, Chain]
    open: bool


def came(unit: Sequence[Row], asked: Mapping[str, Any], window: int, until: int) -> Came:
    chains: dict[int, list[Chain]] = {}
    going = False
    for events in groups(unit, asked):
        unordered = asked["order"] == "any"
        for chain in (unordered_chains if unordered else ordered_chains)(events, asked, window):
            k = len(chain)
            chains.setdefault(k, []).append(Chain(chain[0], chain[-2] if k > 1 else chain[-1], chain[-1]))
            later = events[events.index(chain[-1]) + 1 :]
            ended = any(seen.excluded if unordered else in_force(seen, k, asked) for seen in later)
            going |= k < len(asked["steps"]) and not ended and chain[0].at + window >= until
    best: dict[int, Chain] = {}
    for k, listed in chains.items():
        end = min(chain.last.place for chain in listed)
        ending = [chain for chain in listed if chain.last.place == end]
        begin = max(chain.first.place for chain in ending)
        begun = sorted((c for c in ending if c.first.place == begin), key=lambda chain: chain.previous.place)
        best[k] = begun[0] if asked["order"] == "any" else begun[-1]
        if asked["order"] != "any":
            assert best[k].previous.place == max(c.previous.place for c in ending), "the latest in every respect"
    over = asked["by"] == "session" and unit[-1]["session_id"] is None and minute(unit[-1]) + GAP < until
    return Came(best, going and not over and len(asked["steps"]) not in best)


def minute(row: Row) -> int:
    return round((row["timestamp"] - START) / timedelta(minutes=1))


def expected(rows: Sequence[Row], asked: Mapping[str, Any], minutes: int) -> list[Row]:
    """Rows of the answer, without the conversions and the names."""
    inside = [row for row in rows if row["timestamp"] < START + timedelta(minutes=minutes)]
    latest = max(row["timestamp"] for row in rows)
    until = min(minutes, round((latest - START) / timedelta(minutes=1)))
    window = int(asked["window"][:-1])
    each = [found for unit in units(inside, asked["by"]) if (found := came(unit, asked, window, until)).chains]
    of: dict[str | None, list[Came]] = {None: each}
    if "breakdown" in asked:
        of = by_value(each, asked["top"])
    steps, table = len(asked["steps"]), []
    for value, mine in of.items():
        levels = [max(found.chains) for found in mine]
        for k in range(1, steps + 1):
            there = [found.chains[k] for found in mine if k in found.chains]
            stayed = [found for found, level in zip(mine, levels, strict=True) if level == k and k < steps]
            row: Row = {} if value is None else {"value": value}
            row |= {"step": k, "users": len(there), "open": sum(found.open for found in stayed)}
            row["dropped"] = len(stayed) - row["open"]
            for name, seconds in (
                ("previous", [(c.last.at - c.previous.at) * 60 for c in there]),
                ("start", [(c.last.at - c.first.at) * 60 for c in there]),
            ):
                for q in (50, 90):
                    told = float(np.quantile(seconds, q / 100)) if seconds and k > 1 else None
                    row[f"p{q}_seconds_from_{name}"] = pytest.approx(told) if told is not None else None
            table.append(row)
    return table


def by_value(each: Sequence[Came], top: int) -> dict[str | None, list[Came]]:
    own: dict[str | None, list[Came]] = {}
    for found in each:
        own.setdefault(found.chains[max(found.chains)].first.value, []).append(found)
    ranked = sorted((value for value in own if value is not None), key=lambda value: (-len(own[value]), value))
    told: dict[str | None, list[Came]] = {value: own[value] for value in ranked[:top]}
    if ranked[top:]:
        told["(other)"] = [found for value in ranked[top:] for found in own[value]]
    if None in own:
        told["(none)"] = own[None]
    return told


# --- any question over any events ------------------------------------------------------------------------------------

step = st.fixed_dictionaries(
    {"event": st.sampled_from("aabc")},
    optional={"where": st.sampled_from([{}, {"properties.n": {">": 0}}, {"properties.n": {">": 1}}])},
)


def history(seed: int, visitors: int, most: int) -> list[Row]:
    """At most so many events of each visitor, many at the same time; every fourth visitor is nobody."""
    draw = random.Random(seed)
    rows = []
    for visitor in range(visitors):
        user = f"u{visitor}" if visitor % 4 != 3 else None
        for _ in range(draw.randint(1, most)):
            p = draw.choice(["one", "two", "three", None])
            rows.append(
                {
                    "event": draw.choice("aabbccx"),
                    "user_id": user,
                    "session_id": draw.choice([None, None, "s", "t"]) if user else f"s{visitor}",
                    "timestamp": START + timedelta(minutes=draw.randint(0, 9)),
                    "properties": {"n": draw.randint(0, 2), **({"p": p} if p else {})},
                }
            )
    draw.shuffle(rows)
    return rows


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    order = draw(st.sampled_from(["ordered", "strict", "any"]))
    steps = draw(st.lists(step, min_size=2, max_size=4))
    after = st.none() if order == "any" else st.sampled_from([None, *range(1, len(steps))])
    exclude = draw(st.lists(st.tuples(st.sampled_from("xxxac"), after), max_size=2))
    asked: dict[str, Any] = {
        "steps": steps,
        "order": order,
        "window": f"{draw(st.integers(1, 9))}m",
        "by": draw(st.sampled_from(["user", "user", "user", "session"])),
        "exclude": [{"event": name, **({"after": k} if k else {})} for name, k in exclude],
    }
    if draw(st.sampled_from([False, False, True])):
        asked["hold"] = "properties.p"
    if draw(st.booleans()):
        asked |= {"breakdown": "properties.p", "top": draw(st.integers(1, 3))}
    return asked


@given(
    st.builds(history, st.integers(0, 1 << 30), st.sampled_from([1, 4, 40]), st.sampled_from([4, 12])),
    st.lists(questions(), min_size=8, max_size=8),
    st.integers(4, 12),
    st.sampled_from([1 << 5, 1 << 19]),
)
@settings(max_examples=15, deadline=None)
def test_every_question_is_answered_as_the_definition_says(
    rows: list[Row], questions: list[dict[str, Any]], minutes: int, part: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, read(rows, minutes) as reader:
        patch.setattr(user_order, "PART", part)
        for asked in questions:
            table = funnel(reader, asked, GAP).table
            wanted = expected(rows, asked, minutes)
            kept = [name for name in table.column_names if name != "event" and not name.startswith("conversion")]
            assert table.select(kept).to_pylist() == [{name: row[name] for name in kept} for row in wanted]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_funnel_by_hand() -> None:
    rows = [
        *(event("a", m, name) for m, name in ((1, "view"), (2, "other"), (3, "cart"), (4, "buy"))),
        *(event("b", m, name) for m, name in ((1, "cart"), (2, "view"), (4, "cart"))),
        event("c", 1, "view"),
        event("d", 1, "buy"),
        event(None, 1, "view", session_id="s"),  # nobody
    ]
    steps = [{"event": "view"}, {"event": "cart"}, {"event": "buy"}]
    answer = asking(rows, steps=steps, window="3m")
    table = answer.table.to_pylist()
    assert [row["event"] for row in table] == ["view", "cart", "buy"]
    assert [row["users"] for row in table] == [3, 2, 1]
    assert [row["conversion_from_start"] for row in table] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [row["conversion_from_previous"] for row in table] == pytest.approx([1, 2 / 3, 1 / 2])
    assert [(row["dropped"], row["open"]) for row in table] == [(0, 1), (0, 1), (0, 0)]  # it is 00:04
    assert [row["p50_seconds_from_start"] for row in table] == [None, 120, 180]
    assert [row["p90_seconds_from_previous"] for row in table] == [None, 120, 60]
    assert answer.chart is not None
    assert answer.chart.kind == "funnel"


@pytest.mark.parametrize(
    ("names", "steps", "ordered", "strict", "any_"),
    [
        ("ABC", "ABC", [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        ("ABDC", "ABC", [1, 1, 1], [1, 1, 0], [1, 1, 1]),  # the example of ClickHouse's strict_order
        ("ABBC", "ABC", [1, 1, 1], [1, 1, 1], [1, 1, 1]),  # repetitions are no others
        ("ABAC", "ABC", [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        ("ADABC", "ABC", [1, 1, 1], [1, 1, 1], [1, 1, 1]),  # a new attempt
        ("ACB", "ABC", [1, 1, 0], [1, 0, 0], [1, 1, 1]),
        ("A", "AAB", [1, 0, 0], [1, 0, 0], [1, 0, 0]),  # one event is one step
        ("AAB", "AAB", [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        ("BAA", "AAB", [1, 1, 0], [1, 1, 0], [1, 1, 1]),
        ("DD", "ABC", [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_the_three_orders(names: str, steps: str, ordered: list[int], strict: list[int], any_: list[int]) -> None:
    rows = one(names)
    assert [users(rows, steps, order=order) for order in ("ordered", "strict", "any")] == [ordered, strict, any_]


def test_strict_times_are_from_the_first_of_repeated_steps() -> None:
    """The second B cannot be step 2, since the first one would come between, but it may be repeated before C."""
    steps = [{"event": name} for name in "ABC"]
    for order, seconds in (("ordered", 60), ("strict", 120)):
        table = asking(one("ABBC"), steps=steps, order=order).table
        assert table["p50_seconds_from_previous"].to_pylist() == [None, 60, seconds]


def test_a_later_begin_rescues_a_chain_that_would_be_too_long() -> None:
    rows = [event("u", m, name) for m, name in ((0, "A"), (20, "A"), (21, "B"), (30, "C"))]
    assert users(rows, "ABC", window="24m") == [1, 1, 1]


def test_the_window_counts_from_the_first_step_and_includes_its_end() -> None:
    rows = [event("u", m, name) for m, name in ((0, "A"), (1, "B"), (24, "C"))]
    assert users(rows, "ABC", window="24m") == [1, 1, 1]
    assert users(rows, "ABC", window="1439s") == [1, 1, 0]


def test_ties_go_by_seq() -> None:
    assert users([event("u", 1, "A"), event("u", 1, "B")], "AB") == [1, 1]
    assert users([event("u", 1, "B"), event("u", 1, "A")], "AB") == [1, 0]


def test_an_exclusion_ends_the_attempt_in_its_place_only() -> None:
    after = [{"event": "X", "after": 1}]
    assert users(one("AXB"), "AB", exclude=after) == [1, 0]
    assert users(one("ABXC"), "ABC", exclude=after) == [1, 1, 1]
    assert users(one("ABXC"), "ABC", exclude=[{"event": "X"}]) == [1, 1, 0]
    assert users(one("AXAB"), "AB", exclude=after) == [1, 1]  # a new attempt
    assert users(one("AXB"), "AB", exclude=[{"event": "X", "where": {"properties.n": {">": 1}}}]) == [1, 1]
    assert users(one("BXA"), "AB", order="any", exclude=[{"event": "X"}]) == [1, 0]


def test_a_held_property_is_the_same_in_all_steps() -> None:
    rows = [
        event("u", 1, "A", properties={"order": 1}),
        event("u", 2, "A", properties={"order": 2}),
        event("u", 3, "B", properties={"order": 2}),
        event("u", 4, "C", properties={"order": 1}),
        event("u", 5, "C"),
    ]
    assert users(rows, "ABC") == [1, 1, 1]
    assert users(rows, "ABC", hold="properties.order") == [1, 1, 0]


def test_sessions_are_counted_with_and_without_a_client_s_id() -> None:
    rows = [
        *(event("u", m, name) for m, name in ((0, "A"), (1, "B"), (9, "A"))),
        event("u", 20, "A", session_id="s"),
        event("u", 60, "B", session_id="s"),
        event(None, 61, "A", session_id="s"),
    ]
    assert users(rows, "AB", by="session") == [4, 2]
    assert users(rows, "AB") == [1, 1]


def test_a_session_that_is_over_is_open_no_more() -> None:
    """Without a client's id it ends with the gap, so nobody waits for the rest of the window; with one it may go on."""
    rows = [event("u", 0, "A"), event("v", 0, "A", session_id="s"), event("w", 5, "A")]
    table = asking(rows, steps=[{"event": "A"}, {"event": "B"}], by="session").table
    assert (table["dropped"][0].as_py(), table["open"][0].as_py()) == (1, 2)
    table = asking(rows, steps=[{"event": "A"}, {"event": "B"}]).table
    assert (table["dropped"][0].as_py(), table["open"][0].as_py()) == (0, 3)


@pytest.mark.parametrize(
    ("where", "reached"),
    [
        ({"properties.plan": "pro"}, 1),
        ({"properties.plan": ["pro", "free"]}, 2),
        ({"properties.n": {">": 4, "<": 6}}, 1),
        ({"properties.n": "5"}, 1),
        ({"properties.plan": None}, 1),
        ({"source": "native", "properties.plan": "free"}, 1),
        ([{"field": "properties.plan", "op": "!=", "value": "pro"}], 2),
        ([{"field": "properties.plan", "op": "regex", "value": "^f"}], 1),
        ([], 3),
    ],
)
def test_a_step_takes_filters_in_both_forms(where: Any, reached: int) -> None:
    rows = [
        event("a", 1, "view", properties={"plan": "pro", "n": 5}),
        event("b", 1, "view", properties={"plan": "free", "n": "5"}),
        event("c", 1, "view", properties={"n": 6}),
    ]
    assert users(rows, [{"event": "view", "where": where}, {"event": "cart"}]) == [reached, 0]


def test_a_breakdown_by_the_value_at_the_first_step() -> None:
    rows = [
        *(event("a", m, name, properties={"p": p}) for m, name, p in ((1, "A", "x"), (2, "A", "y"), (3, "B", "x"))),
        *(event("b", m, "A", properties={"p": "x"}) for m in (1, 2)),
        *(event(user, 1, "A", properties={"p": user}) for user in "cd"),
        event("e", 1, "A"),
    ]
    table = asking(rows, steps=[{"event": "A"}, {"event": "B"}], breakdown="properties.p", top=2).table.to_pylist()
    found = {(row["value"], row["event"]): row["users"] for row in table}
    assert found == {
        ("c", "A"): 1,
        ("c", "B"): 0,
        ("d", "A"): 1,
        ("d", "B"): 0,
        ("(other)", "A"): 2,
        ("(other)", "B"): 1,
        ("(none)", "A"): 1,
        ("(none)", "B"): 0,
    }


def test_nothing_at_all_is_an_answer() -> None:
    steps = [{"event": "A"}, {"event": "B"}]
    for more in ({}, {"breakdown": "properties.p"}, {"hold": "properties.p"}, {"by": "session"}, {"order": "any"}):
        for rows in ([], [event("u", 1, "C")]):
            answer = asking(rows, steps=steps, **more)
            assert not any(answer.table["users"].to_pylist())
            assert (answer.insights, answer.recommendations) == ([], [])
    assert asking([], steps=steps).table["conversion_from_start"].to_pylist() == [None, None]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "parameter", "problem"),
    [
        ({"steps": [{"event": "A"}]}, "steps", "1 given; valid are 2 to 20"),
        ({"steps": [{"event": "A"}] * 21}, "steps", "21 given; valid are 2 to 20"),
        ({"window": "0d"}, "window", "'0d' is not valid; valid are such as 30m, 1d or 2w"),
        ({"window": "day"}, "window", "'day' is not valid"),
        ({"window": "99999w"}, "window", "up to 3650d"),
        (
            {"exclude": [{"event": "X", "after": 2}]},
            "exclude[0].after",
            "2 is no step with one after it; valid are 1 to 1",
        ),
        ({"exclude": [{"event": "X", "after": 1}], "order": "any"}, "exclude[0].after", "leave it out"),
        ({"steps": [{"event": "A", "where": {"plan": 1}}, {"event": "B"}]}, "steps[0].where", "properties.plan"),
        ({"exclude": [{"event": "A", "where": [{"op": "="}]}]}, "exclude[0].where", "'field'"),
        ({"breakdown": "platform"}, "breakdown", "properties.platform"),
        ({"hold": "order"}, "hold", "properties.order"),
        ({"breakdown": "timestamp"}, "breakdown", "'timestamp' cannot be asked for here"),
        ({"breakdown": "properties.a..b"}, "breakdown", "properties.x, context.x, event"),
    ],
)
def test_a_wrong_question_names_its_parameter(asked: dict[str, Any], parameter: str, problem: str) -> None:
    with pytest.raises(ParameterError) as raised:
        asking([event("u", 1, "A")], **{"steps": [{"event": "A"}, {"event": "B"}], **asked})
    assert raised.value.parameter.startswith(parameter)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"steps": [{"event": "A"}] * 21}, "at most 20 items"),
        ({"steps": [{"event": "A"}]}, "at least 2 items"),
        ({"steps": [{"event": "A"}, {"evnt": "B"}]}, "did you mean 'event'"),
        ({"windw": "1d"}, "did you mean 'window'"),
        ({"order": "loose"}, "one of 'ordered', 'strict', 'any'"),
        ({"exclude": [{"event": "X", "after": 0}]}, "after"),
    ],
)
def test_the_manifest_says_what_can_be_asked(ask: Any, asked: dict[str, Any], problem: str) -> None:
    span = TimeRange(START, START + timedelta(days=1))
    steps = {"steps": [{"event": "A"}, {"event": "B"}]}
    assert ask(one("AB"), "funnel", span, **steps).table["users"].to_pylist() == [1, 1]
    with pytest.raises(ValueError, match=re.escape(problem)):
        ask([], "funnel", span, **{**steps, **asked})


# --- findings --------------------------------------------------------------------------------------------------------


def crowd(counts: Mapping[str, int], seconds: Mapping[str, float] = {}, **more: Any) -> list[Row]:
    """So many visitors, each with the events of its name in a row; ``seconds`` from the one before, 1 by default."""
    rows = []
    for names, count in counts.items():
        for n in range(count):
            at = 0.0
            for name in names:
                rows.append(event(f"{names}{n}{more}", at, name, **more))
                at += seconds.get(name, 1.0) / 60
    return [*rows, event("z", 9_000, "Z")]


STEPS = [{"event": name} for name in "ABC"]


def test_the_biggest_loss_is_told_with_its_figures() -> None:
    answer = asking(crowd({"A": 10, "AB": 40, "ABC": 50}), steps=STEPS)
    assert answer.insights[0].data == {"from": "B", "to": "C", "lost": 40, "reached": 90, "share": 40 / 90, "open": 0}
    assert answer.insights[0].confidence > 0.99
    assert answer.recommendations[0].insight == answer.insights[0].key == "drop-off"


def test_of_few_visitors_nothing_is_said() -> None:
    assert asking(crowd({"A": 5, "AB": 4, "ABC": 9}), steps=STEPS).insights == []
    assert asking(crowd({"A": 4, "ABC": 96}), steps=STEPS).insights == []


def test_who_may_yet_convert_is_not_lost() -> None:
    rows = crowd({"A": 50})[:-1]
    answer = asking(rows, steps=STEPS)
    assert answer.table["open"].to_pylist() == [50, 0, 0]
    assert answer.insights == []


def test_the_slowest_step_is_told_when_it_is_far_slower() -> None:
    answer = asking(crowd({"ABC": 30}, {"B": 100}), steps=STEPS)
    assert [insight.key for insight in answer.insights] == ["slowest-step"]
    found = answer.insights[0].data
    assert (found["from"], found["to"], found["p50_seconds_from_previous"]) == ("B", "C", 100)
    assert asking(crowd({"ABC": 30}, {"B": 1.2}), steps=STEPS).insights == []


def test_a_value_that_converts_otherwise_is_told_with_its_interval() -> None:
    rows = [
        *crowd({"A": 80, "ABC": 20}, properties={"p": "web"}),
        *crowd({"A": 50, "ABC": 50}, properties={"p": "app"}),
        *crowd({"A": 1, "ABC": 5}, properties={"p": "tv"}),
    ]
    told = {insight.key: insight for insight in asking(rows, steps=STEPS, breakdown="properties.p").insights}
    found = told["breakdown:web"].data
    assert (found["users"], found["converted"], found["others_users"], found["others_converted"]) == (100, 20, 106, 55)
    assert found["low"] < 20 / 100 - 55 / 106 < found["high"] < 0
    assert found["p_value"] < 0.001
    same = [
        *crowd({"A": 50, "ABC": 50}, properties={"p": "web"}),
        *crowd({"A": 50, "ABC": 55}, properties={"p": "app"}),
    ]
    assert all(not i.key.startswith("breakdown") for i in asking(same, steps=STEPS, breakdown="properties.p").insights)
