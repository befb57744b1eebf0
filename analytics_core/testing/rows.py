"""Batches from plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import pyarrow as pa

from analytics_core.errors import near
from analytics_core.events import SCHEMA, EventBatch, micros, moment
from analytics_core.events.times import parse_time
from analytics_core.testing.clock import START, Clock

_KEYS: Final = ("event", *(name for name in SCHEMA.names if name != "tenant"))

Row = Mapping[str, Any]


def batch(
    rows: Sequence[Row], tenant: str = "default", watermark: datetime | None = None, *, first_seq: int = 0
) -> EventBatch:
    """An `EventBatch` of plain dicts, in log order; without rows an empty one, which says that time has passed.

    Keys are the columns of `events.SCHEMA`, with ``event`` for ``name``; only the name is required. Times are
    datetimes, ISO 8601 or epoch; ``received_at`` defaults to ``timestamp`` and the other way round. ``properties`` and
    ``context`` are dicts, or JSON objects as text. ``seq`` counts from ``first_seq``; ``watermark`` defaults to the
    latest ``received_at``.

    :raises TypeError: for an unknown key, or properties that JSON cannot hold.
    :raises ValueError: for a time that is none.
    """
    plain = [_plain(row, tenant, first_seq + index, START + timedelta(seconds=index)) for index, row in enumerate(rows)]
    columns = [pa.array([row[field.name] for row in plain], field.type) for field in SCHEMA]
    record_batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    latest = max((row["received_at"] for row in plain), default=micros(START))
    return EventBatch(record_batch, tenant, watermark or moment(latest))


class Feed:
    """Batches one after the other, as a log gives them: positions go on, and the watermark is the clock's time.

    Rows that say nothing about time happen now; a row that was received later takes the clock along.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = 0

    def __call__(self, rows: Sequence[Row] = (), tenant: str = "default") -> EventBatch:
        now = self._clock.now
        timed = [row if row.keys() & {"timestamp", "received_at"} else {**row, "timestamp": now} for row in rows]
        made = batch(timed, tenant, first_seq=self._next)
        self._next += len(made)
        if len(made):
            self._clock.set(max(now, made.watermark))
        made.watermark = self._clock.now
        return made


def _plain(row: Row, tenant: str, seq: int, default: datetime) -> dict[str, Any]:
    for key in row:
        if key not in _KEYS:
            raise TypeError(f"row {seq}: unknown key {key!r}{near(key, _KEYS)}")
    timestamp = row.get("timestamp", row.get("received_at", default))
    return {
        "partition": 0,
        "seq": seq,
        "event_id": f"e{seq}",
        "user_id": None,
        "anonymous_id": None,
        "session_id": None,
        "source": "native",
        **row,
        "tenant": tenant,
        "name": row["event"] if "event" in row else row["name"],
        "timestamp": _micros(timestamp),
        "received_at": _micros(row.get("received_at", timestamp)),
        "properties": _json(row.get("properties", {})),
        "context": _json(row.get("context", {})),
    }


def _json(value: Mapping[str, Any] | str) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _micros(value: datetime | str | float) -> int:
    return micros(value) if isinstance(value, datetime) else parse_time(value)
