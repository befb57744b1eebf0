"""Compaction: which files of a partition to merge, and the merge itself.

Tiers: the files to merge are the unsorted ones, and then each sorted file, smallest first, that is no larger than what
is gathered so far. So a byte is rewritten about log2(n) times, and a big sorted file is left alone until as much has
gathered beside it. Memory is bounded: DuckDB sorts with a fixed budget and spills the rest to disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from analytics_core.config import MB
from analytics_core.lake.files import FILE_SCHEMA, ROW_GROUP, LakeFile

SortError: Final = duckdb.Error
"""What `sorted_batches` raises when DuckDB cannot sort, for example because the spill space is full."""
_LOOK_SECONDS: Final = 0.1
"""How often a sort that is under way looks whether it is to stop."""
_MEMORY: Final = "256MB"
_RUN_BYTES: Final = 256 * MB
"""The most that one merge reads (compressed): it bounds the spill space."""


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


def sorted_batches(
    root: Path, group: list[LakeFile], spool: Path, should_stop: Callable[[], bool]
) -> Iterator[pa.RecordBatch]:
    """All rows of ``group`` by (user_id, timestamp, seq), events without a user last.

    :raises StoppedError: soon after ``should_stop`` has become true.
    """
    config = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": str(spool)}
    with duckdb.connect(config=config) as connection, _interrupted(connection, should_stop):
        connection.execute("SET TimeZone = 'UTC'")
        merged = connection.sql(
            "SELECT * FROM read_parquet($files, hive_partitioning = false) ORDER BY user_id NULLS LAST, timestamp, seq",
            params={"files": [str(root / file.path) for file in group]},
        )
        for batch in until(should_stop, merged.to_arrow_reader(ROW_GROUP)):
            columns = [batch.column(field.name).cast(field.type) for field in FILE_SCHEMA]
            yield pa.RecordBatch.from_arrays(columns, schema=FILE_SCHEMA)


class StoppedError(Exception):
    """A rewrite was told to stop. Nothing has changed."""


def until(should_stop: Callable[[], bool], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches. :raises StoppedError: before the next one once ``should_stop`` is true."""
    for batch in batches:
        if should_stop():
            raise StoppedError
        yield batch


@contextmanager
def _interrupted(connection: duckdb.DuckDBPyConnection, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Break off what ``connection`` is doing when ``should_stop`` becomes true: a sort gives nothing until it is done,
    so nobody else would look. What fails then is a `StoppedError`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if should_stop():
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="compaction:stop", daemon=True)
    watcher.start()
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError):
        if should_stop():
            raise StoppedError from None
        raise
    finally:
        over.set()
        watcher.join()
