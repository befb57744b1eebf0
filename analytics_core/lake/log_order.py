"""History in log order, for a lane that is further behind than the log reaches back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.errors import StorageError
from analytics_core.events import SCHEMA, EventBatch

_MEMORY: Final = "256MB"
_ROWS: Final = 256
"""Rows that are taken together or not."""


def read_window(
    files: Sequence[str], start: int, end: int, max_bytes: int, spool: Path
) -> tuple[list[EventBatch], int]:
    """Events with ``start <= seq < end`` out of Parquet ``files``, one batch for each tenant, each in order of ``seq``;
    and where to go on, which is before ``end`` when the rows take more than about ``max_bytes``.

    Their watermark is the newest receipt in the window: what the log's clock had reached at least. What is too much for
    memory while it is sorted lies in ``spool``.

    :raises StorageError: when the files cannot be read.
    """
    if not files:
        return [], end
    try:
        spool.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix="read-", dir=spool) as own:
            config = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": own}
            with duckdb.connect(config=config) as connection:
                rows, end = _taken(_sorted(connection, files, start, end), end, max_bytes)
    except (duckdb.Error, OSError) as error:
        raise StorageError(f"the lake cannot be read from position {start}: {error}") from error
    if not rows.num_rows:
        return [], end
    watermark = pc.max(rows.column("received_at")).as_py()
    tenants = rows.column("tenant")
    batches = [
        EventBatch(_one(rows.filter(pc.equal(tenants, tenant))), tenant.as_py(), watermark)
        for tenant in pc.unique(tenants)
    ]
    return batches, end


def _sorted(connection: duckdb.DuckDBPyConnection, files: Sequence[str], start: int, end: int) -> pa.RecordBatchReader:
    connection.execute("SET TimeZone = 'UTC'")
    return connection.sql(
        "SELECT * FROM read_parquet($files, hive_partitioning = false) WHERE seq >= $start AND seq < $end ORDER BY seq",
        params={"files": list(files), "start": start, "end": end},
    ).to_arrow_reader(_ROWS)


def _taken(rows: pa.RecordBatchReader, end: int, max_bytes: int) -> tuple[pa.Table, int]:
    """The first rows up to about ``max_bytes``, and the position after them."""
    taken: list[pa.RecordBatch] = []
    size = 0
    for batch in rows:
        if taken and size + batch.nbytes > max_bytes:
            end = taken[-1].column("seq")[-1].as_py() + 1
            break
        taken.append(batch)
        size += batch.nbytes
    return pa.Table.from_batches(taken, rows.schema), end


def _one(rows: pa.Table) -> pa.RecordBatch:
    columns = [_fitted(rows.column(field.name), field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _fitted(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array:
    whole = column.combine_chunks()
    return whole.dictionary_encode().cast(type_) if pa.types.is_dictionary(type_) else whole.cast(type_)
