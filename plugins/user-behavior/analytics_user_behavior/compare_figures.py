"""The figures of a comparison from the sums over visitors: values, variances, rows and findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, Insight, Recommendation
from analytics_user_behavior.figures import F64
from analytics_user_behavior.intervals import CONFIDENCE, Compared, difference, newcombe, ratio, risk_ratio

EVENTS, PERSONS_EVENTS, PERSONS, SESSIONS, BEGAN, CONVERTED, SUM, VALUES = range(8)
"""The figures of a visitor on one side: events, those of a person, whether it is a person with an event, sessions,
whether it began and whether it ended the conversion, and the sum and number of the values of the mean."""
FIGURES = 8
_LEAST_COMPARED = 10
"""Visitors of both sides together, for an interval to mean anything."""
_LEAST_TOLD = 30
"""Visitors of each side, for a finding."""
_LEAST_CHANGE = 0.01


class Sums(NamedTuple):
    """Figures of visitors, those of the one side and then those of the other: their sums (16,), and the sums of the
    products of each two of them (16, 16), from which every variance follows. ``first`` is when the first event that is
    stored of any of them was, in microseconds UTC."""

    total: F64
    products: F64
    visitors: int
    first: int

    @classmethod
    def of(cls, figures: F64, first: int) -> Sums:
        """``figures`` has the shape ``(16, visitors)``."""
        seen = figures[[EVENTS, FIGURES + EVENTS]].any(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            return cls(figures.sum(axis=1), figures @ figures.T, int(seen.sum()), first)

    def plus(self, other: Sums) -> Sums:
        return Sums(
            self.total + other.total,
            self.products + other.products,
            self.visitors + other.visitors,
            min(self.first, other.first),
        )


class Row(NamedTuple):
    metric: str
    value: float | None
    other: float | None
    difference: Compared | None
    ratio: Compared | None


def rows_of(whole: Sums, *, conversion: bool, mean: bool) -> list[Row]:
    rows = [
        _row("events", whole, EVENTS),
        _row("visitors", whole, PERSONS),
        _row("events_per_visitor", whole, PERSONS_EVENTS, PERSONS),
        _row("sessions", whole, SESSIONS),
    ]
    if conversion:
        counts = [int(whole.total[side + figure]) for side in (0, FIGURES) for figure in (CONVERTED, BEGAN)]
        share, other = (hits / n if n else None for hits, n in (counts[:2], counts[2:]))
        enough = counts[1] + counts[3] >= _LEAST_COMPARED
        apart, times = newcombe(*counts), risk_ratio(*counts)
        rows.append(Row("conversion", share, other, apart if enough else None, times if enough else None))
    if mean:
        rows.append(_row("mean", whole, SUM, VALUES))
    return rows


def _row(metric: str, whole: Sums, part: int, whole_of: int | None = None) -> Row:
    """The sum ``part`` on both sides, or its ratio to the sum ``whole_of``."""
    values: list[float | None] = []
    gradient = np.zeros((2, 2 * FIGURES))
    for side, start in enumerate((0, FIGURES)):
        over = 1.0 if whole_of is None else float(whole.total[start + whole_of])
        values.append(float(whole.total[start + part]) / over if over else None)
        if over:
            gradient[side, start + part] = 1 / over
            if whole_of is not None:
                gradient[side, start + whole_of] = -whole.total[start + part] / over**2
    value, other = values
    if value is None or other is None or whole.visitors < _LEAST_COMPARED:
        return Row(metric, value, other, None, None)
    apart = difference(value - other, _variance(whole, gradient[0] - gradient[1]))
    times = None
    if value > 0 and other > 0:
        times = ratio(value / other, _variance(whole, gradient[0] / value - gradient[1] / other))
    return Row(metric, value, other, apart, times)


def _variance(whole: Sums, slope: F64) -> float:
    """Of a statistic with this gradient; 0 for what is nothing but the rounding of figures that do not vary, or is
    beyond every float."""
    some = np.flatnonzero(slope)  # sums that are beyond every float say nothing of the others
    slope, products = slope[some], whole.products[np.ix_(some, some)]
    with np.errstate(over="ignore", invalid="ignore"):
        found, scale = float(slope @ products @ slope), float(slope**2 @ np.diag(products))
    return found if 1e-12 * scale < found < math.inf else 0.0


def answer(rows: Sequence[Row], titles: Sequence[str], whole: Sums, *, covered: bool, like: bool) -> Answer:
    """``covered``: whether both sides are known whole; of others nothing is said. ``like``: whether they have the same
    weekdays; of others that is said."""

    def column(values: Sequence[float | None]) -> pa.Array:
        return pa.array(values, pa.float64())

    columns = {
        "metric": pa.array([r.metric for r in rows], pa.string()),
        "of": pa.array([titles[0]] * len(rows), pa.string()),
        "against": pa.array([titles[1]] * len(rows), pa.string()),
        "value": column([r.value for r in rows]),
        "other": column([r.other for r in rows]),
        "difference": column([None if r.value is None or r.other is None else r.value - r.other for r in rows]),
        "difference_low": column([r.difference and r.difference.interval.low for r in rows]),
        "difference_high": column([r.difference and r.difference.interval.high for r in rows]),
        "ratio": column([r.value / r.other if r.value is not None and r.other else None for r in rows]),
        "ratio_low": column([r.ratio and r.ratio.interval.low for r in rows]),
        "ratio_high": column([r.ratio and r.ratio.interval.high for r in rows]),
        "p_value": column([r.difference and r.difference.p_value for r in rows]),
    }
    enough = covered and min(whole.total[PERSONS], whole.total[FIGURES + PERSONS]) >= _LEAST_TOLD
    told = [insight for r in rows if enough and (insight := _finding(r, titles, len(rows), like))]
    told.sort(key=lambda insight: -abs(math.log(insight.data["ratio"])))
    advice = [
        Recommendation(
            title=f"Find out which visitors explain {told[0].data['metric'].replace('_', ' ')}",
            description="Ask for the same comparison with a filter on one platform, source or plan at a time.",
            insight=told[0].key,
        )
    ] if told else []  # fmt: skip
    return Answer(pa.table(columns), told, advice, Chart(kind="bar", x="metric", y=("ratio",)))


def _finding(row: Row, titles: Sequence[str], rows: int, like: bool) -> Insight | None:
    """A figure whose p-value, times the number of rows (Bonferroni), is below 5 %, and that differs by 1 % or more."""
    apart, times = row.difference, row.ratio
    if apart is None or times is None or row.value is None or row.other is None:
        return None
    p = min(1.0, apart.p_value * rows)
    if p > 1 - CONFIDENCE or not times.interval.excludes(1) or abs(math.log(times.estimate)) < _LEAST_CHANGE:
        return None
    word = "higher" if times.estimate > 1 else "lower"
    figure = row.metric.replace("_", " ")
    low, high = (100 * (bound - 1) for bound in times.interval)
    return Insight(
        key=f"compare:{row.metric}",
        title=f"{figure.capitalize()}: {abs(100 * (times.estimate - 1)):.0f} % {word} in {titles[0]}",
        description=f"{figure.capitalize()} was {row.value:.6g} in {titles[0]} and {row.other:.6g} in {titles[1]}: "
        f"{100 * (times.estimate - 1):+.1f} %, with 95 % confidence between {low:+.1f} % and {high:+.1f} % "
        f"(p = {p:.2g}, for {rows} figures compared).{'' if like else ' The two hold different weekdays.'}",
        confidence=1 - p,
        data={
            "metric": row.metric,
            "value": row.value,
            "other": row.other,
            "ratio": times.estimate,
            "low": times.interval.low,
            "high": times.interval.high,
            "p_value": p,
            "size": math.log(times.estimate),
        },
    )
