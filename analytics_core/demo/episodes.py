"""Things that come over a shop for a while: campaigns, incidents."""

from __future__ import annotations

import random
from bisect import bisect_right

from msgspec import Struct


class Episode(Struct, frozen=True):
    """Something that lasts from ``start`` to ``end`` (seconds after the shop's start) with a ``strength``."""

    start: float
    end: float
    strength: float
    number: int


class Episodes:
    """Episodes one after the other: the first begins within ``first`` seconds, each lasts ``lasts`` seconds."""

    def __init__(
        self,
        rng: random.Random,
        *,
        first: tuple[float, float],
        lasts: tuple[float, float],
        gap: tuple[float, float],
        strength: tuple[float, float],
    ) -> None:
        self._rng, self._lasts, self._gap, self._strength = rng, lasts, gap, strength
        self._all: list[Episode] = []
        self._add(rng.uniform(*first))

    def at(self, second: float) -> Episode | None:
        """The episode that is on then, if one is."""
        while self._all[-1].end <= second:
            self._add(self._all[-1].end + self._rng.uniform(*self._gap))
        index = bisect_right(self._all, second, key=lambda episode: episode.start) - 1
        return self._all[index] if index >= 0 and second < self._all[index].end else None

    def _add(self, start: float) -> None:
        end = start + self._rng.uniform(*self._lasts)
        self._all.append(Episode(start, end, self._rng.uniform(*self._strength), len(self._all)))
