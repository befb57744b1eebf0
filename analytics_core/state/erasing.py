"""Erasure in the state store: which stored words name a user, and the port that drops the rows that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

LONG_ENOUGH: Final = 8
"""An id of so many characters occurs in no other word by chance; a shorter one must be the whole word."""
_MIXED_LENGTH: Final = 3
"""So many are enough for one that is neither letters nor digits alone, such as ``u-7``."""


class StateEraser(Protocol):
    """What an erasure needs of the state store."""

    def positions(self) -> Mapping[str, int]:
        """How far each lane is that has ever made a checkpoint: one past the last position it has folded."""
        ...

    def find(self, tenant: str, ids: Sequence[str]) -> Mapping[str, int]:
        """How many rows `erase` would drop, by what they are."""
        ...

    def erase(self, tenant: str, ids: Sequence[str]) -> Mapping[str, int]:
        """Drop the tenant's metric points, insights, patterns, documents and waiting pushes that name one of ``ids``
        (`names`); rows dropped by what they were.

        :raises StorageError: when it could not be done; part of it may be.
        """
        ...

    def settle(self) -> bool:
        """Whether what was dropped or replaced before is now in no journal either.

        :raises StorageError: when it cannot be told.
        """
        ...

    def drop_lane(self, lane: str) -> None:
        """Drop a lane's position and state: its next life begins anew, and an earlier one can write no more. What it
        has given stays.

        :raises StorageError: when it could not be done; nothing is then.
        """
        ...


def names(body: bytes | str, ids: Sequence[str]) -> bool:
    """Whether a key or a value in ``body`` is one of ``ids``, or has one of them in it that is long enough: not as a
    part of a longer number or of a longer word, as ``customer1`` is in ``customer10``. ``body`` is JSON, or anything
    else that is then one word."""
    try:
        words = _words(msgspec.json.decode(body))
    except msgspec.MsgspecError:
        words = [body.decode(errors="replace") if isinstance(body, bytes) else body]
    whole, inside = _sought(tuple(ids))
    return any(word in whole or (inside is not None and inside.search(word) is not None) for word in words)


@lru_cache(8)
def _sought(ids: tuple[str, ...]) -> tuple[frozenset[str], re.Pattern[str] | None]:
    inside = [f"{_edge(id_[0], '(?<!%s)')}{re.escape(id_)}{_edge(id_[-1], '(?!%s)')}" for id_ in ids if _telling(id_)]
    return frozenset(ids), re.compile("|".join(inside)) if inside else None


def _telling(id_: str) -> bool:
    mixed = not (id_.isalpha() or id_.isdigit())
    return len(id_) >= (_MIXED_LENGTH if mixed else LONG_ENOUGH)


def _edge(end: str, beside: str) -> str:
    """What must not stand beside this end of an id: digits beside a digit, letters beside a letter."""
    return beside % r"\d" if end.isdigit() else beside % r"[^\W\d_]" if end.isalpha() else ""


def _words(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, inner in value.items():
                yield key
                yield from _words(inner)
        case list():
            for inner in value:
                yield from _words(inner)
