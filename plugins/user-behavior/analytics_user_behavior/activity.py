"""Who was active in which period: distinct (visitor, period) of the visitors in user order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from analytics_core import EventReader, UserOrder
from analytics_user_behavior.calendar import Periods
from analytics_user_behavior.columns import I64, Mask

Asked = str | Mapping[str, Any]
"""Which events are meant: a name, or ``{"event", "where"}``; nothing stands for every event."""


class Active(NamedTuple):
    """One entry for each visitor and period with an event, in the order of (visitor, period), shape ``(n,)`` each.

    ``user`` is the visitor's number in the part, ``period`` that of `Periods`.
    """

    user: I64
    period: I64

    def among(self, kept: Mask) -> Active:
        return self if kept.all() else Active(self.user[kept], self.period[kept])

    def follows(self) -> Mask:
        """Whether the entry before is of the same visitor, shape ``(n,)``."""
        same = np.zeros(len(self.user), np.bool_)
        same[1:] = self.user[1:] == self.user[:-1]
        return same


def active(part: UserOrder, periods: Periods, mark: Mask | None = None) -> Active:
    """The periods in which each person of ``part`` had an event, or one for which ``mark`` holds (shape ``(n,)``)."""
    at: I64 = part.at
    end: I64 = part.end
    if mark is not None and not mark.all():
        at, end = at[mark], np.cumsum(mark, dtype=np.int64)[end - 1]
    if not len(at):
        return Active(np.zeros(0, np.int64), np.zeros(0, np.int64))
    period = periods.of(at)
    first = np.ones(len(at), np.bool_)
    np.not_equal(period[1:], period[:-1], out=first[1:])
    begin = end[:-1]
    first[begin[begin < len(at)]] = True
    place = np.flatnonzero(first)
    counts = np.diff(np.searchsorted(place, end), prepend=0)
    found = Active(np.repeat(np.arange(len(end)), counts), period.take(place))
    inside = (found.period >= 0) & (found.period < len(periods))
    return found.among(inside & part.known[found.user])


def filters_of(event: Asked) -> list[dict[str, Any]] | dict[str, Any]:
    """Which events are meant, as a mark of `EventReader.in_user_order`.

    ``where`` is the short form ``{"properties.plan": "pro"}`` or a list of ``{"field", "op", "value"}``.
    """
    if isinstance(event, str):
        return {"event": event} if event else {}
    name, where = event.get("event", ""), event.get("where") or {}
    if not isinstance(where, list):
        free = "name" if "event" in where else "event"  # two names of one field, and both conditions hold
        return {**where, **({free: name} if name else {})}
    return [*where, *([{"field": "event", "op": "=", "value": name}] if name else [])]


def name_of(event: Asked) -> str:
    """The name that events must have, empty for any."""
    return event if isinstance(event, str) else str(event.get("event", ""))


def told(event: Asked) -> str:
    """How a finding names the events that are meant."""
    where = None if isinstance(event, str) else event.get("where")
    return (name_of(event) or "any event") + (f" where {json.dumps(where, ensure_ascii=False)}" if where else "")


def having(event: Asked) -> str:
    """How a finding says of visitors that they are those with such an event; empty when any counts."""
    return f" with {told(event)}" if filters_of(event) else ""


def fold(
    events: EventReader, step: Callable[[UserOrder], Sequence[Any]], event: Asked, since: datetime | None
) -> list[Any] | None:
    """The sums over all parts of each array that ``step`` gives; None without events.

    ``step`` sees the events that are meant by ``event`` and no others.
    """
    meant = filters_of(event)
    marks = {"event.where": meant} if meant else {}
    made = events.in_user_order(step, marks=marks, marked_only=bool(marks), since=since, columns=["first_at"])
    return [sum(arrays) for arrays in zip(*made, strict=True)] if made else None
