"""The tables of the SQLite state store, and what a commit writes to each."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from analytics_core.errors import FencedError
from analytics_core.events import micros
from analytics_core.records import Insight, Pattern
from analytics_core.state import Checkpoint, Message, Outputs
from analytics_core.state.chunks import cut

OUTBOX_SECONDS: Final = 3600
OUTBOX_MESSAGES: Final = 100_000
VERSION: Final = 2
SCHEMA: Final = """
CREATE TABLE cursors (
    lane TEXT PRIMARY KEY, epoch INTEGER NOT NULL, position INTEGER NOT NULL, events INTEGER NOT NULL,
    state_version INTEGER NOT NULL, chunks INTEGER, chunk_order BLOB
) STRICT;
CREATE TABLE state (
    lane TEXT NOT NULL, chunk INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, UNIQUE (lane, chunk)
) STRICT;
CREATE TABLE points (
    tenant TEXT NOT NULL, name TEXT NOT NULL, start INTEGER NOT NULL, lane TEXT NOT NULL, seconds INTEGER NOT NULL,
    labels TEXT NOT NULL, kind TEXT NOT NULL, value REAL, sketch BLOB, unit TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (tenant, name, start, lane, seconds, labels)
) STRICT;
CREATE TABLE catalogue (
    tenant TEXT NOT NULL, lane TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (tenant, lane, name, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, kind TEXT NOT NULL, lane TEXT NOT NULL,
    key TEXT NOT NULL, body BLOB NOT NULL, updated_at INTEGER NOT NULL, UNIQUE (tenant, kind, lane, key)
) STRICT;
CREATE INDEX records_in_order ON records (tenant, kind, seq);
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, tenant TEXT NOT NULL, topic TEXT NOT NULL,
    body BLOB NOT NULL, created_at INTEGER NOT NULL, UNIQUE (tenant, id)
) STRICT;
CREATE INDEX outbox_by_age ON outbox (created_at);
CREATE TABLE documents (
    tenant TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, updated_at INTEGER NOT NULL,
    UNIQUE (tenant, kind, key)
) STRICT;
"""
UPGRADES: Final = {
    1: "ALTER TABLE cursors ADD COLUMN chunk_order BLOB;\n"
    "ALTER TABLE points ADD COLUMN updated_at INTEGER NOT NULL DEFAULT {now};\n",
}
"""What makes the tables of one version those of the next. ``now``: microseconds since 1970 UTC."""


def create(connection: sqlite3.Connection, found: int, now: int) -> None:
    """Make the tables, or bring those of version ``found`` up to date."""
    steps = [UPGRADES[version].format(now=now) for version in range(found, VERSION)] if found else [SCHEMA]
    for statement in "".join(steps).split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def fence(connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    changed = connection.execute(
        "UPDATE cursors SET position = ?, events = ? WHERE lane = ? AND epoch = ?",
        (checkpoint.position, checkpoint.events, checkpoint.lane, checkpoint.epoch),
    )
    if not changed.rowcount:
        row = connection.execute("SELECT epoch FROM cursors WHERE lane = ?", (checkpoint.lane,)).fetchone()
        raise FencedError(checkpoint.lane, checkpoint.epoch, row[0] if row else 0)


def put_state(connection: sqlite3.Connection, lane: str, state: bytes, version: int) -> None:
    """Write the pieces that are not there yet. ``chunk_order`` names them all in order, each an int64."""
    chunks = cut(state)
    digests = [blake2b(chunk, digest_size=16).digest() for chunk in chunks]
    stored = connection.execute("SELECT digest, chunk FROM state WHERE lane = ?", (lane,)).fetchall()
    known: dict[bytes, int] = dict(stored)
    free = max((number for _, number in stored), default=-1) + 1
    fresh: list[tuple[str, int, bytes, memoryview]] = []
    for digest, chunk in zip(digests, chunks, strict=True):
        if digest not in known:
            known[digest] = free + len(fresh)
            fresh.append((lane, known[digest], digest, chunk))
    order = array("q", (known[digest] for digest in digests))
    connection.executemany("INSERT INTO state VALUES (?, ?, ?, ?)", fresh)
    gone = {number for _, number in stored} - set(order)
    connection.executemany("DELETE FROM state WHERE lane = ? AND chunk = ?", ((lane, number) for number in gone))
    connection.execute(
        "UPDATE cursors SET state_version = ?, chunks = ?, chunk_order = ? WHERE lane = ?",
        (version, len(chunks), order.tobytes(), lane),
    )


def read_state(connection: sqlite3.Connection, lane: str, chunks: int, order: bytes | None) -> bytes:
    """What `put_state` wrote; without ``order`` (version 1) the pieces are numbered in order."""
    bodies = dict(connection.execute("SELECT chunk, body FROM state WHERE lane = ?", (lane,)))
    return b"".join(bodies[number] for number in (range(chunks) if order is None else array("q", order)))


def put_points(connection: sqlite3.Connection, lane: str, found: Outputs, now: int) -> None:
    tenant = found.tenant
    connection.executemany(
        "INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = excluded.kind, "
        "value = excluded.value, sketch = excluded.sketch, unit = excluded.unit, updated_at = excluded.updated_at",
        (
            (
                tenant,
                metric.name,
                micros(metric.window.start),
                lane,
                metric.window.seconds,
                msgspec.json.encode(metric.labels, order="sorted").decode(),
                metric.kind,
                metric.value,
                metric.sketch,
                metric.unit,
                now,
            )
            for metric in found.metrics
        ),
    )
    named = {(tenant, lane, metric.name, metric.kind) for metric in found.metrics}
    connection.executemany("INSERT INTO catalogue VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", named)


def put_records(
    connection: sqlite3.Connection, lane: str, tenant: str, kind: str, found: Sequence[Insight | Pattern], now: int
) -> None:
    rows = [
        (tenant, kind, lane, key, body, now) for key, body in {f.key: msgspec.json.encode(f) for f in found}.items()
    ]
    connection.executemany(
        "DELETE FROM records WHERE tenant = ? AND kind = ? AND lane = ? AND key = ? AND body <> ?",
        (row[:5] for row in rows),
    )
    connection.executemany(
        "INSERT INTO records (tenant, kind, lane, key, body, updated_at) SELECT ?1, ?2, ?3, ?4, ?5, ?6 "
        "WHERE NOT EXISTS (SELECT 1 FROM records WHERE tenant = ?1 AND kind = ?2 AND lane = ?3 AND key = ?4)",
        rows,
    )


def put_messages(connection: sqlite3.Connection, messages: Sequence[Message], now: int) -> None:
    """A message that is there already is not pushed anew, unless its body changed."""
    rows = [(m.tenant, m.id, m.topic, m.body, now) for m in {(m.tenant, m.id): m for m in messages}.values()]
    connection.executemany(
        "DELETE FROM outbox WHERE tenant = ? AND id = ? AND body <> ?", ((row[0], row[1], row[3]) for row in rows)
    )
    connection.executemany(
        "INSERT INTO outbox (tenant, id, topic, body, created_at) SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS "
        "(SELECT 1 FROM outbox WHERE tenant = ?1 AND id = ?2)",  # ON CONFLICT would use up a position
        rows,
    )
    connection.execute("DELETE FROM outbox WHERE created_at < ?", (now - OUTBOX_SECONDS * 1_000_000,))
    connection.execute("DELETE FROM outbox WHERE seq <= (SELECT max(seq) FROM outbox) - ?", (OUTBOX_MESSAGES,))


def forget(connection: sqlite3.Connection, default: int | None, by_tenant: Mapping[str, int | None]) -> int:
    """`StateStore.forget`, in microseconds. Point by point through their index: a scan would hold up the lanes."""
    rows = 0
    for tenant, name in connection.execute("SELECT DISTINCT tenant, name FROM catalogue").fetchall():
        if (before := by_tenant.get(tenant, default)) is not None:
            rows += connection.execute(
                "DELETE FROM points WHERE tenant = ?1 AND name = ?2 AND start < ?3 AND updated_at < ?3",
                (tenant, name, before),
            ).rowcount
    for table in ("records", "documents"):
        found = connection.execute(f"SELECT DISTINCT tenant FROM {table} WHERE tenant GLOB '[a-z0-9]*'").fetchall()
        for (tenant,) in found:
            if (before := by_tenant.get(tenant, default)) is not None:
                rows += connection.execute(
                    f"DELETE FROM {table} WHERE tenant = ? AND updated_at < ?", (tenant, before)
                ).rowcount
    if rows:
        drop_unused_names(connection)
    return rows


def drop_unused_names(connection: sqlite3.Connection) -> None:
    """Of metrics that have no points any more."""
    connection.execute(
        "DELETE FROM catalogue WHERE NOT EXISTS (SELECT 1 FROM points WHERE points.tenant = catalogue.tenant "
        "AND points.name = catalogue.name AND points.lane = catalogue.lane AND points.kind = catalogue.kind)"
    )
