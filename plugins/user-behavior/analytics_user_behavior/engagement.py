"""The analysis ``engagement``: who comes, who comes back, and how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, TimeRange, UserOrder
from analytics_user_behavior.activity import active, fold, having
from analytics_user_behavior.calendar import Periods, periods
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.figures import ratio, shown

WEEK, MONTH = 7, 30


def engagement(events: EventReader, asked: TimeRange, parameters: Mapping[str, Any]) -> Answer:
    """One row per local day that the range touches.

    A visitor is active on a day with at least one event that is meant by ``event`` (all are, when it says nothing).
    ``dau`` counts the visitors active on the day, ``wau`` and ``mau`` those active on at least one of the 7 and 30 days
    that end with it; the days before the range are read too, and the first day of the range from its beginning.
    ``stickiness`` is dau / mau, null when nobody was active. ``new`` are the active visitors whose first event of all
    that are stored is on this day; ``returning`` is dau - new. ``days_covered`` (at most 30) is how many of the 30 days
    of mau are on or after the first event that is stored of anybody seen: before that there is nothing to count.
    ``complete`` is false for a day that is not over at the end of the range or by the log's clock.

    Columns: day, dau, wau, mau, stickiness, new, returning, days_covered, complete.
    """
    days = periods(asked, before=MONTH - 1)
    seen = slice(MONTH - 1, None)
    found = fold(events, _counts(days), parameters.get("event", ""), days.start)
    dau, wau, mau, new = found[0] if found else np.zeros((4, len(days)), np.int64)
    day = np.arange(len(days))[seen]
    earliest = int(np.flatnonzero(found[1])[0]) if found and found[1].any() else len(days)
    covered = np.clip(day + 1 - earliest, 0, MONTH)
    complete = days.complete(events)[seen]
    dau, wau, mau, new = dau[seen], wau[seen], mau[seen], new[seen]
    table = pa.table(
        {
            "day": days.begins()[MONTH - 1 :],
            "dau": dau,
            "wau": wau,
            "mau": mau,
            "stickiness": shown(ratio(dau, mau)),
            "new": new,
            "returning": dau - new,
            "days_covered": covered,
            "complete": complete,
        }
    )
    visitors = int(found[2]) if found else 0
    insights = _findings(dau, mau, visitors, complete & (covered == MONTH), having(parameters.get("event", "")))
    return Answer(table, insights, (), Chart(kind="line", x="day", y=("dau", "wau", "mau")))


def _counts(days: Periods) -> Callable[[UserOrder], tuple[Any, ...]]:
    """Per part: dau, wau, mau and new by day (4, n); visitors by the day of their first event, those before on the
    first (n,); and how many were active within the range."""

    def step(part: UserOrder) -> tuple[Any, ...]:
        n = len(days)
        found = active(part, days)
        begin = np.flatnonzero(~found.follows())
        last = np.append(begin[1:], len(found.user))[: len(begin)] - 1
        first = days.of(part.first_at)
        new = np.bincount(found.period[first[found.user] == found.period], minlength=n)
        begun = np.bincount(np.clip(first[found.user[begin]], 0, n - 1), minlength=n)
        visitors = (found.period[last] >= MONTH - 1).sum()
        return np.stack([*_trailing(found.period, last, n, (1, WEEK, MONTH)), new]), begun, visitors

    return step


def _trailing(day: I64, last: I64, n: int, widths: Sequence[int]) -> list[I64]:
    """Distinct visitors of the so many days up to each day, shape ``(n,)`` for each of ``widths``.

    ``day``: the active days of one visitor after the other; ``last``: where each visitor's end. An active day counts
    its visitor from then until ``width`` days later, or until the visitor's next active day.
    """
    came = np.bincount(day, minlength=n)
    ahead = np.append(day[1:], n)[: len(day)]
    ahead[last] = n
    counts = []
    for width in widths:
        gone = np.bincount(np.minimum(ahead, day + width), minlength=n)[:n]
        counts.append(np.cumsum(came - gone))
    return counts


def _findings(dau: I64, mau: I64, visitors: int, whole: Mask, doing: str) -> list[Insight]:
    """``doing`` says with which events visitors are active."""
    visits = int(dau.sum())
    if not visitors:
        return []
    found = [
        Insight(
            key="visits",
            title=f"A visitor{doing} was active on {visits / visitors:.1f} days",
            description=f"{visitors} visitors{doing} were active on {visits} visitor-days in {len(dau)} days.",
            data={"visitors": visitors, "visitor_days": visits, "days": len(dau)},
        )
    ]
    some = whole & (mau > 0)
    if some.any():
        usual = float(np.mean(dau[some] / mau[some]))
        found.append(
            Insight(
                key="stickiness",
                title=f"Stickiness{doing} is {usual:.1%}",
                description=f"On the {int(some.sum())} whole days with 30 days of data up to them, {usual:.1%} of the "
                f"month's visitors{doing} were active on the average day.",
                data={"stickiness": usual, "days": int(some.sum())},
            )
        )
    return found
