"""The log's tail for queries, read once: each question adds only what came since the last one."""

from __future__ import annotations

from datetime import datetime
from threading import Lock
from typing import Final

import numpy as np
import pyarrow as pa

from analytics_core.errors import TrimmedError
from analytics_core.events import SCHEMA
from analytics_core.log import LogReader
from analytics_core.queries.reader import Tail, read_tail

MAX_BYTES: Final = 96 << 20
"""A longer tail is read anew for each question: it means large frames, which are cheap to map, or a store writer that
has stopped. The store writer commits at 64 MB, so in health it stays below."""
MAX_CHUNKS: Final = 64


class TailCache:
    """Copies of the events between the lake's position and the log's end, all tenants, at most `MAX_BYTES`.

    Decoding one frame costs the same for one event as for hundreds, so a tail of many small requests is slow to read
    and quick to scan. Copies, not mappings: no segment is held. Safe for use from any thread.
    """

    def __init__(self, log: LogReader) -> None:
        self._log = log
        self._lock = Lock()
        self._start = self._end = 0
        self._watermark: datetime | None = None
        self._chunks: dict[str, list[pa.RecordBatch]] = {}

    def read(self, tenant: str, position: int, durable: int) -> Tail:
        """As `reader.read_tail`. :raises TrimmedError: when ``position`` is no longer held."""
        if position >= durable:
            return read_tail(self._log, tenant, position, durable)
        with self._lock:
            if not self._start <= position <= self._end:
                self._forget(position)
            self._drop_before(position)
            try:
                self._extend(durable)
            except TrimmedError:
                self._forget(durable)
                raise
            kept = [_between(chunk, position, durable) for chunk in self._chunks.get(tenant, ())]
            table = pa.Table.from_batches([chunk for chunk in kept if chunk.num_rows], schema=SCHEMA)
            tail = Tail(table, self._watermark)
            if sum(chunk.nbytes for chunks in self._chunks.values() for chunk in chunks) > MAX_BYTES:
                self._forget(self._end)
        return tail

    def _forget(self, position: int) -> None:
        self._start = self._end = position
        self._chunks = {}

    def _drop_before(self, position: int) -> None:
        """What the lake has by now."""
        self._start = position
        for tenant, chunks in list(self._chunks.items()):
            left = [c for c in chunks if c.column("seq")[-1].as_py() >= position]
            if left:
                self._chunks[tenant] = left
            else:
                del self._chunks[tenant]

    def _extend(self, durable: int) -> None:
        fresh: dict[str, list[pa.RecordBatch]] = {}
        at, watermark = self._end, self._watermark
        while at < durable:
            batches, ahead = self._log.read(at)
            if not batches:
                break
            for batch in batches:
                watermark = batch.watermark
                if len(batch):
                    fresh.setdefault(batch.tenant, []).append(batch.record_batch)
            at = ahead
        self._end, self._watermark = at, watermark
        for tenant, batches_read in fresh.items():
            chunks = self._chunks.setdefault(tenant, [])
            chunks += _copied(batches_read)
            if len(chunks) > MAX_CHUNKS:
                self._chunks[tenant] = _copied(chunks)


def _copied(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch with memory of its own."""
    if len(batches) == 1:  # combining a single chunk would keep the mapping
        return [batches[0].take(pa.array(np.arange(batches[0].num_rows)))]
    return list(pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches())


def _between(chunk: pa.RecordBatch, position: int, durable: int) -> pa.RecordBatch:
    low, high = np.searchsorted(chunk.column("seq").to_numpy(), [position, durable]).tolist()
    return chunk.slice(low, high - low)
