"""Events for tests: batches from plain rows, the clock that gives their time, and rows as awkward as in a real log."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pyarrow as pa

from analytics_core.errors import near
from analytics_core.events import SCHEMA, EventBatch, micros, moment
from analytics_core.events.times import parse_time

START: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""When a row happens that says nothing about time; each later row of the batch comes a second later."""
_KEYS: Final = ("event", *(name for name in SCHEMA.names if name != "tenant"))

Row = Mapping[str, Any]


class Clock:
    """Stands still until it is told otherwise, and never goes back, as the log's watermark never does."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __repr__(self) -> str:
        return f"<Clock at {self.now.isoformat()}>"

    def set(self, at: datetime) -> datetime:
        """:raises ValueError: for a time that is over, or that has no time zone."""
        if at.tzinfo is None:
            raise ValueError(f"{at.isoformat()} has no time zone; valid is an aware datetime")
        if at < self.now:
            raise ValueError(f"the clock is at {self.now.isoformat()} and never goes back, here to {at.isoformat()}")
        self.now = at.astimezone(UTC)
        return self.now

    def advance(self, **duration: float) -> datetime:
        """Go on by ``days``, ``hours``, ``minutes``, ``seconds``, ... as `datetime.timedelta` takes them."""
        return self.set(self.now + timedelta(**duration))


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


# --- made up ---------------------------------------------------------------------------------------------------------

_BEGIN: Final = datetime(2025, 3, 1, 21, 40, tzinfo=UTC)
_NAMES: Final = ("page_view", "product_view", "add_to_cart", "purchase", "signup", "GET /", "größe geändert", "購入 🛒")
_VISITORS: Final = ("ada", "bob", "cat", "dan", "eve", "fay", "ольга", "null", "0")
_STEPS: Final = (0.0, 0.0, 0.2, 7.0, 61.0, 500.0, 1_790.0, 1_900.0)
"""Seconds from one receipt to the next: the same moment, the next minute, around half an hour."""
_BEHIND: Final = (0.0, 0.0, 0.0, 0.5, 45.0, 310.0, 7_300.0, 90_000.0, -80.0)
"""Seconds from when an event happened to its receipt: late by up to a day and more, or ahead of its time."""
_LONG: Final = 5 * 3_600.0


def mixed_rows(seed: int = 0, count: int = 60) -> list[dict[str, Any]]:
    """Rows for `batch`, in log order, equal for equal ``seed``: several visitors with and without sessions, nobody's
    events, times late, early, out of order and missing, unicode, and properties of every type or none.
    """
    choose = random.Random(seed)
    received, rows = _BEGIN, []
    for index in range(count):
        pause = _LONG if index == count // 2 else choose.choice(_STEPS)
        received += timedelta(seconds=pause, microseconds=choose.randrange(1_000))
        crossing = timedelta(milliseconds=choose.choice((0, 0, 0, 3)))  # two requests on their way at once
        row: dict[str, Any] = {"event": choose.choice(_NAMES), "received_at": received - crossing, **_ids(choose)}
        if choose.random() < 0.9:
            row["timestamp"] = received - crossing - timedelta(seconds=choose.choice(_BEHIND))
        if choose.random() < 0.8:
            row["properties"] = _properties(choose)
        rows.append(row)
    return rows


def _ids(choose: random.Random) -> dict[str, str]:
    visitor = choose.choice(_VISITORS)
    match choose.randrange(8):
        case 0:
            return {}
        case 1 | 2:
            return {"anonymous_id": f"a-{visitor}"}
        case 3:
            return {"user_id": visitor, "anonymous_id": f"a-{visitor}", "session_id": "s1"}
        case 4:
            return {"user_id": visitor, "session_id": f"s-{visitor}"}
    return {"user_id": visitor}


def _properties(choose: random.Random) -> dict[str, Any] | str:
    match choose.randrange(7):
        case 0:
            return {}
        case 1:
            return {"path": "/größe?q=1", "title": "ナイキ 👟", "referrer": None}
        case 2:
            return {"revenue": round(choose.uniform(0, 200), 2), "currency": "EUR", "items": ["a", None, 3]}
        case 3:
            return '{ "\\u0064uration": 1e2, "dup": 1, "dup": "\\ud83d\\uded2" }'
        case 4:
            return {"cart": {"total": choose.randrange(5), "": {}}, "error": True, "n": 2**53, "status": "503"}
    status = choose.choice((200, 200, 404, 503))
    return {"duration": round(choose.lognormvariate(4, 1), 3), "status": status, "value": -0.0}
