"""The analysis ``frequency``: how many events, sessions or active days a visitor has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, TimeRange, UserOrder
from analytics_user_behavior.activity import active, filters_of, having
from analytics_user_behavior.calendar import periods
from analytics_user_behavior.columns import I64, MINUTE
from analytics_user_behavior.counts import Counted, added, counted
from analytics_user_behavior.figures import F64, ratio, shown
from analytics_user_behavior.session_order import by_session

What = Literal["events", "sessions", "days"]

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.99)
_SINGLE = 5
_LEAST = 20
"""Visitors below which quantiles are not told."""


def frequency(events: EventReader, asked: TimeRange, parameters: Mapping[str, Any], gap_minutes: int) -> Answer:
    """A histogram of the visitors by how many ``events``, ``sessions`` or active local ``days`` they have (``count``).

    Only events in the range that are meant by ``event`` are counted (any, when it says nothing); visitors without any
    are in no row. Sessions are those of the analysis ``sessions``, of these events alone. One row per bin from 1 to
    that of the largest count: 1 to 5 each, then 6 to 10, 11 to 20, 21 to 50, 51 to 100 and so on. ``total`` is the sum
    of the counts in a bin, and the shares are of all visitors and of that sum.

    The insight has the mean and quantiles: the q-quantile is the smallest count that a share of at least q of the
    visitors does not exceed.

    Columns: at_least, at_most, users, share, share_up_to (of this and all smaller bins), total, share_of_total.
    """
    what: What = parameters["count"]
    meant = filters_of(parameters.get("event", ""))
    marks = {"event.where": meant} if meant else {}
    step, columns = _counting(what, asked, gap_minutes * MINUTE), ["session"] if what == "sessions" else []
    found = added(events.in_user_order(step, marks=marks, marked_only=bool(marks), columns=columns))
    begins = _bins(int(found.code.max(initial=0)))
    place = np.searchsorted(begins, found.code, side="right") - 1
    n = len(begins) - 1
    users = np.bincount(place, found.times, n).astype(np.int64)
    total = np.bincount(place, found.times * found.code, n).astype(np.int64)
    everybody = np.full(n, users.sum())
    table = pa.table(
        {
            "at_least": begins[:-1],
            "at_most": begins[1:] - 1,
            "users": users,
            "share": shown(ratio(users, everybody)),
            "share_up_to": shown(ratio(np.cumsum(users), everybody)),
            "total": total,
            "share_of_total": shown(ratio(total, np.full(n, total.sum()))),
        }
    )
    return Answer(
        table,
        _findings(found, what, having(parameters.get("event", ""))),
        (),
        Chart(kind="bar", x="at_least", y=("users",)),
    )


def _counting(what: What, asked: TimeRange, gap: int) -> Callable[[UserOrder], Counted]:
    """Per part: how many of its persons have each count."""
    days = periods(asked)

    def step(part: UserOrder) -> Counted:
        match what:
            case "events":
                counts = np.diff(part.end, prepend=0)
            case "sessions":
                counts = np.bincount(by_session(part, gap)[1], minlength=len(part.end))
            case "days":
                counts = np.bincount(active(part, days).user, minlength=len(part.end))
        return counted(counts[part.known], int(counts.max()) + 1)

    return step


def _bins(largest: int) -> I64:
    """Where each bin begins, and the end of the last, shape ``(bins + 1,)``: no bin when ``largest`` is 0."""
    begins = list(range(1, min(largest, _SINGLE) + 2))
    scale = 1
    while begins[-1] <= largest:
        begins += [more * scale + 1 for more in (10, 20, 50)]
        scale *= 10
    while len(begins) > 1 and begins[-2] > largest:
        begins.pop()
    return np.array(begins, np.int64)


def quantile(found: Counted, q: float) -> int:
    """The smallest count that a share of at least ``q`` of the visitors does not exceed."""
    upto: F64 = np.cumsum(found.times) / found.times.sum()
    return int(found.code[np.searchsorted(upto, q - 1e-12)])


def _findings(found: Counted, what: What, doing: str) -> list[Insight]:
    """``doing`` says which events count."""
    n = int(found.times.sum())
    if n < _LEAST:
        return []
    quantiles = {f"p{q * 100:.0f}": quantile(found, q) for q in QUANTILES}
    total = int(found.times @ found.code)
    things = ("such " if doing else "") + ("active days" if what == "days" else what)
    return [
        Insight(
            key=f"{what}-per-visitor",
            title=f"Half of the visitors{doing} have {quantiles['p50']} {things} or fewer",
            description=f"{n} visitors{doing} have {total} {things}, {total / n:.1f} on average; one in ten has "
            f"{quantiles['p90']} or more.",
            data={"visitors": n, "total": total, "mean": total / n, **quantiles, "max": int(found.code[-1])},
        )
    ]
