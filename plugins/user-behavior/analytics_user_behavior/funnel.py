"""The analysis ``funnel``: how many visitors go through a sequence of steps in time, and where they are lost.

One row per step, for each value when ``breakdown`` asks for them.

**Who.** ``by: user`` counts persons; ``by: session`` counts sessions (`session_order`), and what follows is said of
the events of one session. Only events in the range that hold the question's filters are seen.

**Chains.** A chain of k steps is k different events of one visitor that come after one another in the order
(timestamp, partition, seq); the i-th fits step i, and the last is at most ``window`` after the first. A visitor
has reached step k when there is a chain of k steps.

- ``ordered``: any other events may come between. This is the level of ClickHouse's ``windowFunnel`` without a mode,
  but for two things: there equal times are ordered by the number of the step, here by seq; and there one event may
  stand for two steps, here it never does (``strict_once``).
- ``strict``: between the events of the steps k and k + 1, no event of the visitor comes that fits none of the steps
  1 to k, whatever its name: only repetitions may. That is what ``strict_order`` of ClickHouse tolerates; but there
  the first other event ends the search for good, while here the next event of step 1 begins a new attempt.
- ``any``: the steps may come in any order, and row k tells who has done any k of them: k events, each for another
  step. An event that fits several steps stands for the first of them; a step that is listed m times needs m events.

**Exclusions.** No event of an exclusion comes between the events of the steps k and k + 1 of a chain, where k is
its ``after``; without ``after``, none between the first and the last event. The events of the chain itself are
never between.

**Hold.** With a property to hold, the funnel is asked for each value of it as if the visitor had done nothing but
the events with this value (steps, exclusions and others alike); what it did with any of them counts.

**Open.** Who has reached step k < last and no more is *open* when some chain of that visitor, of any length, may
still go on: its window is not over at the end of what is known (the earlier of the range's end and the watermark),
nothing has ended it, and its session may go on: one without a client's id is over after the gap. The others are
*dropped*. So users = next step's users + dropped + open.

**Times** of step k are those of the chain of k steps that ends first, for each visitor; if several end there, of
one that has begun latest, with each event the latest before the next (in ``any`` order: the earliest of its step
from the begin on). They are seconds, from its last event but one and from its first; quantiles are linear between
neighbours, over visitors.

**Breakdown.** A visitor is of the value at the first event of its longest chain (as for the times). The ``top``
values by visitors, ties by value, then "(other)" and "(none)", each when there is one.

Columns: step (from 1), event, users, conversion_from_start, conversion_from_previous, dropped, open,
p50_seconds_from_previous, p90_seconds_from_previous, p50_seconds_from_start, p90_seconds_from_start; with a
breakdown ``value`` before them.
Conversions are null when nobody was there to convert, times are null for step 1 and when nobody got there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from analytics_core import Answer, EventReader, ParameterError, UserOrder
from analytics_user_behavior.activity import filters_of
from analytics_user_behavior.calendar import micros
from analytics_user_behavior.chains import Found, Runs, changes, in_any_order, in_order
from analytics_user_behavior.columns import I64, MINUTE, Mask
from analytics_user_behavior.fields import valued
from analytics_user_behavior.funnel_figures import Outcome, answer
from analytics_user_behavior.session_order import by_session

LEAST_STEPS, MOST_STEPS = 2, 20
LONGEST = 3650 * 86_400
"""Seconds of the longest window."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Plan(NamedTuple):
    """A checked question: ``steps`` are the mark of each step, and ``exclusions`` those of each gap between two.

    ``window`` and ``gap`` are in microseconds, ``until`` is microseconds UTC; with a ``gap``, sessions are counted.
    """

    steps: Sequence[str]
    exclusions: Sequence[Sequence[str]]
    order: str
    window: int
    gap: int | None
    hold: str | None
    breakdown: str | None
    until: int


class Units(NamedTuple):
    """What is counted, and where chains are looked for: ``group`` runs of events, each of one ``unit``, ascending.

    ``place`` (n,) is where the events of the runs stand in ``events``; None for all as they are.
    """

    events: UserOrder
    counted: Mask
    end: I64
    unit: I64
    place: I64 | None


def funnel(events: EventReader, asked: Mapping[str, Any], gap_minutes: int) -> Answer:
    """The answer as it is defined above.

    ``asked`` has ``steps`` (2 to 20 of ``{"event", "where"}``), ``window``, ``order``, ``by``, ``exclude`` (``{"event",
    "where", "after"}``), ``hold``, ``breakdown`` and ``top``, as the manifest declares them. ``where`` are filters as a
    request writes them.

    :raises ParameterError: naming the parameter and what would be valid.
    """
    plan, marks = _plan(events, asked, gap_minutes)
    parts = events.in_user_order(
        partial(_outcome, plan=plan),
        marks=marks,
        values=[field for field in dict.fromkeys((plan.hold, plan.breakdown)) if field is not None],
        marked_only=plan.order != "strict" and plan.gap is None,
        columns=["session"] if plan.gap is not None else (),
    )
    names = [str(step["event"]) for step in asked["steps"]]
    if plan.order == "any":
        names = [f"any {k} of {len(names)}" for k in range(1, len(names) + 1)]
    return answer(names, parts, asked.get("top", 10) if plan.breakdown else None, asked.get("window", "1d"))


def _plan(events: EventReader, asked: Mapping[str, Any], gap_minutes: int) -> tuple[Plan, dict[str, Any]]:
    """The checked question, and the marks that it needs."""
    steps, exclusions, order = asked["steps"], asked.get("exclude", []), asked.get("order", "ordered")
    if not LEAST_STEPS <= len(steps) <= MOST_STEPS:
        raise ParameterError("steps", f"{len(steps)} given; valid are {LEAST_STEPS} to {MOST_STEPS}")
    marks, places = _marks([*_listed("steps", steps), *_listed("exclude", exclusions)])
    known = min(events.range.end, events.watermark or events.range.end)
    hold, breakdown = (valued(asked[name], name) if asked.get(name) else None for name in ("hold", "breakdown"))
    plan = Plan(
        steps=places[: len(steps)],
        exclusions=_exclusions(exclusions, places[len(steps) :], len(steps), order),
        order=order,
        window=window_seconds(asked.get("window", "1d")) * 1_000_000,
        gap=gap_minutes * MINUTE if asked.get("by") == "session" else None,
        hold=hold,
        breakdown=breakdown,
        until=micros(known),
    )
    return plan, marks


def window_seconds(window: str, parameter: str = "window") -> int:
    """:raises ParameterError: for what is no time over zero."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST:
        raise ParameterError(parameter, f"{window[:32]!r} is not valid; valid are such as 30m, 1d or 2w, up to 3650d")
    return seconds


def _listed(parameter: str, entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [(f"{parameter}[{i}].where", filters_of(entry)) for i, entry in enumerate(entries)]


def _marks(listed: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The filters by mark, and the mark of each entry: entries that ask for the same share one."""
    marks: dict[str, Any] = {}
    by_filters: dict[str, str] = {}
    places = []
    for name, filters in listed:
        mark = by_filters.setdefault(json.dumps(filters, sort_keys=True, default=str), name)
        marks[mark] = filters
        places.append(mark)
    return marks, places


def _exclusions(given: Sequence[Mapping[str, Any]], marks: Sequence[str], steps: int, order: str) -> list[list[str]]:
    """The marks that may not come between the steps k and k + 1, for each k from 1 on."""
    between: list[list[str]] = [[] for _ in range(steps - 1)]
    for i, (entry, mark) in enumerate(zip(given, marks, strict=True)):
        after = entry.get("after")
        if after is not None and order == "any":
            raise ParameterError(f"exclude[{i}].after", "steps in any order have no first one; leave it out")
        if after is not None and not 1 <= after < steps:
            raise ParameterError(
                f"exclude[{i}].after", f"{after} is no step with one after it; valid are 1 to {steps - 1}"
            )
        for k in range(1, steps):
            if after in (None, k):
                between[k - 1].append(mark)
    return between


# --- one part --------------------------------------------------------------------------------------------------------


def _outcome(part: UserOrder, plan: Plan) -> Outcome:
    """How far each visitor or session of the part has come."""
    units = _units(part, plan)
    found = _found(units, plan)
    events, place = units.events, units.place
    level = np.zeros(len(events.end), np.int8)
    origin = np.zeros(len(events.end), np.int64)
    from_previous, from_start = [], []
    for k, reached in enumerate(found.reached):
        unit, first, previous, last = units.unit[reached.group], reached.first, reached.previous, reached.last
        if place is not None:
            first, previous, last = place[first], place[previous], place[last]
            by = np.lexsort((last, unit))
            by = by[changes(unit[by])]
            unit, first, previous, last = unit[by], first[by], previous[by], last[by]
        kept = units.counted[unit]
        unit, first, previous, last = unit[kept], first[kept], previous[kept], last[kept]
        level[unit], origin[unit] = k + 1, first
        from_previous.append((events.at[last] - events.at[previous]) / 1e6)
        from_start.append((events.at[last] - events.at[first]) / 1e6)
    going = np.zeros(len(level), np.bool_)
    going[units.unit[found.open]] = True
    if plan.gap is not None:
        going &= ~_over(events, plan.gap, plan.until)
    some = level > 0
    value = None if plan.breakdown is None else events.values[plan.breakdown][origin[some]]
    words = () if plan.breakdown is None else events.words[plan.breakdown]
    return Outcome(level[some], (going & (level < len(plan.steps)))[some], from_previous, from_start, value, words)


def _over(sessions: UserOrder, gap: int, until: int) -> Mask:
    """Which sessions can get no more events: those without a client's id after the gap, shape ``(sessions,)``."""
    last = sessions.end - 1
    over: Mask = (sessions.session[last] == 0) & (sessions.at[last] + gap < until)
    return over


def _units(part: UserOrder, plan: Plan) -> Units:
    events = part if plan.gap is None else by_session(part, plan.gap).events
    counted = events.known if plan.gap is None else np.ones(len(events.end), np.bool_)
    if plan.hold is None:
        return Units(events, counted, events.end, np.arange(len(events.end)), None)
    codes, user = events.values[plan.hold], events.user()
    place = np.flatnonzero(codes >= 0)
    key = user[place] * (len(events.words[plan.hold]) + 1) + codes[place]
    by = np.argsort(key, kind="stable")
    place, key = place[by], key[by]
    begin = changes(key)
    return Units(events, counted, np.append(begin[1:], len(key))[: len(begin)], user[place[begin]], place)


def _found(units: Units, plan: Plan) -> Found:
    every = slice(None) if units.place is None else units.place
    events = units.events
    fits = [events.marks[mark][every] for mark in plan.steps]
    excluded = [[events.marks[mark][every] for mark in marks] for marks in plan.exclusions]
    if plan.order == "any":
        stops = [np.flatnonzero(np.logical_or.reduce(excluded[0])) if excluded[0] else np.zeros(0, np.int64)]
        own, sizes = _apart(plan.steps, fits)
        return in_any_order(Runs(events.at[every], units.end, own, stops), sizes, plan.window, plan.until)
    if plan.order == "strict":
        taken = np.logical_or.accumulate(fits)
        excluded = [[*masks, ~taken[k]] for k, masks in enumerate(excluded)]
    stops = [np.flatnonzero(np.logical_or.reduce(m)) if m else np.zeros(0, np.int64) for m in excluded]
    return in_order(Runs(events.at[every], units.end, fits, stops), plan.window, plan.until)


def _apart(marks: Sequence[str], fits: Sequence[Mask]) -> tuple[list[Mask], list[int]]:
    """The masks of the different steps, where an event is of the first that it fits; how often each is listed."""
    own: dict[str, Mask] = {}
    taken = np.zeros(len(fits[0]), np.bool_)
    for mark, mask in zip(marks, fits, strict=True):
        if mark not in own:
            own[mark] = mask & ~taken
            taken |= mask
    return list(own.values()), [list(marks).count(mark) for mark in own]
