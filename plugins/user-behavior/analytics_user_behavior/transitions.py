"""Steps from an event to the next, whatever their depth: the matrix of the analysis ``paths``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, UserOrder
from analytics_user_behavior.counts import OTHER, Counted, added, counted, sums, top
from analytics_user_behavior.figures import ratio, shown
from analytics_user_behavior.walks import WALKED, Cut, walks

ENTRY: Final = "(entry)"
EXIT: Final = "(exit)"
_SECOND = 1e6


class _Steps(NamedTuple):
    """``pairs`` are counted by ``origin * size + target``, where ``size - 1`` is outside, and weigh microseconds."""

    pairs: Counted
    names: Sequence[str]


def transitions(events: EventReader, cut: Cut, marks: Mapping[str, Any], limit: int) -> Answer:
    """``mode: transitions`` of `analytics_user_behavior.paths.paths`."""
    parts = events.in_user_order(lambda part: _steps(part, cut), marks=marks, columns=WALKED)
    names = parts[0].names if parts else ()
    pairs = added([part.pairs for part in parts])
    size, width = len(names) + 1, limit + 2
    origin, target = pairs.code // size, pairs.code % size
    occurs = sums(target, pairs.times, size)
    occurs[size - 1] = 0
    chosen = top(occurs, names, limit)
    place = np.full(size, limit)
    place[chosen] = np.arange(len(chosen))
    place[size - 1] = limit + 1
    code, inverse = np.unique(place[origin] * width + place[target], return_inverse=True)
    count = sums(inverse, pairs.times, len(code)).astype(np.int64)
    micros = sums(inverse, pairs.weight, len(code))
    origin, target = code // width, code % width
    inside = (origin <= limit) & (target <= limit)
    left = sums(origin, count, width)[origin]
    words = {place: names[code] for place, code in enumerate(chosen.tolist())} | {limit: OTHER}
    by = np.lexsort((-count, origin))
    table = pa.table(
        {
            "from": pa.array([words.get(at, ENTRY) for at in origin[by].tolist()], pa.string()),
            "to": pa.array([words.get(at, EXIT) for at in target[by].tolist()], pa.string()),
            "transitions": count[by],
            "share": shown(ratio(count, left)[by]),
            "mean_seconds": shown(np.where(inside, micros / np.maximum(count, 1) / _SECOND, np.nan)[by]),
        }
    )
    return Answer(table, (), (), Chart(kind="heatmap", x="to", y=("transitions",), series="from"))


def _steps(part: UserOrder, cut: Cut) -> _Steps:
    found = walks(part, cut).listed()
    size = len(part.names) + 1
    first, last = found.first(), found.end - 1
    name, at = found.name, found.at
    kind = np.int32 if size * size < 1 << 31 else np.int64
    target = np.empty_like(name)
    target[:-1], target[last] = name[1:], size - 1
    onward = np.multiply(name, size, dtype=kind)
    onward += target
    took = np.zeros(len(at), np.int64)
    np.subtract(at[1:], at[:-1], out=took[:-1])
    took[last] = 0
    entries = counted((size - 1) * size + name[first].astype(np.int64), size * size)
    return _Steps(added([counted(onward, size * size, took), entries]), part.names)
