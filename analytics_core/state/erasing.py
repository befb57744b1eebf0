"""Erasure in the state store: which stored words name a user, and the port that drops the rows that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

LONG_ENOUGH: Final = 8
"""An id of so many characters occurs in no other word by chance; a shorter one must be the whole word."""


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


def names(body: bytes | str, ids: Sequence[str]) -> bool:
    """Whether a key or a value in ``body`` is one of ``ids``, or has a long one of them in it. ``body`` is JSON, or
    anything else that is then one word."""
    try:
        words = _words(msgspec.json.decode(body))
    except msgspec.MsgspecError:
        words = [body.decode(errors="replace") if isinstance(body, bytes) else body]
    whole = frozenset(ids)
    parts = [id_ for id_ in ids if len(id_) >= LONG_ENOUGH]
    return any(word in whole or any(part in word for part in parts) for word in words)


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
