"""Erasure in the SQLite state store: rows are found by reading, and dropped a few at a time, so no lane waits long."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from analytics_core.errors import StorageError
from analytics_core.state import tables
from analytics_core.state.erasing import names
from analytics_core.state.sqlite import SqliteState

_HOLDERS: Final = {
    "points": ("points", "labels", ""),
    "insights": ("records", "body", "AND kind = 'insight'"),
    "patterns": ("records", "body", "AND kind = 'pattern'"),
    "documents": ("documents", "body", ""),
    "pushes": ("outbox", "body", ""),
}
"""What may name a user: its table, the column to look into, and which rows of the table are meant."""
_AT_ONCE: Final = 1_000
_IDS_AT_ONCE: Final = 100
"""Ids that one reading of a table looks for."""


class SqliteErasing:
    """`StateEraser` over a `SqliteState`."""

    def __init__(self, state: SqliteState) -> None:
        self._state = state

    def positions(self) -> dict[str, int]:
        with self._reading() as connection:
            return dict(connection.execute("SELECT lane, position FROM cursors").fetchall())

    def find(self, tenant: str, ids: Sequence[str]) -> dict[str, int]:
        """`StateEraser.find`."""
        return {what: len(self._holding(*holder, tenant, ids)) for what, holder in _HOLDERS.items()}

    def erase(self, tenant: str, ids: Sequence[str]) -> dict[str, int]:
        """`StateEraser.erase`."""
        dropped = {}
        for what, (table, column, which) in _HOLDERS.items():
            found = self._holding(table, column, which, tenant, ids)
            dropped[what] = 0
            for at in range(0, len(found), _AT_ONCE):
                with self._state.transaction("erasing") as connection:
                    dropped[what] += connection.executemany(
                        f"DELETE FROM {table} WHERE rowid = ? AND {column} = ?", found[at : at + _AT_ONCE]
                    ).rowcount
        if dropped["points"]:
            with self._state.transaction("erasing") as connection:
                tables.drop_unused_names(connection)
        return dropped

    def settle(self) -> bool:
        """`StateEraser.settle`."""
        return self._state.empty_journal()

    def drop_lane(self, lane: str) -> None:
        """`StateEraser.drop_lane`. The epoch stays and grows, by which earlier lives are told from later ones."""
        with self._state.transaction("dropping the state of a lane") as connection:
            connection.execute("DELETE FROM state WHERE lane = ?", (lane,))
            connection.execute(
                "UPDATE cursors SET epoch = epoch + 1, position = 0, events = 0, state_version = 1, chunks = NULL, "
                "chunk_order = NULL WHERE lane = ?",
                (lane,),
            )

    def _holding(
        self, table: str, column: str, which: str, tenant: str, ids: Sequence[str]
    ) -> list[tuple[int, bytes | str]]:
        """Row numbers and texts. First those with an id anywhere in them, as JSON writes it, then a closer look."""
        found: dict[int, bytes | str] = {}
        with self._reading() as connection:
            for at in range(0, len(ids), _IDS_AT_ONCE):
                sought = [msgspec.json.encode(id_)[1:-1] for id_ in ids[at : at + _IDS_AT_ONCE]]
                anywhere = " OR ".join([f"instr(CAST({column} AS BLOB), ?)"] * len(sought))
                rows = connection.execute(
                    f"SELECT rowid, {column} FROM {table} WHERE tenant = ? {which} AND ({anywhere})", (tenant, *sought)
                )
                found.update((number, body) for number, body in rows if names(body, ids))
        return list(found.items())

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(f"file:{self._state.path}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise StorageError(f"reading {self._state.path} failed: {error}") from error
        try:
            yield connection
        except sqlite3.Error as error:
            raise StorageError(f"reading {self._state.path} failed: {error}") from error
        finally:
            connection.close()
