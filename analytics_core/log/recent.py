"""The newest batches of a log, kept in memory for the readers of the process that writes it.

Several lanes read each batch within a second of its commit. Here they find it as it was written, so its frame is not
opened, checked and decoded again for each of them; whoever is further behind reads the file.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import pyarrow as pa

from analytics_core.events import EventBatch, moment, placed

_BYTES: Final = 16 << 20


class _Entry:
    """One durable batch: its position, its watermark in microseconds, and the bytes of its frame in the file."""

    __slots__ = ("_placed", "batch", "end", "first", "size", "tenant", "watermark")

    def __init__(self, first: int, watermark: int, size: int, batch: pa.RecordBatch) -> None:
        self.first = first
        self.end = first + batch.num_rows
        self.watermark = watermark
        self.size = size
        self.batch = batch
        self.tenant: str = batch.column("tenant")[0].as_py()
        self._placed: pa.RecordBatch | None = None

    def events(self) -> EventBatch:
        """An `EventBatch` of its reader's own; the columns are shared. Two first readers may both make them."""
        if self._placed is None:
            self._placed = placed(self.batch, self.first)
        return EventBatch(self._placed, self.tenant, moment(self.watermark))


class Recent:
    """Batches by their first position, the latest ``limit`` bytes of them.

    One thread adds; any number read at the same time, since each step is one look-up: what is dropped meanwhile ends
    a read early.
    """

    def __init__(self, limit: int = _BYTES) -> None:
        self._limit = limit
        self._held: dict[int, _Entry] = {}
        self._order: deque[_Entry] = deque()
        self._size = 0

    def add(self, first: int, watermark: int, size: int, batch: pa.RecordBatch) -> None:
        """``batch``, of `UNPLACED_SCHEMA` and one tenant, begins at ``first``; its frame takes ``size`` bytes."""
        entry = _Entry(first, watermark, size, batch)
        self._held[first] = entry
        self._order.append(entry)
        self._size += size
        while self._size > self._limit:
            gone = self._order.popleft()
            del self._held[gone.first]
            self._size -= gone.size

    def clear(self) -> None:
        """Forget all: nobody has written for a while, so everybody has read it."""
        self._held.clear()
        self._order.clear()
        self._size = 0

    def read(self, start: int, end: int, max_rows: int, max_bytes: int) -> tuple[list[EventBatch], int]:
        """As `LogReader.read` for what is held from ``start`` on; ``([], start)`` when no batch held starts there."""
        batches: list[EventBatch] = []
        position, rows, size = start, 0, 0
        while position < end and rows < max_rows and size < max_bytes:
            entry = self._held.get(position)
            if entry is None:
                break
            rows, size = rows + entry.end - entry.first, size + entry.size
            if batches and (rows > max_rows or size > max_bytes):
                break
            batches.append(entry.events())
            position = entry.end
        return batches, position
