"""The log's tail for queries, read once: each question adds only what came since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from threading import Lock
from typing import Final

import numpy as np
import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import TrimmedError
from analytics_core.events import SCHEMA, EventBatch
from analytics_core.log import LogReader

MAX_BYTES: Final = 96 << 20
"""A longer tail is mapped anew for each question and not kept: it means large frames, which are cheap to map, or a
store writer that has stopped. The store writer commits at 64 MB, so in health it stays below."""
MAX_CHUNKS: Final = 64
_SMALL: Final = 4_096
"""Rows per batch below which the tail is copied together: DuckDB and Arrow pay per batch."""


class Tail(Struct, frozen=True):
    """The durable events of one tenant in ``[position, durable)`` of the log, and the log's clock at ``durable``."""

    table: pa.Table
    watermark: datetime | None


def read_tail(log: LogReader, tenant: str, position: int, durable: int) -> Tail:
    """Map the log from ``position`` to ``durable``. :raises TrimmedError: when ``position`` is no longer held."""
    kept: list[pa.RecordBatch] = []
    watermark: datetime | None = None
    at = position if position < durable else max(durable - 1, log.first)
    while at < durable:
        batches, ahead = log.read(at)
        if not batches:
            break
        for batch in batches:
            if len(batch) and batch.column("seq")[0].as_py() >= durable:
                break
            watermark = batch.watermark
            if len(batch) and batch.tenant == tenant and position < durable:
                kept.append(batch.record_batch)
        at = ahead
    return Tail(together(kept), watermark)


def together(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """The batches as one table, copied into one piece when they are small."""
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    if len(batches) > 1 and len(table) < _SMALL * len(batches):
        table = table.unify_dictionaries().combine_chunks()
    return table


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
                fresh, whole = self._read_on(durable, tenant)
            except TrimmedError:
                self._forget(durable)
                raise
            if whole:
                self._keep(fresh)
                held = list(self._chunks.get(tenant, ()))
            else:
                held = [*self._chunks.get(tenant, ()), *fresh[tenant]]
                self._forget(self._end)
            watermark = self._watermark
        kept = [_between(chunk, position, durable) for chunk in held]
        return Tail(pa.Table.from_batches([chunk for chunk in kept if chunk.num_rows], schema=SCHEMA), watermark)

    def forget(self) -> None:
        """Drop all copies; the next question reads the log anew."""
        with self._lock:
            self._forget(0)

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

    def _read_on(self, durable: int, tenant: str) -> tuple[dict[str, list[pa.RecordBatch]], bool]:
        """What came since the last question, by tenant, and whether it may be kept: beyond `MAX_BYTES` it is that of
        ``tenant`` alone. Large batches are mappings still."""
        fresh: dict[str, list[pa.RecordBatch]] = {tenant: []}
        at, watermark, size, whole = self._end, self._watermark, _size(self._chunks), True
        while at < durable:
            batches, ahead = self._log.read(at)
            if not batches:
                break
            watermark = batches[-1].watermark
            for name, pieces in _by_tenant(batches).items():
                if not whole and name != tenant:
                    continue
                some = together(pieces).to_batches()
                fresh.setdefault(name, []).extend(some)
                size += sum(piece.nbytes for piece in some)
            if whole and size > MAX_BYTES:
                whole, fresh = False, {tenant: fresh[tenant]}
            at = ahead
        self._end, self._watermark = at, watermark
        return fresh, whole

    def _keep(self, fresh: dict[str, list[pa.RecordBatch]]) -> None:
        for tenant, pieces in fresh.items():
            if not pieces:
                continue
            chunks = self._chunks.setdefault(tenant, [])
            chunks += _copied(pieces)
            if len(chunks) > MAX_CHUNKS:
                self._chunks[tenant] = _copied(chunks)


def _by_tenant(batches: list[EventBatch]) -> dict[str, list[pa.RecordBatch]]:
    found: dict[str, list[pa.RecordBatch]] = {}
    for batch in batches:
        if len(batch):
            found.setdefault(batch.tenant, []).append(batch.record_batch)
    return found


def _size(chunks: dict[str, list[pa.RecordBatch]]) -> int:
    return sum(chunk.nbytes for held in chunks.values() for chunk in held)


def _copied(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch with memory of its own."""
    if len(batches) == 1:  # combining a single chunk would keep the mapping
        return [batches[0].take(pa.array(np.arange(batches[0].num_rows)))]
    return list(pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches())


def _between(chunk: pa.RecordBatch, position: int, durable: int) -> pa.RecordBatch:
    low, high = np.searchsorted(chunk.column("seq").to_numpy(), [position, durable]).tolist()
    return chunk.slice(low, high - low)
