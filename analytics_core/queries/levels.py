"""A run with its visitors joined to persons: those of whom several ids are known are moved aside under one key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from analytics_core.lake.user_order import EMPTY, I64, U64, Mask, Run, joined
from analytics_core.queries.identity import Identity
from analytics_core.queries.identity.persons import KINDS

LINKS: Final = frozenset(KINDS)
"""Without an event of these names nobody has several ids."""


class Level(Struct, frozen=True, eq=False):
    """A run of ids, and the persons among them: ``gone`` (users,) are the ids that belong to a person of several, None
    for none; ``moved`` has their events under the key of that person, which is the person's in every level. Events at
    the log position ``below`` or later are not shown; None shows all."""

    run: Run
    gone: Mask | None = None
    moved: Run = EMPTY
    below: int | None = None

    def __len__(self) -> int:
        return len(self.run)

    def span(self, low: int, high: int) -> Run:
        """The events of the visitors with ``low <= key < high``. Copies nothing unless some have gone."""
        first, last = self.run.bounds(low, high)
        kept = self.run.between(first, last)
        if self.gone is not None and self.gone[first:last].any():
            kept = kept.visitors(~self.gone[first:last])
        run = joined([kept, self.moved.span(low, high)])
        return run if self.below is None else run.where(run.place < self.below)

    def columns(self, names: Sequence[str], first: int, last: int) -> list[npt.NDArray[Any]]:
        """Of its run, these columns of the events ``first`` to ``last - 1``, or as many as there are."""
        found = [getattr(self.run, name)[first:last] for name in names]
        if self.below is None:
            return found
        shown = self.run.place[first:last] < self.below
        return [column[shown] for column in found]

    def by_visitor(self, numbers: Callable[[U64], I64], first: int, last: int) -> I64:
        """Of the events that `columns` gives, what ``numbers`` makes of the ids' keys, shape ``(users,)`` each."""
        run, last = self.run, min(last, len(self.run))
        low, high = np.searchsorted(run.end, [first, last - 1], side="right").tolist()
        count = np.diff(np.minimum(run.end[low : high + 1], last), prepend=first)
        found = np.repeat(numbers(run.key[low : high + 1]), count)
        return found if self.below is None else found[run.place[first:last] < self.below]


def joined_level(run: Run, identity: Identity) -> Level:
    """``run`` with its ids joined as ``identity`` says."""
    if identity.empty:
        return Level(run)
    now = identity.canonical(run.key)
    gone = _among(now, np.unique(now[now != run.key]))
    return Level(run, gone, run.visitors(gone).renamed(now[gone])) if gone.any() else Level(run)


def rejoined(level: Level, before: Identity, identity: Identity) -> Level:
    """``level``, whose ids were joined as ``before`` says, as ``identity`` says: only who has changed is moved."""
    keys, into = identity.moved_since(before)
    if not len(keys):
        return level
    touched = np.unique(np.concatenate([before.canonical(keys), into]))
    run = level.run
    now = identity.canonical(run.key)
    gone = _among(now, np.unique(now[now != run.key]))
    fresh = gone & _among(now, touched)
    kept = level.moved.visitors(~level.moved.among(touched))
    return Level(run, gone, joined([kept, run.visitors(fresh).renamed(now[fresh])]))


def _among(keys: U64, wanted: U64) -> Mask:
    """Which of ``keys`` are in ``wanted``, which ascend; shape ``(len(keys),)``."""
    if not len(wanted):
        return np.zeros(len(keys), np.bool_)
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    found: Mask = wanted[at] == keys
    return found
