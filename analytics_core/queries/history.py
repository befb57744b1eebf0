"""History: one snapshot of the lake and the log's tail for each question, fresh to the last acknowledged event."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final
from weakref import WeakSet

import msgspec
from msgspec import Meta, Raw, Struct

from analytics_core.errors import ParameterError, QueryError, StoppingError, TrimmedError
from analytics_core.events import micros, moment
from analytics_core.lake import EventStore
from analytics_core.log import LogReader
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.reader import Limits, MetricSource, Reader, ReaderSpec
from analytics_core.queries.tail import TailCache, read_tail
from analytics_core.records import TimeRange

ALL_TIME: Final = TimeRange(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
MAX_PAGE: Final = 1_000
MAX_NAMES: Final = 10_000
_ATTEMPTS: Final = 5
_AGAIN_SECONDS: Final = 0.05

_WIRE: Final = (
    "name AS event, user_id, anonymous_id, session_id, timestamp, received_at, event_id, source, properties, context, "
    "partition, seq"
)


_Micros = Annotated[int, Meta(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]
"""What a datetime can say: the years 1 to 9999."""
_Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Cursor(Struct, array_like=True):
    """Where a page ended: the key of its last row, and which query it belongs to."""

    query: bytes
    start: _Micros
    end: _Micros
    timestamp: _Micros
    partition: Annotated[int, Meta(ge=0, le=2**15 - 1)]
    seq: _Position


_cursor: Final = msgspec.msgpack.Decoder(_Cursor)  # made before there are threads, as in lanes.checkpoint


class History:
    """Reads what `store` has and, beyond its position, what `log` has: each durable event exactly once.

    Safe for use from any thread. ``log_directory`` is where another process finds the log; not given, it is asked of
    the log, and a log that has none (Redis) gives snapshots that stay in this process.
    """

    def __init__(
        self,
        log: LogReader,
        store: EventStore,
        *,
        log_directory: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> None:
        self._log = log
        self._store = store
        self._directory = log_directory or getattr(log, "directory", None)
        self._limits = limits
        self._tails = TailCache(log)
        self._readers: WeakSet[Reader] = WeakSet()
        self._lock = threading.Lock()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether `interrupt` was called: no question is answered any more."""
        return self._stopping

    def interrupt(self) -> None:
        """End the queries of every open reader, and refuse new ones: the host stops. Does not wait for their ends."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        threading.Thread(target=self._interrupt_all, name="history:interrupt", daemon=True).start()

    def _interrupt_all(self) -> None:
        """Until none runs: an interrupt that comes just before a query begins has no effect on it."""
        while sum(reader.interrupt() for reader in self._opened()):
            time.sleep(_AGAIN_SECONDS)

    def _opened(self) -> list[Reader]:
        with self._lock:
            return list(self._readers)

    def reader(
        self,
        tenant: str,
        range: TimeRange = ALL_TIME,  # noqa: A002
        filters: Sequence[Filter] = (),
        *,
        metrics: MetricSource | None = None,
    ) -> Reader:
        """A snapshot taken now; close it, or use it as a context manager, to release the files it reads.

        :raises QueryError: when the log is trimmed faster than a snapshot can be taken.
        :raises StoppingError: when the host stops.
        """
        for _ in _range(_ATTEMPTS):
            try:
                return self._snapshot(tenant, range, tuple(filters), metrics)
            except TrimmedError as error:  # a commit and a trim came between lease and read: lease the newer version
                last = error
        raise QueryError(f"no snapshot after {_ATTEMPTS} attempts: {last}")

    def _snapshot(
        self,
        tenant: str,
        range: TimeRange,  # noqa: A002
        filters: tuple[Filter, ...],
        metrics: MetricSource | None,
    ) -> Reader:
        if self._stopping:
            raise StoppingError
        with ExitStack() as stack:
            leased = stack.enter_context(self._store.lease(tenant, range.start, range.end))
            durable = max(self._log.durable, leased.position)
            tail = self._tails.read(tenant, leased.position, durable)
            spec = ReaderSpec(
                files=_absolute(leased.files),
                others=_absolute(leased.others),
                position=leased.position,
                durable=durable,
                log_directory=self._directory,
                tenant=tenant,
                range=range,
                filters=filters,
                limits=self._limits,
                metrics=metrics,
            )
            reader = Reader(spec, tail, stack.pop_all())
        with self._lock:
            self._readers.add(reader)
            late = self._stopping
        if late:
            reader.interrupt()
        return reader

    def has_event(self, tenant: str, name: str) -> bool:
        """Whether the tenant has any event of this name."""
        with self.reader(tenant) as reader:
            return reader.has_event(name)

    def event_names(self, tenant: str, most: int = MAX_NAMES) -> list[str]:
        """The names of the tenant's events, most frequent first, at most ``most``."""
        with self.reader(tenant) as reader:
            return reader.event_names(most)

    def watermark(self) -> datetime | None:
        """The log's clock at its durable end; None when the log holds nothing."""
        durable = self._log.durable
        return read_tail(self._log, "", durable, durable).watermark

    def page(
        self,
        tenant: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        filters: Sequence[Filter] = (),
        limit: int = 100,
        cursor: str | None = None,
        names: Sequence[str] | None = None,
        asked: str = "",
    ) -> dict[str, Any]:
        """Events newest first: ``{"rows": [...], "next_cursor": str | None, "watermark": ISO time | None}``.

        A row has the wire's names (``event``, ``userId``, ...), ``properties`` and ``context`` as the JSON that was
        sent (`Raw`: it may hold numbers that Python does not), and ``partition`` and ``seq``. The cursor is the last
        row's key (``timestamp``, ``partition``, ``seq``), so that what arrives meanwhile neither repeats nor hides a
        row. ``names`` keeps only these events. ``asked`` is how the range was written ("7d"): given, it ties the cursor
        instead of ``start`` and ``end``, and the pages that follow keep the range of the first.

        :raises ParameterError: for a limit outside 1..1000, and a cursor of another query.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ParameterError("limit", f"{limit} is outside 1..{MAX_PAGE}")
        low, high = start or ALL_TIME.start, end or ALL_TIME.end
        wanted = [*filters] if names is None else [*filters, Filter(Field("name"), "in", tuple(names))]
        tie = _tie(tenant, asked or (start, end), wanted)
        after = _read_cursor(cursor, tie) if cursor else None
        if after is not None:
            low, high = moment(after.start), moment(after.end)
        with self.reader(tenant, TimeRange(low, high), wanted) as reader:
            rows = _newest(reader, after, limit + 1)
            watermark = reader.watermark
        following = _Cursor(tie, micros(low), micros(high), *_key(rows[limit - 1])) if len(rows) > limit else None
        return {
            "rows": [_row(row) for row in rows[:limit]],
            "next_cursor": _write_cursor(following) if following else None,
            "watermark": watermark.isoformat() if watermark else None,
        }


_range = range


def _absolute(files: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(Path(file).absolute()) for file in files)


def _newest(reader: Reader, after: _Cursor | None, limit: int) -> list[dict[str, Any]]:
    """First the keys alone, then the rows: the wide columns are decoded for a page, not for all of history."""
    older = "" if after is None else "WHERE (timestamp, partition, seq) < ($at, $partition, $seq)"
    bound = {"at": moment(after.timestamp), "partition": after.partition, "seq": after.seq} if after else {}
    order = "ORDER BY timestamp DESC, partition DESC, seq DESC"
    keys = reader.sql(f"SELECT timestamp, partition, seq FROM events {older} {order} LIMIT {limit}", bound)
    if not len(keys):
        return []
    at, places = keys.column("timestamp").to_pylist(), keys.column("seq").to_pylist()
    rows = reader.sql(
        f"SELECT {_WIRE} FROM events WHERE timestamp BETWEEN $oldest AND $newest AND seq IN (SELECT unnest($seqs)) "
        f"{older.replace('WHERE', 'AND')} {order} LIMIT {limit}",
        {**bound, "oldest": at[-1], "newest": at[0], "seqs": places},
    )
    return list(rows.to_pylist())


def _key(row: dict[str, Any]) -> tuple[int, int, int]:
    return micros(row["timestamp"]), row["partition"], row["seq"]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": row["event"],
        "userId": row["user_id"],
        "anonymousId": row["anonymous_id"],
        "sessionId": row["session_id"],
        "timestamp": row["timestamp"].isoformat(),
        "receivedAt": row["received_at"].isoformat(),
        "messageId": row["event_id"],
        "source": row["source"],
        "properties": Raw(row["properties"]),
        "context": Raw(row["context"]),
        "partition": row["partition"],
        "seq": row["seq"],
    }


def _tie(tenant: str, when: Any, filters: Sequence[Filter]) -> bytes:
    return blake2b(msgspec.json.encode([tenant, when, filters]), digest_size=8).digest()


def _write_cursor(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def _read_cursor(text: str, tie: bytes) -> _Cursor:
    try:
        cursor = _cursor.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise ParameterError("cursor", "cannot be read; give the next_cursor of an earlier answer as it came") from None
    if cursor.query != tie:
        raise ParameterError("cursor", "belongs to another query; start again without it")
    return cursor
