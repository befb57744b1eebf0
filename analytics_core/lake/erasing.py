"""Erasure: which files hold events of some users, and what is left of such a file without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analytics_core.errors import StorageError
from analytics_core.events.owners import Bound, Owners
from analytics_core.lake.files import ROW_GROUP

_MEMORY: Final = "256MB"
_COUNT: Final = (
    "SELECT filename, count(*) AS events FROM read_parquet($files, filename = true, hive_partitioning = false) "
    "WHERE seq < $below AND %s GROUP BY filename"
)


def holding(files: Sequence[str], owners: Owners, below: int) -> dict[str, int]:
    """How many events of ``owners`` below position ``below`` each file has; files without any are left out.

    :raises StorageError: when the files cannot be read.
    """
    if not files:
        return {}
    try:
        with duckdb.connect(config={"threads": 1, "memory_limit": _MEMORY}) as connection:
            bound = Bound()
            query = _COUNT % owners.sql(bound)
            asked = {"files": list(files), "below": below, **bound.parameters}
            return dict(connection.execute(query, asked).fetchall())
    except duckdb.Error as error:
        raise StorageError(f"the lake cannot be searched for what is to be erased: {error}") from error


def kept_batches(path: Path, owners: Owners, below: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file that stay, in their order."""
    with pq.ParquetFile(path) as opened:
        for batch in opened.iter_batches(ROW_GROUP):
            yield batch.filter(pc.invert(owners.mask(batch, below)))
