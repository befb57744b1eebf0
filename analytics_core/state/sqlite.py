"""The embedded state store: one SQLite file in WAL mode."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from math import nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from analytics_core.errors import StorageError
from analytics_core.events import micros, moment
from analytics_core.records import MetricKind
from analytics_core.state import Checkpoint, Message, Outputs, Point, tables

_BUSY_SECONDS: Final = 10.0
_EMPTYING_SECONDS: Final = 0.2
"""How long lanes wait for readers when the journal is to be emptied."""


class SqliteState:
    """`StateStore` over the SQLite file at ``path``: one writing connection, and reading ones as many as read at once.

    ``synchronous`` is FULL: a commit is on disk when it returns. Lanes commit every few seconds, so the fsync costs
    nothing that counts, while without it power loss could take back an epoch, a document that a client was told of, or
    outbox positions that clients resume from.

    :raises StorageError: when the file cannot be opened, or a newer version of this software wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reported("opening"):
            self._writer = self._connect()
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("PRAGMA synchronous = FULL")
                self._writer.execute("PRAGMA secure_delete = ON")  # what is erased is in no free page either
                self._writer.execute("PRAGMA journal_size_limit = 67108864")
                self._create()
            except BaseException:
                self._writer.close()
                raise

    def _create(self) -> None:
        (found,) = self._writer.execute("PRAGMA user_version").fetchone()
        if found > tables.VERSION:
            raise StorageError(
                f"{self._path} has state schema {found}, this version knows up to {tables.VERSION}; "
                "start the version that wrote it, or a newer one"
            )
        if found < tables.VERSION:
            with self._transaction("creating the tables") as connection:
                tables.create(connection, found, micros(datetime.now(UTC)))

    # --- lanes -------------------------------------------------------------------------------------------------------

    def claim(self, lane: str) -> Checkpoint:
        with self._transaction("claiming a lane") as connection:
            epoch, position, events, version, chunks, order = connection.execute(
                "INSERT INTO cursors VALUES (?, 1, 0, 0, 1, NULL, NULL) "
                "ON CONFLICT (lane) DO UPDATE SET epoch = epoch + 1 "
                "RETURNING epoch, position, events, state_version, chunks, chunk_order",
                (lane,),
            ).fetchone()
            state = None if chunks is None else tables.read_state(connection, lane, chunks, order)
        return Checkpoint(lane=lane, epoch=epoch, position=position, state=state, state_version=version, events=events)

    def commit(self, checkpoint: Checkpoint, outputs: Sequence[Outputs] = (), messages: Sequence[Message] = ()) -> int:
        lane = checkpoint.lane
        now = micros(datetime.now(UTC))
        with self._transaction("committing") as connection:
            tables.fence(connection, checkpoint)
            if checkpoint.state is not None:
                tables.put_state(connection, lane, checkpoint.state, checkpoint.state_version)
            for found in outputs:
                tables.put_points(connection, lane, found, now)
                tables.put_records(connection, lane, found.tenant, "pattern", found.patterns, now)
                tables.put_records(connection, lane, found.tenant, "insight", found.insights, now)
            if messages:
                tables.put_messages(connection, messages, now)
            last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return int(last[0]) if last else 0

    def forget(self, before: datetime | None, by_tenant: Mapping[str, datetime | None] = MappingProxyType({})) -> int:
        """`StateStore.forget`."""
        with self._transaction("forgetting") as connection:
            return tables.forget(
                connection,
                None if before is None else micros(before),
                {tenant: None if at is None else micros(at) for tenant, at in by_tenant.items()},
            )

    # --- reading -----------------------------------------------------------------------------------------------------

    def outbox(self, after: int, limit: int = 1000) -> list[Message]:
        rows = self._read(
            "SELECT seq, id, tenant, topic, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return [
            Message(seq=seq, id=id_, tenant=tenant, topic=topic, body=body) for seq, id_, tenant, topic, body in rows
        ]

    def points(
        self, tenant: str, name: str, start: datetime, end: datetime, labels: Mapping[str, str] | None = None
    ) -> list[Point]:
        """`StateStore.points`; with ``labels`` those that carry all of them, whatever else they carry."""
        rows = self._read(
            "SELECT lane, start, seconds, labels, kind, value, sketch, unit FROM points "
            "WHERE tenant = ? AND name = ? AND start >= ? AND start < ? ORDER BY start, lane, seconds, labels",
            (tenant, name, micros(start), micros(end)),
        )
        wanted = (labels or {}).items()
        return [
            Point(
                lane=lane,
                name=name,
                start=moment(at),
                seconds=seconds,
                labels=dict(carried),
                kind=kind,
                value=nan if value is None else value,
                sketch=sketch,
                unit=unit,
            )
            for lane, at, seconds, text, kind, value, sketch, unit in rows
            if wanted <= (carried := _labels(text)).items()
        ]

    def catalogue(self, tenant: str) -> list[tuple[str, str, MetricKind]]:
        return self._read("SELECT lane, name, kind FROM catalogue WHERE tenant = ? ORDER BY 1, 2, 3", (tenant,))

    def records(
        self,
        tenant: str,
        kind: Literal["insight", "pattern"],
        *,
        lane: str | None = None,
        after: int = 0,
        limit: int = 100,
        newest: bool = False,
    ) -> list[dict[str, Any]]:
        """`StateStore.records`. A changed record takes a new ``seq``, so that who pages on sees the change.

        With ``newest`` the order is the other way round, and ``after`` is what to stay below.
        """
        bound = "seq < ?" if newest and after else "seq > ?"
        rows = self._read(
            f"SELECT seq, lane, body, updated_at FROM records WHERE tenant = ? AND kind = ? AND {bound} "
            f"AND (?4 IS NULL OR lane = ?4) ORDER BY seq {'DESC' if newest else ''} LIMIT ?5",
            (tenant, kind, after, lane, limit),
        )
        return [
            {**msgspec.json.decode(body), "lane": lane, "updated_at": moment(at).isoformat(), "seq": seq}
            for seq, lane, body, at in rows
        ]

    def document(self, tenant: str, kind: str, key: str, body: bytes | None = None) -> bytes | None:
        """`StateStore.document`; what was written is given back."""
        if body is None:
            sql = "SELECT body FROM documents WHERE tenant = ? AND kind = ? AND key = ?"
            rows = self._read(sql, (tenant, kind, key))
            return rows[0][0] if rows else None
        with self._transaction("writing a document") as connection:
            connection.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, kind, key) "
                "DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at",
                (tenant, kind, key, body, micros(datetime.now(UTC))),
            )
        return body

    # --- connections -------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._path

    @contextmanager
    def transaction(self, doing: str, *, beside: Path | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction of our one writer, in which the tables of the file ``beside``, if any, are called ``side``.

        :raises StorageError: naming what was ``doing``; nothing has changed.
        """
        with self._transaction(doing, beside) as connection:
            yield connection

    def reader(self, *, beside: Path) -> sqlite3.Connection:
        """A connection for any thread that sees this file and ``beside`` (``side``) as they are now until it is closed.

        :raises StorageError: when they cannot be read.
        """
        with self._reported("reading"):
            connection = self._connect()
            try:
                connection.execute("ATTACH DATABASE ? AS side", (str(beside),))
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
                connection.execute("SELECT (SELECT count(*) FROM main.cursors), (SELECT count(*) FROM side.cursors)")
            except BaseException:
                connection.close()
                raise
        return connection

    def empty_journal(self) -> bool:
        """Bring the journal's changes into the file and empty it, so that it has no earlier contents any more; whether
        that was done, which a reader prevents.

        :raises StorageError: when it fails.
        """
        with self._lock, self._reported("emptying the journal"):
            self._writer.execute(f"PRAGMA busy_timeout = {_EMPTYING_SECONDS * 1000:.0f}")
            try:
                (busy, *_) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")
        return not busy

    def close(self) -> None:
        """Wait for the commit under way. Readers still at work end their read first."""
        self._closed = True
        with self._lock:
            self._writer.close()
        self._close_idle()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{doing} in {self._path} failed: {error}") from error

    @contextmanager
    def _transaction(self, doing: str, beside: Path | None = None) -> Iterator[sqlite3.Connection]:
        """All or nothing, one at a time."""
        with self._lock, self._reported(doing), _attached(self._writer, beside) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _read(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        if self._closed:
            raise StorageError(f"{self._path} is closed")
        with self._reported("reading"):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
            try:
                return connection.execute(sql, parameters).fetchall()
            finally:
                self._idle.append(connection)
                if self._closed:
                    self._close_idle()


@contextmanager
def _attached(connection: sqlite3.Connection, beside: Path | None) -> Iterator[sqlite3.Connection]:
    if beside is None:
        yield connection
        return
    connection.execute("ATTACH DATABASE ? AS side", (str(beside),))
    try:
        yield connection
    finally:
        connection.execute("DETACH DATABASE side")


@lru_cache(4096)
def _labels(text: str) -> dict[str, str]:
    """Cached: a metric has few label sets and many windows."""
    return msgspec.json.decode(text, type=dict[str, str])
