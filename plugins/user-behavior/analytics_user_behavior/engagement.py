"""The analysis ``engagement``: who comes, who comes back, and how often."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, TimeRange
from analytics_user_behavior.columns import I64
from analytics_user_behavior.days import DAY, VISITOR, codes, dates, integers, local_days, ratio, shown

_QUERY = f"SELECT DISTINCT {VISITOR} AS who, {DAY} AS day FROM events WHERE {VISITOR} IS NOT NULL"
WEEK, MONTH = 7, 30


def engagement(events: EventReader, asked: TimeRange) -> Answer:
    """One row per local day of the range.

    A visitor (user id, or the anonymous id without one) is active on a day with at least one event. ``dau`` counts the
    visitors active on the day, ``wau`` and ``mau`` those active on at least one of the 7 and 30 days that end with it.
    ``stickiness`` is dau / mau, null when nobody was active. ``new`` are the active visitors whose first event of the
    range is on this day; ``returning`` is dau - new. Only the range is seen: before its 7th and 30th day wau and mau
    cover fewer days, as ``days_covered`` (at most 30) says, and somebody who was there before the range counts as new
    once.

    Columns: day, dau, wau, mau, stickiness, new, returning, days_covered.
    """
    table = events.sql(_QUERY, {"timezone": asked.timezone})
    days = local_days(asked)
    n = len(days)
    who, day = codes(table["who"]), integers(table["day"]) - days[0]
    by = np.lexsort((day, who))
    who, day = who[by], day[by]
    first = np.concatenate([np.ones(min(len(who), 1), np.bool_), who[1:] != who[:-1]])
    dau, new = np.bincount(day, minlength=n), np.bincount(day[first], minlength=n)
    wau, mau = (_trailing(who, day, n, width) for width in (WEEK, MONTH))
    answer = pa.table(
        {
            "day": dates(days),
            "dau": dau,
            "wau": wau,
            "mau": mau,
            "stickiness": shown(ratio(dau, mau)),
            "new": new,
            "returning": dau - new,
            "days_covered": np.minimum(np.arange(1, n + 1), MONTH),
        }
    )
    return Answer(answer, _findings(dau, mau, new), (), Chart(kind="line", x="day", y=("dau", "wau", "mau")))


def _trailing(who: I64, day: I64, n: int, width: int) -> I64:
    """Distinct visitors of the ``width`` days up to each day, from distinct (who, day) in order, shape ``(n,)``.

    An active day counts its visitor from then until ``width`` days later, or until the visitor's next active day.
    """
    ahead = day + width
    same = who[1:] == who[:-1]
    ahead[:-1][same] = np.minimum(ahead[:-1][same], day[1:][same])
    changes = np.bincount(day, minlength=n + 1)[: n + 1] - np.bincount(np.minimum(ahead, n), minlength=n + 1)
    result: I64 = np.cumsum(changes)[:n]
    return result


def _findings(dau: I64, mau: I64, new: I64) -> list[Insight]:
    visitors, visits = int(new.sum()), int(dau.sum())
    if not visitors:
        return []
    found = [
        Insight(
            key="visits",
            title=f"A visitor was active on {visits / visitors:.1f} days",
            description=f"{visitors} visitors were active on {visits} visitor-days in {len(dau)} days.",
            data={"visitors": visitors, "visitor_days": visits, "days": len(dau)},
        )
    ]
    whole = slice(MONTH - 1, None)
    active = mau[whole] > 0
    if active.any():
        usual = float(np.mean(dau[whole][active] / mau[whole][active]))
        found.append(
            Insight(
                key="stickiness",
                title=f"Stickiness is {usual:.1%}",
                description=f"On the {int(active.sum())} days with 30 days before them, {usual:.1%} of the month's "
                "visitors were active on the average day.",
                data={"stickiness": usual, "days": int(active.sum())},
            )
        )
    return found
