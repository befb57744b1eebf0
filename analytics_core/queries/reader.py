"""One snapshot of one tenant's events, read through a locked DuckDB: what a plugin's ``insight`` hook is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import duckdb
import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import ClashError, ParameterError, QueryError, RequestError, StoppingError, TrimmedError
from analytics_core.events import SCHEMA, micros
from analytics_core.log.segments import SegmentReader
from analytics_core.metrics.filters import Field, Filter, conjunction
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.marks import Meant
from analytics_core.queries.tail import Tail, read_tail
from analytics_core.queries.user_order import View, view_of
from analytics_core.records import Json, Series, Step, TimeRange, UserOrder

_SEALED: Final = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}


_LATE: Final = "no answer within {:g} s; narrow the time range, add a filter, or group more coarsely"


class Limits(Struct, frozen=True):
    """What one reader may use. ``seconds`` is per query."""

    seconds: float = 30.0
    memory: str = "1GB"
    threads: int = 2


class MetricSource(Protocol):
    """Who knows metrics by name, for `Reader.metric`. Picklable when a spec is to carry it to another process."""

    def series(self, reader: Reader, name: str, interval: str) -> Series: ...


class ReaderSpec(Struct, frozen=True, kw_only=True):
    """A snapshot by reference, picklable: any process that sees the data directory can open the same one.

    It is valid while the reader that gave it is open, which keeps the files leased. ``files`` hold what is in the
    range, ``others`` the rest of the tenant's events.
    """

    files: tuple[str, ...]
    others: tuple[str, ...] = ()
    position: int
    durable: int
    tenant: str
    range: TimeRange
    filters: tuple[Filter, ...] = ()
    log_directory: Path | None = None
    limits: Limits = Limits()
    metrics: MetricSource | None = None

    def open(self) -> Reader:
        """:raises QueryError: when the log was trimmed meanwhile (ask again), or has no directory."""
        if self.log_directory is None:
            raise QueryError("this snapshot can be read in its own process only: its log has no directory")
        with ExitStack() as stack:
            log = SegmentReader(self.log_directory)
            stack.callback(log.close)
            try:
                tail = read_tail(log, self.tenant, self.position, self.durable)
            except TrimmedError as error:
                raise QueryError(f"the snapshot is gone, ask again: {error}") from error
            return Reader(self, tail, stack.pop_all())


class Reader:
    """An `EventReader`: read-only, bound to tenant, range and filters, every call on the same snapshot.

    ``sql`` offers the view ``events`` with the columns of `SCHEMA`; days and hours inside it (``date_trunc``) are
    those of ``range.timezone``. Safe for use from any thread, one query at a time.
    """

    def __init__(
        self, spec: ReaderSpec, tail: Tail, resources: ExitStack, order: Callable[[Reader], View] = view_of
    ) -> None:
        self._spec = spec
        self._order = order
        self._resources = resources
        self._lock = threading.Lock()
        self._closing = False
        self._stopped = False
        self.watermark = tail.watermark
        """The log's clock at the snapshot's end; None when the log holds nothing."""
        try:
            self._connection = _connect(spec, tail.table)
        except BaseException:
            resources.close()
            raise

    @property
    def range(self) -> TimeRange:
        return self._spec.range

    @property
    def tenant(self) -> str:
        return self._spec.tenant

    @property
    def position(self) -> int:
        """One past the last log position that this snapshot holds."""
        return self._spec.durable

    def to_spec(self) -> ReaderSpec:
        return self._spec

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one SELECT over the view ``events``; ``$name`` parameters are bound. Times come back in UTC.

        :raises QueryError: for anything but one SELECT, an error of DuckDB, and a query over its time or memory.
        :raises StoppingError: when the host stops.
        """
        return self._run(query, parameters or {}, guest=True)

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table:
        """One SELECT of the host's own over the view ``ever``: all events of the tenant, whatever the range and the
        filters. Raises as `sql`."""
        return self._run(query, parameters, guest=False)

    def _run(self, query: str, parameters: Mapping[str, Any], *, guest: bool) -> pa.Table:
        with self._lock, self._guarded():
            self._check_open()
            if guest:
                statements = self._connection.extract_statements(query)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise QueryError("only one SELECT statement can be run")
            found = self._connection.sql(query, params=dict(parameters)).to_arrow_table()
        return _in_utc(found)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the events ordered by ``timestamp, partition, seq``.

        ``properties.x`` and ``context.x`` name one value, as text under that name; columns of `SCHEMA` keep their type.
        """
        parameters: dict[str, Any] = {}

        def bind(value: Any) -> str:
            parameters[f"p{len(parameters)}"] = value
            return f"$p{len(parameters) - 1}"

        shown = []
        for name in columns:
            field = _column(name)
            shown.append(f'{field.text(bind)} AS "{name.replace(chr(34), chr(34) * 2)}"')
        query = f"SELECT {', '.join(shown)} FROM events ORDER BY timestamp, partition, seq"
        return self.sql(query, parameters)

    def metric(self, name: str, interval: str) -> Series:
        """A metric by name per ``interval`` over this reader's range, in its zone.

        The reader's filters apply to metrics over events; the points of a plugin's metric are as the plugin made them.
        """
        if self._spec.metrics is None:
            raise QueryError(f"metric {name!r} cannot be read here: this reader was opened without metrics")
        try:
            return self._spec.metrics.series(self, name, interval)
        except (RequestError, ClashError) as error:
            raise QueryError(str(error)) from error

    def in_user_order(
        self,
        step: Callable[[UserOrder], Step],
        *,
        marks: Mapping[str, Json] = {},
        values: Sequence[str] = (),
        marked_only: bool = False,
        since: datetime | None = None,
    ) -> list[Step]:
        """`EventReader.in_user_order`. :raises ParameterError: for a mark or a value that is none."""
        asked = {mark: parse_filters(given, mark) for mark, given in marks.items()}
        view = self._order(self)
        low = self.range.start if since is None else min(since, self.range.start)
        meant = Meant(
            self,
            view.names,
            self._spec.filters,
            asked,
            values,
            micros(low),
            micros(self.range.end),
            marked_only=marked_only,
        )
        limits = self._spec.limits
        until = time.monotonic() + limits.seconds

        def go_on() -> None:
            self._check_open()
            if time.monotonic() > until:
                raise QueryError(_LATE.format(limits.seconds))

        return view.fold(step, meant, None, limits.threads, go_on)

    def has_event(self, name: str) -> bool:
        """Whether the snapshot has an event of this name."""
        return len(self.sql("SELECT 1 AS found FROM events WHERE name = $name LIMIT 1", {"name": name})) > 0

    def event_names(self, most: int) -> list[str]:
        """Names of events, most frequent first."""
        found = self.sql(f"SELECT name FROM events GROUP BY name ORDER BY count(*) DESC, name LIMIT {most:d}")
        return [str(name) for name in found.column("name").to_pylist()]

    def interrupt(self) -> bool:
        """The host stops: end what runs, answer nothing more. Does not wait; whether a query is still running.

        DuckDB forgets an interrupt that comes just before a query begins, so call it again until nothing runs.
        """
        self._stopped = True
        if self._lock.locked() and not self._closing:
            with suppress(duckdb.Error):  # closed just now
                self._connection.interrupt()
        return self._lock.locked()

    def close(self) -> None:
        """End what runs, wait for that, and release the snapshot. May be called twice, from any thread."""
        if not self._closing:
            self._closing = True
            self._connection.interrupt()
        with self._lock:
            self._connection.close()
            self._resources.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._stopped:
            raise StoppingError
        if self._closing:
            raise QueryError("this reader is closed")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A time budget, and DuckDB's errors as ours."""
        limits = self._spec.limits
        timer = threading.Timer(limits.seconds, self._connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        except duckdb.InterruptException:
            self._check_open()
            raise QueryError(_LATE.format(limits.seconds)) from None
        except duckdb.OutOfMemoryException:
            raise QueryError(
                f"the query needs more than {limits.memory}; narrow the time range, add a filter, or select less"
            ) from None
        except duckdb.Error as error:
            raise QueryError(str(error)) from error
        finally:
            timer.cancel()


def _column(name: str) -> Field:
    if name in SCHEMA.names:
        return Field(name)
    try:
        return Field.of(name, "columns")
    except ParameterError as error:
        raise QueryError(str(error)) from None


def _connect(spec: ReaderSpec, tail: pa.Table) -> duckdb.DuckDBPyConnection:
    """In memory, with the view ``events``, then sealed: no file but the leased ones, no extension, no setting."""
    config = {**_SEALED, "threads": spec.limits.threads, "memory_limit": spec.limits.memory}
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = $1", [spec.range.timezone])
        connection.execute("SET allowed_paths = $1", [[*spec.files, *spec.others]])
        connection.execute("SET enable_external_access = false")
        connection.register("log_tail", tail)
        for view in _views(spec, connection):
            connection.execute(view)
        connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def _views(spec: ReaderSpec, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """The SQL of the views. A view takes no parameters, so each value is a variable of the connection."""
    number = 0

    def bind(value: Any) -> str:
        nonlocal number
        number += 1
        connection.execute(f"SET VARIABLE v{number} = $1", [value])
        return f"getvariable('v{number}')"

    def source(files: Sequence[str]) -> str:
        """All events of the tenant in ``files`` and in the tail."""
        rows = [f"SELECT {columns} FROM log_tail"]
        if files:
            stored = f"read_parquet({bind(list(files))}, hive_partitioning = false, union_by_name = false)"
            rows.append(f"SELECT {columns} FROM {stored}")
        return f"SELECT {columns} FROM ({' UNION ALL '.join(rows)}) WHERE tenant = {bind(spec.tenant)}"

    columns = ", ".join(SCHEMA.names)
    yield (
        f"CREATE VIEW events AS {source(spec.files)} AND timestamp >= {bind(spec.range.start)} "
        f"AND timestamp < {bind(spec.range.end)} AND {conjunction(spec.filters, bind)}"
    )
    yield f"CREATE VIEW ever AS {source([*spec.files, *spec.others])}"


def _in_utc(table: pa.Table) -> pa.Table:
    fields = [
        pa.field(f.name, pa.timestamp("us", "UTC")) if pa.types.is_timestamp(f.type) and f.type.tz else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))
