"""What is on disk, and the way out of it: log, deduplication, lake, state, bus and outbox."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple

from analytics_core.bus.memory import MemoryBus
from analytics_core.config import Settings
from analytics_core.lake.delta import DeltaStore
from analytics_core.lanes.fold import Backlog
from analytics_core.lanes.outbox import OutboxReader
from analytics_core.log.dedup import Deduplicator
from analytics_core.log.segments import SegmentLog, partition_directory
from analytics_core.log.tombstones import woven
from analytics_core.state.sqlite import SqliteState


class Storage(NamedTuple):
    """What is on disk, and the way out of it."""

    log: SegmentLog
    dedup: Deduplicator
    lake: DeltaStore
    state: SqliteState
    bus: MemoryBus
    outbox: OutboxReader

    def backlog(self) -> Backlog:
        """What the log has trimmed."""
        return woven(self.lake.read, self.log.tombstones.current)


async def open_storage(settings: Settings, stack: AsyncExitStack) -> Storage:
    storage = settings.storage
    data = storage.data_dir
    data.mkdir(parents=True, exist_ok=True)
    log = SegmentLog(
        partition_directory(data),
        segment_bytes=storage.segment_bytes,
        log_max_bytes=storage.log_max_bytes,
        disk_reserve_bytes=storage.disk_reserve_bytes,
    )
    stack.callback(log.close)
    dedup = Deduplicator(log, window=storage.dedup_window)
    stack.callback(dedup.close)
    lake = DeltaStore(data / "lake" / "events")
    stack.push_async_callback(asyncio.to_thread, lake.close)
    state = SqliteState(data / "state.db")
    stack.callback(state.close)
    bus = MemoryBus(asyncio.get_running_loop())
    stack.push_async_callback(bus.close)
    outbox = OutboxReader(state, bus)
    stack.push_async_callback(asyncio.to_thread, outbox.stop)
    return Storage(log, dedup, lake, state, bus, outbox)
