"""Which event ids of the window are durable: sorted runs of their hashes, segment by segment.

The ids of the segment being written are in memory: a short unsorted tail and runs that a background thread merges. A
sealed segment's run is in its ``.ids`` file, written by that thread, and mapped.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import structlog

from analytics_core.errors import TrimmedError
from analytics_core.events import EventBatch
from analytics_core.log.ids import Hashes, IdHasher, IdRun, Mask, read_run, write_run
from analytics_core.log.reading import IDS_SUFFIX, segment_path

_TAIL: Final = 8192
_READ_ROWS: Final = 1 << 16
_MERGED_RUNS: Final = 8
_log = structlog.get_logger(__name__)


class SegmentedLog(Protocol):
    """What deduplication needs of a log: `log.segments.SegmentLog`."""

    directory: Path

    @property
    def segments(self) -> tuple[int, ...]: ...

    @property
    def durable(self) -> int: ...

    def read(self, start: int, max_rows: int = ...) -> tuple[list[EventBatch], int]: ...

    def batches(self, start: int, end: int) -> Iterator[int]: ...


class _SegmentIds:
    """The ids of one log segment as sorted runs, without those still in the tail, while it is written.

    ``batches`` are the first positions of those that the runs hold, until it is sealed.
    """

    __slots__ = ("batches", "count", "first", "merging", "runs")

    def __init__(self, first: int) -> None:
        self.first = first
        self.runs: list[IdRun] = []
        self.count = 0
        self.merging = False
        self.batches: set[int] = set()


class IdIndex:
    """Every method wants ``lock`` held by the caller, but for `close`; ``load`` gets the hashes found at the start.

    ``reached`` is how many events are covered, at least ``window`` once the log has as many.
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
        """The first log position of the oldest segment that is covered."""
        return self._segments[0].first

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
        """Take the ids of the batch at ``first_seq``, and let go of segments beyond the window."""
        self._roll(first_seq)
        size = hashes.shape[1]
        if self._tail_size + size > _TAIL:
            self._flush()
        segment = self._segments[-1]
        if size > _TAIL // 2:
            segment.runs.append(IdRun.of(hashes))
        else:
            self._tail[:, self._tail_size : self._tail_size + size] = hashes
            self._tail_size += size
            self._tail_run = None
        if len(segment.runs) >= _MERGED_RUNS and not segment.merging:
            segment.merging = True
            self._later(self._merge, segment)
        if first_seq >= segment.first:  # a late one was in a segment whose frames have told or will tell
            segment.batches.add(first_seq)
            segment.count += size
            self.reached += size
        while len(self._segments) > 1 and self.reached - self._segments[0].count >= self._window:
            self.reached -= self._segments.popleft().count

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
            self._later(self._seal, self._segments[-1], first)
            self._segments.append(_SegmentIds(first))

    def _later(self, job: Callable[..., None], *arguments: Any) -> None:
        self._background.submit(job, *arguments).add_done_callback(_report)

    def _merge(self, segment: _SegmentIds) -> None:
        runs = list(segment.runs)
        merged = IdRun.merged(runs)
        with self._lock:
            segment.runs[: len(runs)] = [merged]
            segment.merging = False

    def _seal(self, segment: _SegmentIds, end: int) -> None:
        """Write the ids of a segment that the log has left, with those that nobody has reported yet."""
        try:
            missing = [first for first in self._log.batches(segment.first, end) if first not in segment.batches]
            late = [self._read_hashes(first, first + 1) for first in missing]
        except TrimmedError:
            return
        run = IdRun.merged([*segment.runs, *map(IdRun.of, late)])
        run = self._written(run, segment.first, end)
        with self._lock:
            segment.runs = [run]
            segment.batches.clear()

    def _written(self, run: IdRun, first: int, end: int) -> IdRun:
        """The run as a mapped file; as it is when that cannot be: the next start makes the file from the segment."""
        path = segment_path(self._log.directory, first)
        try:
            if path.exists():
                return write_run(path.with_suffix(IDS_SUFFIX), run, first, end, self._hasher.fingerprint)
        except OSError as error:
            _log.warning("event ids stay in memory", segment=str(path), ids=len(run), error=str(error))
        return run

    def _load(self, load: Callable[[Hashes], None]) -> None:
        bounds = list(pairwise((*self._log.segments, self._log.durable)))
        for first, end in reversed(bounds):
            if self.reached >= self._window:
                break
            segment = _SegmentIds(first)
            path = segment_path(self._log.directory, first).with_suffix(IDS_SUFFIX)
            stored = read_run(path, first, end, self._hasher.fingerprint) if self._segments else None
            if stored is not None:
                run, hashes = stored
            else:
                hashes = self._read_hashes(first, end)
                run = self._written(IdRun.of(hashes), first, end) if self._segments else IdRun.of(hashes)
            load(hashes)
            segment.runs.append(run)
            segment.count = len(run)
            if not self._segments:  # it goes on being written
                segment.batches.update(self._log.batches(first, end))
            self._segments.appendleft(segment)
            self.reached += segment.count

    def _read_hashes(self, first: int, end: int) -> Hashes:
        """The hashes of all events whose batch starts in ``[first, end)``, shape ``(2, n)``."""
        found: list[Hashes] = [np.empty((2, 0), np.uint64)]
        position = first
        while position < end:
            batches, position = self._log.read(position, max(min(_READ_ROWS, end - position), 1))
            ids: dict[str, list[pa.Array]] = {}
            for batch in batches:
                if len(batch) and batch.column("seq")[0].as_py() < end:
                    ids.setdefault(batch.tenant, []).append(batch.column("event_id"))
            found += [self._hasher(tenant, pa.concat_arrays(columns)) for tenant, columns in ids.items()]
        return np.hstack(found)


def _report(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        _log.error("merging event ids failed", error=repr(error))
