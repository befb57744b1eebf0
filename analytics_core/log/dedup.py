"""Counted once: which event ids are new, exactly, over the last ``dedup_window`` events (DESIGN §4).

A filter (`log.seen`) answers "certainly new" for almost every new id. What it cannot rule out is looked up exactly:
among the pending ids (admitted, not yet durable), in memory for the segment being written, and in the sorted ``.ids``
file of each sealed segment, which a thread of its own writes when the log has gone on to the next and which outlives
the segment until the window has passed it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core.log.id_index import IdIndex, SegmentedLog
from analytics_core.log.ids import Hashes, IdHasher, IdRun, Mask, read_secret
from analytics_core.log.seen import SeenFilter, Spots

_KEY_FILE: Final = "dedup.key"
_SMALL: Final = 8


class Pending:
    """New ids whose batch is on its way to the log. ``future`` gives the first ``seq`` of that batch, or its error."""

    __slots__ = ("future", "hashes", "run")

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self.future: Future[int] = Future()
        self.run: IdRun | None = None

    def __len__(self) -> int:
        return int(self.hashes.shape[1])


class Admission(NamedTuple):
    """What `Deduplicator.admit` found. ``new``: shape ``(n,)``, the events to write, first of each id.

    ``pending`` holds them, None when there are none. ``waits``: whose outcome the other events share, beyond this
    admission's own; a duplicate that waits for nothing is durable already.
    """

    new: Mask
    pending: Pending | None
    waits: list[Pending]


class Deduplicator:
    """The index over one log. Safe for use from any thread, in any order.

    Opening it reads the ids of the window back: from the ``.ids`` files, and from the frames of segments without one.
    The files belong to it alone: it deletes those that the window has passed.
    """

    def __init__(self, log: SegmentedLog, window: int) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._hasher = IdHasher(read_secret(log.directory / _KEY_FILE))
        self._filter = SeenFilter(window)
        self._index = IdIndex(log, window, self._hasher, self._lock, self._filter.load)
        self._small: dict[tuple[int, int], Pending] = {}
        self._large: dict[int, Pending] = {}
        self._wasted = 0

    @property
    def reached(self) -> int:
        """How many of the last events are covered now: fewer than the window only while the log is that young."""
        return self._index.reached

    @property
    def floor(self) -> int:
        """The log position from which on segments are needed: the ids of those below are on disk in files."""
        with self._lock:
            return self._index.floor

    def hashes(self, tenant: str, ids: pa.Array) -> Hashes:
        """128-bit hashes of event ids (strings without nulls), shape ``(2, len(ids))``. Takes no lock."""
        return self._hasher(tenant, ids)

    def admit(self, hashes: Hashes) -> Admission:
        """Tell new events from duplicates, and make the new ones pending in the same step.

        Every admission with ``pending`` must end in `commit` or `fail`.
        """
        if not hashes.shape[1]:
            return Admission(np.empty(0, np.bool_), None, [])
        firsts = _first_of_each(hashes)
        spots = self._filter.spots(hashes)
        waits: list[Pending] = []
        with self._lock:
            seen = self._filter.may_hold(spots)
            new = ~seen
            if seen.any():
                at = np.flatnonzero(seen)
                known, waits = self._known(np.take(hashes, at, axis=1))
                new[at[~known]] = True
            if firsts is not None:
                new &= firsts
            if new.all():
                pending = Pending(hashes)
            elif new.any():
                pending = Pending(np.compress(new, hashes, axis=1))
                spots = Spots(spots.at[new], spots.bits[new])
            else:
                return Admission(new, None, waits)
            self._filter.add(spots)
            self._remember(pending)
        return Admission(new, pending, waits)

    def commit(self, pending: Pending, first_seq: int) -> None:
        """The batch of ``pending`` is durable from ``first_seq`` on: its ids are duplicates from now on."""
        with self._lock:
            self._forget(pending)
            self._index.add(pending.hashes, first_seq)
            if self._filter.count(len(pending)):
                self._hold_pending()
        pending.future.set_result(first_seq)

    def fail(self, pending: Pending, error: BaseException) -> None:
        """The batch of ``pending`` was not written: its ids are new again, and who waited gets ``error``."""
        with self._lock:
            self._forget(pending)
            self._wasted += len(pending)
            if self._wasted > self._window:  # ids that never came about have filled the filter
                self._refill()
        pending.future.set_exception(error)

    def close(self) -> None:
        """Finish the files that are being written."""
        self._index.close()

    # --- pending

    def _remember(self, pending: Pending) -> None:
        if len(pending) > _SMALL:
            self._large[id(pending)] = pending
        else:
            self._small.update(dict.fromkeys(_pairs(pending.hashes), pending))

    def _forget(self, pending: Pending) -> None:
        if len(pending) > _SMALL:
            del self._large[id(pending)]
        else:
            for pair in _pairs(pending.hashes):
                del self._small[pair]

    def _known(self, hashes: Hashes) -> tuple[Mask, list[Pending]]:
        """Which ids are pending or durable, shape ``(n,)``, and the batches that the pending ones wait for."""
        order = np.argsort(hashes[0])  # a search in sorted order meets warm memory
        hashes = np.take(hashes, order, axis=1)
        found = self._index.contains(hashes)
        waits: dict[int, Pending] = {}
        if self._small and not found.all():
            for at, pair in enumerate(_pairs(hashes)):
                if (pending := self._small.get(pair)) is not None:
                    waits[id(pending)] = pending
                    found[at] = True
        for key, pending in self._large.items():
            rest = np.flatnonzero(~found)
            if not len(rest):
                break
            if pending.run is None:
                pending.run = IdRun.of(pending.hashes)
            held = pending.run.contains(np.take(hashes, rest, axis=1))
            if held.any():
                waits[key] = pending
                found[rest[held]] = True
        known = np.empty_like(found)
        known[order] = found
        return known, list(waits.values())

    # --- the filter

    def _hold_pending(self) -> None:
        """Pending ids belong to the newest generation, however long they take."""
        for pending in {id(pending): pending for pending in (*self._small.values(), *self._large.values())}.values():
            self._filter.add(self._filter.spots(pending.hashes))

    def _refill(self) -> None:
        self._wasted = 0
        self._filter = SeenFilter(self._window)
        for run in self._index.runs():
            self._filter.load(np.array([run.high, run.low]))
        self._hold_pending()


def _pairs(hashes: Hashes) -> Iterator[tuple[int, int]]:
    return zip(hashes[0].tolist(), hashes[1].tolist(), strict=True)


def _first_of_each(hashes: Hashes) -> Mask | None:
    """Which events are the first of their id, shape ``(n,)``; None when all are."""
    if hashes.shape[1] == 1:
        return None
    ordered = np.sort(hashes[0])
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    order = np.lexsort((hashes[1], hashes[0]))
    ranked = hashes[:, order]
    firsts = np.ones(hashes.shape[1], np.bool_)
    firsts[order[1:]] = (ranked[:, 1:] != ranked[:, :-1]).any(axis=0)
    return firsts
