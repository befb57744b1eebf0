"""The Parquet files of the lake: how they are written, what the Delta log says of them, and which a query needs.

Paths are ``<tenant>/<part>/<kind>-<id>.parquet`` and not Hive style, so that a reader which guesses columns from paths
finds none. The tenant is inside each file as well: every file has all columns of `events.SCHEMA`.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction
from msgspec import Struct

from analytics_core.errors import StorageError
from analytics_core.events import DAY, SCHEMA, TENANT_PATTERN, micros, moment
from analytics_core.lake.durable import sync_directory

ROW_GROUP: Final = 122_880
"""Rows of one row group, which is also DuckDB's unit of parallel work."""

FILE_SCHEMA: Final = pa.schema(
    [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SCHEMA],
)
"""`events.SCHEMA` as it is inside the files: words are plain strings, dictionary-encoded by Parquet."""

TABLE_SCHEMA: Final = FILE_SCHEMA.append(pa.field("part", pa.string(), nullable=False))
PARTITION_BY: Final = ("tenant", "part")

_NEAR: Final = 7 * DAY
_TENANT: Final = re.compile(TENANT_PATTERN)
_TIMES: Final = ("timestamp", "received_at")
_RANGES: Final = (*_TIMES, "seq")
"""The columns whose least and greatest value the Delta log has of each file."""
_ANY: Final = (-(2**62), 2**62)
_WRITING: Final = {
    "compression": "zstd",
    "store_schema": False,  # without it dictionary columns are read back as strings
    "use_dictionary": ["partition", "tenant", "name", "user_id", "anonymous_id", "session_id", "source", "context"],
    "column_encoding": dict.fromkeys(("seq", *_TIMES), "DELTA_BINARY_PACKED"),
    "write_statistics": ["seq", *_TIMES, "name", "user_id", "anonymous_id", "session_id", "tenant"],
}


class LakeFile(Struct, frozen=True):
    """One file of a table version. Times are microseconds UTC, both ends included; ``path`` is relative."""

    path: str
    tenant: str
    part: str
    size: int
    rows: int
    first_event: int
    last_event: int
    first_received: int
    last_received: int
    first_seq: int
    last_seq: int

    @property
    def ordered(self) -> bool:
        """Whether compaction wrote it, sorted by (user_id, timestamp, seq)."""
        return Path(self.path).name.startswith("sorted-")


class TableVersion(Struct, frozen=True):
    """A version of the table: its number, the log position it holds, and its files by tenant."""

    number: int
    position: int
    files: Mapping[str, Sequence[LakeFile]]

    def all_files(self) -> Iterator[LakeFile]:
        return chain.from_iterable(self.files.values())

    def changed(
        self, number: int, position: int | None, added: Sequence[LakeFile], gone: Sequence[LakeFile]
    ) -> TableVersion:
        """The next version, without reading the log again. ``position`` None leaves it."""
        paths = {file.path for file in gone}
        files = dict(self.files)
        for tenant in {file.tenant for file in chain(added, gone)}:
            kept = [file for file in files.get(tenant, ()) if file.path not in paths]
            files[tenant] = (*kept, *(file for file in added if file.tenant == tenant))
        listing = {tenant: listed for tenant, listed in files.items() if listed}
        return TableVersion(number, self.position if position is None else position, listing)


def read_version(table: DeltaTable, position: int) -> TableVersion:
    """What the Delta log says of the table's files. A file without statistics is one that may hold anything."""
    actions = pa.table(table.get_add_actions(flatten=True))
    names = ["path", "partition.tenant", "partition.part", "size_bytes", "num_records"]
    names += [f"{end}.{name}" for name in _RANGES for end in ("min", "max")]
    unknown = pa.nulls(actions.num_rows)
    found = [actions.column(name) if name in actions.column_names else unknown for name in names]
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in found]
    files: dict[str, list[LakeFile]] = {}
    always = (0, 0, *_ANY, *_ANY, *_ANY)
    for path, tenant, part, *known in zip(*(column.to_pylist() for column in columns), strict=True):
        figures = [value if value is not None else always[i] for i, value in enumerate(known)]
        files.setdefault(tenant, []).append(LakeFile(path, tenant, part, *figures))
    return TableVersion(table.version(), position, {tenant: tuple(listed) for tenant, listed in files.items()})


def overlaps(file: LakeFile, start: int | None, end: int | None) -> bool:
    """Whether it may hold an event with ``start <= timestamp < end``, both microseconds or open."""
    return (start is None or file.last_event >= start) and (end is None or file.first_event < end)


def in_window(files: Iterable[LakeFile], start: int, end: int) -> list[LakeFile]:
    """The files that may hold an event with ``start <= seq < end``."""
    return [file for file in files if file.last_seq >= start and file.first_seq < end]


def partitions(events: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """The rows of each (tenant, part), in their order. :raises StorageError: for a tenant that is no file name."""
    if not events.num_rows:
        return
    events = events.cast(SCHEMA).unify_dictionaries().combine_chunks()
    tenants = events.column("tenant").chunk(0)
    at = events.column("timestamp").cast(pa.int64()).to_numpy()
    received = events.column("received_at").cast(pa.int64()).to_numpy()
    days = at // DAY
    months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    code = np.where(np.abs(received - at) <= _NEAR, days, -1 - months)  # a month is a negative code
    keys = code * len(tenants.dictionary) + tenants.indices.to_numpy()
    found, member = np.unique(keys, return_inverse=True)
    for index, key in enumerate(found.tolist()):
        part, word = divmod(key, len(tenants.dictionary))
        tenant = tenants.dictionary[word].as_py()
        if not _TENANT.fullmatch(tenant):
            raise StorageError(f"tenant {tenant!r} cannot be stored; valid are ids like {_TENANT.pattern}")
        rows = events if len(found) == 1 else events.take(pa.array(np.flatnonzero(member == index)))
        yield tenant, _part_name(part), rows


def _part_name(code: int) -> str:
    """``2025-01-31`` for a day, ``2025-01`` for a month."""
    return str(np.datetime64(code, "D")) if code >= 0 else str(np.datetime64(-1 - code, "M"))


def write_files(
    root: Path, tenant: str, part: str, batches: Iterable[pa.RecordBatch], *, ordered: bool, file_bytes: int
) -> list[LakeFile]:
    """Write batches, in their order, to new files of about ``file_bytes`` each; all are on disk afterwards.

    When it fails, what was written is deleted again.
    """
    directory = root / tenant / part
    directory.mkdir(parents=True, exist_ok=True)
    written: list[LakeFile] = []
    groups = _row_groups(batches)
    try:
        while (first := next(groups, None)) is not None:
            name = f"{'sorted' if ordered else 'append'}-{uuid.uuid4().hex}.parquet"
            path = directory / name
            try:
                metadata = _write_one(path, chain([first], groups), file_bytes)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            written.append(_described(metadata, tenant, part, name, path.stat().st_size))
        for holder in (directory, directory.parent, root):
            sync_directory(holder)
    except BaseException:
        for file in written:
            (root / file.path).unlink(missing_ok=True)
        raise
    return written


def _write_one(path: Path, groups: Iterator[pa.Table], file_bytes: int) -> pq.FileMetaData:
    first = next(groups)
    with path.open("xb") as raw:
        with pq.ParquetWriter(raw, first.schema, **_WRITING) as writer:
            for group in chain([first], groups):
                writer.write_table(group, row_group_size=ROW_GROUP)
                if raw.tell() >= file_bytes:
                    break
        raw.flush()
        os.fsync(raw.fileno())
    return writer.writer.metadata


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to tables of about one row group."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if batch.num_rows:
            held.append(batch)
            rows += batch.num_rows
        if rows >= ROW_GROUP:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _described(metadata: pq.FileMetaData, tenant: str, part: str, name: str, size: int) -> LakeFile:
    ends: list[int] = []
    for column in (FILE_SCHEMA.get_field_index(name) for name in _RANGES):
        found = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
        least, greatest = min(s.min for s in found), max(s.max for s in found)
        ends += [least, greatest] if isinstance(least, int) else [micros(least), micros(greatest)]
    return LakeFile(f"{tenant}/{part}/{name}", tenant, part, size, metadata.num_rows, *ends)


def add_action(file: LakeFile, *, data_change: bool) -> AddAction:
    """The file as an ``add`` of the Delta log, with the statistics that `needed` and `in_window` prune by."""
    lows = {"timestamp": _text(file.first_event), "received_at": _text(file.first_received), "seq": file.first_seq}
    highs = {"timestamp": _text(file.last_event), "received_at": _text(file.last_received), "seq": file.last_seq}
    counts = dict.fromkeys(lows, 0)
    stats = {"numRecords": file.rows, "minValues": lows, "maxValues": highs, "nullCount": counts}
    return AddAction(file.path, file.size, _values(file), _now(), data_change, json.dumps(stats))


def remove_action(file: LakeFile, *, data_change: bool) -> RemoveAction:
    return RemoveAction(file.path, data_change, _now(), file.size, _values(file))


def _values(file: LakeFile) -> dict[str, str | None]:
    return {"tenant": file.tenant, "part": file.part}


def _text(at: int) -> str:
    return moment(at).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now() -> int:
    return time.time_ns() // 1_000_000


def scan(root: Path, tenant: str = "[a-z0-9]*") -> Iterator[tuple[str, os.stat_result]]:
    """Every Parquet file below ``root``, or that of one tenant, with what the file system says of it, whether the log
    knows it or not."""
    for path in root.glob(f"{tenant}/*/*.parquet"):
        yield path.relative_to(root).as_posix(), path.stat()
