"""Confidence intervals and tests of two groups, from counts and sums alone: what a difference may be, and by chance.

Every function is two-sided, takes and gives plain floats, and has the level ``confidence`` (0.95). ``None`` says that
the figures do not determine an answer (nobody was there, or nothing varied); it never stands for "no difference".
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
_NORMAL = NormalDist()


class Interval(NamedTuple):
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


class Compared(NamedTuple):
    """An estimate of first minus second, or of first over second, with its interval and p-value."""

    estimate: float
    interval: Interval
    p_value: float


def difference(estimate: float, variance: float, confidence: float = CONFIDENCE) -> Compared | None:
    """An estimate that is normal around the true difference; None when nothing varies."""
    if variance <= 0:
        return None
    error = math.sqrt(variance)
    half = critical_z(confidence) * error
    return Compared(estimate, Interval(estimate - half, estimate + half), normal_p(estimate / error))


def ratio(estimate: float, variance: float, confidence: float = CONFIDENCE) -> Compared | None:
    """An estimate > 0 whose logarithm is normal, with ``variance``, around that of the true ratio; None when nothing
    varies."""
    if variance <= 0:
        return None
    error = math.sqrt(variance)
    factor = math.exp(critical_z(confidence) * error)
    return Compared(estimate, Interval(estimate / factor, estimate * factor), normal_p(math.log(estimate) / error))


# --- distributions ---------------------------------------------------------------------------------------------------


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def normal_quantile(p: float) -> float:
    """The z below which the share ``p`` of a standard normal lies, 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def critical_z(confidence: float = CONFIDENCE) -> float:
    """1.96 for 0.95."""
    return normal_quantile(0.5 + confidence / 2)


def normal_p(z: float) -> float:
    """The chance of a standard normal at least as far from 0 as ``z``, on either side."""
    return math.erfc(abs(z) / math.sqrt(2))


# --- proportions -----------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int, confidence: float = CONFIDENCE) -> Interval | None:
    """The score interval of the proportion ``hits / n``, without continuity correction; None for n = 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not n:
        return None
    z = critical_z(confidence)
    p, spread = hits / n, z * z / n
    middle = p + spread / 2
    half = z * math.sqrt(p * (1 - p) / n + spread / n / 4)
    low = 0.0 if not hits else max(0.0, (middle - half) / (1 + spread))
    high = 1.0 if hits == n else min(1.0, (middle + half) / (1 + spread))
    return Interval(low, high)


def newcombe(hits: int, n: int, other_hits: int, other_n: int, confidence: float = CONFIDENCE) -> Compared | None:
    """The difference of two independent proportions, ``hits / n - other_hits / other_n``; None when an n is 0.

    The interval joins the two Wilson intervals: method 10 of R. G. Newcombe, "Interval estimation for the difference
    between independent proportions", Statistics in Medicine 17 (1998). The p-value is that of the pooled z-test.
    """
    ours, theirs = wilson(hits, n, confidence), wilson(other_hits, other_n, confidence)
    if ours is None or theirs is None:
        return None
    p, q = hits / n, other_hits / other_n
    low = p - q - math.hypot(p - ours.low, theirs.high - q)
    high = p - q + math.hypot(ours.high - p, q - theirs.low)
    pooled = (hits + other_hits) / (n + other_n)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / other_n))
    return Compared(p - q, Interval(low, high), normal_p((p - q) / error) if error else 1.0)


def risk_ratio(hits: int, n: int, other_hits: int, other_n: int, confidence: float = CONFIDENCE) -> Compared | None:
    """The ratio of two independent proportions; None when one of them is 0 or of nobody.

    The interval is normal on the logarithm: D. Katz et al., "Obtaining confidence intervals for the risk ratio in
    cohort studies", Biometrics 34 (1978). The p-value is that of `newcombe`.
    """
    apart = newcombe(hits, n, other_hits, other_n, confidence)
    if apart is None or not hits or not other_hits:
        return None
    variance = 1 / hits - 1 / n + 1 / other_hits - 1 / other_n
    found = ratio(hits / n * other_n / other_hits, variance, confidence)
    return found and found._replace(p_value=apart.p_value)
