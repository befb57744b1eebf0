"""A plugin's stored points, merged into buckets by their kind."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from analytics_core.events import micros
from analytics_core.metrics.buckets import Buckets
from analytics_core.metrics.definition import PluginMetric
from analytics_core.records import MetricKind
from analytics_core.sketches import HistogramSketch, UniqueSketch
from analytics_core.state import Point

Labels = tuple[tuple[str, str], ...]
_PERCENTILE: Final = re.compile(r"(?:^|[_.-])p(\d{1,2})$")


def merge(points: Sequence[Point], kind: MetricKind | str, name: str) -> float:
    """The figure of several windows; NaN, or 0 for what is counted, when there are none.

    ``sum`` adds, ``max`` takes the largest, ``last`` the latest, ``unique`` and ``histogram`` merge their sketches. The
    reading of a merged histogram is the percentile that ``name`` ends with (``checkout_p95``), else its mean; a single
    window keeps the reading that its plugin gave.
    """
    if not points:
        return 0.0 if kind in ("sum", "unique") else math.nan
    if len(points) == 1:
        return points[0].value
    return _MERGES[kind](points, name)


def _last(points: Sequence[Point], _: str) -> float:
    return max(points, key=lambda p: p.start).value


def _unique(points: Sequence[Point], _: str) -> float:
    whole = UniqueSketch()
    for point in points:
        if point.sketch is None:  # without a sketch the best that can be said is the largest part
            return max(p.value for p in points)
        whole.merge(UniqueSketch.from_bytes(point.sketch))
    return float(round(whole.estimate()))


def _histogram(points: Sequence[Point], name: str) -> float:
    whole = HistogramSketch()
    for point in points:
        if point.sketch is None:
            return float(np.mean([p.value for p in points]))
        whole.merge(HistogramSketch.from_bytes(point.sketch))
    asked = _PERCENTILE.search(name)
    return whole.quantile(int(asked[1]) / 100) if asked else whole.mean


_MERGES: Final[dict[str, Callable[[Sequence[Point], str], float]]] = {
    "sum": lambda points, _: math.fsum(p.value for p in points),
    "max": lambda points, _: max(p.value for p in points),
    "last": _last,
    "unique": _unique,
    "histogram": _histogram,
}


def merged(
    points: Sequence[Point], metric: PluginMetric, spans: Buckets, breakdown: Sequence[str], most: int
) -> list[tuple[dict[str, str], float, npt.NDArray[np.float64]]]:
    """(labels, the whole range's figure, one figure per bucket): the total first, then each combination of labels.

    The total is what the plugin gave without labels, else the merge of all labels. Of windows of several lengths under
    one name, those that fit a bucket best are taken, so that nothing counts twice.
    """
    fitting = _of_one_length(points, spans)
    plain = [p for p in fitting if not p.labels]
    found = [_one({}, plain or fitting, metric, spans)]
    if breakdown:
        groups: dict[Labels, list[Point]] = {}
        for point in fitting:
            if all(name in point.labels for name in breakdown):
                groups.setdefault(tuple((name, point.labels[name]) for name in breakdown), []).append(point)
        frequent = sorted(groups, key=lambda labels: (-len(groups[labels]), labels))[:most]
        found += [_one(dict(labels), groups[labels], metric, spans) for labels in frequent]
    return found


def _of_one_length(points: Sequence[Point], spans: Buckets) -> Sequence[Point]:
    lengths = Counter(p.seconds for p in points)
    if len(lengths) < 2:
        return points
    shortest = int(np.diff(spans.edges).min()) // 1_000_000
    inside = [seconds for seconds in lengths if seconds <= shortest]
    chosen = max(inside) if inside else min(lengths)
    return [p for p in points if p.seconds == chosen]


def _one(
    labels: dict[str, str], points: Iterable[Point], metric: PluginMetric, spans: Buckets
) -> tuple[dict[str, str], float, npt.NDArray[np.float64]]:
    held = list(points)
    at = spans.assign(np.array([micros(p.start) for p in held], np.int64))
    inside: dict[int, list[Point]] = {}
    for bucket, point in zip(at.tolist(), held, strict=True):
        inside.setdefault(bucket, []).append(point)
    values = np.array([merge(inside.get(b, ()), metric.kind, metric.name) for b in range(len(spans))])
    return labels, merge(held, metric.kind, metric.name), values
