"""Which event ids of the window are durable: sorted runs of their hashes, segment by segment.

The ids of the segment being written are in memory: a short unsorted tail and runs that a background thread merges. A
sealed segment's run is in its ``.ids`` file, written by that thread, and mapped. Once that file is on disk the segment
itself may be trimmed; the file stays until the window has passed it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import structlog

from analytics_core.events import EventBatch
from analytics_core.log.ids import Hashes, IdHasher, IdRun, Mask, read_run, write_run
from analytics_core.log.reading import IDS_SUFFIX, segment_path

_TAIL: Final = 8192
_READ_ROWS: Final = 1 << 16
_MERGED_RUNS: Final = 8
_RETRY_SECONDS: Final = 5.0
_log = structlog.get_logger(__name__)


class SegmentedLog(Protocol):
    """What deduplication needs of a log: `log.segments.SegmentLog`."""

    directory: Path

    @property
    def segments(self) -> tuple[int, ...]: ...

    @property
    def durable(self) -> int: ...

    def read(self, start: int, max_rows: int = ..., *, whole: bool = ...) -> tuple[list[EventBatch], int]: ...

    def batches(self, start: int, end: int) -> Iterator[int]: ...


class _SegmentIds:
    """The ids of one log segment as sorted runs, without those still in the tail, while it is written.

    ``batches`` are the first positions of those that were reported and ``count`` is their events, until it is
    ``whole``: the log has left it, and the runs hold all its events, reported or not. ``end`` is the position after it,
    ``saved`` whether its file is on disk, ``retry_at`` when a file that failed is written again.
    """

    __slots__ = ("batches", "count", "end", "first", "merging", "retry_at", "runs", "saved", "whole")

    def __init__(self, first: int, end: int = 0) -> None:
        self.first = first
        self.end = end
        self.whole = False
        self.saved = False
        self.retry_at = inf
        self.runs: list[IdRun] = []
        self.count = 0
        self.merging = False
        self.batches: set[int] = set()


class IdIndex:
    """Every method wants ``lock`` held by the caller, but for `close`; ``load`` gets the hashes found at the start.

    ``reached`` is how many of the latest events are here for certain, at least ``window`` once so many were reported.
    """

    def __init__(
        self,
        log: SegmentedLog,
        window: int,
        hasher: IdHasher,
        lock: threading.Lock,
        load: Callable[[Hashes], None],
    ) -> None:
        self._log = log
        self._window = window
        self._hasher = hasher
        self._lock = lock
        self._tail: Hashes = np.empty((2, _TAIL), np.uint64)
        self._tail_size = 0
        self._tail_run: IdRun | None = None
        self._segments: deque[_SegmentIds] = deque()
        self.reached = 0
        self._load(load)
        self._background = ThreadPoolExecutor(1, "dedup")

    @property
    def floor(self) -> int:
        """The first log position of the oldest segment whose ids are in no file: from there on the log is needed.

        A file that could not be written is tried again when this is asked for, after some seconds. The log is followed
        also when no event has come since it went on to another segment.
        """
        self._roll(self._log.segments[-1])
        unsaved = next(segment for segment in self._segments if not segment.saved)  # the newest always is
        if time.monotonic() >= unsaved.retry_at:
            unsaved.retry_at = inf
            self._later(self._save, unsaved)
        return unsaved.first

    def close(self) -> None:
        """Finish the files that are being written."""
        self._background.shutdown()

    def runs(self) -> Iterator[IdRun]:
        """All ids, newest first."""
        if self._tail_size:
            if self._tail_run is None:
                self._tail_run = IdRun.of(self._tail[:, : self._tail_size])
            yield self._tail_run
        for segment in reversed(self._segments):
            yield from reversed(segment.runs)

    def contains(self, hashes: Hashes) -> Mask:
        """Which of ``(2, n)`` hashes are here, shape ``(n,)``; quickest when they are sorted."""
        rest = np.arange(hashes.shape[1])
        for run in self.runs():
            rest = rest[~run.contains(np.take(hashes, rest, axis=1))]
            if not len(rest):
                break
        known = np.ones(hashes.shape[1], np.bool_)
        known[rest] = False
        return known

    def add(self, hashes: Hashes, first_seq: int) -> None:
        """Take the ids of the batch at ``first_seq``, and let go of segments beyond the window.

        Batches may be reported in any order. One whose segment is whole is here already, and one whose segment is gone
        is beyond the window.
        """
        self._roll(first_seq)
        newest = self._segments[-1]
        if first_seq >= newest.first:
            segment = newest
            self._keep(hashes)
        else:
            held = next((held for held in reversed(self._segments) if held.first <= first_seq), None)
            if held is None or held.whole:
                return
            segment = held
            segment.runs.append(IdRun.of(hashes))
        segment.batches.add(first_seq)
        self._count(segment, hashes.shape[1])
        while len(self._segments) > 1 and self.reached - self._segments[0].count >= self._window:
            gone = self._segments.popleft()
            self.reached -= gone.count
            self._later(self._path(gone).unlink, True)

    def _count(self, segment: _SegmentIds, events: int) -> None:
        segment.count += events
        self.reached += events

    def _keep(self, hashes: Hashes) -> None:
        """Hold ids of the segment that is written."""
        segment, size = self._segments[-1], hashes.shape[1]
        end = self._tail_size + size
        if end > _TAIL:
            self._flush()
            end = size
        if size > _TAIL // 2:
            segment.runs.append(IdRun.of(hashes))
        else:
            self._tail[:, self._tail_size : end] = hashes
            self._tail_size, self._tail_run = end, None
        if len(segment.runs) >= _MERGED_RUNS and not segment.merging:
            segment.merging = True
            self._later(self._merge, segment)

    def _flush(self) -> None:
        if self._tail_size:
            self._segments[-1].runs.append(self._tail_run or IdRun.of(self._tail[:, : self._tail_size]))
        self._tail_size, self._tail_run = 0, None

    def _roll(self, first_seq: int) -> None:
        """Follow the log into the segment that holds ``first_seq``."""
        last = self._segments[-1].first
        if self._log.segments[-1] <= last:
            return
        for first in [first for first in self._log.segments if last < first <= first_seq]:
            self._flush()
            self._segments[-1].end = first
            self._later(self._seal, self._segments[-1])
            self._segments.append(_SegmentIds(first))

    def _later(self, job: Callable[..., None], *arguments: Any) -> None:
        self._background.submit(job, *arguments).add_done_callback(_report)

    def _merge(self, segment: _SegmentIds) -> None:
        runs = list(segment.runs)
        merged = IdRun.merged(runs)
        with self._lock:
            segment.runs[: len(runs)] = [merged]
            segment.merging = False

    def _seal(self, segment: _SegmentIds) -> None:
        """Sort the ids of a segment that the log has left, with those that nobody has reported yet, and save them."""
        with self._lock:  # what is reported from now on is read from the frames, and adds its ids until they are here
            runs, reported = list(segment.runs), frozenset(segment.batches)
        missing = [first for first in self._log.batches(segment.first, segment.end) if first not in reported]
        late = [self._read_hashes(first, first + 1) for first in missing]
        run = IdRun.merged([*runs, *map(IdRun.of, late)])
        with self._lock:
            segment.runs, segment.whole = [run], True
            segment.batches.clear()
            if segment in self._segments:
                self._count(segment, len(run) - segment.count)
        self._save(segment)

    def _save(self, segment: _SegmentIds) -> None:
        """Put the run of a sealed segment into its file; until that works it stays in memory and pins the log."""
        path = self._path(segment)
        try:
            run = write_run(path, segment.runs[0], segment.first, segment.end, self._hasher.fingerprint)
        except OSError as error:
            _log.warning("event ids stay in memory", file=str(path), ids=len(segment.runs[0]), error=str(error))
            segment.retry_at = time.monotonic() + _RETRY_SECONDS
            return
        with self._lock:
            segment.runs = [run]
            segment.saved = True

    def _path(self, segment: _SegmentIds) -> Path:
        return segment_path(self._log.directory, segment.first).with_suffix(IDS_SUFFIX)

    # --- opening

    def _load(self, load: Callable[[Hashes], None]) -> None:
        held, files = self._log.segments, _ids_files(self._log.directory)
        trimmed = sorted(first for first in files if first < held[0])
        for first, end in reversed(list(pairwise((*trimmed, *held, self._log.durable)))):
            if self.reached >= self._window:
                break
            segment = _SegmentIds(first, end)
            hashes = self._stored(segment) if self._segments else None
            if hashes is None and first < held[0]:
                _log.error("event ids lost: duplicates from before are taken as new", below=end, file=str(files[first]))
                break
            if hashes is None:
                hashes = self._read_hashes(first, end)
                segment.runs.append(IdRun.of(hashes))
                if self._segments:
                    self._save(segment)
                else:  # it goes on being written
                    segment.batches.update(self._log.batches(first, end))
            load(hashes)
            segment.whole = bool(self._segments)
            self._count(segment, hashes.shape[1])
            self._segments.appendleft(segment)
        for first in files.keys() - {segment.first for segment in self._segments if segment.saved}:
            files[first].unlink(missing_ok=True)

    def _stored(self, segment: _SegmentIds) -> Hashes | None:
        """The hashes in the file of a sealed segment, whose run then is that file; None unless it is whole."""
        stored = read_run(self._path(segment), segment.first, segment.end, self._hasher.fingerprint)
        if stored is None:
            return None
        run, hashes = stored
        segment.runs.append(run)
        segment.saved = True
        return hashes

    def _read_hashes(self, first: int, end: int) -> Hashes:
        """The hashes of all events whose batch starts in ``[first, end)``, shape ``(2, n)``."""
        found: list[Hashes] = [np.empty((2, 0), np.uint64)]
        position = first
        while position < end:
            batches, position = self._log.read(position, max(min(_READ_ROWS, end - position), 1), whole=True)
            ids: dict[str, list[pa.Array]] = {}
            for batch in batches:
                if len(batch) and batch.column("seq")[0].as_py() < end:
                    ids.setdefault(batch.tenant, []).append(batch.column("event_id"))
            found += [self._hasher(tenant, pa.concat_arrays(columns)) for tenant, columns in ids.items()]
        return np.hstack(found)


def _ids_files(directory: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in directory.glob(f"*{IDS_SUFFIX}")}


def _report(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        _log.error("keeping event ids failed", error=repr(error))
