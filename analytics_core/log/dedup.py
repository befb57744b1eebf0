"""Counted once: which event ids are new, exactly, over the last ``dedup_window`` events (DESIGN §4).

A filter (`log.seen`) answers "certainly new" for almost every new id. What it cannot rule out is looked up exactly:
among the pending ids (admitted, not yet durable), in memory for the segment being written, and in the sorted ``.ids``
file of each sealed segment, which a thread of its own writes when the log has gone on to the next and which outlives
the segment until the window has passed it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import compress
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core.log.id_index import IdIndex, SegmentedLog
from analytics_core.log.ids import Hashes, IdHasher, IdRun, Mask, Pair, read_secret
from analytics_core.log.seen import SeenFilter, Spots

_KEY_FILE: Final = "dedup.key"
_FEW: Final = 16
"""Up to so many ids, plain integers in dicts cost less than arrays."""


class Pending:
    """New ids whose batch is on its way to the log. ``pairs`` are the same ids, when they are few."""

    __slots__ = ("_future", "_lock", "_outcome", "hashes", "pairs", "run")

    def __init__(self, hashes: Hashes, pairs: Sequence[Pair] = ()) -> None:
        self.hashes = hashes
        self.pairs = pairs
        self.run: IdRun | None = None
        self._lock = threading.Lock()
        self._future: Future[int] | None = None
        self._outcome: int | BaseException | None = None

    @property
    def future(self) -> Future[int]:
        """Gives the first ``seq`` of the batch, or its error. Made when somebody asks, which is rare."""
        with self._lock:
            if self._future is None:
                self._future = Future()
                self._future.set_running_or_notify_cancel()  # one who gives up must not cancel it for all
                _tell(self._future, self._outcome)
            return self._future

    def settle(self, outcome: int | BaseException) -> None:
        """The first ``seq``, or the error."""
        with self._lock:
            self._outcome, future = outcome, self._future
        if future is not None:
            _tell(future, outcome)

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
        self._few: dict[Pair, Pending] = {}
        self._many: dict[int, Pending] = {}
        self._wasted = 0

    @property
    def reached(self) -> int:
        """Over how many of the latest events duplicates are told for certain.

        Fewer than the window while fewer were stored, or after ids were lost.
        """
        return min(self._index.reached, self._window)

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
        if hashes.shape[1] <= _FEW:
            return self._admit_few(hashes)
        firsts = _first_of_each(hashes)
        spots = self._filter.spots(hashes)
        waits: list[Pending] = []
        with self._lock:
            seen = self._filter.may_hold(spots)
            new = ~seen
            if len(suspects := np.flatnonzero(seen)):
                known, waits = self._known(np.take(hashes, suspects, axis=1))
                new[suspects[~known]] = True
            if firsts is not None:
                new &= firsts
            if (fresh := np.count_nonzero(new)) == len(new):
                pending = Pending(hashes)
            elif fresh:
                pending = Pending(np.compress(new, hashes, axis=1))
                spots = Spots(spots.at[new], spots.bits[new])
            else:
                return Admission(new, None, waits)
            self._filter.add(spots)
            self._many[id(pending)] = pending
        return Admission(new, pending, waits)

    def _admit_few(self, hashes: Hashes) -> Admission:
        """`admit`, id by id."""
        first = {pair: at for at, pair in reversed([*enumerate(_pairs(hashes))])}
        spots = {pair: self._filter.spot(*pair) for pair in first}
        waits: list[Pending] = []
        with self._lock:
            if suspects := self._filter.suspects(spots):
                known, waits = self._known(np.array(suspects, np.uint64).T)
                for pair in compress(suspects, known.tolist()):
                    del spots[pair]
            fresh = {first[pair] for pair in spots}
            new = np.array([at in fresh for at in range(hashes.shape[1])], np.bool_)
            if not spots:
                return Admission(new, None, waits)
            pending = Pending(hashes if len(spots) == len(new) else np.compress(new, hashes, axis=1), tuple(spots))
            self._filter.add_few(spots.values())
            self._few.update(dict.fromkeys(spots, pending))
        return Admission(new, pending, waits)

    def commit(self, pending: Pending, first_seq: int) -> None:
        """The batch of ``pending`` is durable from ``first_seq`` on: its ids are duplicates from now on."""
        with self._lock:
            self._forget(pending)
            self._index.add(pending.hashes, first_seq)
            if self._filter.count(len(pending)):
                self._hold_pending()
        pending.settle(first_seq)

    def fail(self, pending: Pending, error: BaseException) -> None:
        """The batch of ``pending`` was not written: its ids are new again, and who waited gets ``error``."""
        with self._lock:
            self._forget(pending)
            self._wasted += len(pending)
            if self._wasted > self._window:  # ids that never came about have filled the filter
                self._refill()
        pending.settle(error)

    def close(self) -> None:
        """Finish the files that are being written."""
        self._index.close()

    # --- pending

    def _forget(self, pending: Pending) -> None:
        for pair in pending.pairs:
            del self._few[pair]
        if not pending.pairs:
            del self._many[id(pending)]

    def _known(self, hashes: Hashes) -> tuple[Mask, list[Pending]]:
        """Which ids are pending or durable, shape ``(n,)``, and the batches that the pending ones wait for.

        A batch counts as pending until it is reported, also when the index has found it in the log.
        """
        order = np.argsort(hashes[0])  # a search in sorted order meets warm memory
        hashes = np.take(hashes, order, axis=1)
        found = np.zeros(hashes.shape[1], np.bool_)
        waits: dict[int, Pending] = {}
        if self._few:
            for at, pair in enumerate(_pairs(hashes)):
                if (pending := self._few.get(pair)) is not None:
                    waits[id(pending)] = pending
                    found[at] = True
        rest = np.flatnonzero(~found)
        for key, pending in self._many.items():
            if not len(rest):
                break
            if pending.run is None:
                pending.run = IdRun.of(pending.hashes)
            held = pending.run.contains(np.take(hashes, rest, axis=1))
            if held.any():
                waits[key] = pending
                found[rest[held]] = True
                rest = rest[~held]
        if len(rest):
            found[rest] = self._index.contains(np.take(hashes, rest, axis=1))
        known = np.empty_like(found)
        known[order] = found
        return known, list(waits.values())

    # --- the filter

    def _hold_pending(self) -> None:
        """Pending ids belong to the newest generation, however long they take.

        They come on top of its window: in the log they may lie before events of the generation that it follows.
        """
        for pending in {id(pending): pending for pending in (*self._few.values(), *self._many.values())}.values():
            self._filter.add(self._filter.spots(pending.hashes))
            self._filter.count(-len(pending))

    def _refill(self) -> None:
        self._wasted = 0
        self._filter = SeenFilter(self._window)
        for run in self._index.runs():
            self._filter.load(np.array([run.high, run.low]))
        self._hold_pending()


def _tell(future: Future[int], outcome: int | BaseException | None) -> None:
    if isinstance(outcome, int):
        future.set_result(outcome)
    elif outcome is not None:
        future.set_exception(outcome)


def _pairs(hashes: Hashes) -> Iterator[Pair]:
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
