"""Counts, also of what is distinct, sums, means, extremes and quantiles by group and bucket: exact, from the codes of
events' values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from analytics_core.lake.user_order import I32, I64, Mask
from analytics_core.metrics.definition import Definition
from analytics_core.queries.grid import F64


class Aggregate(Protocol):
    """Figures in the making. A cell is ``group * buckets + bucket``."""

    def add(self, cell: I64, codes: I32 | None) -> None:
        """More events: their cells, and the codes of their values (0 for none), shape ``(n,)`` each; None when no value
        is asked for."""
        ...

    def join(self, other: Any) -> None:
        """What ``other``, which is made alike, was given."""
        ...

    def into(self, values: F64, whole: F64) -> None:
        """Write the figures where there are any: ``values`` (groups, buckets), ``whole`` (groups,)."""
        ...


def aggregates(definition: Definition, groups: int, buckets: int, numbers: F64 | None) -> Callable[[], Aggregate]:
    """Makes aggregates of one kind, one for each thread. ``numbers``: the number of each code, NaN for none; None for
    a count, or when what is distinct are the codes."""
    cells = groups * buckets
    if definition.aggregate == "unique":
        return partial(_Unique, groups, buckets)
    if numbers is None:
        return partial(_Count, cells)
    if definition.quantile is not None:
        return partial(_Quantile, definition.quantile, groups, buckets, _Ranks.of(numbers))
    if definition.aggregate in ("min", "max"):
        return partial(_Extreme, np.minimum if definition.aggregate == "min" else np.maximum, cells, numbers)
    return partial(_Sum, cells, numbers, mean=definition.aggregate == "avg")


class _Count:
    def __init__(self, cells: int) -> None:
        self._counts = np.zeros(cells, np.int64)

    def add(self, cell: I64, codes: I32 | None) -> None:
        if codes is not None and not codes.all():
            cell = cell[codes > 0]
        _tally(self._counts, cell)

    def join(self, other: _Count) -> None:
        self._counts += other._counts

    def into(self, values: F64, whole: F64) -> None:
        values[:] = self._counts.reshape(values.shape)
        whole[:] = values.sum(axis=1)


class _Unique:
    """How many codes there are, but for 0. One integer is the code and the cell; few are left of an event's and those
    next to it, which are mostly of the same person and day."""

    def __init__(self, groups: int, buckets: int) -> None:
        self._shape = groups, buckets
        self._cells = np.int64(groups * buckets)
        self._packed: list[I64] = []

    def add(self, cell: I64, codes: npt.NDArray[Any] | None) -> None:
        assert codes is not None
        packed = codes * self._cells
        packed += cell
        kept = _changes(packed)
        if not codes.all():
            kept &= codes > 0
        self._packed.append(packed[kept])

    def join(self, other: _Unique) -> None:
        self._packed += other._packed

    def into(self, values: F64, whole: F64) -> None:
        packed = np.concatenate(self._packed) if self._packed else np.zeros(0, np.int64)
        if not len(packed):
            return
        packed.sort()
        cell = packed[_changes(packed)]
        code = cell // values.size
        cell -= code * values.size
        values[:] = np.bincount(cell, minlength=values.size).reshape(values.shape)
        groups, buckets = self._shape
        group = code * groups + cell // buckets
        whole[:] = np.bincount(group[_changes(group)] % groups, minlength=groups)


def _changes(values: I64) -> Mask:
    """Where each is another than the one before."""
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


class _Sum:
    def __init__(self, cells: int, numbers: F64, *, mean: bool) -> None:
        self._numbers = numbers
        self._mean = mean
        self._sums = np.zeros(cells)
        self._counts = np.zeros(cells, np.int64)

    def add(self, cell: I64, codes: I32 | None) -> None:
        cell, numbers = _numbered(cell, codes, self._numbers)
        _tally(self._sums, cell, numbers)
        _tally(self._counts, cell)

    def join(self, other: _Sum) -> None:
        self._sums += other._sums
        self._counts += other._counts

    def into(self, values: F64, whole: F64) -> None:
        sums, counts = self._sums.reshape(values.shape), self._counts.reshape(values.shape)
        for figures, sum_, count in ((values, sums, counts), (whole, sums.sum(axis=1), counts.sum(axis=1))):
            some = count > 0
            figures[some] = sum_[some] / count[some] if self._mean else sum_[some]


class _Extreme:
    def __init__(self, extreme: np.ufunc, cells: int, numbers: F64) -> None:
        self._extreme = extreme
        self._numbers = numbers
        self._none = np.inf if extreme is np.minimum else -np.inf
        self._found = np.full(cells, self._none)

    def add(self, cell: I64, codes: I32 | None) -> None:
        cell, numbers = _numbered(cell, codes, self._numbers)
        self._extreme.at(self._found, cell, numbers)

    def join(self, other: _Extreme) -> None:
        self._extreme(self._found, other._found, out=self._found)

    def into(self, values: F64, whole: F64) -> None:
        found = self._found.reshape(values.shape)
        for figures, extreme in ((values, found), (whole, self._extreme.reduce(found, axis=1))):
            some = extreme != self._none
            figures[some] = extreme[some]


class _Ranks(NamedTuple):
    """Numbers as places in their order. ``levels``: the different ones, ascending; ``rank``: that of each code, -1 for
    none."""

    levels: F64
    rank: I64

    @classmethod
    def of(cls, numbers: F64) -> _Ranks:
        some = ~np.isnan(numbers)
        levels, ranks = np.unique(numbers[some], return_inverse=True)
        rank = np.full(len(numbers), -1)
        rank[some] = ranks
        return cls(levels, rank)


class _Quantile:
    """The continuous quantile: between the two values next to ``share * (n - 1)``, as SQL's ``percentile_cont``.

    There are far fewer different values than events, so that the cell and the rank of the value make one integer, and
    one sort of these orders the values of every cell.
    """

    def __init__(self, share: float, groups: int, buckets: int, ranks: _Ranks) -> None:
        self._share = share
        self._shape = groups, buckets
        self._levels, self._rank = ranks
        largest = groups * buckets * max(len(self._levels), 1)
        self._kind: type[np.unsignedinteger[Any]] = np.uint32 if largest < 2**32 else np.uint64
        self._packed: list[npt.NDArray[Any]] = []

    def add(self, cell: I64, codes: I32 | None) -> None:
        rank = self._rank[codes]
        if len(rank) and int(rank.min()) < 0:
            cell, rank = cell[rank >= 0], rank[rank >= 0]
        self._packed.append((cell * len(self._levels) + rank).astype(self._kind))

    def join(self, other: _Quantile) -> None:
        self._packed += other._packed

    def into(self, values: F64, whole: F64) -> None:
        packed = np.concatenate(self._packed) if self._packed else np.zeros(0, np.uint64)
        if not len(packed):
            return
        packed.sort()
        levels, (groups, buckets) = len(self._levels), self._shape
        ends = np.searchsorted(packed, (np.arange(groups * buckets + 1) * levels).astype(packed.dtype))
        self._write(values.reshape(-1), ends, lambda at: packed[at] % levels)
        of = packed // (levels * buckets) * levels + packed % levels if groups > 1 else packed % levels
        below = np.cumsum(np.bincount(of, minlength=groups * levels))
        ends = np.concatenate([[0], below[levels - 1 :: levels]])
        self._write(whole, ends, lambda at: np.searchsorted(below, at, side="right") % levels)

    def _write(self, figures: F64, ends: I64, rank_at: Callable[[I64], npt.NDArray[Any]]) -> None:
        """``ends`` (n + 1,): where the values of each of ``figures`` (n,) begin and end; ``rank_at`` gives the ranks of
        values in their order."""
        counts = np.diff(ends)
        some = counts > 0
        at = (counts[some] - 1) * self._share
        low, high = np.floor(at).astype(np.int64), np.ceil(at).astype(np.int64)
        first = ends[:-1][some]
        below, above = self._levels[rank_at(first + low)], self._levels[rank_at(first + high)]
        part = at - low
        figures[some] = np.where(part == 0, below, below * (1 - part) + above * part)


def _tally(figures: npt.NDArray[Any], cell: I64, weights: F64 | int = 1) -> None:
    """Add a weight for each event to its cell."""
    if len(cell) < len(figures):
        np.add.at(figures, cell, weights)
    else:
        figures += np.bincount(cell, None if isinstance(weights, int) else weights, len(figures))


def _numbered(cell: I64, codes: I32 | None, numbers: F64) -> tuple[I64, F64]:
    """Of the events that have a number: their cells and it."""
    found = numbers[codes]
    some = ~np.isnan(found)
    return (cell, found) if some.all() else (cell[some], found[some])
