"""Values of a tenant's events by log position, each field read when it is first asked for and brought forward since."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
import structlog

from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.filters import Field

WINDOW: Final = 1 << 26
"""Positions that are read at a time; they take four bytes each until they are written."""
_SAVE: Final = 1 << 20
"""Positions after which a column is saved."""
_log = structlog.get_logger(__name__)


class Source(Protocol):
    """`queries.reader.Reader`, as far as it is needed."""

    @property
    def position(self) -> int: ...

    def stream(self, query: str, parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]: ...


class ValueColumns:
    """The columns below ``directory``. Safe for use from any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._columns: dict[Field, ValueColumn] = {}
        self._lock = threading.Lock()

    def has(self, field: Field) -> bool:
        """Whether the column is there, so that only what is new has to be read."""
        with self._lock:
            column = self._opened(field)
            return column.given_up or column.upto > 0

    def column(self, field: Field, source: Source) -> ValueColumn | None:
        """With all that ``source`` holds; None for a field of too many values, or when there is no space on disk."""
        with self._lock:
            column = self._opened(field)
            try:
                self._forward(column, field, source)
            except OSError as error:
                _log.warning("value_column_not_written", field=field.name, reason=str(error))
                return None
            return None if column.given_up else column

    def bring(self, field: Field, source: Source) -> None:
        self.column(field, source)

    def save(self) -> None:
        """Keep what is held for the next start."""
        with self._lock, suppress(OSError):
            for column in self._columns.values():
                column.save()

    def forget(self) -> None:
        with self._lock:
            self._columns.clear()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _opened(self, field: Field) -> ValueColumn:
        if field not in self._columns:
            digest = blake2b(field.name.encode(), digest_size=12).hexdigest()
            self._columns[field] = ValueColumn(self._directory / digest, field.name)
        return self._columns[field]

    def _forward(self, column: ValueColumn, field: Field, source: Source) -> None:
        saved = column.upto
        while column.upto < source.position and not column.given_up:
            upto = min(source.position, column.upto + WINDOW)
            column.extend(upto, _found(field, column.upto, upto, source))
        if column.given_up or column.upto - saved > _SAVE:
            column.save()


def _found(field: Field, low: int, high: int, source: Source) -> Iterator[tuple[Any, pa.DictionaryArray]]:
    """Positions in ``[low, high)`` with a value, and the JSON texts of these."""
    bound: dict[str, Any] = {"low": low, "high": high}

    def bind(value: Any) -> str:
        bound[f"p{len(bound)}"] = value
        return f"$p{len(bound) - 1}"

    word = f"nullif({field.json(bind)}, 'null')"
    query = f"SELECT seq, {word} AS word FROM ever WHERE seq >= $low AND seq < $high AND {word} IS NOT NULL"
    for batch in source.stream(query, bound):
        yield batch.column("seq").to_numpy(), batch.column("word").dictionary_encode()
