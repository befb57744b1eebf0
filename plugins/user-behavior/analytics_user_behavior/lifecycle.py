"""The analysis ``lifecycle``: of the active visitors of a period, who is new, who stayed, who is back, who is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, TimeRange, UserOrder
from analytics_user_behavior.activity import active, fold
from analytics_user_behavior.calendar import Periods, periods
from analytics_user_behavior.columns import I64, Mask

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
    states = (found[0] if found else np.zeros((4, len(spans)), np.int64))[:, 1:]
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
    insights, advice = _findings(states, complete, parameters["period"])
    shown = ("new", "returning", "resurrecting", "dormant")
    return Answer(table, insights, advice, Chart(kind="bar", x="begins", y=shown))


def _states(spans: Periods) -> Callable[[UserOrder], tuple[I64]]:
    """Per part: new, returning, resurrecting and dormant visitors of each period, shape (4, n)."""

    def step(part: UserOrder) -> tuple[I64]:
        n = len(spans)
        found = active(part, spans)
        new = spans.of(part.first_at)[found.user] == found.period
        stayed = np.zeros(len(new), np.bool_)
        stayed[1:] = found.follows()[1:] & (np.diff(found.period) == 1)
        left = np.append(~stayed[1:], True)[: len(new)]
        columns = [found.period[new], found.period[stayed], found.period[~new & ~stayed], found.period[left] + 1]
        return (np.stack([np.bincount(column, minlength=n)[:n] for column in columns]),)

    return step


def _findings(states: I64, complete: Mask, period: str) -> tuple[list[Insight], list[Recommendation]]:
    """The balance of those who came and those who went, over the periods that are over."""
    new, _, resurrecting, dormant = (int(row[complete].sum()) for row in states)
    came = new + resurrecting
    if came + dormant < _LEAST:
        return [], []
    net, over = came - dormant, int(complete.sum())
    word = "grew" if net > 0 else "shrank" if net < 0 else "stayed as large"
    found = Insight(
        key="balance",
        title=f"The active visitors {word}" + (f" by {abs(net)}" if net else ""),
        description=f"Over {over} whole {period}s {new} visitors were new and {resurrecting} came back after a pause, "
        f"while {dormant} did not come in the {period} after one they were active in.",
        severity="info" if net >= 0 else "low",
        data={"new": new, "resurrecting": resurrecting, "dormant": dormant, "net": net, "periods": over},
    )
    if net >= 0:
        return [found], []
    return [found], [
        Recommendation(
            title="More visitors go than come",
            description=f"{dormant} went and {came} came. Ask for retention with filters by source or platform to "
            "see whom you lose.",
            insight=found.key,
        )
    ]
