"""The tables of the SQLite state store, and what a commit writes to each."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from analytics_core.errors import FencedError
from analytics_core.events import micros
from analytics_core.records import Insight, Pattern
from analytics_core.state import Checkpoint, Message, Outputs

CHUNK_BYTES: Final = 256 << 10
"""State is kept in pieces of this size, of which a commit writes only those that changed."""
OUTBOX_SECONDS: Final = 3600
OUTBOX_MESSAGES: Final = 100_000
VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE cursors (
    lane TEXT PRIMARY KEY, epoch INTEGER NOT NULL, position INTEGER NOT NULL, events INTEGER NOT NULL,
    state_version INTEGER NOT NULL, chunks INTEGER
) STRICT;
CREATE TABLE state (
    lane TEXT NOT NULL, chunk INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, UNIQUE (lane, chunk)
) STRICT;
CREATE TABLE points (
    tenant TEXT NOT NULL, name TEXT NOT NULL, start INTEGER NOT NULL, lane TEXT NOT NULL, seconds INTEGER NOT NULL,
    labels TEXT NOT NULL, kind TEXT NOT NULL, value REAL, sketch BLOB, unit TEXT NOT NULL,
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


def fence(connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    changed = connection.execute(
        "UPDATE cursors SET position = ?, events = ? WHERE lane = ? AND epoch = ?",
        (checkpoint.position, checkpoint.events, checkpoint.lane, checkpoint.epoch),
    )
    if not changed.rowcount:
        row = connection.execute("SELECT epoch FROM cursors WHERE lane = ?", (checkpoint.lane,)).fetchone()
        raise FencedError(checkpoint.lane, checkpoint.epoch, row[0] if row else 0)


def put_state(connection: sqlite3.Connection, lane: str, state: bytes, version: int) -> None:
    view = memoryview(state)
    chunks = [view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES)]
    stored = dict(connection.execute("SELECT chunk, digest FROM state WHERE lane = ?", (lane,)))
    digests = [blake2b(chunk, digest_size=16).digest() for chunk in chunks]
    connection.executemany(
        "INSERT INTO state VALUES (?, ?, ?, ?) "
        "ON CONFLICT (lane, chunk) DO UPDATE SET digest = excluded.digest, body = excluded.body",
        ((lane, i, d, chunks[i]) for i, d in enumerate(digests) if stored.get(i) != d),
    )
    connection.execute("DELETE FROM state WHERE lane = ? AND chunk >= ?", (lane, len(chunks)))
    connection.execute("UPDATE cursors SET state_version = ?, chunks = ? WHERE lane = ?", (version, len(chunks), lane))


def put_points(connection: sqlite3.Connection, lane: str, found: Outputs) -> None:
    tenant = found.tenant
    connection.executemany(
        "INSERT INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "kind = excluded.kind, value = excluded.value, sketch = excluded.sketch, unit = excluded.unit",
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
