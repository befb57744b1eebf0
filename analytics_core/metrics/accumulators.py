"""The figure of one live window: exact for what is counted, a sketch for distinct values and percentiles."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from analytics_core.metrics.definition import Definition
from analytics_core.sketches import HistogramSketch, UniqueSketch


class Accumulator(Protocol):
    """The figure of one window so far."""

    def add(self, values: Any) -> None: ...

    def value(self) -> float | None: ...


class Tally:
    """A number of events, or the sum, mean, least or greatest of their values (float64, shape ``(n,)``)."""

    __slots__ = ("aggregate", "count", "high", "low", "total")

    def __init__(self, aggregate: str) -> None:
        self.aggregate = aggregate
        self.count = 0
        self.total = 0.0
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: npt.NDArray[np.float64]) -> None:
        self.count += len(values)
        if len(values) and self.aggregate != "count":
            self.total += float(values.sum())
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))

    def value(self) -> float | None:
        if self.aggregate in ("count", "sum"):
            return float(self.count) if self.aggregate == "count" else self.total
        if not self.count:
            return None
        return {"avg": self.total / self.count, "min": self.low, "max": self.high}[self.aggregate]


class Distinct:
    """How many distinct values, within 1.6 %; exact while they are few. Takes their `hash_strings`."""

    __slots__ = ("sketch",)

    def __init__(self) -> None:
        self.sketch = UniqueSketch()

    def add(self, values: npt.NDArray[np.uint64]) -> None:
        self.sketch.add(values)

    def value(self) -> float:
        return float(round(self.sketch.estimate()))


class Quantile:
    """A percentile of the values, within 1 % of the value."""

    __slots__ = ("share", "sketch")

    def __init__(self, share: float) -> None:
        self.share = share
        self.sketch = HistogramSketch()

    def add(self, values: npt.NDArray[np.float64]) -> None:
        self.sketch.add(values)

    def value(self) -> float | None:
        return self.sketch.quantile(self.share) if self.sketch.count else None


def accumulator(definition: Definition) -> Accumulator:
    if definition.aggregate == "unique":
        return Distinct()
    if definition.quantile is not None:
        return Quantile(definition.quantile)
    return Tally(definition.aggregate)
