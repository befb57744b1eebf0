"""Compaction: which files of a partition to merge, and the merge itself.

Tiers: the files to merge are the unsorted ones, and then each sorted file, smallest first, that is no larger than what
is gathered so far. So a byte is rewritten about log2(n) times, and a big sorted file is left alone until as much has
gathered beside it. Memory is bounded: DuckDB sorts with a fixed budget and spills the rest to disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from analytics_core.config import MB
from analytics_core.lake.files import FILE_SCHEMA, ROW_GROUP, LakeFile

SortError: Final = duckdb.Error
"""What `sorted_batches` raises when DuckDB cannot sort, for example because the spill space is full."""
_MEMORY: Final = "256MB"
_RUN_BYTES: Final = 256 * MB
"""The most that one merge reads (compressed): it bounds the spill space and how long a stop waits."""


def plan(files: Iterable[LakeFile], file_bytes: int) -> list[list[LakeFile]]:
    """The merges that are due, each the files of one partition; files of ``file_bytes`` and more stay as they are."""
    ordered = sorted(files, key=_partition)
    return [group for _, listed in groupby(ordered, _partition) for group in _tiers(list(listed), file_bytes)]


def _partition(file: LakeFile) -> tuple[str, str]:
    return file.tenant, file.part


def _tiers(files: list[LakeFile], file_bytes: int) -> Iterator[list[LakeFile]]:
    group: list[LakeFile] = []
    gathered = 0
    for file in sorted((f for f in files if not f.ordered), key=lambda f: f.size):
        if group and gathered + file.size > _RUN_BYTES:
            yield group
            group, gathered = [], 0
        group.append(file)
        gathered += file.size
    for file in sorted((f for f in files if f.ordered and f.size < file_bytes), key=lambda f: f.size):
        if file.size > gathered or gathered + file.size > _RUN_BYTES:
            break
        group.append(file)
        gathered += file.size
    if group:
        yield group


def sorted_batches(root: Path, group: list[LakeFile], spool: Path) -> Iterator[pa.RecordBatch]:
    """All rows of ``group`` by (user_id, timestamp, seq), events without a user last."""
    config = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": str(spool)}
    with duckdb.connect(config=config) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        merged = connection.sql(
            "SELECT * FROM read_parquet($files, hive_partitioning = false) ORDER BY user_id NULLS LAST, timestamp, seq",
            params={"files": [str(root / file.path) for file in group]},
        )
        for batch in merged.to_arrow_reader(ROW_GROUP):
            columns = [batch.column(field.name).cast(field.type) for field in FILE_SCHEMA]
            yield pa.RecordBatch.from_arrays(columns, schema=FILE_SCHEMA)
