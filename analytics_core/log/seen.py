"""A filter that answers "certainly new" for almost every id that it has not been given.

A Bloom filter with all bits of an id in one 64-bit word, thus one cache miss an id (Putze, Sanders, Singler: Cache-,
Hash- and Space-Efficient Bloom Filters, 2007), in two generations: when the younger one holds a whole window of ids,
the older one is dropped. At 10 M ids a generation takes 32 MB and errs for about one new id in a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core.log.ids import Hashes, Mask, Pair

_BITS_PER_ID: Final = 26
_FEWEST_WORDS: Final = 1 << 10
_LOAD_BLOCK: Final = 1 << 16


Spot = tuple[int, int]
"""Where a filter keeps one id: a word, and six bits in it."""


class Spots(NamedTuple):
    """The `Spot` of each id: words, shape ``(n,)``, and their bits, shape ``(n,)``."""

    at: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint64]


class SeenFilter:
    """Not safe for several threads, but for `spots` and `spot`, which read nothing that changes."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._words = max(_FEWEST_WORDS, 1 << (window * _BITS_PER_ID // 64 - 1).bit_length())
        self._shift = 64 - (self._words.bit_length() - 1)
        self._bits = _three_bits()
        self._bits_of = self._bits.data
        self._counted = 0
        self._current = self._empty()
        self._previous: npt.NDArray[np.uint64] | None = None

    def _empty(self) -> npt.NDArray[np.uint64]:
        return np.zeros(self._words, np.uint64)  # its memory is taken as it is touched

    def spots(self, hashes: Hashes) -> Spots:
        """For hashes of shape ``(2, n)``."""
        pieces = hashes[1].view(np.uint16).reshape(-1, 4)
        bits = self._bits.take(pieces[:, 0])
        bits |= self._bits.take(pieces[:, 1])
        return Spots((hashes[0] >> self._shift).view(np.int64), bits)

    def spot(self, high: int, low: int) -> Spot:
        """For one hash."""
        return high >> self._shift, self._bits_of[low & 0xFFFF] | self._bits_of[low >> 16 & 0xFFFF]

    def may_hold(self, spots: Spots) -> Mask:
        """False where an id is certainly new, shape ``(n,)``."""
        at, bits = spots
        found: Mask = (self._current[at] & bits) == bits
        if self._previous is not None:
            found |= (self._previous[at] & bits) == bits
        return found

    def suspects(self, spots: Mapping[Pair, Spot]) -> list[Pair]:
        """Which ids are not certainly new: `may_hold` for a few."""
        words = self._current.data
        if self._previous is None:
            return [pair for pair, (at, bits) in spots.items() if words[at] & bits == bits]
        older = self._previous.data
        return [pair for pair, (at, bits) in spots.items() if words[at] & bits == bits or older[at] & bits == bits]

    def add(self, spots: Spots) -> None:
        """Hold these ids, which count for nothing yet."""
        _set(self._current, spots)

    def add_few(self, spots: Iterable[Spot]) -> None:
        """Hold these ids: `add` for a few."""
        words = self._current.data
        for at, bits in spots:
            words[at] |= bits

    def count(self, ids: int) -> bool:
        """So many of the ids given have become part of the window; whether a new, empty generation began with it.

        Negative when so many were taken for pending and have not come.
        """
        self._counted += ids
        if self._counted < self._window:
            return False
        self._previous, self._current, self._counted = self._current, self._empty(), 0
        return True

    def load(self, hashes: Hashes) -> None:
        """Hold older ids, as if the generation before had them; sorted ones are quickest."""
        if self._previous is None:
            self._previous = self._empty()
        for at in range(0, hashes.shape[1], _LOAD_BLOCK):
            _set(self._previous, self.spots(np.ascontiguousarray(hashes[:, at : at + _LOAD_BLOCK])))


def _set(words: npt.NDArray[np.uint64], spots: Spots) -> None:
    at, bits = spots
    words[at] |= bits
    while len(lost := np.flatnonzero((words[at] & bits) != bits)):  # several ids in one word: one of them has won
        at, bits = at[lost], bits[lost]
        words[at] |= bits


def _three_bits() -> npt.NDArray[np.uint64]:
    """A word with up to three bits set for each 16-bit value."""
    value = np.arange(1 << 16, dtype=np.uint64)
    places = [(value >> np.uint64(shift)) & np.uint64(63) for shift in (0, 5, 10)]
    one = np.uint64(1)
    words: npt.NDArray[np.uint64] = (one << places[0]) | (one << places[1]) | (one << places[2])
    return words
