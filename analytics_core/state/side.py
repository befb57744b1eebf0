"""A side area: where outputs of a lane are rebuilt, until they take the place of its own or are dropped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, Protocol

from msgspec import Struct

from analytics_core.state import Checkpoint, StateStore

SAMPLE: Final = 20
"""How many changes a `Difference` shows."""


class Counted(Struct, frozen=True, kw_only=True):
    """How the points of one metric, or all patterns or insights, compare; ``largest`` is the largest difference of two
    values, 0 where there is none."""

    what: Literal["metric", "pattern", "insight"]
    name: str = ""
    equal: int = 0
    changed: int = 0
    only_old: int = 0
    only_new: int = 0
    largest: float = 0.0

    @property
    def same(self) -> bool:
        return not (self.changed or self.only_old or self.only_new)


class Change(Struct, frozen=True, kw_only=True):
    """One point that differs. ``old`` and ``new`` are None where there is no such point, or no number in it."""

    tenant: str
    name: str
    start: datetime
    seconds: int
    labels: dict[str, str]
    old: float | None
    new: float | None


class Difference(Struct, frozen=True, kw_only=True):
    """A lane's outputs (old) and those of its side area (new), both as of ``position`` in the log.

    Values count as equal up to one part in 10^9: sums of floats depend on their order. ``sample`` has the points that
    differ most, 20 at most. ``equal``: nothing differs.
    """

    position: int
    equal: bool
    counts: list[Counted]
    sample: list[Change]


class SideArea(Protocol):
    """The outputs of ``lane``, rebuilt. What counts as its outputs since a moment: points whose window starts then or
    later, patterns and insights with such a window, and those without a window that were written then or later."""

    @property
    def lane(self) -> str:
        """Under which name they are rebuilt."""
        ...

    @property
    def store(self) -> StateStore:
        """Where they are rebuilt."""
        ...

    def look(self, position: int, since: datetime | None) -> Callable[[], Difference]:
        """Hold both as they are now; what compares them, to be called once and then let go."""
        ...

    def switch(self, checkpoint: Checkpoint, since: datetime | None) -> None:
        """Let what was rebuilt, with its state, take the place of the lane's own, in one transaction. Nothing else may
        write to either meanwhile.

        ``checkpoint`` is the lane's with the state that is to hold from now on.

        :raises FencedError: when its epoch is over; nothing is changed.
        :raises StorageError: nothing is changed.
        """
        ...

    def drop(self) -> None:
        """Close the store and forget what is in it."""
        ...


class SideAreas(Protocol):
    """The side areas of one state store. None of them survives a restart."""

    def open(self, lane: str, key: str) -> SideArea:
        """An empty one for ``lane``; ``key`` tells it from others of the same lane."""
        ...

    def clear(self) -> int:
        """Drop what an earlier process has left; how many areas that were."""
        ...
