"""What an export is written as: the SQL of one row, and how rows become bytes.

The lines of NDJSON and CSV are made by DuckDB itself, so that no row is touched in Python. Parquet and Arrow keep the
columns' types.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from msgspec import Struct

from analytics_core.metrics.filters import Bind
from analytics_core.queries.projection import Shown

CHUNK: Final = 256 << 10
"""Bytes that are handed on at once, about."""
_ROW_GROUP: Final = 122_880
_BATCH: Final = 16_384
_TIME: Final = "strftime(timezone('UTC', {0}), '%Y-%m-%dT%H:%M:%S.%f+00:00')"


class Encoder(Protocol):
    """The rows of one export, in order, as bytes."""

    def select(self, bind: Bind) -> str:
        """The SQL of a row: expressions over the view ``events``."""
        ...

    def begin(self, rows: pa.Table) -> bytes:
        """What comes first; ``rows`` has the schema of all that follow."""
        ...

    def encode(self, rows: pa.Table) -> Iterator[bytes]:
        """Some rows, in pieces of about `CHUNK`."""
        ...

    def end(self) -> bytes:
        """What comes last."""
        ...


class Format(Struct, frozen=True):
    """``suffix`` is that of its files, the first the usual one."""

    name: str
    media_type: str
    suffixes: tuple[str, ...]
    encoder: Callable[[Sequence[Shown]], Encoder]


class _Lines:
    """Rows that DuckDB has written out as text, one column ``line`` that ends in a line break."""

    def __init__(self, fields: Sequence[Shown]) -> None:
        self._fields = fields

    def begin(self, rows: pa.Table) -> bytes:  # noqa: ARG002
        return b""

    def encode(self, rows: pa.Table) -> Iterator[bytes]:
        for chunk in rows.column("line").chunks:
            _, offsets, data = chunk.buffers()
            if data is None:
                continue
            at = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset)
            for start in range(int(at[0]), int(at[-1]), CHUNK):
                yield data.slice(start, min(CHUNK, int(at[-1]) - start)).to_pybytes()

    def end(self) -> bytes:
        return b""


class _Ndjson(_Lines):
    """A row is the object that a page has for it, on one line."""

    def select(self, bind: Bind) -> str:
        parts = [f"{bind(self._key(i))}, {_as_json(one, bind)}" for i, one in enumerate(self._fields)]
        return f"concat({', '.join(parts)}, {bind('}' + chr(10))}) AS line"

    def _key(self, at: int) -> str:
        return f"{',' if at else '{'}{msgspec.json.encode(self._fields[at].name).decode()}:"


class _Csv(_Lines):
    """RFC 4180 with a header and ``\\n``; every text is in quotes, so that an empty one is not an absent one."""

    def begin(self, rows: pa.Table) -> bytes:  # noqa: ARG002
        return ",".join('"{}"'.format(one.name.replace('"', '""')) for one in self._fields).encode() + b"\n"

    def select(self, bind: Bind) -> str:
        cells = [
            f"{bind(',')}, {_as_cell(one, bind)}" if i else _as_cell(one, bind) for i, one in enumerate(self._fields)
        ]
        return f"concat({', '.join(cells)}, {bind(chr(10))}) AS line"


def _as_json(one: Shown, bind: Bind) -> str:
    value = one.exact(bind)
    match one.kind:
        case "text":
            value = f"CAST(to_json({value}) AS VARCHAR)"
        case "time":
            value = f"""concat('"', {_TIME.format(value)}, '"')"""
        case "number":
            value = f"CAST({value} AS VARCHAR)"
        case "object":  # as it was sent, where a line break can only be between two words
            value = f"replace(replace({value}, chr(10), ' '), chr(13), ' ')"
    return f"coalesce({value}, 'null')"


def _as_cell(one: Shown, bind: Bind) -> str:
    value = one.plain(bind)
    if one.kind == "number":
        return f"CAST({value} AS VARCHAR)"
    if one.kind == "time":
        return _TIME.format(value)
    return f"""coalesce('"' || replace({value}, '"', '""') || '"', '')"""


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self.size += len(self._pieces[-1])
        return len(self._pieces[-1])

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces, self.size = [], 0
        return taken


class _Columns:
    """Typed columns, written by ``open_writer`` in tables of ``rows``."""

    def __init__(self, fields: Sequence[Shown], open_writer: Callable[[_Sink, pa.Schema], Any], rows: int) -> None:
        self._fields = fields
        self._open = open_writer
        self._rows = rows
        self._sink = _Sink()
        self._schema = pa.schema([])
        self._writer: Any = None

    def select(self, bind: Bind) -> str:
        names = [one.name.replace('"', '""') for one in self._fields]
        return ", ".join(f'{one.plain(bind)} AS "{name}"' for one, name in zip(self._fields, names, strict=True))

    def begin(self, rows: pa.Table) -> bytes:
        self._schema = rows.schema
        self._writer = self._open(self._sink, rows.schema)
        return self._sink.take()

    def encode(self, rows: pa.Table) -> Iterator[bytes]:
        rows = rows.cast(self._schema)
        for start in range(0, len(rows), self._rows):
            self._writer.write_table(rows.slice(start, self._rows))
            if self._sink.size >= CHUNK:
                yield self._sink.take()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.take()


def _parquet(fields: Sequence[Shown]) -> Encoder:
    return _Columns(fields, lambda sink, schema: pq.ParquetWriter(sink, schema, compression="zstd"), _ROW_GROUP)


def _arrow(fields: Sequence[Shown]) -> Encoder:
    return _Columns(fields, pa.ipc.new_stream, _BATCH)


FORMATS: Final = {
    one.name: one
    for one in (
        Format("ndjson", "application/x-ndjson", (".ndjson", ".jsonl"), _Ndjson),
        Format("csv", "text/csv; charset=utf-8; header=present", (".csv",), _Csv),
        Format("parquet", "application/vnd.apache.parquet", (".parquet",), _parquet),
        Format("arrow", "application/vnd.apache.arrow.stream", (".arrows", ".arrow"), _arrow),
    )
}
