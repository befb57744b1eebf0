"""Series as JSON: a month of minutes is some megabytes, so it is written column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from analytics_core.queries.figures import Figures
from analytics_core.queries.grid import F64


def encoded(series: Sequence[Figures], starts: Sequence[str]) -> bytes:
    """``[{"metric", "value", "labels"?, "unit"?, "points": [{"timestamp", "value"}]}]``; ``starts`` are the times of
    the points, at least one.

    Whole figures are integers, and null is where there is nothing to say: JSON has no other words for them.
    """
    before = [b'{"timestamp":"%b","value":' % start.encode() for start in starts]
    return b"[" + b",".join(_encoded(figures, before) for figures in series) + b"]"


def _encoded(figures: Figures, before: Sequence[bytes]) -> bytes:
    head: dict[str, Any] = {"metric": figures.metric}
    head["value"] = None if figures.value is None else _numbers(np.array([figures.value]))[0]
    if figures.labels:
        head["labels"] = figures.labels
    if figures.unit:
        head["unit"] = figures.unit
    values = msgspec.json.encode(_numbers(figures.values))[1:-1].split(b",")
    points = b"},".join(at + value for at, value in zip(before, values, strict=True))
    return msgspec.json.encode(head)[:-1] + b',"points":[' + points + b"}]}"


def _numbers(values: F64) -> list[float | int | None]:
    whole = (values == np.floor(values)) & (np.abs(values) < 2**53)
    if whole.all():
        found: list[float | int | None] = values.astype(np.int64).tolist()
        return found
    found = values.tolist()
    for at in np.flatnonzero(whole):
        found[at] = int(values[at])
    for at in np.flatnonzero(~np.isfinite(values)):
        found[at] = None
    return found
