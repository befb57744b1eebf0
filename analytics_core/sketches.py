"""Mergeable summaries that metrics of kind ``unique`` and ``histogram`` carry.

`UniqueSketch`
    HyperLogLog (Flajolet et al. 2007) with 2^12 registers, a standard error of 1.6 %, and the linear-counting
    correction for small ranges. Up to 512 distinct hashes are kept as they are, so small counts are exact.
`HistogramSketch`
    DDSketch (Masson, Rim, Lee, VLDB 2019): logarithmic buckets, quantiles within 1 % of the value.

Both serialise to bytes and merge associatively and commutatively, so any window is the merge of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_PRECISION = 12
_REGISTERS = 1 << _PRECISION
_EXACT = 512
_ALPHA = 0.7213 / (1 + 1.079 / _REGISTERS)
_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


def hash_strings(values: Sequence[str | bytes], seed: int = 0) -> U64:
    """64-bit hashes, shape ``(n,)``, equal for equal strings on every machine and in every process.

    Strings of one length are hashed together, eight bytes at a step (multiply and xor-shift, as in wyhash and
    splitmix64). Not for untrusted keys where a chosen collision would matter: give a secret ``seed`` there.
    """
    encoded = [v if isinstance(v, bytes) else v.encode() for v in values]
    out = np.empty(len(encoded), np.uint64)
    if not encoded:
        return out
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    for length in np.unique(lengths):
        at = np.flatnonzero(lengths == length)
        joined = b"".join(encoded if len(at) == len(encoded) else [encoded[i] for i in at])
        matrix = np.frombuffer(joined, np.uint8).reshape(len(at), int(length))
        out[at] = hash_rows(matrix, seed)
    return out


def hash_rows(matrix: npt.NDArray[np.uint8], seed: int = 0) -> U64:
    """Hash each row of a ``(n, length)`` byte matrix to 64 bits, shape ``(n,)``."""
    n, length = matrix.shape
    words = -(-length // 8)
    padded = np.zeros((n, words * 8), np.uint8)
    padded[:, :length] = matrix
    lanes = padded.view(np.uint64)
    with np.errstate(over="ignore"):
        state = np.full(n, np.uint64(seed) ^ (np.uint64(length) * _SEEDS[0]), np.uint64)
        for word in range(words):
            state = (state ^ lanes[:, word]) * _SEEDS[0]
            state ^= state >> np.uint64(29)
            state *= _SEEDS[1]
            state ^= state >> np.uint64(32)
    return _finish(state)


def _finish(state: U64) -> U64:
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class UniqueSketch:
    """How many distinct values. ``add`` takes hashes from `hash_strings`, shape ``(n,)``."""

    __slots__ = ("_exact", "_registers")

    def __init__(self) -> None:
        self._exact: U64 | None = np.empty(0, np.uint64)
        self._registers: npt.NDArray[np.uint8] | None = None

    def add(self, hashes: U64) -> None:
        if self._exact is not None:
            self._exact = np.union1d(self._exact, hashes)
            if len(self._exact) <= _EXACT:
                return
            hashes, self._exact = self._exact, None
            self._registers = np.zeros(_REGISTERS, np.uint8)
        assert self._registers is not None
        index = (hashes >> np.uint64(64 - _PRECISION)).astype(np.int64)
        rest = hashes << np.uint64(_PRECISION) | np.uint64(1 << (_PRECISION - 1))
        np.maximum.at(self._registers, index, _leading_zeros(rest) + np.uint8(1))

    def merge(self, other: UniqueSketch) -> None:
        if other._exact is not None:
            self.add(other._exact)
            return
        if self._registers is None:
            exact, self._exact = self._exact, None
            self._registers = np.zeros(_REGISTERS, np.uint8)
            if exact is not None and len(exact):
                self.add(exact)
        assert other._registers is not None
        np.maximum(self._registers, other._registers, out=self._registers)

    def estimate(self) -> float:
        if self._exact is not None:
            return float(len(self._exact))
        assert self._registers is not None
        raw = _ALPHA * _REGISTERS**2 / float(np.exp2(-self._registers.astype(np.float64)).sum())
        empty = int((self._registers == 0).sum())
        if raw <= 2.5 * _REGISTERS and empty:
            return float(_REGISTERS * math.log(_REGISTERS / empty))
        return float(raw)

    def to_bytes(self) -> bytes:
        if self._exact is not None:
            return b"E" + self._exact.tobytes()
        assert self._registers is not None
        return b"R" + self._registers.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> UniqueSketch:
        sketch = cls()
        if data[:1] == b"E":
            sketch._exact = np.frombuffer(data, np.uint64, offset=1).copy()
        elif data[:1] == b"R" and len(data) == _REGISTERS + 1:
            sketch._exact = None
            sketch._registers = np.frombuffer(data, np.uint8, offset=1).copy()
        else:
            raise ValueError(f"not a unique sketch: {len(data)} bytes starting with {data[:1]!r}")
        return sketch


def _leading_zeros(values: U64) -> npt.NDArray[np.uint8]:
    zeros = np.zeros(len(values), np.uint8)
    rest = values.copy()
    for step in (32, 16, 8, 4, 2, 1):
        empty = (rest >> np.uint64(64 - step)) == 0
        zeros[empty] += np.uint8(step)
        rest[empty] <<= np.uint64(step)
    return zeros


class _HistogramWire(msgspec.Struct, array_like=True):
    count: int
    total: float
    low: float
    high: float
    zeros: int
    positive: dict[int, int]
    negative: dict[int, int]


_GAMMA = 1.01 / 0.99
_LOG_GAMMA = math.log(_GAMMA)
_TINY = 1e-9


class HistogramSketch:
    """The distribution of values. ``add`` takes floats, shape ``(n,)``; values that are not finite are left out."""

    __slots__ = ("_buckets", "count", "high", "low", "total", "zeros")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.zeros = 0
        self._buckets: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def add(self, values: npt.ArrayLike) -> None:
        data = np.asarray(values, np.float64)
        data = data[np.isfinite(data)]
        if not len(data):
            return
        self.count += len(data)
        self.total += float(data.sum())
        self.low = min(self.low, float(data.min()))
        self.high = max(self.high, float(data.max()))
        self.zeros += int((np.abs(data) < _TINY).sum())
        for buckets, part in zip(self._buckets, (data[data >= _TINY], -data[data <= -_TINY]), strict=True):
            keys, counts = np.unique(np.ceil(np.log(part) / _LOG_GAMMA).astype(np.int64), return_counts=True)
            for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
                buckets[key] = buckets.get(key, 0) + count

    def merge(self, other: HistogramSketch) -> None:
        self.count += other.count
        self.total += other.total
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
        ordered: Iterable[tuple[float, int]] = [
            *((-_middle(key), negative[key]) for key in sorted(negative, reverse=True)),
            (0.0, self.zeros),
            *((_middle(key), positive[key]) for key in sorted(positive)),
        ]
        rank, seen = q * (self.count - 1), 0
        for value, count in ordered:
            seen += count
            if seen > rank:
                return min(max(value, self.low), self.high)
        return self.high

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    def to_bytes(self) -> bytes:
        wire = _HistogramWire(self.count, self.total, self.low, self.high, self.zeros, *self._buckets)
        return msgspec.msgpack.encode(wire)

    @classmethod
    def from_bytes(cls, data: bytes) -> HistogramSketch:
        wire = msgspec.msgpack.decode(data, type=_HistogramWire)
        sketch = cls()
        sketch.count, sketch.total, sketch.low, sketch.high = wire.count, wire.total, wire.low, wire.high
        sketch.zeros = wire.zeros
        sketch._buckets = (wire.positive, wire.negative)
        return sketch


def _middle(key: int) -> float:
    return 2 * _GAMMA**key / (_GAMMA + 1)
