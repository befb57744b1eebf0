"""A child process that appends for ever and says what was acknowledged; it is meant to be killed.

Arguments: the log's directory and a name for this run. Each line of output is ``<first seq> <first event> <count>``.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.log.segments import SegmentLog


def batch(run: str, first: int, count: int) -> pa.RecordBatch:
    now = datetime.now(UTC)
    columns = {name: [None] * count for name in UNPLACED_SCHEMA.names}
    columns |= {"tenant": ["acme"] * count, "name": ["e"] * count, "source": ["native"] * count}
    columns |= {"event_id": [f"{run}-{first + i}" for i in range(count)], "timestamp": [now] * count}
    columns |= {"received_at": [now] * count, "properties": ["{}"] * count, "context": ["{}"] * count}
    return pa.RecordBatch.from_pydict(columns, schema=UNPLACED_SCHEMA)


def main() -> None:
    directory, run = Path(sys.argv[1]), sys.argv[2]
    log = SegmentLog(directory, segment_bytes=50_000, disk_reserve_bytes=0)
    made = 0
    while True:
        batches = [batch(run, made, 1 + made % 7), batch(run, made + 1 + made % 7, 3)]
        for seq, sent in zip(log.append(batches, datetime.now(UTC)), batches, strict=True):
            print(seq, made, sent.num_rows, flush=True)
            made += sent.num_rows
        log.append([], datetime.now(UTC))


if __name__ == "__main__":
    main()
