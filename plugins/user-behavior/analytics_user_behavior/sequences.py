"""Sequences of events that recur in sessions, and ways that lead back to where they began."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from analytics_core import Answer, Chart, EventReader, Insight, ParameterError, Recommendation, UserOrder
from analytics_user_behavior.columns import I64, MINUTE, Mask
from analytics_user_behavior.counts import Counted, added, counted, distinct, listed, places_of
from analytics_user_behavior.intervals import normal_cdf, wilson
from analytics_user_behavior.walks import WALKED, Cut, Walks, walks

LONGEST: Final = 3
STEPS: Final = 3
LIMIT: Final = 20
_BITS: Final = 62
_LEAST = 30
_LEAST_Z = 4.0
_LEAST_LIFT = 1.5
_LEAST_SHARE = 0.1
_SECOND = 1e6


class _Support(NamedTuple):
    """How often each code occurs (weighing microseconds), and in how many sessions and of how many persons."""

    occurs: Counted
    sessions: Counted
    users: Counted


class _Found(NamedTuple):
    """Of a part: how many events have each name, shape ``(names,)``, before any are collapsed; the support of single
    events and of the sequences of each length asked for; and how many sessions there are."""

    names: Sequence[str]
    events: I64
    single: _Support
    grams: Sequence[_Support]
    sessions: int


def sequences(events: EventReader, given: Mapping[str, Any], gap_minutes: int) -> Answer:
    """The most frequent sequences of 2 to ``longest`` events that follow one another directly in a session.

    Sessions are those of `sessions`. With ``collapse`` (default) an event that follows one of its name counts as one
    with it. ``occurrences`` counts every place, also overlapping ones; ``sessions`` and ``users`` in how many sessions
    and of how many persons there is at least one, ``share`` is of all sessions. ``lift`` is the occurrences over those
    expected if events came in no order: the places where a sequence of that length could begin, times the first name's
    share of the events that are looked at, times for each further one its share of all events. With ``collapse`` that
    is over one less the share of the name before it, as that cannot follow.

    The ``limit`` sequences of each length with most sessions, of equals those with more occurrences.
    Columns: sequence, length, occurrences, sessions, share, users, lift.

    :raises ParameterError: when there are too many event names for that length.
    """
    longest, limit = given.get("longest", LONGEST), given.get("limit", LIMIT)
    cut = Cut(gap_minutes * MINUTE, given.get("collapse", True))
    found = _read(events, cut, range(2, longest + 1), _any)
    rows = []
    if found is not None:
        for length, support in zip(range(2, longest + 1), found.grams, strict=True):
            rows += _rows(found, support, length, limit, cut.collapse)
    columns = {"sequence": str, "length": int, "occurrences": int, "sessions": int, "share": float, "users": int}
    insights, advice = _findings(rows)
    chart = Chart(kind="bar", x="sequence", y=("sessions",))
    return Answer(listed(rows, {**columns, "lift": float}), insights, advice, chart)


def loops(events: EventReader, given: Mapping[str, Any], gap_minutes: int) -> Answer:
    """Ways that lead from an event back to one of its name within a session, in 2 to ``steps`` steps.

    Events that follow one of their name are one with it, and nothing of the name lies between. ``loops`` counts every
    return; ``sessions`` and ``users`` in how many sessions and of how many persons there is one; ``share`` is of the
    sessions that have the event at all; ``mean_seconds`` is from the event to its return.

    The ``limit`` loops with most sessions, of equals those with more returns.
    Columns: event, sequence, steps, loops, sessions, share, users, mean_seconds.
    """
    steps, limit = given.get("steps", STEPS), given.get("limit", LIMIT)
    found = _read(events, Cut(gap_minutes * MINUTE, collapse=True), range(3, steps + 2), _returns)
    rows = []
    if found is not None:
        for length, support in zip(range(3, steps + 2), found.grams, strict=True):
            rows += _loop_rows(found, support, length, limit)
    rows = sorted(rows, key=lambda row: (-row["sessions"], -row["loops"], row["sequence"]))[:limit]
    columns = {"event": str, "sequence": str, "steps": int, "loops": int, "sessions": int, "share": float, "users": int}
    insights, advice = _loop_findings(rows)
    return Answer(
        listed(rows, {**columns, "mean_seconds": float}),
        insights,
        advice,
        Chart(kind="bar", x="sequence", y=("sessions",)),
    )


# --- counting --------------------------------------------------------------------------------------------------------

Chosen = Callable[[Sequence[Any]], Mask | None]
"""Which of the sequences count, given the names at each place (length, n); None for all."""


def _any(names: Sequence[Any]) -> Mask | None:  # noqa: ARG001
    return None


def _returns(names: Sequence[Any]) -> Mask | None:
    kept: Mask = names[0] == names[-1]
    for between in names[1:-1]:
        kept = kept & (between != names[0])
    return kept


def _read(events: EventReader, cut: Cut, lengths: Sequence[int], chosen: Chosen) -> _Found | None:
    parts = events.in_user_order(lambda part: _count(part, cut, lengths, chosen), columns=WALKED)
    if not parts:
        return None
    grams = [_added([part.grams[n] for part in parts]) for n in range(len(lengths))]
    single = _added([part.single for part in parts])
    every = np.sum([part.events for part in parts], axis=0)
    return _Found(parts[0].names, every, single, grams, sum(part.sessions for part in parts))


def _added(parts: Sequence[_Support]) -> _Support:
    return _Support(*(added(column) for column in zip(*parts, strict=True)))


def _count(part: UserOrder, cut: Cut, lengths: Sequence[int], chosen: Chosen) -> _Found:
    base = max(len(part.names), 2)
    bits = (base ** max(lengths) - 1).bit_length()
    if bits > _BITS:
        most = int(_BITS / math.log2(base))
        raise ParameterError("longest", f"with {base} event names at most {most} events can be looked at in a row")
    found = walks(part, cut)
    name, at, end = steps = found.listed()
    number = steps.number()
    left = end[number] - np.arange(len(name))
    grams = []
    for length in (1, *lengths):
        place = np.flatnonzero(left >= length)
        names = [name[place + k] for k in range(length)]
        kept = chosen(names) if length > 1 else None
        if kept is not None:
            place, names = place[kept], [column[kept] for column in names]
        code = np.zeros(len(place), np.int64)
        for column in names:
            code = code * base + column
        grams.append(_support(part, found, code, number[place], at[place + length - 1] - at[place], base**length))
    every = np.bincount(part.name, minlength=len(part.names))
    return _Found(part.names, every, grams[0], grams[1:], len(found.end))


def _support(part: UserOrder, found: Walks, code: I64, session: I64, micros: I64, bound: int) -> _Support:
    """Of the sequences ``code`` (n,) below ``bound``, which are in the sessions ``session``, in order."""
    occurs = counted(code, bound, micros)
    dense = places_of(occurs.code, code, bound)  # small enough to be packed with the session
    bits = len(occurs.code).bit_length()
    once = distinct((session << bits) | dense)
    session, dense = once >> bits, once & ((1 << bits) - 1)
    sessions = counted(dense, 1 << bits)
    user = found.user[session]
    known = part.known[user]
    users = counted(distinct((user[known] << bits) | dense[known]) & ((1 << bits) - 1), 1 << bits)
    return _Support(occurs, *(each._replace(code=occurs.code[each.code]) for each in (sessions, users)))


# --- rows ------------------------------------------------------------------------------------------------------------


def _ranked(support: _Support, limit: int) -> I64:
    """The places of the sequences with most sessions; every code that occurs is in a session."""
    return np.lexsort((support.occurs.code, -support.occurs.times, -support.sessions.times))[:limit]


def _users(support: _Support, code: int) -> int:
    at = int(np.searchsorted(support.users.code, code))
    return int(support.users.times[at]) if at < len(support.users.code) and support.users.code[at] == code else 0


def _decoded(code: int, length: int, base: int) -> list[int]:
    found = []
    for _ in range(length):
        code, name = divmod(code, base)
        found.append(name)
    return found[::-1]


def _rows(found: _Found, support: _Support, length: int, limit: int, collapse: bool) -> list[dict[str, Any]]:
    base, places = max(len(found.names), 2), int(support.occurs.times.sum())
    single, share = found.single.occurs, found.events / found.events.sum()
    first = np.zeros(len(share))
    first[single.code] = single.times / single.times.sum()
    rows = []
    for at in _ranked(support, limit).tolist():
        code, occurs, sessions = (int(column[at]) for column in (*support.occurs[:2], support.sessions.times))
        names = _decoded(code, length, base)
        chance = math.prod(share[b] / (1 - share[a] if collapse else 1) for a, b in pairwise(names))
        rows.append(
            {
                "sequence": " > ".join(found.names[name] for name in names),
                "length": length,
                "occurrences": occurs,
                "sessions": sessions,
                "share": sessions / found.sessions,
                "users": _users(support, code),
                "lift": float(occurs / (places * first[names[0]] * chance)),
            }
        )
    return rows


def _loop_rows(found: _Found, support: _Support, length: int, limit: int) -> list[dict[str, Any]]:
    base = max(len(found.names), 2)
    having = dict(zip(found.single.sessions.code.tolist(), found.single.sessions.times.tolist(), strict=True))
    rows = []
    for at in _ranked(support, limit).tolist():
        code, times, sessions = (int(column[at]) for column in (*support.occurs[:2], support.sessions.times))
        names = _decoded(code, length, base)
        rows.append(
            {
                "event": found.names[names[0]],
                "sequence": " > ".join(found.names[name] for name in names),
                "steps": length - 1,
                "loops": times,
                "sessions": sessions,
                "share": sessions / having[names[0]],
                "users": _users(support, code),
                "mean_seconds": float(support.occurs.weight[at]) / times / _SECOND,
            }
        )
    return rows


# --- findings --------------------------------------------------------------------------------------------------------


def _findings(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Insight], list[Recommendation]]:
    """The sequence that is most above what no order would give: half as often again, and by 4 standard errors."""
    above = []
    for row in rows:
        expected = row["occurrences"] / row["lift"]
        z = (row["occurrences"] - expected) / math.sqrt(expected)
        if row["sessions"] >= _LEAST and row["lift"] >= _LEAST_LIFT and z >= _LEAST_Z:
            above.append((row["lift"], normal_cdf(z), row))
    if not above:
        return [], []
    lift, confidence, row = max(above, key=lambda each: each[:2])
    insight = Insight(
        key="sequence",
        title=f"{row['sequence']} is no chance",
        description=f"It occurs {row['occurrences']} times in {row['sessions']} sessions ({row['share']:.0%} of all), "
        f"{lift:.1f} times as often as if the events came in no order.",
        confidence=confidence,
        data={**row, "size": lift},
    )
    return [insight], []


def _loop_findings(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Insight], list[Recommendation]]:
    """The loop that most of the sessions with its event run into, where it is surely a tenth of them or more."""
    sure = []
    for row in rows:
        share = wilson(row["sessions"], round(row["sessions"] / row["share"]))
        if row["sessions"] >= _LEAST and share is not None and share.low >= _LEAST_SHARE:
            sure.append(row)
    if not sure:
        return [], []
    row = max(sure, key=lambda each: each["share"])
    insight = Insight(
        key="loop",
        title=f"Sessions go in a circle: {row['sequence']}",
        description=f"{row['sessions']} sessions, {row['share']:.0%} of those with {row['event']}, come back to it so, "
        f"{row['loops']} times in all and {row['mean_seconds']:.0f} s later on average.",
        severity="low",
        data={**row, "size": row["share"]},
    )
    return [insight], [
        Recommendation(
            title=f"See what those look for who come back to {row['event']}",
            description="A return may be browsing as it is meant, or a search for something that is not found. Compare "
            "how many of these sessions reach their goal with those that do not come back.",
            insight="loop",
        )
    ]
