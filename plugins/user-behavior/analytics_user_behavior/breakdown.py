"""The analysis ``breakdown``: the most frequent values of a property or a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, UserOrder
from analytics_user_behavior.columns import I64
from analytics_user_behavior.counts import NONE, OTHER, counted, distinct, sums
from analytics_user_behavior.fields import COLUMNS, valued
from analytics_user_behavior.figures import ratio, shown

_LEAST = 100
"""Events below which no value is called frequent or missing."""


class _Part(NamedTuple):
    """Some visitors. ``events`` (words + 1,) is how many have no value, and each of ``words``. ``values`` (any,)
    are, one person after the other, the places in ``events`` of those that the person has; ``each`` (people,) is how
    many these are."""

    words: Sequence[str]
    events: I64
    values: npt.NDArray[np.int32]
    each: I64

    @property
    def people(self) -> int:
        return len(self.each)


class Group(NamedTuple):
    """One row: a value, all other values (``kind`` other), or its absence (none)."""

    kind: str
    value: str
    events: int


def breakdown(events: EventReader, parameters: Mapping[str, Any]) -> Answer:
    """One row for each of the ``limit`` values of ``by`` with most events, then one for the rest and one for absence.

    ``by`` is ``properties.x``, ``context.x`` (a path with dots leads into objects) or a column: event, source, userId,
    anonymousId, sessionId. Values are text: a number or a truth value as JSON writes it, an object or a list as JSON.
    Absent are a missing property, null, and an empty column. ``event`` is a name or a list of names, of which an event
    must have one; without it all events count, also those of nobody. Values with equally many events are in the order
    of their text.

    ``kind`` tells a ``value`` from ``other``, whose value is "(other)", and ``none``, "(none)"; those two are absent
    when they have no events. ``share`` is of all events that count. ``users`` are the visitors with such an event; one
    that has several values counts for each, and once for (other). ``share_of_users`` is of all visitors that count,
    null without any.

    Columns: value, kind, events, share, users, share_of_users.

    :raises ParameterError: when ``by`` is none of the above.
    """
    by, names, limit = valued(parameters["by"], "by"), parameters.get("event", []), parameters["limit"]
    names = [names] if isinstance(names, str) else names
    nobodys = _of_nobody(events, by, names)
    parts = _parts(events, by, names)
    totals = _totals(parts, nobodys)
    groups = _groups(totals, limit)
    users = _users(parts, groups)
    everybody = sum(part.people for part in parts)
    counts = np.array([group.events for group in groups], np.int64)
    table = pa.table(
        {
            "value": pa.array([group.value for group in groups], pa.string()),
            "kind": pa.array([group.kind for group in groups], pa.string()),
            "events": counts,
            "share": shown(ratio(counts, np.full(len(groups), counts.sum()))),
            "users": users,
            "share_of_users": shown(ratio(users, np.full(len(groups), everybody))),
        }
    )
    insights, advice = _findings(by, groups, int(counts.sum()))
    return Answer(table, insights, advice, Chart(kind="bar", x="value", y=("events", "users")))


def _text(by: str, bound: dict[str, Any]) -> str:
    """SQL for the value as text; what it binds goes into ``bound``."""
    if by in COLUMNS:
        return COLUMNS[by]
    holder, _, path = by.partition(".")
    bound["path"] = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path.split("."))
    return f"TRY(json_extract_string({holder}, $path))"  # a path by RFC 6901 can name any key


def _of_nobody(events: EventReader, by: str, names: Sequence[str]) -> dict[str | None, int]:
    """How many events of nobody have each value, None for its absence: no visitor has them."""
    bound: dict[str, Any] = {}
    where = "user_id IS NULL AND anonymous_id IS NULL AND session_id IS NULL"
    text = _text(by, bound)
    if names:
        where, bound["names"] = f"{where} AND list_contains($names, name)", list(names)
    query = f"SELECT CAST({text} AS VARCHAR) AS value, count(*) AS events FROM events WHERE {where} GROUP BY 1"
    return {row["value"]: row["events"] for row in events.sql(query, bound).to_pylist()}


def _parts(events: EventReader, by: str, names: Sequence[str]) -> list[_Part]:
    named = COLUMNS.get(by) == "name"
    return events.in_user_order(
        partial(_part, by="" if named else by),
        marks={"event": {"event": list(names)}} if names else {},
        values=() if named else (by,),
        marked_only=bool(names),
        columns=["name"] if named else (),
    )


def _part(part: UserOrder, by: str) -> _Part:
    """``by`` is empty for the name."""
    words, code = (part.words[by], part.values[by]) if by else (part.names, part.name)
    width, users = len(words) + 1, len(part.end)
    pair = np.repeat(np.arange(users) * width + 1, np.diff(part.end, prepend=0))
    pair += code
    found = counted(pair, users * width)
    user, value = np.divmod(found.code, width)
    known = part.known[user]
    return _Part(
        words=words,
        events=sums(value, found.times, width).astype(np.int64),
        values=value[known].astype(np.int32),
        each=np.bincount(user[known], minlength=users)[part.known],
    )


def _totals(parts: Sequence[_Part], nobodys: Mapping[str | None, int]) -> dict[str | None, int]:
    """How many events have each value; a text and a number may look the same, and are one then."""
    totals = Counter(nobodys)
    if parts:
        events = np.sum([part.events for part in parts], axis=0)
        some = np.flatnonzero(events)
        for code, times in zip(some.tolist(), events[some].tolist(), strict=True):
            totals[parts[0].words[code - 1] if code else None] += times
    return dict(totals)


def _groups(totals: Mapping[str | None, int], limit: int) -> list[Group]:
    """The values with most events, then the rest and absence."""
    values = [(value, times) for value, times in totals.items() if value is not None]
    named = nsmallest(limit, values, key=lambda pair: (-pair[1], pair[0]))
    rest = sum(times for _, times in values) - sum(times for _, times in named)
    others = [Group("other", OTHER, rest), Group("none", NONE, totals.get(None, 0))]
    return [*(Group("value", value, times) for value, times in named), *(group for group in others if group.events)]


def _users(parts: Sequence[_Part], groups: Sequence[Group]) -> I64:
    """The persons of each group, shape ``(groups,)``."""
    users = np.zeros(len(groups), np.int64)
    if not parts:
        return users
    place = {group.value: at for at, group in enumerate(groups) if group.kind == "value"}
    rest = {group.kind: at for at, group in enumerate(groups) if group.kind != "value"}
    other, width = rest.get("other", -1), len(groups)
    group_of = np.array([rest.get("none", 0), *(place.get(word, other) for word in parts[0].words)], np.int64)
    for part in parts:
        pair = np.repeat(np.arange(len(part.each)) * width, part.each) + group_of[part.values]
        users += np.bincount(distinct(pair) % width, minlength=width)
    return users


def _findings(by: str, groups: Sequence[Group], total: int) -> tuple[list[Insight], list[Recommendation]]:
    if total < _LEAST:
        return [], []
    found, advice = [], []
    top = groups[0]
    if top.kind == "value" and len(groups) > 1:
        found.append(
            Insight(
                key="top",
                title=f"{top.value} is the most frequent {by}",
                description=f"{top.events} of {total} events ({top.events / total:.0%}) have {by} {top.value}.",
                data={"by": by, "value": top.value, "events": top.events, "share": top.events / total},
            )
        )
    absent = sum(group.events for group in groups if group.kind == "none")
    if 2 * absent > total:
        missing = Insight(
            key="absent",
            title=f"Most events have no {by}",
            description=f"{absent} of {total} events ({absent / total:.0%}) are without it.",
            data={"by": by, "events": absent, "share": absent / total},
        )
        found.append(missing)
        advice.append(
            Recommendation(
                title=f"Ask for the events that carry {by}",
                description=f"Name them in event, or send {by} with the others: a share of the rest says little.",
                insight=missing.key,
                priority="low",
            )
        )
    return found, advice
