"""The analysis ``stickiness``: on how many days of a week or month visitors are active."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, TimeRange, UserOrder
from analytics_user_behavior.activity import active, fold, having
from analytics_user_behavior.calendar import Periods, periods
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.figures import ratio, shown

_LEAST = 100
"""Visitors below which a distribution is not told."""


def stickiness(events: EventReader, asked: TimeRange, parameters: Mapping[str, Any]) -> Answer:
    """One row per local ``period`` (week or month) that the range touches and number of days in it, from 1.

    A visitor is active on a local day with an event that is meant by ``event`` (any, when it says nothing). ``users``
    were active on exactly ``days`` days of the period, ``users_at_least`` on so many or more; the shares are of all who
    were active in the period, null when nobody was. The first period is read from its beginning, which may be before
    the range's start. ``complete`` is false for a period that is not over at the end of the range or by the log's
    clock: its visitors may still have more days.

    Columns: begins (local date of the period), days, users, share, users_at_least, share_at_least, complete.
    """
    spans = periods(asked, parameters["period"], week_start=parameters["weekStart"])
    days = spans.daily()
    of_day = spans.of(days.edges[:-1])
    length = np.bincount(of_day)
    found = fold(events, _days(days, of_day, len(spans), int(length.max())), parameters.get("event", ""), spans.start)
    users = found[0] if found else np.zeros((len(spans), int(length.max())), np.int64)
    at_least = np.cumsum(users[:, ::-1], axis=1)[:, ::-1]
    span, place = np.nonzero(np.arange(users.shape[1])[None, :] < length[:, None])
    over = spans.complete(events)
    table = pa.table(
        {
            "begins": spans.begins().take(pa.array(span)),
            "days": place + 1,
            "users": users[span, place],
            "share": shown(ratio(users[span, place], at_least[span, 0])),
            "users_at_least": at_least[span, place],
            "share_at_least": shown(ratio(at_least[span, place], at_least[span, 0])),
            "complete": over[span],
        }
    )
    doing = having(parameters.get("event", ""))
    chart = Chart(kind="heatmap", x="days", y=("share",), series="begins")
    return Answer(table, _findings(users, over, parameters["period"], doing), (), chart)


def _days(days: Periods, of_day: I64, spans: int, longest: int) -> Callable[[UserOrder], tuple[I64]]:
    """Per part: how many visitors were active on 1, 2, ... days of each period, shape (spans, longest)."""

    def step(part: UserOrder) -> tuple[I64]:
        found = active(part, days)
        span = of_day[found.period]
        first = ~found.follows()
        first[1:] |= span[1:] != span[:-1]
        begin = np.flatnonzero(first)
        lengths = np.diff(begin, append=len(span))
        counts = np.bincount(span[begin] * longest + lengths - 1, minlength=spans * longest)
        return (counts.reshape(spans, longest),)

    return step


def _findings(users: I64, over: Mask, period: str, doing: str) -> list[Insight]:
    """How often the visitors of a whole period came, over all that are over; ``doing`` says with which events."""
    counts = users[over].sum(axis=0)
    n = int(counts.sum())
    if n < _LEAST:
        return []
    mean = float(counts @ np.arange(1, len(counts) + 1)) / n
    once = int(counts[0])
    return [
        Insight(
            key="days",
            title=f"A visitor{doing} of a {period} is active on {mean:.1f} of its days",
            description=f"Over {int(over.sum())} whole {period}s, {once} of {n} visitors{doing} ({once / n:.0%}, each "
            f"counted once per {period}) were active on one day only.",
            data={"mean_days": mean, "users": n, "one_day": once, "periods": int(over.sum())},
        )
    ]
