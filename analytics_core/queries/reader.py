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
import pyarrow.compute as pc
from msgspec import Struct
from msgspec.structs import replace

from analytics_core.errors import (
    BudgetError,
    ClashError,
    ParameterError,
    QueryError,
    RequestError,
    StoppingError,
    TrimmedError,
)
from analytics_core.events import SCHEMA
from analytics_core.log.segments import SegmentReader
from analytics_core.log.tombstones import Tombstone
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.cohorts import Cohort
from analytics_core.queries.handed_order import HandedOrder
from analytics_core.queries.identity import Identity
from analytics_core.queries.identity.reading import identity_of
from analytics_core.queries.sealed import PERSON_EVENTS, connect, in_utc, join_people, narrow
from analytics_core.queries.tail import Tail, read_tail
from analytics_core.queries.user_order import ROWS, View, rows_of, view_of
from analytics_core.queries.visitors import Visitors
from analytics_core.records import Json, Series, Step, TimeRange, UserOrder

_WAITING: Final = 0.6
_LEAST: Final = 20
"""This part of its patience is left to whoever has waited long: what others are at just now is not to refuse it."""
_AGAIN_SECONDS: Final = 0.02
_STREAMED: Final = 1 << 17


class Limits(Struct, frozen=True):
    """What one reader may use. ``seconds`` is per query."""

    seconds: float = 30.0
    memory: str = "1GB"
    threads: int = 2

    @property
    def late(self) -> str:
        """What is said of a question that takes longer."""
        return f"no answer within {self.seconds:g} s; narrow the time range, add a filter, or group more coarsely"


class MetricSource(Protocol):
    """Who knows metrics by name, for `Reader.metric`. Picklable when a spec is to carry it to another process."""

    def series(self, reader: Reader, name: str, interval: str) -> Series: ...


class ReaderSpec(Struct, frozen=True, kw_only=True):
    """A snapshot by reference, picklable: any process that sees the data directory can open the same one.

    It is valid while the reader that gave it is open, which keeps the files leased. ``files`` hold what is in the
    range, ``others`` the rest of the tenant's events; ``rows`` counts both. What ``erased`` names may still be in them,
    and is not shown.
    """

    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    rows: int = 0
    lake: str = ""
    position: int = 0
    durable: int = 0
    tenant: str
    range: TimeRange
    filters: tuple[Filter, ...] = ()
    cohort: Cohort | None = None
    erased: tuple[Tombstone, ...] = ()
    log_directory: Path | None = None
    limits: Limits = Limits()
    metrics: MetricSource | None = None
    order: HandedOrder | None = None

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
            return Reader(self, tail, stack.pop_all(), view_of if self.order is None else self.order.view)


class Reader:
    """An `EventReader`: read-only, bound to tenant, range and filters, every call on the same snapshot.

    ``sql`` offers the view ``events`` with the columns of `SCHEMA`; days and hours inside it (``date_trunc``) are
    those of ``range.timezone``. Safe for use from any thread, one query at a time.
    """

    def __init__(
        self,
        spec: ReaderSpec,
        tail: Tail,
        resources: ExitStack,
        order: Callable[[Reader], View] = view_of,
        identity: Callable[[Reader], Identity] = identity_of,
        at_hand: Callable[[Reader], View | None] = lambda _: None,
        handed: Callable[[Reader], HandedOrder | None] = lambda _: None,
    ) -> None:
        self._spec = spec
        self.visitors = Visitors(self, order)
        """The same events by visitor, for the host's own questions."""
        self._at_hand = at_hand
        self._handed = handed
        self._until: float | None = None
        self._cohort_known = False
        self._identity = identity
        self._people_known = False
        self._tail = tail.table
        self._resources = resources
        self._lock = threading.Lock()
        self._closing = False
        self._stopped = False
        self.watermark = tail.watermark
        """The log's clock at the snapshot's end; None when the log holds nothing."""
        self.beyond_events = False
        """Whether something was read that is not in the events: later it may be another, although they are the same."""
        self._database: duckdb.DuckDBPyConnection | None = None

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Made for the first query, under the lock: what is read in user order needs none."""
        if self._database is None:
            self._database = connect(self._spec, self._tail)
        return self._database

    def _interrupt(self) -> None:
        if self._database is not None:
            self._database.interrupt()

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

    @property
    def stored(self) -> int:
        """The first log position that is not in the lake."""
        return self._spec.position

    @property
    def rows(self) -> int:
        """How many events the tenant has, whatever the range and the filters."""
        if self._spec.erased:  # some of those in the files are not shown
            return int(self.ever("SELECT count(*) AS n FROM ever", {})["n"][0].as_py())
        return self._spec.rows + len(self._tail)

    def identity(self) -> Identity:
        """Who is who by the events of this snapshot, or of a later one."""
        return self._identity(self)

    @property
    def lake(self) -> str:
        """Which lake it is of the snapshot."""
        return self._spec.lake

    @property
    def patience(self) -> float:
        """How many seconds a question may still wait for what it reads; the rest of its time is for the answer."""
        seconds, now = _WAITING * self._spec.limits.seconds, time.monotonic()
        if self._until is None:
            self._until = now + seconds
        return max(self._until - now, seconds / _LEAST)

    def since(self, position: int) -> pa.Table:
        """The columns of `user_order.ROWS` from ``position`` on."""
        if self.stored <= position:
            return self.tail(position)
        return self.ever(f"{ROWS} WHERE seq >= $position", {"position": position})

    def tail(self, position: int) -> pa.Table:
        """The columns of `user_order.ROWS` from ``position`` on, which is not before `stored`."""
        if self._spec.erased:
            return self.ever(f"{ROWS} WHERE seq >= $position", {"position": position})
        rows = self._tail.filter(pc.greater_equal(self._tail.column("seq"), position))
        return rows_of(rows)

    def recent(self, position: int) -> pa.Table:
        """All columns from ``position`` on, which is not before `stored`, in the order of the log. What an erasure has
        taken meanwhile is still there: `rows` does not count it."""
        return self._tail.filter(pc.greater_equal(self._tail.column("seq"), position))

    def everything(self) -> pa.Table:
        """The columns of `user_order.ROWS` of all events."""
        spec = self._spec
        return self.ever(ROWS, {}) if spec.files or spec.others or spec.erased else rows_of(self._tail)

    def stream(self, query: str, parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """As `ever`, a batch at a time and without a limit of time: for what is done once for all questions."""
        with self._lock, self._translated():
            self.check_open()
            rows = self._connection.sql(query, params=dict(parameters)).to_arrow_reader(_STREAMED)
            for batch in rows:
                self.check_open()
                yield batch

    @property
    def spec(self) -> ReaderSpec:
        return self._spec

    def to_spec(self) -> ReaderSpec:
        """For another process: with what there is in user order."""
        return replace(self._spec, order=self._handed(self))

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one SELECT over the view ``events``; ``$name`` parameters are bound. Times come back in UTC.

        The view ``person_events`` has one column more, ``person``: the user id that stands for whose event it is, or
        the anonymous id of somebody unknown; null for nobody. It costs a join, and nothing where it is not named.

        :raises QueryError: for anything but one SELECT, an error of DuckDB, and a query over its time or memory.
        :raises StoppingError: when the host stops.
        """
        self._know_cohort()
        if PERSON_EVENTS in query.lower():
            self._know_people()
        return self._run(query, parameters or {}, guest=True)

    def _know_people(self) -> None:
        if not self._people_known:
            people = self.identity().people()
            with self._lock, self._guarded():
                join_people(self._connection, people)
            self._people_known = True

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table:
        """One SELECT of the host's own over the view ``ever``: all events of the tenant, whatever the range and the
        filters. Raises as `sql`."""
        return self._run(query, parameters, guest=False)

    def _run(self, query: str, parameters: Mapping[str, Any], *, guest: bool) -> pa.Table:
        with self._lock, self._guarded():
            if guest:
                statements = self._connection.extract_statements(query)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise QueryError("only one SELECT statement can be run")
            found = self._connection.sql(query, params=dict(parameters)).to_arrow_table()
        return in_utc(found)

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
        return self.visitors.fold(step, marks, values, since, marked_only=marked_only)

    def at_hand(self) -> View | None:
        """All events of the tenant as columns, when they can be had without much waiting."""
        return self._at_hand(self)

    def budget(self) -> Callable[[], None]:
        """To be called as the work goes on: raises as `check_open`, and `BudgetError` over the time of a query."""
        until = time.monotonic() + self._spec.limits.seconds

        def go_on() -> None:
            self.check_open()
            if time.monotonic() > until:
                raise BudgetError(self._spec.limits.late)

        return go_on

    def _know_cohort(self) -> None:
        """Narrow the view ``events`` to the cohort before it is asked."""
        if self._spec.cohort is None or self._cohort_known:
            return
        places = pa.table({"place": self.visitors.places()})
        with self._lock, self._guarded():
            narrow(self._connection, places)
        self._cohort_known = True

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
                self._interrupt()
        return self._lock.locked()

    def close(self) -> None:
        """End what runs, wait for that, and release the snapshot. May be called twice, from any thread."""
        self._closing = True
        while not self._lock.acquire(timeout=_AGAIN_SECONDS):
            self._interrupt()  # again and again: one that comes just before a query begins has no effect on it
        try:
            if self._database is not None:
                self._database.close()
            self._resources.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def check_open(self) -> None:
        """:raises StoppingError: when the host stops; :raises QueryError: when this reader is closed."""
        if self._stopped:
            raise StoppingError
        if self._closing:
            raise QueryError("this reader is closed")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A time budget, and errors as ours."""
        self.check_open()
        with self._translated(), _at_most(self._spec.limits.seconds, self._connection.interrupt):
            yield

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """DuckDB's errors as ours; a stream of its rows has an OSError for each of them."""
        limits = self._spec.limits
        try:
            yield
        except duckdb.InterruptException:
            self.check_open()
            raise BudgetError(limits.late) from None
        except duckdb.OutOfMemoryException:
            raise BudgetError(
                f"the query needs more than {limits.memory}; narrow the time range, add a filter, or select less"
            ) from None
        except (duckdb.Error, OSError) as error:
            self.check_open()
            raise QueryError(str(error)) from error


@contextmanager
def _at_most(seconds: float, interrupt: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _column(name: str) -> Field:
    if name in SCHEMA.names:
        return Field(name)
    try:
        return Field.of(name, "columns")
    except ParameterError as error:
        raise QueryError(str(error)) from None
