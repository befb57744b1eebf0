"""Values of a tenant's events by log position, each field read when it is first asked for and brought forward since."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import structlog

from analytics_core.errors import BuildingError
from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.filters import Field
from analytics_core.queries.snapshot import Snapshot

MOST_OPEN: Final = 64
"""Columns that are held at a time, the latest; the others are in their files."""
WINDOW: Final = 1 << 26
"""Positions that are read at a time; they take four bytes each until they are written."""
_SAVE: Final = 1 << 20
"""Positions after which a column is saved."""
_log = structlog.get_logger(__name__)


class _Open(NamedTuple):
    """A column, and the lock under which it grows. Whoever has waited for that looks whether it still is the one."""

    column: ValueColumn
    growing: threading.Lock


class ValueColumns:
    """The columns of a tenant, below ``directory``. Safe for use from any thread."""

    def __init__(self, directory: Path, tenant: str) -> None:
        self._directory = directory
        self._tenant = tenant
        self._open: OrderedDict[Field, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def missing(self, field: Field, position: int) -> int:
        """How many positions below ``position`` the column has yet to read."""
        column = self._opened(field).column
        return 0 if column.given_up else max(0, position - column.upto)

    def column(self, field: Field, source: Snapshot, patience: float | None = None) -> ValueColumn | None:
        """With all that ``source`` holds; None for a field of too many values, or when there is no space on disk.

        :raises BuildingError: when it is being made for longer than ``patience`` seconds.
        """
        opened = self._opened(field)
        if not opened.growing.acquire(timeout=-1 if patience is None else patience):
            raise self.refuse(field)
        try:
            if self._open.get(field) is opened:
                return self._forward(opened.column, field, source)
        finally:
            opened.growing.release()
        return self.column(field, source, patience)  # it was forgotten meanwhile

    def refuse(self, field: Field) -> BuildingError:
        """What is said to whoever cannot wait."""
        return BuildingError(f"the values of {field.name!r} of tenant {self._tenant!r} are being read")

    def bring(self, field: Field, source: Snapshot) -> None:
        self.column(field, source)

    def save(self) -> None:
        """Keep what is held for the next start."""
        with self._lock, suppress(OSError):
            for opened in self._open.values():
                if opened.growing.acquire(blocking=False):
                    try:
                        opened.column.save()
                    finally:
                        opened.growing.release()

    def rest(self) -> None:
        """Hold none of them, but those that grow just now."""
        with self._lock:
            for field in list(self._open):
                self._let_go(field)

    def forget(self) -> None:
        """Delete the files, once nothing is being written to them."""
        with self._lock:
            for opened in self._open.values():
                opened.growing.acquire()
            held, self._open = self._open, OrderedDict()
            shutil.rmtree(self._directory, ignore_errors=True)
            for opened in held.values():
                opened.growing.release()

    def _opened(self, field: Field) -> _Open:
        with self._lock:
            opened = self._open.get(field)
            if opened is None:
                digest = blake2b(field.name.encode(), digest_size=12).hexdigest()
                opened = _Open(ValueColumn(self._directory / digest, field.name), threading.Lock())
                self._open[field] = opened
                if len(self._open) > MOST_OPEN:
                    self._let_go(next(iter(self._open)))
            self._open.move_to_end(field)
            return opened

    def _let_go(self, field: Field) -> None:
        opened = self._open[field]
        if opened.growing.acquire(blocking=False):
            with suppress(OSError):  # then it begins where it was last saved
                opened.column.save()
            del self._open[field]
            opened.growing.release()

    def _forward(self, column: ValueColumn, field: Field, source: Snapshot) -> ValueColumn | None:
        saved = column.upto
        try:
            while column.upto < source.position and not column.given_up:
                upto = min(source.position, column.upto + WINDOW)
                column.extend(upto, _found(field, column.upto, upto, source))
            if column.given_up or column.upto - saved > _SAVE:
                column.save()
        except OSError as error:
            _log.warning("value_column_not_written", field=field.name, reason=str(error))
            del self._open[field]  # the next question looks what there is in the files
            return None
        return None if column.given_up else column


def _found(field: Field, low: int, high: int, source: Snapshot) -> Iterator[tuple[Any, pa.DictionaryArray]]:
    """Positions in ``[low, high)`` with a value, and the JSON texts of these."""
    bound: dict[str, Any] = {"low": low, "high": high}

    def bind(value: Any) -> str:
        bound[f"p{len(bound)}"] = value
        return f"$p{len(bound) - 1}"

    word = f"nullif({field.json(bind)}, 'null')"
    query = f"SELECT seq, {word} AS word FROM ever WHERE seq >= $low AND seq < $high AND {word} IS NOT NULL"
    for batch in source.stream(query, bound):
        yield batch.column("seq").to_numpy(), batch.column("word").dictionary_encode()
