"""A run with its visitors joined to persons: those of whom several ids are known are moved aside under one key."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from analytics_core.lake.user_order import EMPTY, U64, Mask, Run, joined
from analytics_core.queries.identity import Identity


class Level(Struct, frozen=True, eq=False):
    """A run of ids, and the persons among them: ``gone`` (users,) are the ids that belong to a person of several, None
    for none; ``moved`` has their events under the key of that person, which is the person's in every level."""

    run: Run
    gone: Mask | None = None
    moved: Run = EMPTY

    def __len__(self) -> int:
        return len(self.run)

    def span(self, low: int, high: int) -> Run:
        """The events of the visitors with ``low <= key < high``. Copies nothing unless some have gone."""
        first, last = self.run.bounds(low, high)
        kept = self.run.between(first, last)
        if self.gone is not None and self.gone[first:last].any():
            kept = kept.visitors(~self.gone[first:last])
        return joined([kept, self.moved.span(low, high)])

    def where(self, kept: Mask) -> Level:
        """Of its run, the events for which ``kept`` holds, shape ``(len(run),)``; nobody is moved any more."""
        return Level(self.run.where(kept))


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
