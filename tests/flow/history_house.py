"""A real log and lake for questions about history, and what the store writer does, step by step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from analytics_core.events import SCHEMA, UNPLACED_SCHEMA
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.segments import SegmentLog
from analytics_core.queries.history import History
from analytics_core.testing import batch

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


class House:
    """The events that are posted go to the log; `store_all` takes them into the lake."""

    def __init__(self, directory: Path) -> None:
        self.log = SegmentLog(directory / "log" / "p0", segment_bytes=4096, disk_reserve_bytes=0)
        self.store = DeltaStore(directory / "lake")
        self.history = History(self.log, self.store)
        self._numbered = 0

    def post(self, *rows: dict[str, Any], tenant: str = "default") -> None:
        named = []
        for row in rows:
            named.append(
                {"event_id": f"e{self._numbered}", "timestamp": NOW + timedelta(seconds=self._numbered), **row}
            )
            self._numbered += 1
        made = batch(named, tenant).record_batch
        self.log.append([pa.RecordBatch.from_arrays(made.columns[2:], schema=UNPLACED_SCHEMA)], NOW)

    def store_all(self, upto: int | None = None) -> None:
        upto = self.log.durable if upto is None else upto
        batches, at = [], self.store.position
        while at < upto:
            read, at = self.log.read(at)
            batches += [b.record_batch for b in read if len(b)]
        table = pa.Table.from_batches(batches, schema=SCHEMA)
        self.store.append(table.filter(pa.compute.less(table["seq"], upto)), upto)

    def ids(self, tenant: str = "default", **asked: Any) -> list[str]:
        with self.history.reader(tenant, **asked) as reader:
            return reader.sql("SELECT event_id FROM events ORDER BY seq")["event_id"].to_pylist()

    def close(self) -> None:
        self.store.close()
        self.log.close()
