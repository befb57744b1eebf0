"""Reading a log directory: the part that its owner and every other process share.

Nothing stays open between two reads. What a read gives holds its own memory (small reads) or a mapping of its segment
(large ones), so a deleted segment lives only as long as the batches that were read from it.
"""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final

import pyarrow as pa

from analytics_core.errors import LogCorruptionError, StorageError, TrimmedError
from analytics_core.events import EventBatch, moment
from analytics_core.log import MAX_BYTES
from analytics_core.log.frames import ERASED, EVENTS, Header, Window
from analytics_core.log.tombstones import Tombstone, Tombstones, mark, spared

SUFFIX: Final = ".seg"
IDS_SUFFIX: Final = ".ids"
DURABLE: Final = "durable"
_COPY_BYTES: Final = 1 << 18
_MARK_BYTES: Final = 1 << 16
_CURSORS: Final = 256
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.02


def segment_path(directory: Path, first: int) -> Path:
    return directory / f"{first:020d}{SUFFIX}"


def segment_firsts(directory: Path) -> list[int]:
    """The first position of each segment in the directory, ascending."""
    return sorted(int(path.stem) for path in directory.glob(f"*{SUFFIX}"))


class _Marks:
    """A sparse index of one segment: every so many bytes, which position starts at which offset."""

    __slots__ = ("offsets", "positions")

    def __init__(self) -> None:
        self.positions = array("q")
        self.offsets = array("q")

    def add(self, position: int, offset: int) -> None:
        if offset >= (self.offsets[-1] if self.offsets else 0) + _MARK_BYTES:
            self.positions.append(position)
            self.offsets.append(offset)

    def before(self, position: int) -> tuple[int, int] | None:
        at = bisect_right(self.positions, position) - 1
        return (self.positions[at], self.offsets[at]) if at >= 0 else None


class FrameReader:
    """Finds, checks and decodes frames. Safe for use from any thread; only the index is shared between reads."""

    def __init__(self, directory: Path, tombstones: Tombstones | None = None) -> None:
        self._directory = directory
        self._tombstones = tombstones or Tombstones(directory)
        self._lock = Lock()
        self._marks: dict[int, _Marks] = {}
        self._cursors: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def read(
        self, start: int, end: int, max_rows: int, max_bytes: int, *, whole: bool = False
    ) -> tuple[list[EventBatch], int]:
        """`LogReader.read` for a log that is durable below ``end``; ``whole``: with what was erased."""
        batches: list[EventBatch] = []
        position, rows, size, cursor = start, 0, 0, None
        for window, segment, offset, header in self._frames(start, end):
            if header.end <= start:
                continue
            taken = header.end - max(header.first, start) if header.kind == EVENTS else 1
            if batches and (rows + taken > max_rows or size + header.size > max_bytes):
                break
            if problem := window.problem(offset, header):
                raise LogCorruptionError(segment_path(self._directory, segment), offset, problem)
            batches.append(_batch(window, offset, header, start))
            position, rows, size = header.end, rows + taken, size + header.size
            cursor = (segment, offset + header.size)
            if rows >= max_rows or size >= max_bytes:
                break
        if cursor is not None:
            self._remember(position, cursor)
        return batches if whole else spared(batches, self._tombstones.current()), position

    def batches(self, start: int, end: int) -> Iterator[int]:
        """The first position of each batch of events in ``[start, end)``, from the headers alone."""
        return (header.first for *_, header in self._frames(start, end) if header.kind == EVENTS)

    def tombstone(self, segment: int) -> Tombstone | None:
        """The one that a segment begins with, if it does."""
        window = self._open(segment, 0, segment)
        header = window.header(0)
        return None if isinstance(header, str) or header.kind != ERASED else window.tombstone(0, header)

    def firsts(self) -> list[int]:
        """The first position of each segment that exists now, ascending."""
        found = segment_firsts(self._directory)
        with self._lock:
            for gone in self._marks.keys() - set(found):
                del self._marks[gone]
        return found

    def mark(self, segment: int, position: int, offset: int) -> None:
        """The frame at ``offset`` of a segment starts with ``position``; keeps one in so many bytes."""
        with self._lock:
            self._marks.setdefault(segment, _Marks()).add(position, offset)

    def _frames(self, start: int, end: int) -> Iterator[tuple[Window, int, int, Header]]:
        """Windows and headers of the frames from the nearest known one at or before ``start`` up to ``end``."""
        if start >= end:
            return
        segment, offset, position = self._locate(start)
        while position < end:
            window = self._open(segment, offset, start)
            while position < end and offset < window.end:
                header = window.header(offset)
                if isinstance(header, str):
                    raise LogCorruptionError(segment_path(self._directory, segment), offset, header)
                if header.first != position:
                    problem = f"it holds position {header.first}, not {position}"
                    raise LogCorruptionError(segment_path(self._directory, segment), offset, problem)
                self.mark(segment, position, offset)
                yield window, segment, offset, header
                offset, position = offset + header.size, header.end
            if position < end:
                segment, offset = self._following(segment, offset, position), 0

    def _locate(self, start: int) -> tuple[int, int, int]:
        """Segment, offset and position of the nearest known frame at or before ``start``."""
        with self._lock:
            cursor = self._cursors.get(start)
        if cursor is not None and segment_path(self._directory, cursor[0]).exists():
            return *cursor, start  # a segment that is read to its end may be trimmed before the next read
        firsts = self.firsts()
        at = bisect_right(firsts, start) - 1
        if at < 0:
            raise TrimmedError(start, firsts[0] if firsts else start + 1)
        segment = firsts[at]
        with self._lock:
            known = self._marks[segment].before(start) if segment in self._marks else None
        return (segment, known[1], known[0]) if known else (segment, 0, segment)

    def _open(self, segment: int, offset: int, start: int) -> Window:
        """The rest of a segment from ``offset`` on."""
        path = segment_path(self._directory, segment)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._gone(path, start) from None
        try:
            left = os.fstat(descriptor).st_size - offset
            if left <= _COPY_BYTES:
                return Window(pa.py_buffer(os.pread(descriptor, max(left, 0), offset)), offset)
        finally:
            os.close(descriptor)
        try:
            with pa.memory_map(str(path)) as mapped:  # its buffers outlive it, its file descriptor does not
                mapped.seek(offset)
                return Window(mapped.read_buffer(), offset)
        except FileNotFoundError:
            raise self._gone(path, start) from None

    def _following(self, segment: int, offset: int, position: int) -> int:
        """The segment that starts at ``position``, where ``segment`` ends."""
        if segment_path(self._directory, position).exists():
            return position
        path = segment_path(self._directory, segment)
        if path.exists():
            raise LogCorruptionError(path, offset, f"it ends at position {position}, where no other segment starts")
        raise self._gone(path, position)

    def _gone(self, path: Path, position: int) -> StorageError:
        firsts = self.firsts()
        if firsts and position < firsts[0]:
            return TrimmedError(position, firsts[0])
        return StorageError(f"{path} is missing: it holds position {position}; restore it from a backup")

    def _remember(self, position: int, cursor: tuple[int, int]) -> None:
        """Where the next read of a sequential reader goes on."""
        with self._lock:
            self._cursors[position] = cursor
            self._cursors.move_to_end(position)
            if len(self._cursors) > _CURSORS:
                self._cursors.popitem(last=False)


def _batch(window: Window, offset: int, header: Header, start: int) -> EventBatch:
    at = moment(header.watermark)
    if header.kind == ERASED:
        return mark(window.tombstone(offset, header))
    if header.kind != EVENTS:
        return EventBatch.empty("", at)
    events = window.events(offset, header)
    if start > header.first:
        events = events.slice(start - header.first)
    return EventBatch(events, events.column("tenant")[0].as_py(), at)


class SegmentReader:
    """A `LogReader` on a log directory that another process owns; opens it for reading only.

    There is no signal across processes: `wait` polls the mapped position, after 1 ms at first and 20 ms at most.
    """

    def __init__(self, directory: Path) -> None:
        """:raises StorageError: when no log was ever opened there."""
        self._frames = FrameReader(directory)
        try:
            with (directory / DURABLE).open("rb") as file:
                self._map = mmap(file.fileno(), 8, MAP_SHARED, PROT_READ)
        except (FileNotFoundError, ValueError):
            raise StorageError(f"{directory} holds no log; start the host that owns it first") from None
        self._position = memoryview(self._map).cast("q")

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def first(self) -> int:
        firsts = self._frames.firsts()
        return firsts[0] if firsts else self.durable

    @property
    def durable(self) -> int:
        return self._position[0]

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = MAX_BYTES) -> tuple[list[EventBatch], int]:
        """See `LogReader.read`. A watermark counts as one row, and bytes are those of the frames."""
        return self._frames.read(start, self.durable, max_rows, max_bytes)

    def wait(self, position: int, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while (durable := self.durable) <= position and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return durable

    def close(self) -> None:
        self._position.release()
        self._map.close()
