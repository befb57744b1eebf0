"""The analysis ``breakdown``: the most frequent values of a property or a column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, ParameterError, Recommendation, UserOrder
from analytics_user_behavior.columns import I64
from analytics_user_behavior.counts import NONE, OTHER
from analytics_user_behavior.days import ratio, shown

_COLUMNS = {
    "event": "name",
    "name": "name",
    "source": "source",
    "userId": "user_id",
    "user_id": "user_id",
    "anonymousId": "anonymous_id",
    "anonymous_id": "anonymous_id",
    "sessionId": "session_id",
    "session_id": "session_id",
}
_HOLDERS = ("properties", "context")
_LEAST = 100
"""Events below which no value is called frequent or missing."""


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
    by, names, limit = parameters["by"], parameters.get("event", []), parameters["limit"]
    names = [names] if isinstance(names, str) else names
    groups = _groups(events, by, names, limit)
    users, everybody = _users(events, by, names, groups)
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
    if by in _COLUMNS:
        return _COLUMNS[by]
    holder, _, path = by.partition(".")
    if holder not in _HOLDERS or not all(path.split(".")):
        raise ParameterError("by", f"{by!r} is no field; valid are properties.x, context.x, {', '.join(_COLUMNS)}")
    bound["path"] = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path.split("."))
    return f"TRY(json_extract_string({holder}, $path))"  # a path by RFC 6901 can name any key


def _groups(events: EventReader, by: str, names: Sequence[str], limit: int) -> list[Group]:
    bound: dict[str, Any] = {"limit": limit}
    where = ""
    text = _text(by, bound)
    if names:
        where, bound["names"] = "WHERE list_contains($names, name)", list(names)
    found = events.sql(
        f"""
        WITH counted AS (SELECT CAST({text} AS VARCHAR) AS value, count(*) AS events FROM events {where} GROUP BY 1),
        ranked AS (
            SELECT *, row_number() OVER (PARTITION BY value IS NULL ORDER BY events DESC, value) AS rank FROM counted
        )
        SELECT CASE WHEN value IS NULL THEN 2 WHEN rank > $limit THEN 1 ELSE 0 END AS kind,
            CASE WHEN kind = 0 THEN value END AS shown, sum(events)::BIGINT AS events
        FROM ranked GROUP BY ALL ORDER BY kind, events DESC, shown
        """,
        bound,
    )
    kinds, shown_as = ("value", "other", "none"), (None, OTHER, NONE)
    return [
        Group(kinds[row["kind"]], shown_as[row["kind"]] or row["shown"] or "", row["events"])
        for row in found.to_pylist()
    ]


def _users(events: EventReader, by: str, names: Sequence[str], groups: Sequence[Group]) -> tuple[I64, int]:
    """The visitors of each group, shape ``(groups,)``, and of all."""
    place = {group.value: at for at, group in enumerate(groups) if group.kind == "value"}
    rest = {group.kind: at for at, group in enumerate(groups) if group.kind != "value"}
    codes: list[I64] = []

    def group_of(words: Sequence[str]) -> I64:
        """The group of each word, and last that of none; the words of all parts are the same."""
        if not codes:
            found = [place.get(word, rest.get("other", 0)) for word in words]
            codes.append(np.array([*found, rest.get("none", 0)], np.int64))
        return codes[0]

    named = _COLUMNS.get(by) == "name"
    marks = {"event": {"event": list(names)}} if names else {}
    made = events.in_user_order(
        _counting(group_of, "" if named else by, len(groups)),
        marks=marks,
        values=() if named else (by,),
        marked_only=bool(marks),
    )
    return sum((users for users, _ in made), np.zeros(len(groups), np.int64)), sum(every for _, every in made)


def _counting(group_of: Callable[[Sequence[str]], I64], by: str, groups: int) -> Callable[[UserOrder], tuple[I64, int]]:
    """Per part: how many persons have each group, and how many there are. ``by`` is empty for the name."""

    def step(part: UserOrder) -> tuple[I64, int]:
        words, code = (part.words[by], part.values[by]) if by else (part.names, part.name)
        pair = part.user() * groups + group_of(words)[code]
        changed = np.append(True, pair[1:] != pair[:-1])
        pair = np.unique(pair[changed])
        pair = pair[part.known[pair // groups]]
        return np.bincount(pair % groups, minlength=groups), int(part.known.sum())

    return step


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
