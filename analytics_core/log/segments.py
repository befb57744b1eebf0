"""The embedded log: segment files in one directory, written by one process, read by any.

    <first position>.seg   frames (`log.frames`)
    <first position>.ids   sorted id hashes of a sealed segment, kept by `log.dedup` also when the segment is trimmed
    erased                 whose events are erased (`log.tombstones`)
    durable                one int64, mapped by readers: one past the last durable position
    lock                   held with flock by the owner, whose process id it names

The order of every append: frames, fdatasync, position, wake-up. After anything that fails, the file is cut back to its
durable size before another byte is written; until that has worked, every append is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from itertools import pairwise
from mmap import mmap
from pathlib import Path
from threading import Condition, Lock
from typing import Any, Final

import pyarrow as pa
import structlog

from analytics_core.errors import LogCorruptionError, LogFullError, LogWriteError
from analytics_core.events import EventBatch, micros
from analytics_core.events.owners import Owners
from analytics_core.log import MAX_BYTES, Prepared
from analytics_core.log.frames import EVENTS, WATERMARK, Disk, erasing, frame, frame_size, lost, prepare
from analytics_core.log.reading import DURABLE, IDS_SUFFIX, FrameReader, SegmentReader, segment_path
from analytics_core.log.recent import Recent
from analytics_core.log.recovery import make_directory, own, recover
from analytics_core.log.space import Space
from analytics_core.log.tombstones import Tombstone, Tombstones, spared

__all__ = ["IDS_SUFFIX", "SegmentLog", "SegmentReader", "partition_directory"]

_FEWEST_SEGMENTS: Final = 4
"""A full log of one segment could never be trimmed: the segment that is written stays."""
_MOST_LOST: Final = 2**32 - 1
_log = structlog.get_logger(__name__)


def partition_directory(data_dir: Path) -> Path:
    """Where the embedded log of a data directory lives."""
    return data_dir / "log" / "p0"


class SegmentLog:
    """The `EventLog` over ``directory``. Opening it recovers: a torn end is cut before any reader starts.

    ``append`` belongs to one thread; everything else is safe from any. Limits are bytes; ``log_max_bytes`` None takes
    20 % of the disk. A segment ends at ``segment_bytes``, or earlier at a quarter of the log's limit. A watermark alone
    is written even when the limits are reached: 48 bytes that let lanes go on.

    A tombstone has a segment of its own, so that what is before it can be trimmed at once, and then it itself;
    `tombstones` are those that still hold.

    :raises LogLockedError: when another `SegmentLog` owns the directory.
    :raises LogCorruptionError: for a bad frame that is not a torn end.
    :raises LogWriteError: when recovery cannot write.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = 64 << 20,
        log_max_bytes: int | None = None,
        disk_reserve_bytes: int = 1 << 30,
        disk: Disk | None = None,
    ) -> None:
        self.directory = directory
        self._disk = disk or Disk()
        self._writing = Lock()
        self._trimming = Lock()
        self._grown = Condition()
        self.tombstones = Tombstones(directory, self._disk.sync_directory)
        self._frames = FrameReader(directory, self.tombstones)
        self._recent = Recent()
        self._closed = False
        self._failed = False
        self._poisoned = False
        self._apart = False
        self._firsts: tuple[int, ...]
        self._sealed: dict[int, int]
        self._active: int
        self._descriptor: int
        self._size: int
        self._space: Space
        self._durable: int
        self._watermark: int
        self._mapped: memoryview[int]
        with ExitStack() as stack:
            try:
                make_directory(directory, self._disk)
                stack.callback(os.close, own(directory))
                self._space = Space(directory, self._disk, log_max_bytes, disk_reserve_bytes)
                self._segment_bytes = min(segment_bytes, self._space.limit // _FEWEST_SEGMENTS)
                self._recover(stack)
            except OSError as error:
                raise LogWriteError(directory, error) from error
            self._stack = stack.pop_all()

    # --- reading

    @property
    def first(self) -> int:
        return self._firsts[0]

    @property
    def durable(self) -> int:
        return self._durable

    @property
    def segments(self) -> tuple[int, ...]:
        """The first position of each segment, ascending; the last one is still written."""
        return self._firsts

    def read(
        self, start: int, max_rows: int = 65_536, max_bytes: int = MAX_BYTES, *, whole: bool = False
    ) -> tuple[list[EventBatch], int]:
        """See `LogReader.read`. A watermark counts as one row, and bytes are those of the frames.

        The newest batches come from memory, as they were written; all others from their checked frames. ``whole``: with
        what was erased, for who counts ids.
        """
        if start >= self.first:
            batches, position = self._recent.read(start, self._durable, max_rows, max_bytes)
            if batches:
                return batches if whole else spared(batches, self.tombstones.current()), position
        return self._frames.read(start, self._durable, max_rows, max_bytes, whole=whole)

    def batches(self, start: int, end: int) -> Iterator[int]:
        """The first position of each durable batch from ``start``, where one starts, up to ``end``.

        :raises TrimmedError: when ``start`` is below ``first``.
        """
        return self._frames.batches(start, min(end, self._durable))

    def wait(self, position: int, timeout: float) -> int:
        with self._grown:
            self._grown.wait_for(lambda: self._durable > position or self._closed, timeout)
            return self._durable

    # --- writing

    def prepare(self, batch: pa.RecordBatch) -> Prepared:
        """See `EventLog.prepare`."""
        return prepare(batch)

    def append(self, batches: Sequence[pa.RecordBatch | Prepared], watermark: datetime) -> list[int]:
        """See `EventLog.append`. Each batch holds one tenant; one without rows takes no position.

        :raises ValueError: for a batch of several tenants; nothing is written.
        """
        bodies = [batch if isinstance(batch, Prepared) else self.prepare(batch) for batch in batches]
        with self._writing:
            self._mend()
            group = position = self._durable
            at = max(self._watermark, micros(watermark))
            parts: list[Any] = []
            firsts: list[int] = []
            for body in bodies:
                firsts.append(position)
                if body.rows:
                    parts += frame(EVENTS, position, at, group, body)
                    position += body.rows
            if position == group:
                parts = frame(WATERMARK, position, at, group)
                position += 1
                data = b"".join(parts)
            else:
                data = b"".join(parts)
                self._space.check(len(data))
            self._write(data)
            self._keep(bodies, firsts, at)
            self._publish(position, at, len(data))
            return firsts

    def erase(self, tenant: str, owners: Owners, key: str) -> int:
        """See `EventLog.erase`. Written also when the limits are reached."""
        with self._writing:
            self._mend()
            position, at = self._durable, self._watermark
            data = b"".join(erasing(position, at, tenant, owners, key))
            self._apart = True
            self._write(data)
            self._apart = True  # what follows has another segment
            try:
                self.tombstones.add(Tombstone(position, tenant, owners, key, at))
            except OSError as error:
                self._failed = True
                with suppress(OSError):
                    self.tombstones.forget(position)
                raise self._refusal(error) from error
            self._publish(position + 1, at, len(data))
            return position

    def trim(self, below: int) -> int:
        """See `EventLog.trim`. The segment that is written is never deleted."""
        with self._trimming:
            gone = [segment for segment, following in pairwise(self._firsts) if following <= below]
            for segment in gone:
                segment_path(self.directory, segment).unlink()
                with self._writing:
                    self._firsts = self._firsts[1:]
                    self._space.freed(self._sealed.pop(segment))
            if gone:
                self._disk.sync_directory(self.directory)
            return self._firsts[0]

    def close(self) -> None:
        """Give the directory back; waiting readers return. A second call does nothing.

        :raises LogWriteError: when what a failed append has left could still not be cut.
        """
        with self._writing, self._stack:
            try:
                if not self._closed:
                    self._mend()
            finally:
                with self._grown:
                    self._closed = True
                    self._grown.notify_all()

    def _write(self, data: bytes) -> None:
        try:
            if self._poisoned or self._size >= self._segment_bytes or (self._apart and self._size):
                self._roll()
            self._failed = True
            view, done = memoryview(data), 0
            while done < len(data):
                taken = self._disk.write(self._descriptor, view[done:], self._size + done)
                if taken <= 0:
                    raise OSError(errno.EIO, "the disk took no bytes")
                done += taken
            self._poisoned = True
            self._disk.sync(self._descriptor)
            self._poisoned = self._failed = False
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> LogFullError | LogWriteError:
        path = segment_path(self.directory, self._active)
        _log.error("log write failed", path=str(path), error=str(error), next_append_in_new_segment=self._poisoned)
        try:
            self._mend()
        except LogWriteError as later:
            _log.error("log not cut back yet; appends are refused until it is", path=str(path), error=str(later))
        self._space.look_again()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return LogFullError(f"the disk of {self.directory} is full")
        return LogWriteError(path, error)

    def _mend(self) -> None:
        """Cut what a failed append may have left."""
        if self._closed:
            raise LogWriteError(self.directory, ValueError("the log is closed"))
        if self._failed:
            try:
                self._disk.cut(self._descriptor, self._size)
            except OSError as error:
                raise LogWriteError(segment_path(self.directory, self._active), error) from error
            self._failed = False

    def _roll(self) -> None:
        """Begin the segment that starts at the durable position."""
        path = segment_path(self.directory, self._durable)
        if self._active == self._durable:  # nothing in it is durable, and a failed fdatasync forbids to write it again
            path.unlink(missing_ok=True)
        descriptor = self._disk.create(path)
        os.close(self._descriptor)
        if self._active != self._durable:
            self._sealed[self._active] = self._size
            self._firsts = (*self._firsts, self._durable)
        self._descriptor, self._active, self._size, self._poisoned = descriptor, self._durable, 0, False
        self._apart = False

    def _keep(self, bodies: Sequence[Prepared], firsts: Sequence[int], watermark: int) -> None:
        """Note where the frames lie that were just written, and hold their bodies for the readers of this process."""
        offset = self._size
        for body, first in zip(bodies, firsts, strict=True):
            if body.rows:
                self._frames.mark(self._active, first, offset)
                self._recent.add(first, watermark, body)
                offset += frame_size(body)
        if offset == self._size:
            self._recent.clear()

    def _publish(self, position: int, watermark: int, size: int) -> None:
        self._size += size
        self._space.written(size)
        self._watermark = watermark
        self._mapped[0] = position
        with self._grown:
            self._durable = position
            self._grown.notify_all()

    # --- recovery

    def _recover(self, stack: ExitStack) -> None:
        recorded = self._map_durable(stack)
        found = recover(self.directory, recorded, self._disk)
        self._firsts, self._active = found.firsts, found.firsts[-1]
        self._sealed = found.sealed
        self._space.written(sum(found.sealed.values()) + found.size)
        self._durable, self._size, self._watermark = found.end, found.size, found.watermark
        self._descriptor = os.open(segment_path(self.directory, self._active), os.O_RDWR | os.O_CLOEXEC)
        stack.callback(lambda: os.close(self._descriptor))
        self._disk.sync(self._descriptor)
        if found.end < recorded:
            self._give_up(found.end, recorded)
        self._mapped[0] = self._durable
        self._find_tombstone()

    def _find_tombstone(self) -> None:
        """One whose writer ended before it was in the file is the first of the last segment."""
        known = self.tombstones.current()
        found = self._frames.tombstone(self._active) if self._active != self._durable else None
        self._apart = found is not None
        if found is not None and all(tombstone.position != found.position for tombstone in known):
            self.tombstones.add(found)

    def _map_durable(self, stack: ExitStack) -> int:
        """Map the position file; what it records, 0 when it is new or unusable."""
        descriptor = os.open(self.directory / DURABLE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.fstat(descriptor).st_size < 8:
                os.ftruncate(descriptor, 8)
            mapped = stack.enter_context(mmap(descriptor, 8))
        finally:
            os.close(descriptor)
        self._mapped = stack.enter_context(memoryview(mapped).cast("q"))
        return max(self._mapped[0], 0)

    def _give_up(self, position: int, recorded: int) -> None:
        """Mark acknowledged positions that are gone: a reader must never meet one of them with another event."""
        path = segment_path(self.directory, self._active)
        gone = recorded - position
        if gone > _MOST_LOST:
            raise LogCorruptionError(self.directory / DURABLE, 0, f"it records {recorded}, {path} ends at {position}")
        _log.error("acknowledged events are lost", path=str(path), first=position, positions=gone)
        data = b"".join(lost(position, self._watermark, gone))
        self._write(data)
        self._size += len(data)
        self._space.written(len(data))
        self._durable = recorded
