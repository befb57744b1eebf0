"""The analysis ``lifecycle``: of the active visitors of a period, who is new, who stayed, who is back, who is gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, TimeRange, UserOrder
from analytics_user_behavior.activity import active, fold, having
from analytics_user_behavior.calendar import Periods, periods
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.intervals import CONFIDENCE, normal_p

_WEEK = 7
_LEAST = 100
"""Visitors that came or went, below which their balance is not told."""


def lifecycle(events: EventReader, asked: TimeRange, parameters: Mapping[str, Any]) -> Answer:
    """One row per local ``period`` (day, week or month) that the range touches, the first from its own beginning.

    A visitor is active in a period with an event that is meant by ``event`` (any, when it says nothing), and then one
    of three: ``new``, when its first event of all that are stored, whatever its name, is in this period;
    ``returning``, when it was active in the period before as well; else ``resurrecting``. ``dormant`` are those who
    were active in the period before and are not in this one; they are no part of ``active``, which is the sum of the
    other three. The period before the first is read too. These are the states of PostHog's lifecycle and Amplitude's,
    where returning are called current and resurrecting resurrected.

    ``complete`` is false for a period that is not over at the end of the range or by the log's clock; there ``dormant``
    is null, since everybody may still come.

    Columns: begins (local date), active, new, returning, resurrecting, dormant, complete.
    """
    spans = periods(asked, parameters["period"], before=1, week_start=parameters["weekStart"])
    found = fold(events, _states(spans), parameters.get("event", ""), spans.start)
    states, earlier = found or (np.zeros((4, len(spans)), np.int64), 0)
    states = states[:, 1:]
    new, returning, resurrecting, dormant = states
    complete = spans.complete(events)[1:]
    table = pa.table(
        {
            "begins": spans.begins()[1:],
            "active": new + returning + resurrecting,
            "new": new,
            "returning": returning,
            "resurrecting": resurrecting,
            "dormant": pa.array(dormant, mask=~complete),
            "complete": complete,
        }
    )
    doing = having(parameters.get("event", ""))
    insights, advice = _findings(states, spans, complete, parameters["period"], doing) if earlier else ([], [])
    shown = ("new", "returning", "resurrecting", "dormant")
    return Answer(table, insights, advice, Chart(kind="bar", x="begins", y=shown))


def _states(spans: Periods) -> Callable[[UserOrder], tuple[I64, int]]:
    """Per part: new, returning, resurrecting and dormant visitors of each period, shape (4, n); and how many were there
    before the range."""

    def step(part: UserOrder) -> tuple[I64, int]:
        n = len(spans)
        found = active(part, spans)
        new = spans.of(part.first_at)[found.user] == found.period
        stayed = np.zeros(len(new), np.bool_)
        stayed[1:] = found.follows()[1:] & (np.diff(found.period) == 1)
        left = np.append(~stayed[1:], True)[: len(new)]
        columns = [found.period[new], found.period[stayed], found.period[~new & ~stayed], found.period[left] + 1]
        states = np.stack([np.bincount(column, minlength=n)[:n] for column in columns])
        return states, int((part.first_at < spans.edges[1]).sum())

    return step


def _findings(
    states: I64, spans: Periods, complete: Mask, period: str, doing: str
) -> tuple[list[Insight], list[Recommendation]]:
    """The balance of those who came and those who went, when it is no chance: if it is as likely to come as to go, its
    variance is their number (McNemar 1947). It is of the periods that are over, of days the whole weeks up to then:
    else it would be that of two weekdays. Of history that begins in the range all are new, so callers do not ask.
    ``doing`` says with which events visitors are active.
    """
    over = np.flatnonzero(complete)
    if period == "day":
        over = over[len(over) % _WEEK :]
    new, _, resurrecting, dormant = (int(row[over].sum()) for row in states)
    came = new + resurrecting
    if came + dormant < _LEAST:
        return [], []
    p = normal_p((came - dormant) / math.sqrt(came + dormant))
    if p > 1 - CONFIDENCE:
        return [], []
    net, since = came - dormant, spans.begins()[1:][int(over[0])].as_py()
    figures = {"new": new, "resurrecting": resurrecting, "dormant": dormant, "net": net, "periods": len(over)}
    found = Insight(
        key="balance",
        title=f"The active visitors{doing} {'grew' if net > 0 else 'shrank'} by {abs(net)}",
        description=f"Over {len(over)} whole {period}s from {since} on {new} visitors were new and {resurrecting} came "
        f"back after a pause, while {dormant} did not come in the {period} after one they were active in "
        f"(p = {p:.2g}).",
        severity="low" if net < 0 else "info",
        confidence=1 - p,
        data={**figures, "since": since.isoformat(), "p_value": p},
    )
    return [found], [] if net > 0 else [_advice(came, dormant)]


def _advice(came: int, dormant: int) -> Recommendation:
    return Recommendation(
        title="More visitors go than come",
        description=f"{dormant} went and {came} came. Ask for retention with filters by source or platform to see whom "
        "you lose.",
        insight="balance",
    )
