"""Side areas of the SQLite state store: each a file of its own, so that filling it holds up no commit of a lane."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import msgspec

from analytics_core.errors import StorageError
from analytics_core.events import micros, moment
from analytics_core.state import Checkpoint, tables
from analytics_core.state.side import SAMPLE, Change, Counted, Difference
from analytics_core.state.sqlite import SqliteState

_FOLDER: Final = "replays"
_EVER: Final = -(1 << 63)

_NAMED: Final = """named (tenant, name) AS (
    SELECT tenant, name FROM main.catalogue WHERE lane = :lane UNION SELECT tenant, name FROM side.catalogue
)"""
"""So that points are found through their index, which begins with both."""
_KEY: Final = (
    "o.lane = :lane AND n.lane = :side AND n.tenant = o.tenant AND n.name = o.name AND n.start = o.start "
    "AND n.seconds = o.seconds AND n.labels = o.labels"
)
_OLD_POINTS: Final = (
    "named CROSS JOIN main.points o ON o.tenant = named.tenant AND o.name = named.name AND o.start >= :since "
    f"AND o.lane = :lane LEFT JOIN side.points n ON {_KEY}"
)
_NEW_POINTS: Final = (
    "named CROSS JOIN side.points n ON n.tenant = named.tenant AND n.name = named.name AND n.start >= :since "
    f"WHERE NOT EXISTS (SELECT 1 FROM main.points o WHERE {_KEY})"
)
_AS_GOOD: Final = (
    "o.kind = n.kind AND o.unit = n.unit AND o.sketch IS n.sketch AND "
    "(o.value IS n.value OR abs(o.value - n.value) <= 1e-9 * max(abs(o.value), abs(n.value)))"
)
_PAIRS: Final = f"""WITH {_NAMED}, pairs AS (
    SELECT o.tenant, o.name, o.start, o.seconds, o.labels, o.value AS old, n.value AS new,
        CASE WHEN n.tenant IS NULL THEN 'only_old' WHEN {_AS_GOOD} THEN 'equal' ELSE 'changed' END AS verdict
    FROM {_OLD_POINTS}
    UNION ALL
    SELECT n.tenant, n.name, n.start, n.seconds, n.labels, NULL, n.value, 'only_new' FROM {_NEW_POINTS}
)"""
_FAR: Final = "abs(coalesce(new, 0) - coalesce(old, 0))"
_VERDICTS: Final = ", ".join(f"sum(verdict = '{verdict}')" for verdict in ("equal", "changed", "only_old", "only_new"))
_COUNTS: Final = (
    f"{_PAIRS} SELECT name, {_VERDICTS}, coalesce(max(CASE verdict WHEN 'equal' THEN 0 ELSE {_FAR} END), 0) "
    "FROM pairs GROUP BY name ORDER BY name"
)
_SAMPLE: Final = (
    f"{_PAIRS} SELECT tenant, name, start, seconds, labels, old, new FROM pairs WHERE verdict <> 'equal' "
    f"ORDER BY {_FAR} DESC, name, start, tenant, labels LIMIT {SAMPLE}"
)


def _since(row: str) -> str:
    """Whether a record belongs to ``:since`` and later. Windows are whole seconds of ISO 8601."""
    begin = f"strftime('%s', json_extract(CAST({row}.body AS TEXT), '$.window.start'))"
    return f"coalesce(CAST({begin} AS INTEGER) * 1000000, {row}.updated_at) >= :since"


_SAME_RECORD: Final = "o.lane = :lane AND n.lane = :side AND n.tenant = o.tenant AND n.kind = o.kind AND n.key = o.key"
_OLD_RECORDS: Final = (
    f"main.records o WHERE o.lane = :lane AND {_since('o')} AND NOT EXISTS "
    f"(SELECT 1 FROM side.records n WHERE {_SAME_RECORD} AND {_since('n')})"
)
_NEW_RECORDS: Final = f"side.records n LEFT JOIN main.records o ON {_SAME_RECORD} WHERE {_since('n')}"
_RECORD_COUNTS: Final = f"""WITH pairs AS (
    SELECT n.kind, CASE WHEN o.body IS NULL THEN 'only_new' WHEN o.body = n.body THEN 'equal' ELSE 'changed' END
        AS verdict FROM {_NEW_RECORDS}
    UNION ALL
    SELECT o.kind, 'only_old' FROM {_OLD_RECORDS}
) SELECT kind, {_VERDICTS} FROM pairs GROUP BY kind ORDER BY kind DESC"""
_CHANGES: Final = (
    (
        f"WITH {_NAMED} SELECT o.rowid FROM {_OLD_POINTS} WHERE n.tenant IS NULL ORDER BY o.rowid",
        "DELETE FROM main.points WHERE lane = ? AND rowid = ?",
    ),
    (
        f"""WITH {_NAMED} SELECT o.rowid, n.rowid FROM {_OLD_POINTS} WHERE n.tenant IS NOT NULL AND NOT
        (o.kind = n.kind AND o.unit = n.unit AND o.sketch IS n.sketch AND o.value IS n.value) ORDER BY o.rowid""",
        """UPDATE main.points SET (kind, value, sketch, unit, updated_at) =
        (SELECT kind, value, sketch, unit, updated_at FROM side.points WHERE rowid = ?3)
        WHERE lane = ?1 AND rowid = ?2""",
    ),
    (
        f"WITH {_NAMED} SELECT n.rowid FROM {_NEW_POINTS} ORDER BY n.rowid",
        """INSERT INTO main.points SELECT tenant, name, start, ?1, seconds, labels, kind, value, sketch, unit,
        updated_at FROM side.points WHERE rowid = ?2""",
    ),
    (
        f"SELECT o.seq FROM {_OLD_RECORDS} UNION ALL SELECT o.seq FROM {_NEW_RECORDS} AND o.body <> n.body",
        "DELETE FROM main.records WHERE lane = ? AND seq = ?",
    ),
    (
        f"SELECT n.seq FROM {_NEW_RECORDS} AND o.body IS NOT n.body ORDER BY n.seq",
        """INSERT INTO main.records (tenant, kind, lane, key, body, updated_at)
        SELECT tenant, kind, ?1, key, body, updated_at FROM side.records WHERE seq = ?2""",
    ),
)
"""What a switch changes: what finds the rows, and what writes each, given the lane and what was found. In the order of
the disk the writing takes half the time. Rows that are the same stay untouched, so that no reader sees them anew."""
_CATALOGUE: Final = (
    "INSERT OR IGNORE INTO main.catalogue SELECT tenant, :lane, name, kind FROM side.catalogue",
    """DELETE FROM main.catalogue WHERE lane = :lane AND NOT EXISTS (SELECT 1 FROM main.points p WHERE
    p.tenant = catalogue.tenant AND p.name = catalogue.name AND p.lane = :lane AND p.kind = catalogue.kind)""",
)


class SqliteSides:
    """`SideAreas` in a folder beside the file of ``state``."""

    def __init__(self, state: SqliteState) -> None:
        self._state = state
        self._folder = state.path.parent / _FOLDER

    def open(self, lane: str, key: str) -> SqliteSide:
        return SqliteSide(self._state, self._folder / f"{lane}-{key}.db", lane)

    def clear(self) -> int:
        left = list(self._folder.glob("*.db")) if self._folder.is_dir() else []
        for path in left:
            _delete(path)
        return len(left)


class SqliteSide:
    """`SideArea` in a file of its own, at ``path``."""

    def __init__(self, state: SqliteState, path: Path, lane: str) -> None:
        self._state = state
        self._path = path
        self._lane = lane
        self.lane = f"{lane}~replay"
        self.store = SqliteState(path)

    def look(self, position: int, since: datetime | None) -> Callable[[], Difference]:
        """`SideArea.look`, by a transaction that reads: in WAL mode nobody waits for it."""
        bound = self._bound(since)
        reader = self._state.reader(beside=self._path)

        def compare() -> Difference:
            with self._comparing(reader):
                return _difference(reader, position, bound)

        return compare

    def switch(self, checkpoint: Checkpoint, since: datetime | None) -> None:
        """`SideArea.switch`. Other lanes wait for the writing alone: what differs is found before."""
        bound = self._bound(since)
        with self._comparing(self._state.reader(beside=self._path)) as reader:
            changes = [(write, *_numbers(reader.execute(read, bound))) for read, write in _CHANGES]
            with self._state.transaction("switching to rebuilt outputs", beside=self._path) as connection:
                tables.fence(connection, checkpoint)
                if checkpoint.state is not None:
                    tables.put_state(connection, checkpoint.lane, checkpoint.state, checkpoint.state_version)
                for write, width, rows in changes:
                    connection.executemany(write, zip(repeat(self._lane), *[iter(rows)] * width))
                for statement in _CATALOGUE:
                    connection.execute(statement, bound)

    def drop(self) -> None:
        self.store.close()
        _delete(self._path)

    @contextmanager
    def _comparing(self, reader: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        try:
            yield reader
        except sqlite3.Error as error:
            raise StorageError(f"comparing {self._path} failed: {error}") from error
        finally:
            reader.close()

    def _bound(self, since: datetime | None) -> dict[str, Any]:
        return {"lane": self._lane, "side": self.lane, "since": _EVER if since is None else micros(since)}


def _numbers(rows: sqlite3.Cursor) -> tuple[int, array[int]]:
    """How many columns, and all that is in them row by row; an eighth of what a list would take."""
    return len(rows.description), array("q", chain.from_iterable(rows))


def _difference(connection: sqlite3.Connection, position: int, bound: dict[str, Any]) -> Difference:
    counts = [
        Counted(what="metric", name=name, equal=e, changed=c, only_old=o, only_new=n, largest=largest)
        for name, e, c, o, n, largest in connection.execute(_COUNTS, bound)
    ]
    counts += [
        Counted(what=kind, equal=e, changed=c, only_old=o, only_new=n)
        for kind, e, c, o, n in connection.execute(_RECORD_COUNTS, bound)
    ]
    sample = [
        Change(
            tenant=tenant,
            name=name,
            start=moment(start),
            seconds=seconds,
            labels=msgspec.json.decode(labels),
            old=old,
            new=new,
        )
        for tenant, name, start, seconds, labels, old, new in connection.execute(_SAMPLE, bound)
    ]
    return Difference(position=position, equal=all(one.same for one in counts), counts=counts, sample=sample)


def _delete(path: Path) -> None:
    """What cannot be deleted is left to the next start."""
    for file in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"), path):
        with suppress(OSError):
            file.unlink(missing_ok=True)
