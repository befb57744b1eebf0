"""Whether a figure differs between two equally long times: tests with their intervals, and since when.

Probabilities come from the normal distribution, with corrections for continuity: they are right from about twenty
counts on, and callers test nothing below.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from analytics_user_behavior.columns import I64
from analytics_user_behavior.figures import F64
from analytics_user_behavior.intervals import critical_z, newcombe, normal_p

_Z95 = critical_z()
_LEAST_DAYS = 6
"""Days from which on their scatter says something of its own."""


class Shift(NamedTuple):
    """A change with its 95 % interval and the probability of one as large by chance. Of counts it is relative (0.5 is
    half as much again, NaN after nothing), of shares the difference."""

    change: float
    low: float
    high: float
    p: float


def count_shift(before: int, after: int, dispersion: float = 1.0) -> Shift:
    """Of two counts. Given their sum, ``after`` is binomial with one half if nothing has changed (Przyborowski and
    Wilenski 1940); the interval of the rate ratio is log-normal, with half a count more on both sides of a zero.

    ``dispersion``: the variance as a multiple of Poisson's.
    """
    z = max(abs(after - before) - 1, 0) / math.sqrt(max(before + after, 1) * dispersion)
    more = 0.0 if before and after else 0.5
    error = math.sqrt(dispersion * (1 / (before + more) + 1 / (after + more)))
    return _relative(before, after, error, z)


def visitor_shift(before: int, after: int, both: int) -> Shift:
    """Of two numbers of visitors, ``both`` of whom are in both: only the others tell (McNemar 1947)."""
    single = before + after - 2 * both
    z = max(abs(after - before) - 1, 0) / math.sqrt(max(single, 1))
    more = 0.0 if before and after else 0.5
    return _relative(before, after, math.sqrt((single + more) / ((before + more) * (after + more))), z)


def share_shift(before: int, of_before: int, after: int, of_after: int) -> Shift:
    """Of two shares: pooled two-proportion z with Yates' correction; the interval of the difference is
    Newcombe's, made of Wilson's of each share."""
    first, second = before / of_before, after / of_after
    pooled = (before + after) / (of_before + of_after)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of_before + 1 / of_after))
    gap = abs(second - first) - (1 / of_before + 1 / of_after) / 2
    compared = newcombe(after, of_after, before, of_before)
    assert compared is not None, "callers compare shares of somebody"
    return Shift(second - first, *compared.interval, normal_p(gap / error) if error and gap > 0 else 1.0)


def _relative(before: int, after: int, error: float, z: float) -> Shift:
    more = 0.0 if before and after else 0.5
    ratio = (after + more) / (before + more)
    low, high = ratio * math.exp(-_Z95 * error) - 1, ratio * math.exp(_Z95 * error) - 1
    return Shift(after / before - 1 if before else math.nan, low, high, normal_p(z))


def adjusted(p: F64) -> F64:
    """For each of the ``p``, shape ``(n,)``, the least rate of false findings at which it is one (Benjamini and
    Hochberg 1995)."""
    n = len(p)
    by = np.argsort(p, kind="stable")
    stepped = np.minimum.accumulate((p[by] * n / np.arange(1, n + 1))[::-1])[::-1]
    result = np.empty(n)
    result[by] = np.minimum(stepped, 1.0)
    return result


def turning_point(daily: I64, of: I64 | None = None) -> int:
    """The day from which on another rate fits best, from 1 to ``len(daily) - 1``; the first of equals.

    Maximum likelihood of one change in Poisson counts, or in binomial ones ``of`` so many (Hinkley 1970).
    """
    done = np.cumsum(daily)[:-1].astype(np.float64)
    left = float(daily.sum()) - done
    if of is None:
        days = np.arange(1, len(daily), dtype=np.float64)
        likelihood = _times_log(done, days) + _times_log(left, len(daily) - days)
    else:
        tried = np.cumsum(of)[:-1].astype(np.float64)
        untried = float(of.sum()) - tried
        likelihood = _times_log(done, tried) + _times_log(tried - done, tried)
        likelihood += _times_log(left, untried) + _times_log(untried - left, untried)
    return 1 + int(np.argmax(likelihood))


def _times_log(count: F64, of: F64) -> F64:
    """``count * log(count / of)``; 0 where there is no count."""
    some = count > 0
    result = np.zeros(len(count))
    result[some] = count[some] * np.log(count[some] / of[some])
    return result


def dispersion(daily: I64, turn: int) -> float:
    """The scatter of the days around one rate before ``turn`` and one from it on, as a multiple of Poisson's: Pearson's
    chi-square by its degrees of freedom (McCullagh and Nelder 1989, 6.2), 1 at least and for few days."""
    if len(daily) < _LEAST_DAYS:
        return 1.0
    square = 0.0
    for side in (daily[:turn], daily[turn:]):
        mean = float(side.mean())
        square += float(((side - mean) ** 2).sum()) / mean if mean else 0.0
    return max(1.0, square / (len(daily) - 3))
