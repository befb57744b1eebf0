"""Files as blocks of columns, in constant memory: CSV and Parquet through Arrow, NDJSON through msgspec.

A row's number counts from 1 in the order of the file; a CSV header is no row. Numbers stay the same however often and
from wherever a file is read, because event ids are made of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from msgspec import Raw, Struct

from analytics_core.errors import ConfigError, ImportFileError

Format = Literal["csv", "ndjson", "parquet"]
BLOCK_BYTES: Final = 4 << 20
NULLS: Final = ("", "NULL", "null", "NaN", "nan")
"""Texts that stand for "no value" in a CSV file."""

_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_CODECS: Final = {".gz": "gzip", ".zst": "zstd"}
_DELIMITERS: Final = ",;\t|"


class Block(Struct):
    """Some rows as columns. ``rows``: their numbers, int64 ``(n,)``; ``bad``: (row, why) of rows that are left out.

    ``holds``: untyped text (CSV), typed Arrow values (Parquet) or JSON texts (NDJSON).
    ``upto``: every row up to this number is in this block or an earlier one.
    """

    columns: Mapping[str, pa.Array]
    rows: npt.NDArray[np.int64]
    bad: list[tuple[int, str]]
    upto: int
    holds: Literal["text", "arrow", "json"]


class TableFile(Protocol):
    """One file. ``columns`` are the names that its first rows show."""

    columns: list[str]

    def blocks(self, skip: int) -> Iterator[Block]:
        """All rows after the first ``skip``, in order. :raises ImportFileError: where the file cannot be read on."""
        ...

    def position(self) -> tuple[int, int]:
        """How much has been read and how much there is: bytes of the file, or rows for Parquet."""
        ...

    def close(self) -> None: ...


def open_table(path: Path, given: Format | None = None, encoding: str = "utf8") -> TableFile:
    """Open ``path``; the format is told by ``given`` or by its suffixes (``.csv.gz``, ``.ndjson.zst``, ...).

    :raises ConfigError: for an unknown suffix or a compressed Parquet file.
    :raises ImportFileError: when the beginning cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = _CODECS.get(suffixes[-1]) if suffixes else None
    kind = given or _SUFFIXES.get(suffixes[-2 if codec else -1] if len(suffixes) > bool(codec) else "")
    if kind is None:
        valid = ", ".join(_SUFFIXES)
        raise ConfigError(str(path), f"cannot tell its format; name it with --format, or use one of {valid}")
    if kind == "parquet":
        if codec:
            raise ConfigError(str(path), "Parquet is compressed inside and is not read through another codec")
        return ParquetTable(path)
    return CsvTable(path, codec, encoding) if kind == "csv" else NdjsonTable(path, codec)


class _Bytes:
    """The inflated bytes of a file, with the position in the file itself."""

    def __init__(self, path: Path, codec: str | None) -> None:
        self._raw = pa.OSFile(str(path))
        self.size = self._raw.size()
        self.stream = pa.CompressedInputStream(self._raw, codec) if codec else self._raw

    def position(self) -> tuple[int, int]:
        return (self.size if self._raw.closed else self._raw.tell()), self.size

    def close(self) -> None:
        self.stream.close()
        self._raw.close()


class CsvTable:
    """A CSV file with a header; the delimiter is the most frequent of ``, ; tab |`` in it. All values are text."""

    def __init__(self, path: Path, codec: str | None, encoding: str) -> None:
        self._path, self._codec, self._encoding = path, codec, encoding
        self._bad: dict[int, str] = {}
        self._bytes = _Bytes(path, codec)
        try:
            header = self._bytes.stream.read(1 << 16).decode(encoding, "replace").lstrip("\ufeff")
        except (OSError, pa.ArrowInvalid) as error:
            raise ImportFileError(path, 0, str(error)) from error
        finally:
            self._bytes.close()
        first = header.splitlines()[0] if header.strip() else ""
        self._delimiter = max(_DELIMITERS, key=first.count)
        self.columns = next(csv.reader(io.StringIO(header), delimiter=self._delimiter), [])
        if not first or len(set(self.columns)) < len(self.columns):
            raise ImportFileError(path, 0, "the header must name each column once" if first else "the file is empty")

    def blocks(self, skip: int) -> Iterator[Block]:
        self._bytes = _Bytes(self._path, self._codec)
        row = 0
        try:
            for batch in self._reader():
                rows, row = self._number(batch.num_rows, row)
                bad = [(at, why) for at, why in sorted(self._bad.items()) if skip < at <= row]
                self._bad = {at: why for at, why in self._bad.items() if at > row}
                if row > skip:
                    start = int(np.searchsorted(rows, skip, side="right"))
                    columns = dict(zip(self.columns, batch.slice(start).columns, strict=True))
                    yield Block(columns, rows[start:], bad, row, "text")
            if self._bad:
                yield Block({}, np.empty(0, np.int64), sorted(self._bad.items()), max(self._bad), "text")
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise ImportFileError(self._path, row + 1, _hint(str(error))) from error

    def _reader(self) -> Any:
        return pyarrow.csv.open_csv(
            self._bytes.stream,
            pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, encoding=self._encoding),
            pyarrow.csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=self._on_invalid
            ),
            pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in self.columns}, strings_can_be_null=True, null_values=NULLS
            ),
        )

    def _on_invalid(self, row: Any) -> str:
        self._bad[row.number - 1] = f"{row.actual_columns} values where the header has {row.expected_columns} columns"
        return "skip"

    def _number(self, count: int, last: int) -> tuple[npt.NDArray[np.int64], int]:
        """Numbers of the next ``count`` good rows after row ``last``: bad rows take a number too."""
        numbers = np.arange(last + 1, last + 1 + count + len(self._bad), dtype=np.int64)
        good = numbers[~np.isin(numbers, list(self._bad))][:count]
        return good, int(good[-1]) if count else last

    def position(self) -> tuple[int, int]:
        return self._bytes.position()

    def close(self) -> None:
        self._bytes.close()


def _hint(problem: str) -> str:
    return f"{problem}; name the file's encoding with --encoding" if "UTF8" in problem else problem


class NdjsonTable:
    """One JSON object a line. Columns hold the values' JSON texts as they are in the file."""

    def __init__(self, path: Path, codec: str | None) -> None:
        self._path, self._codec = path, codec
        self._bytes = _Bytes(path, codec)
        self._bytes.close()
        self._decode = msgspec.json.Decoder(list[dict[str, Raw]])
        self._decode_line = msgspec.json.Decoder(dict[str, Raw])
        first = next(self.blocks(0), None)
        self.close()
        if first is None or not first.columns:
            why = f": {first.bad[0][1]}" if first and first.bad else ""
            raise ImportFileError(path, 0, f"no line holds a JSON object{why}")
        self.columns = list(first.columns)

    def blocks(self, skip: int) -> Iterator[Block]:
        self._bytes = _Bytes(self._path, self._codec)
        row = 0
        try:
            for text in self._whole_lines():
                lines = [line for line in text.split(b"\n") if line and not line.isspace()]
                numbers = np.arange(row + 1, row + 1 + len(lines), dtype=np.int64)
                row += len(lines)
                if row > skip:
                    fresh = max(0, skip - int(numbers[0]) + 1)
                    yield self._block(lines[fresh:], numbers[fresh:], row)
        except (pa.ArrowException, OSError) as error:
            raise ImportFileError(self._path, row + 1, str(error)) from error

    def _whole_lines(self) -> Iterator[bytes]:
        rest = b""
        while text := self._bytes.stream.read(BLOCK_BYTES):
            head, newline, tail = text.rpartition(b"\n")
            if newline:
                yield rest + head
                rest = tail
            else:
                rest += text
        if rest:
            yield rest

    def _block(self, lines: list[bytes], numbers: npt.NDArray[np.int64], upto: int) -> Block:
        bad: list[tuple[int, str]] = []
        try:
            b"".join(lines).decode()
            objects = self._decode.decode(b"[" + b",".join(lines) + b"]")
            if len(objects) != len(lines):  # a line with two objects and a comma
                raise msgspec.DecodeError
        except (msgspec.MsgspecError, UnicodeDecodeError):
            objects, good = [], []
            for line, number in zip(lines, numbers.tolist(), strict=True):
                try:
                    line.decode()
                    objects.append(self._decode_line.decode(line))
                    good.append(number)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    bad.append((number, f"not a JSON object: {error}"))
            numbers = np.array(good, np.int64)
        names = dict.fromkeys(name for one in objects for name in one)
        columns = {name: _json_texts([one.get(name) for one in objects]) for name in names}
        return Block(columns, numbers, bad, upto, "json")

    def position(self) -> tuple[int, int]:
        return self._bytes.position()

    def close(self) -> None:
        self._bytes.close()


def _json_texts(values: list[Raw | None]) -> pa.Array:
    """JSON texts, null where absent or ``null``, as a string column."""
    return pa.array([None if value is None or value == _NULL else bytes(value) for value in values], pa.string())


_NULL = Raw(b"null")


class ParquetTable:
    """A Parquet file, read row group by row group; row groups that are skipped whole are not touched."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ImportFileError(path, 0, str(error)) from error
        self.columns = self._file.schema_arrow.names
        self._done = 0

    def blocks(self, skip: int) -> Iterator[Block]:
        self._done = 0
        groups = list(range(self._file.num_row_groups))
        while groups and self._done + self._file.metadata.row_group(groups[0]).num_rows <= skip:
            self._done += self._file.metadata.row_group(groups.pop(0)).num_rows
        try:
            for batch in self._file.iter_batches(batch_size=20_000, row_groups=groups):
                numbers = np.arange(self._done + 1, self._done + 1 + batch.num_rows, dtype=np.int64)
                self._done += batch.num_rows
                start = max(0, skip - int(numbers[0]) + 1) if len(numbers) else 0
                if self._done > skip:
                    columns = dict(zip(self.columns, batch.slice(start).columns, strict=True))
                    yield Block(columns, numbers[start:], [], self._done, "arrow")
        except (pa.ArrowException, OSError) as error:
            raise ImportFileError(self._path, self._done + 1, str(error)) from error

    def position(self) -> tuple[int, int]:
        return self._done, self._file.metadata.num_rows

    def close(self) -> None:
        self._file.close()
