"""The rows of a funnel, and what is found in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core import Answer, Chart, Insight, Recommendation
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.figures import F64, ratio, shown
from analytics_user_behavior.intervals import CONFIDENCE, Compared, newcombe, normal_cdf

OTHER, NONE = "(other)", "(none)"
_LEAST = 20
"""Visitors of whom something is said."""
_LEAST_LOST = 5
_SLOWER = 1.5
_TIMES = ("p50_seconds_from_previous", "p90_seconds_from_previous", "p50_seconds_from_start", "p90_seconds_from_start")


class Outcome(NamedTuple):
    """How far visitors (or sessions) have come, of those with one step at least, shape ``(n,)`` each.

    ``level`` is the number of steps; ``open``, whether it may still grow; ``from_previous`` and ``from_start`` have for
    each step the seconds of those who got there, in order; ``value`` indexes ``words``, -1 for none.
    """

    level: npt.NDArray[np.int8]
    open: Mask
    from_previous: Sequence[F64]
    from_start: Sequence[F64]
    value: npt.NDArray[np.int32] | None = None
    words: Sequence[str] = ()


class Rows(NamedTuple):
    """The figures of one value (None: of all), shape ``(steps,)``; ``seconds`` has shape ``(steps, 4)``."""

    value: str | None
    users: I64
    dropped: I64
    open: I64
    seconds: F64


def answer(names: Sequence[str], parts: Sequence[Outcome], top: int | None, window: str) -> Answer:
    """``names`` are those of the steps; with ``top`` the outcomes are broken down by so many values."""
    whole = _joined(parts, len(names))
    total = _rows(None, whole, np.ones(len(whole.level), np.bool_))
    rows = [total] if top is None else [_rows(value, whole, mask) for value, mask in _values(whole, top)]
    columns = {
        "step": pa.array(list(range(1, len(names) + 1)) * len(rows), pa.int64()),
        "event": pa.array([*names] * len(rows), pa.string()),
        "users": _stacked([r.users for r in rows]),
        "conversion_from_start": shown(_each([ratio(r.users, np.full(len(names), r.users[0])) for r in rows])),
        "conversion_from_previous": shown(_each([ratio(r.users, np.append(r.users[0], r.users[:-1])) for r in rows])),
        "dropped": _stacked([r.dropped for r in rows]),
        "open": _stacked([r.open for r in rows]),
        **{time: shown(_each([r.seconds[:, i] for r in rows])) for i, time in enumerate(_TIMES)},
    }
    if top is not None:
        columns = {"value": pa.array([r.value for r in rows for _ in names], pa.string()), **columns}
    told = [found for found in (_loss(names, total, window), _delay(names, total, whole)) if found is not None]
    told += _differences(names, rows) if top is not None else []
    chart = Chart(kind="funnel", x="event", y=("users",), series="" if top is None else "value")
    return Answer(pa.table(columns), [t[0] for t in told], [t[1] for t in told], chart)


def _stacked(arrays: Sequence[I64]) -> pa.Array:
    return pa.array(np.concatenate([np.zeros(0, np.int64), *arrays]), pa.int64())


def _each(arrays: Sequence[F64]) -> F64:
    return np.concatenate([np.zeros(0), *arrays])


def _joined(parts: Sequence[Outcome], steps: int) -> Outcome:
    if not parts:
        none = [np.zeros(0)] * steps
        return Outcome(np.zeros(0, np.int8), np.zeros(0, np.bool_), none, none, np.zeros(0, np.int32))
    values = [part.value for part in parts if part.value is not None]
    return Outcome(
        np.concatenate([part.level for part in parts]),
        np.concatenate([part.open for part in parts]),
        [np.concatenate([part.from_previous[k] for part in parts]) for k in range(steps)],
        [np.concatenate([part.from_start[k] for part in parts]) for k in range(steps)],
        np.concatenate(values) if values else None,
        parts[0].words,
    )


def _values(whole: Outcome, top: int) -> Iterator[tuple[str, Mask]]:
    """The most frequent values, all others, and none, each with who is of it."""
    assert whole.value is not None
    counts = np.bincount(whole.value + 1, minlength=len(whole.words) + 1)[1:]
    ranked = sorted(np.flatnonzero(counts).tolist(), key=lambda code: (-counts[code], whole.words[code]))
    for code in ranked[:top]:
        yield whole.words[code], whole.value == code
    others = (whole.value >= 0) & ~np.isin(whole.value, ranked[:top])
    for word, mask in ((OTHER, others), (NONE, whole.value < 0)):
        if mask.any():
            yield word, mask


def _rows(value: str | None, whole: Outcome, among: Mask) -> Rows:
    steps = len(whole.from_start)
    level = whole.level[among]
    at = np.bincount(level, minlength=steps + 1)[1:]
    going = np.bincount(level[whole.open[among]], minlength=steps + 1)[1:]
    dropped = at - going
    dropped[-1] = 0
    seconds = np.full((steps, len(_TIMES)), np.nan)
    for k in range(1, steps):
        mine = among[whole.level > k]
        if mine.any():
            seconds[k, :2] = np.quantile(whole.from_previous[k][mine], (0.5, 0.9))
            seconds[k, 2:] = np.quantile(whole.from_start[k][mine], (0.5, 0.9))
    return Rows(value, np.cumsum(at[::-1])[::-1], dropped, going, seconds)


# --- findings --------------------------------------------------------------------------------------------------------

Told = tuple[Insight, Recommendation]


def _loss(names: Sequence[str], rows: Rows, window: str) -> Told | None:
    """The step after which most are lost. Its confidence is that it loses more than the next: of two counts of one
    multinomial sample, the normal form of their difference."""
    lost, n = rows.dropped, int(rows.users[0])
    worst = int(np.argmax(lost))
    reached = int(rows.users[worst])
    if reached < _LEAST or lost[worst] < _LEAST_LOST:
        return None
    here, there, share = names[worst], names[worst + 1], float(lost[worst] / reached)
    second = int(np.delete(lost, worst).max())
    apart = int(lost[worst]) - second
    spread = math.sqrt(max(int(lost[worst]) + second - apart * apart / n, 1e-9))
    insight = Insight(
        key="drop-off",
        title=f"The largest loss is between {here} and {there}",
        description=f"{lost[worst]} of the {reached} who reached step {worst + 1} ({here}) did not reach step "
        f"{worst + 2} ({there}) within {window} ({share:.0%}), and {rows.open[worst]} still may; {rows.users[-1]} of "
        f"{n} came to the end.",
        confidence=normal_cdf(apart / spread),
        data={
            "from": here,
            "to": there,
            "lost": int(lost[worst]),
            "reached": reached,
            "share": share,
            "open": int(rows.open[worst]),
        },
    )
    advice = Recommendation(
        title=f"Look at the step from {here} to {there} first",
        description=f"It loses {lost[worst]}, more than any other step. Compare those who went on with those who did "
        "not: ask with a breakdown by platform or source.",
        insight="drop-off",
        priority="high" if share > 0.5 else "medium",
    )
    return insight, advice


def _delay(names: Sequence[str], rows: Rows, whole: Outcome) -> Told | None:
    """The step that takes far longer than all others. Its confidence is that over half of its times are longer than
    the median of the next: the normal form of the sign test."""
    known = [k for k in range(1, len(names)) if rows.users[k] >= _LEAST]
    if len(known) < 2:
        return None
    slowest, second = sorted(known, key=lambda k: -rows.seconds[k, 0])[:2]
    half, other = float(rows.seconds[slowest, 0]), float(rows.seconds[second, 0])
    if half < max(_SLOWER * other, 1.0):
        return None
    times = whole.from_previous[slowest]
    longer = int((times > other).sum())
    here, there = names[slowest - 1], names[slowest]
    insight = Insight(
        key="slowest-step",
        title=f"The slowest step is from {here} to {there}",
        description=f"Half of the {len(times)} who got from {here} to {there} took {half:.0f} s or more, one in ten "
        f"{rows.seconds[slowest, 1]:.0f} s or more; of the next slowest step, to {names[second]}, half took "
        f"{other:.0f} s or more.",
        confidence=normal_cdf((longer - len(times) / 2) / math.sqrt(len(times) / 4)),
        data={
            "from": here,
            "to": there,
            "users": len(times),
            "p50_seconds_from_previous": half,
            "p90_seconds_from_previous": float(rows.seconds[slowest, 1]),
            "next_to": names[second],
            "next_p50_seconds_from_previous": other,
        },
    )
    advice = Recommendation(
        title=f"See what happens between {here} and {there}",
        description="Ask for the paths that start at the first of them, to see what visitors do in that time.",
        insight="slowest-step",
    )
    return insight, advice


class _Apart(NamedTuple):
    """A value against all others: visitors and conversions of both, and the p-value for all ``compared`` values."""

    value: str | None
    users: int
    converted: int
    others: int
    others_converted: int
    found: Compared
    p: float
    compared: int


def _differences(names: Sequence[str], rows: Sequence[Rows]) -> list[Told]:
    """The value whose visitors come to the end more or less often than all others, if that is no chance."""
    apart = _surest(rows)
    if apart is None or apart.p > 1 - CONFIDENCE or not apart.found.interval.excludes(0):
        return []
    share, rest = apart.converted / apart.users, apart.others_converted / apart.others
    (low, high), word = apart.found.interval, "more" if apart.found.estimate > 0 else "less"
    insight = Insight(
        key=f"breakdown:{apart.value}",
        title=f"{apart.value} converts {word} often than the rest",
        description=f"{apart.converted} of the {apart.users} with {apart.value} came from {names[0]} to the end "
        f"({share:.1%}), of all others {rest:.1%}: a difference of {100 * apart.found.estimate:+.1f} points, with 95 % "
        f"confidence between {100 * low:+.1f} and {100 * high:+.1f} (p = {apart.p:.2g}, for {apart.compared} values "
        "compared).",
        confidence=1 - apart.p,
        data={
            "value": apart.value,
            "users": apart.users,
            "converted": apart.converted,
            "conversion": share,
            "others_users": apart.others,
            "others_converted": apart.others_converted,
            "others_conversion": rest,
            "difference": apart.found.estimate,
            "low": low,
            "high": high,
            "p_value": apart.p,
        },
    )
    advice = Recommendation(
        title=f"Find out what is different for {apart.value}",
        description=f"It converts {word} often than the rest by more than chance explains. Ask for the same funnel "
        "with a filter on this value, and see at which step it differs.",
        insight=insight.key,
    )
    return [(insight, advice)]


def _surest(rows: Sequence[Rows]) -> _Apart | None:
    """The value that differs most surely from all others, by `intervals.newcombe`.

    Values with fewer than `_LEAST` visitors, or with so many others, are passed over; the p-value is multiplied by the
    number of values that are compared (Bonferroni).
    """
    users, ended = sum(int(r.users[0]) for r in rows), sum(int(r.users[-1]) for r in rows)
    compared = []
    for r in rows:
        mine, done = int(r.users[0]), int(r.users[-1])
        found = newcombe(done, mine, ended - done, users - mine)
        if found is not None and min(mine, users - mine) >= _LEAST and r.value != OTHER:
            compared.append(_Apart(r.value, mine, done, users - mine, ended - done, found, found.p_value, 1))
    if not compared:
        return None
    best = min(compared, key=lambda apart: (apart.p, -abs(apart.found.estimate)))
    return best._replace(p=min(1.0, best.p * len(compared)), compared=len(compared))
