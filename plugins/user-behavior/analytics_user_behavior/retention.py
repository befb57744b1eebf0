"""The analysis ``retention``: of those who began in a period, how many came back in each period after it.

One row per cohort and period after it that has begun in the range, and first the same over all cohorts.

A visitor is of the cohort of a local day, week or month that the range touches
(``cohorts: first-time``) when the first event of its whole history that is meant by ``start`` is in it, or
(``recurring``) when any such event is, so that one visitor may be of several cohorts. Without ``start`` the
first-time cohort is that of the visitor's first stored event of all, if it also has an event there that counts.
The first period is read from its beginning, which may be before the range's start.

Period 0 is the cohort itself: ``returned`` is ``users``, whatever they did next. In period k > 0 returned those
with an event that is meant by ``return`` (every event without it) in the k-th period after the cohort's (``kind:
on``), or in that or any later one up to the end of the range (``on-or-after``). Such an event is always later than
the one that made the cohort, so no event stands for both.

A period is ``complete`` when it is over at the end of the range and by the log's clock. Of one that is not,
``returned`` counts those so far and ``retention`` is null. A cohort that is not itself over is of those so far.
``on-or-after`` may still rise in periods that are complete, since a visitor may come back later.

The rows over all cohorts have a null ``cohort``: in period k they sum ``users`` and ``returned`` over the cohorts
for which it is complete, so that each cohort weighs as many visitors as it has; null where there is none.

Columns: cohort (the local date its period begins), period (k), users, returned, retention, complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, ParameterError, Recommendation, TimeRange, UserOrder
from analytics_user_behavior.activity import Active, active, filters_of, told
from analytics_user_behavior.calendar import EARLIEST, Period, Periods, dates, periods
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.figures import ratio, shown
from analytics_user_behavior.intervals import newcombe, wilson

_START, _RETURN = "start.where", "return.where"
"""The marks; they name the parameter where its filters are wrong."""
_COHORTS = 1000
_CELLS = 1 << 22
"""Of the two tables (visitors, periods) that are multiplied at a time: some megabytes each."""
_ALONE, _LEAST_ROWS = 1 << 18, 64
"""Multiplications up to which OpenBLAS takes one thread; and rows of a product, however wide."""
_LEAST = 100
"""Visitors of whom a share is worth telling."""
_CHANCE = 0.01
_SETTLED = 28 * 86_400_000_000
"""Microseconds after the begin of history until which a first event is that of old visitors as well as of new ones."""


Table = npt.NDArray[np.float32]


class Triangle(NamedTuple):
    """Shape ``(cohorts, periods + 1)`` each but ``users`` (cohorts,). ``begun``: that the period has begun in the
    range; ``over``: that it is complete; ``returned`` counts visitors so far. ``first`` is when the first event that
    is stored of any of them was, in microseconds UTC."""

    users: I64
    returned: I64
    begun: Mask
    over: Mask
    first: int


class _Asked(NamedTuple):
    """``of_all``: any event makes the cohort. ``same``: the start and the return are the same events."""

    first_time: bool
    of_all: bool
    same: bool
    later: bool
    depth: int


def retention(events: EventReader, asked: TimeRange, parameters: Mapping[str, Any]) -> Answer:
    """The answer as it is defined above. :raises ParameterError: for a range of more than 1000 periods."""
    period: Period = parameters["period"]
    spans = periods(asked, period, week_start=parameters["weekStart"])
    if len(spans) > _COHORTS:
        problem = f"{len(spans)} {period}s are more than {_COHORTS}; narrow timeRange or take longer periods"
        raise ParameterError("period", problem)
    triangle = _measure(events, spans, parameters)
    insights, advice = _findings(triangle, spans, parameters)
    chart = Chart(kind="heatmap", x="period", y=("retention",), series="cohort")
    return Answer(_rows(triangle, spans), insights, advice, chart)


def _rows(triangle: Triangle, spans: Periods) -> pa.Table:
    depth = triangle.returned.shape[1]
    cohort, k = np.nonzero(triangle.begun)
    over = triangle.over[cohort, k]
    sums = [np.where(triangle.over, a, 0).sum(axis=0) for a in (_across(triangle.users, depth), triangle.returned)]
    users = np.concatenate([sums[0], triangle.users[cohort]])
    returned = np.concatenate([sums[1], triangle.returned[cohort, k]])
    complete = np.concatenate([triangle.over.any(axis=0), over])
    return pa.table(
        {
            "cohort": pa.concat_arrays([pa.nulls(depth, pa.date32()), spans.begins().take(pa.array(cohort))]),
            "period": np.concatenate([np.arange(depth), k]),
            "users": users,
            "returned": returned,
            "retention": shown(np.where(complete, ratio(returned, users), np.nan)),
            "complete": complete,
        }
    )


def _across(users: I64, depth: int) -> I64:
    return np.repeat(users[:, None], depth, axis=1)


def _measure(events: EventReader, spans: Periods, parameters: Mapping[str, Any]) -> Triangle:
    n, depth = len(spans), parameters["periods"] + 1
    start, back = filters_of(parameters.get("start", "")), filters_of(parameters.get("return", ""))
    asked = _Asked(
        first_time=parameters["cohorts"] == "first-time",
        of_all=not start,
        same=start == back,
        later=parameters["kind"] == "on-or-after",
        depth=depth,
    )
    made = events.in_user_order(
        _counting(spans, asked),
        marks={mark: meant for mark, meant in ((_START, start), (_RETURN, back)) if meant},
        marked_only=bool(start and back),
        since=EARLIEST if asked.first_time and start else spans.start,
        columns=["first_at"],
    )
    returned = sum((counts for counts, _, _ in made), np.zeros((n, depth), np.int64))
    users = sum((sizes for _, sizes, _ in made), np.zeros(n, np.int64))
    first = min((at for _, _, at in made), default=0)
    begun, end = _places(n, depth)
    returned[:, 0] = users
    return Triangle(users, returned * begun, begun, begun & spans.complete(events)[end], first)


def _places(n: int, depth: int) -> tuple[Mask, I64]:
    """Of cohort c and k: whether the period c + k is one of ``n``, and its number (the last where it is not)."""
    end = np.arange(n)[:, None] + np.arange(depth)[None, :]
    return end < n, np.minimum(end, n - 1)


def _counting(spans: Periods, asked: _Asked) -> Callable[[UserOrder], tuple[I64, I64, int]]:
    """Per part: how many visitors of cohort c came back in period c + k (n, depth), how many are of c (n,), and when
    the first event of any was.

    As a product of two tables (visitors, periods) of zeros and ones: who is of which cohort, and who was there when.
    """
    n = len(spans)
    end = _places(n, asked.depth)[1]

    def step(part: UserOrder) -> tuple[I64, I64, int]:
        there = active(part, spans, part.marks.get(_RETURN))
        began = there if asked.same else active(part, spans, part.marks.get(_START))
        if asked.first_time:
            first = spans.of(part.first_at if asked.of_all else _first_marked(part))
            began = began.among(first[began.user] == began.period)
        pairs = np.zeros((n, n), np.int64)
        rows = max(_CELLS // n, 1)
        for low in range(0, len(part.end), rows):
            high = min(low + rows, len(part.end))
            of_cohort, back = (_table(each, low, high, n) for each in (began, there))
            if asked.later:
                back = np.maximum.accumulate(back[:, ::-1], axis=1)[:, ::-1]
            pairs += _product(of_cohort, back)
        sizes = np.bincount(began.period, minlength=n)
        return np.take_along_axis(pairs, end, axis=1), sizes, int(part.first_at.min())

    return step


def _product(one: Table, other: Table) -> I64:
    """``one.T @ other``, exact since its sums are below 2**24. In pieces of which the linear algebra takes no threads:
    the parts have theirs, and idle ones wait in a loop."""
    total = np.zeros((one.shape[1], other.shape[1]), np.int64)
    rows = max(_ALONE // total.size, _LEAST_ROWS)
    for low in range(0, len(one), rows):
        total += (one[low : low + rows].T @ other[low : low + rows]).astype(np.int64)
    return total


def _first_marked(part: UserOrder) -> I64:
    """When the first event of each visitor was that is meant by ``start``, shape ``(users,)``; never where none was."""
    places = np.flatnonzero(part.marks[_START])
    at = np.append(part.at[places], np.iinfo(np.int64).max)
    nearest = np.searchsorted(places, part.start())
    none = np.append(places, len(part))[nearest] >= part.end
    first: I64 = np.where(none, at[-1], at[nearest])
    return first


def _table(found: Active, low: int, high: int, n: int) -> Table:
    """1 where a visitor with ``low <= number < high`` is active, shape ``(high - low, n)``."""
    table = np.zeros((high - low, n), np.float32)
    some = slice(*np.searchsorted(found.user, [low, high]))
    table[found.user[some] - low, found.period[some]] = 1
    return table


# --- findings --------------------------------------------------------------------------------------------------------


def _findings(
    triangle: Triangle, spans: Periods, parameters: Mapping[str, Any]
) -> tuple[list[Insight], list[Recommendation]]:
    period: Period = parameters["period"]
    cohorts = np.flatnonzero(triangle.over[:, 1] & (triangle.users > 0))
    users, returned = triangle.users[cohorts], triangle.returned[cohorts, 1]
    if users.sum() < _LEAST:
        return [], []
    found = [_return(int(users.sum()), int(returned.sum()), len(cohorts), parameters)]
    if parameters["cohorts"] == "recurring" or parameters["kind"] != "on":
        return found, []  # one visitor in several cohorts, or cohorts with unequal time to come back: no comparison
    told_apart = spans.edges[cohorts] >= triangle.first + _SETTLED
    if parameters.get("start"):
        told_apart[:] = True
    begins = dates(spans.days[cohorts][told_apart]).to_pylist()
    change = _change(users[told_apart], returned[told_apart], begins, period)
    if change is None:
        return found, []
    advice = []
    if change.data["after"] < change.data["before"]:
        advice.append(
            Recommendation(
                title="Look at what the newer cohorts met at their beginning",
                description="Their return is lower by more than chance. Ask for retention with filters by source, "
                "platform or version to see whose it is.",
                insight=change.key,
                priority="high",
            )
        )
    return [*found, change], advice


def _return(n: int, hits: int, cohorts: int, parameters: Mapping[str, Any]) -> Insight:
    interval = wilson(hits, n)
    assert interval is not None, "callers have visitors"
    period, first_time = parameters["period"], parameters["cohorts"] == "first-time"
    after = f"the {period} after" if parameters["kind"] == "on" else f"the {period} after or later"
    who = "visitors" if first_time else "visitors, each counted in every cohort that it is of,"
    return Insight(
        key="return",
        title=f"{hits / n:.0%} came back {after}",
        description=f"Of {n} {who} in {cohorts} cohorts who began with {told(parameters.get('start', ''))}, "
        f"{hits} ({hits / n:.1%}, {interval.low:.1%} to {interval.high:.1%}) did "
        f"{told(parameters.get('return', ''))} {after}.",
        data={"users": n, "returned": hits, "retention": hits / n, "interval": list(interval)},
    )


def _change(users: I64, returned: I64, begins: Sequence[date], period: Period) -> Insight | None:
    """Whether the newer half of the cohorts came back more or less than the older one, by more than chance."""
    half = len(users) // 2
    old, new = (
        (int(users[:half].sum()), int(returned[:half].sum())),
        (int(users[half:].sum()), int(returned[half:].sum())),
    )
    if min(old[0], new[0]) < _LEAST:
        return None
    compared = newcombe(new[1], new[0], old[1], old[0])
    if compared is None or compared.p_value > _CHANCE:
        return None
    before, after = old[1] / old[0], new[1] / new[0]
    low, high = compared.interval
    return Insight(
        key="return-change",
        title=f"Return after one {period} {'rose' if after > before else 'fell'} from {before:.0%} to {after:.0%}",
        description=f"{old[1]} of {old[0]} visitors of the older {half} cohorts came back, and {new[1]} of {new[0]} of "
        f"the newer {len(users) - half}, from {begins[half]} on: a difference of {100 * compared.estimate:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}).",
        severity="info" if after > before else "medium",
        confidence=1 - compared.p_value,
        data={
            "before": before,
            "after": after,
            "since": begins[half].isoformat(),
            "interval": [low, high],
            "p_value": compared.p_value,
            "size": compared.estimate,
        },
    )
