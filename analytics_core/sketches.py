"""Mergeable summaries that metrics of kind ``unique`` and ``histogram`` carry.

`UniqueSketch`
    HyperLogLog (Flajolet et al. 2007) with 2^12 registers and a standard error of 1.6 %, read by the improved
    estimator of Ertl (arXiv:1702.01284, algorithm 6), which has no bias between the small and the large range.
    Up to 512 distinct hashes are kept as they are, so small counts are exact.
`HistogramSketch`
    DDSketch (Masson, Rim, Lee, VLDB 2019): logarithmic buckets, quantiles within 1 % of the value.

Both serialise to bytes and merge associatively and commutatively, so any window is the merge of its parts: equal
values give equal bytes, in whatever order and in however many pieces they came.
"""

from __future__ import annotations

import math
from itertools import chain

import msgspec
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_PRECISION = 12
_REGISTERS = 1 << _PRECISION
_RANKS = 64 - _PRECISION
_EXACT = 512
_ALPHA = 1 / (2 * math.log(2))


class UniqueSketch:
    """How many distinct values. ``add`` takes hashes from `hash_strings`, shape ``(n,)``."""

    __slots__ = ("_exact", "_registers")

    def __init__(self) -> None:
        self._exact: U64 | None = np.empty(0, np.uint64)
        self._registers: npt.NDArray[np.uint8] | None = None

    def add(self, hashes: U64) -> None:
        if self._exact is not None:
            # Distinct hashes are sorted out of a part at a time: a large batch overflows after its first part.
            for start in range(0, len(hashes), 4 * _EXACT):
                self._exact = _distinct(np.concatenate([self._exact, hashes[start : start + 4 * _EXACT]]))
                if len(self._exact) > _EXACT:
                    break
            else:
                return
        index = (hashes >> np.uint64(64 - _PRECISION)).astype(np.int64)
        np.maximum.at(self._widened(), index, _ranks(hashes))

    def _widened(self) -> npt.NDArray[np.uint8]:
        """The registers, taking over the exact hashes when it is the first time."""
        if self._registers is None:
            exact, self._exact = self._exact, None
            self._registers = np.zeros(_REGISTERS, np.uint8)
            if exact is not None and len(exact):
                self.add(exact)
        return self._registers

    def merge(self, other: UniqueSketch) -> None:
        if other._exact is not None:
            self.add(other._exact)
            return
        assert other._registers is not None
        mine = self._widened()
        np.maximum(mine, other._registers, out=mine)

    def estimate(self) -> float:
        if self._exact is not None:
            return float(len(self._exact))
        assert self._registers is not None
        counts = np.bincount(self._registers, minlength=_RANKS + 2).tolist()
        z = _REGISTERS * _tau(1 - counts[_RANKS + 1] / _REGISTERS)
        for rank in range(_RANKS, 0, -1):
            z = 0.5 * (z + counts[rank])
        z += _REGISTERS * _sigma(counts[0] / _REGISTERS)
        return _ALPHA * _REGISTERS**2 / z

    def to_bytes(self) -> bytes:
        if self._exact is not None:
            return b"E" + self._exact.tobytes()
        assert self._registers is not None
        return b"R" + self._registers.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> UniqueSketch:
        sketch = cls()
        if data[:1] == b"E" and len(data) % 8 == 1:
            sketch._exact = np.frombuffer(data, np.uint64, offset=1).copy()
        elif data[:1] == b"R" and len(data) == _REGISTERS + 1:
            sketch._exact = None
            sketch._registers = np.frombuffer(data, np.uint8, offset=1).copy()
        else:
            raise ValueError(f"not a unique sketch: {len(data)} bytes starting with {data[:1]!r}")
        return sketch


def _distinct(hashes: U64) -> U64:
    """Each once, ascending. Sorts ``hashes`` in place, which takes a tenth of the time of `np.unique`."""
    hashes.sort()
    first = np.ones(len(hashes), np.bool_)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]


def _sigma(x: float) -> float:
    """Ertl's correction for registers that no hash has reached; ``x`` is their share."""
    if x == 1.0:
        return math.inf
    y, z = 1.0, x
    while True:
        x *= x
        before, z = z, z + x * y
        y += y
        if z == before:
            return z


def _tau(x: float) -> float:
    """Ertl's correction for registers at the highest rank; ``x`` is the share of the others."""
    if x in (0.0, 1.0):
        return 0.0
    y, z = 1.0, 1 - x
    while True:
        x = math.sqrt(x)
        before, y = z, y / 2
        z -= (1 - x) ** 2 * y
        if z == before:
            return z / 3


def _ranks(hashes: U64) -> npt.NDArray[np.uint8]:
    """One more than the zeros before the first one among the 52 bits that do not choose the register."""
    rest = hashes & np.uint64((1 << _RANKS) - 1)
    return (_RANKS + 1 - np.frexp(rest.astype(np.float64))[1]).astype(np.uint8)  # 52 bits are exact as a float


class _HistogramWire(msgspec.Struct, array_like=True):
    count: int
    total: bytes
    low: float
    high: float
    zeros: int
    positive: dict[int, int]
    negative: dict[int, int]


_histogram_wire = msgspec.msgpack.Decoder(_HistogramWire)
"""Made once, before there are threads: msgspec is not safe while it looks at a type for the first time."""
_GAMMA = 1.01 / 0.99
_LOG_GAMMA = math.log(_GAMMA)
_TINY = 1e-9
_UNITS = 2.0**30  # of the running total per 1.0: sums of whole units are the same in any order, float sums are not


class HistogramSketch:
    """The distribution of values. ``add`` takes floats, shape ``(n,)``; values that are not finite are left out.

    ``count``, ``low``, ``high`` and ``zeros`` (how many are below 1e-9) are exact, ``total`` to 1e-9 a value.
    """

    __slots__ = ("_buckets", "_total", "count", "high", "low", "zeros")

    def __init__(self) -> None:
        self.count = 0
        self.low = math.inf
        self.high = -math.inf
        self.zeros = 0
        self._total = 0
        self._buckets: tuple[dict[int, int], dict[int, int]] = ({}, {})

    @property
    def total(self) -> float:
        try:
            return self._total / int(_UNITS)
        except OverflowError:
            return math.inf if self._total > 0 else -math.inf

    def add(self, values: npt.ArrayLike) -> None:
        data = np.asarray(values, np.float64)
        data = data[np.isfinite(data)] + 0.0  # 0.0 and -0.0 are one value
        if not len(data):
            return
        self.count += len(data)
        self._total += _whole_units(data)
        self.low = min(self.low, float(data.min()))
        self.high = max(self.high, float(data.max()))
        if self.low >= _TINY:
            _count_into(self._buckets[0], data)
            return
        self.zeros += int((np.abs(data) < _TINY).sum())
        _count_into(self._buckets[0], data[data >= _TINY])
        _count_into(self._buckets[1], -data[data <= -_TINY])

    def merge(self, other: HistogramSketch) -> None:
        self.count += other.count
        self._total += other._total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.zeros += other.zeros
        for mine, theirs in zip(self._buckets, other._buckets, strict=True):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count

    def quantile(self, q: float) -> float:
        """The value at ``0 <= q <= 1``; NaN when empty."""
        if not self.count:
            return math.nan
        positive, negative = self._buckets
        ordered = chain(
            ((-1, key, count) for key, count in sorted(negative.items(), reverse=True)),
            ((0, 0, self.zeros),),
            ((1, key, count) for key, count in sorted(positive.items())),
        )
        rank, seen = q * (self.count - 1), 0
        for sign, key, count in ordered:
            seen += count
            if seen > rank:
                return min(max(sign * _middle(key), self.low), self.high)
        return self.high

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    def to_bytes(self) -> bytes:
        total = self._total.to_bytes(self._total.bit_length() // 8 + 1, "little", signed=True)
        buckets = (dict(sorted(part.items())) for part in self._buckets)
        wire = _HistogramWire(self.count, total, self.low, self.high, self.zeros, *buckets)
        return msgspec.msgpack.encode(wire)

    @classmethod
    def from_bytes(cls, data: bytes) -> HistogramSketch:
        try:
            wire = _histogram_wire.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a histogram sketch: {len(data)} bytes; {error}") from None
        sketch = cls()
        sketch.count, sketch.low, sketch.high, sketch.zeros = wire.count, wire.low, wire.high, wire.zeros
        sketch._total = int.from_bytes(wire.total, "little", signed=True)
        sketch._buckets = (wire.positive, wire.negative)
        return sketch


def _whole_units(data: npt.NDArray[np.float64]) -> int:
    """The sum in units of 2^-30, exactly: whole numbers as two 32-bit halves, so that no int64 sum overflows."""
    small = np.abs(data) < 2.0**32
    units = np.rint(data[small] * _UNITS).astype(np.int64)
    total = (int((units >> 32).sum()) << 32) + int((units & 0xFFFFFFFF).sum())
    if not small.all():
        total += sum(int(value) * int(_UNITS) for value in data[~small].tolist())
    return total


def _count_into(buckets: dict[int, int], values: npt.NDArray[np.float64]) -> None:
    """Count positive values by bucket ``k`` of ``(gamma^(k-1), gamma^k]``."""
    if not len(values):
        return
    keys = np.ceil(np.log(values) / _LOG_GAMMA).astype(np.int64)
    first = int(keys.min())
    counts = np.bincount(keys - first)
    found = np.flatnonzero(counts)
    for key, count in zip((found + first).tolist(), counts[found].tolist(), strict=True):
        buckets[key] = buckets.get(key, 0) + count


def _middle(key: int) -> float:
    # Near the ends of the range of floats the bucket's bound overflows or vanishes; quantile() clamps to what was seen.
    try:
        return 2 * _GAMMA**key / (_GAMMA + 1)
    except OverflowError:
        return math.inf
