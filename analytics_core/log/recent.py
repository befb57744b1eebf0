"""The newest batches of a log, kept in memory for the readers of the process that writes it.

Several lanes read each batch within a second of its commit. Here they find the body of its frame as it was written, so
the file is not opened, checked and decoded again for each of them; whoever is further behind reads the file.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import pyarrow as pa

from analytics_core.events import EventBatch, moment, placed
from analytics_core.log import Prepared
from analytics_core.log.frames import frame_size

_BYTES: Final = 16 << 20
_ENTRY_BYTES: Final = 8 << 10
"""What an entry takes besides the bytes of its frame: the objects of its columns, once they are decoded."""


class _Entry:
    """One durable batch: its position, its watermark in microseconds, and the bytes of its frame in the file."""

    __slots__ = ("_body", "_events", "end", "first", "size", "watermark")

    def __init__(self, first: int, watermark: int, body: Prepared) -> None:
        self.first = first
        self.end = first + body.rows
        self.watermark = watermark
        self.size = frame_size(body)
        self._body = body
        self._events: pa.RecordBatch | None = None

    def events(self) -> EventBatch:
        """An `EventBatch` of its reader's own; the columns are shared, and nobody can write into them.

        Two first readers may both decode them.
        """
        if self._events is None:
            fixed = pa.py_buffer(memoryview(self._body.data).toreadonly())
            self._events = placed(pa.ipc.open_stream(fixed).read_next_batch(), self.first)
        tenant = self._events.column("tenant")[0].as_py()
        return EventBatch(self._events, tenant, moment(self.watermark))


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

    def add(self, first: int, watermark: int, body: Prepared) -> None:
        """The batch of ``body``, with one row at least, is durable from ``first`` on."""
        entry = _Entry(first, watermark, body)
        self._held[first] = entry
        self._order.append(entry)
        self._size += entry.size + _ENTRY_BYTES
        while self._size > self._limit:
            gone = self._order.popleft()
            del self._held[gone.first]
            self._size -= gone.size + _ENTRY_BYTES

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
