"""History in log order, for a lane that is further behind than the log reaches back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.errors import StorageError
from analytics_core.events import SCHEMA, EventBatch

_MEMORY: Final = "256MB"


def read_window(files: Sequence[str], start: int, end: int) -> list[EventBatch]:
    """Events with ``start <= seq < end`` out of Parquet ``files``, one batch for each tenant, each in order of ``seq``.

    Their watermark is the newest receipt in the window: what the log's clock had reached at least.

    :raises StorageError: when the files cannot be read.
    """
    if not files:
        return []
    try:
        with duckdb.connect(config={"threads": 1, "memory_limit": _MEMORY}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            rows = connection.sql(
                "SELECT * FROM read_parquet($files, hive_partitioning = false) "
                "WHERE seq >= $start AND seq < $end ORDER BY seq",
                params={"files": list(files), "start": start, "end": end},
            ).to_arrow_table()
    except duckdb.Error as error:
        raise StorageError(f"the lake cannot be read from position {start}: {error}") from error
    if not rows.num_rows:
        return []
    watermark = pc.max(rows.column("received_at")).as_py()
    tenants = rows.column("tenant")
    return [
        EventBatch(_one(rows.filter(pc.equal(tenants, tenant))), tenant.as_py(), watermark)
        for tenant in pc.unique(tenants)
    ]


def _one(rows: pa.Table) -> pa.RecordBatch:
    columns = [_fitted(rows.column(field.name), field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _fitted(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array:
    whole = column.combine_chunks()
    return whole.dictionary_encode().cast(type_) if pa.types.is_dictionary(type_) else whole.cast(type_)
