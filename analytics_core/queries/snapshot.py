"""One snapshot of one tenant's events: the lake's files and the log's tail, read as columns or through a DuckDB."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.errors import BudgetError, QueryError, StoppingError, TrimmedError
from analytics_core.events import SCHEMA
from analytics_core.lake.user_order import I64
from analytics_core.log.segments import SegmentReader
from analytics_core.memory import give_back
from analytics_core.queries import sealed
from analytics_core.queries.identity import Identity
from analytics_core.queries.identity.reading import identity_of
from analytics_core.queries.spec import Limits, SnapshotSpec
from analytics_core.queries.tail import Tail, read_tail
from analytics_core.queries.user_order import ROWS, rows_of

_WAITING: Final = 0.6
_LEAST: Final = 20
"""This part of its patience is left to whoever has waited long: what others are at just now is not to refuse it."""
_AGAIN_SECONDS: Final = 0.02
_STREAMED: Final = 1 << 17


class Snapshot:
    """Read-only, every call on the same events. Safe for use from any thread, one query at a time.

    SQL sees the view ``ever``, all events of the tenant, and ``events``, those that are asked for. DuckDB is opened for
    the first query: what is read as columns needs none.
    """

    def __init__(
        self,
        spec: SnapshotSpec,
        tail: Tail,
        resources: ExitStack,
        identity: Callable[[Snapshot], Identity] = identity_of,
    ) -> None:
        """``resources`` are released when it is closed."""
        self.spec = spec
        self.watermark: datetime | None = tail.watermark
        """The log's clock at the snapshot's end; None when the log holds nothing."""
        self._tail = tail.table
        self._resources = resources
        self._identity = identity
        self._database: duckdb.DuckDBPyConnection | None = None
        self._lock = threading.Lock()
        self._until: float | None = None
        self._closing = False
        self._stopped = False

    @classmethod
    def of(cls, spec: SnapshotSpec) -> Snapshot:
        """The same snapshot in another process.

        :raises QueryError: when the log was trimmed meanwhile (ask again), or has no directory.
        """
        if spec.log_directory is None:
            raise QueryError("this snapshot can be read in its own process only: its log has no directory")
        with ExitStack() as stack:
            log = SegmentReader(spec.log_directory)
            stack.callback(log.close)
            try:
                tail = read_tail(log, spec.tenant, spec.position, spec.durable)
            except TrimmedError as error:
                raise QueryError(f"the snapshot is gone, ask again: {error}") from error
            return cls(spec, tail, stack.pop_all())

    @property
    def tenant(self) -> str:
        return self.spec.tenant

    @property
    def limits(self) -> Limits:
        return self.spec.limits

    @property
    def lake(self) -> str:
        """Which lake it is of."""
        return self.spec.lake

    @property
    def position(self) -> int:
        """One past the last log position that it holds."""
        return self.spec.durable

    @property
    def stored(self) -> int:
        """The first log position that is not in the lake."""
        return self.spec.position

    @property
    def rows(self) -> int:
        """How many events the tenant has, whatever is asked for."""
        if self.spec.erased:  # some of those in the files are not shown
            return int(self.ever("SELECT count(*) AS n FROM ever", {})["n"][0].as_py())
        return self.spec.rows + len(self._held())

    def identity(self) -> Identity:
        """Who is who by these events, or by later ones."""
        return self._identity(self)

    # --- columns -----------------------------------------------------------------------------------------------------

    def since(self, position: int) -> pa.Table:
        """The columns of `user_order.ROWS` from ``position`` on."""
        if self.stored <= position:
            return self.tail(position)
        return self.ever(f"{ROWS} WHERE seq >= $position", {"position": position})

    def tail(self, position: int) -> pa.Table:
        """The columns of `user_order.ROWS` from ``position`` on, which is not before `stored`."""
        if self.spec.erased:
            return self.ever(f"{ROWS} WHERE seq >= $position", {"position": position})
        return rows_of(self.recent(position))

    def recent(self, position: int) -> pa.Table:
        """All columns from ``position`` on, which is not before `stored`, in the order of the log. What an erasure has
        taken meanwhile is still there: `rows` does not count it."""
        held = self._held()
        return held.filter(pc.greater_equal(held.column("seq"), position))

    def everything(self) -> pa.Table:
        """The columns of `user_order.ROWS` of all events."""
        spec = self.spec
        return self.ever(ROWS, {}) if spec.files or spec.others or spec.erased else rows_of(self._held())

    def _held(self) -> pa.Table:
        """The log's tail. Of a closed snapshot there is none, which is not to be taken for no events."""
        tail = self._tail  # before it is looked at: whoever closes says so before the tail goes
        self.check_open()
        return tail

    # --- SQL ---------------------------------------------------------------------------------------------------------

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table:
        """One SELECT of the host's own over the view ``ever``. Raises as `events`."""
        with self._guarded() as database:
            return sealed.in_utc(database.sql(query, params=dict(parameters)).to_arrow_table())

    def stream(self, query: str, parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """As `ever`, a batch at a time and without a limit of time: for what is done once for all questions."""
        with self._asking() as database:
            for batch in database.sql(query, params=dict(parameters)).to_arrow_reader(_STREAMED):
                self.check_open()
                yield batch

    def events(self, query: str, parameters: Mapping[str, Any]) -> pa.Table:
        """One SELECT of anybody's over the view ``events``. Times come back in UTC.

        :raises QueryError: for anything but one SELECT, and an error of DuckDB.
        :raises BudgetError: for a query over its time or memory.
        :raises StoppingError: when the host stops.
        """
        with self._guarded() as database:
            statements = database.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise QueryError("only one SELECT statement can be run")
            return sealed.in_utc(database.sql(query, params=dict(parameters)).to_arrow_table())

    def narrow(self, places: I64) -> None:
        """Let the view ``events`` hold only those at these log positions (`marks.PLACE`), when a cohort is asked for.
        It holds none before."""
        with self._guarded() as database:
            sealed.narrow(database, pa.table({"place": places}))

    def join_people(self) -> None:
        """Offer the view `sealed.PERSON_EVENTS`."""
        people = self.identity().people()
        with self._guarded() as database:
            sealed.join_people(database, people)

    @contextmanager
    def _guarded(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `_asking`, with a budget of time."""
        with self._asking() as database, _at_most(self.limits.seconds, database.interrupt):
            yield database

    @contextmanager
    def _asking(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """DuckDB for one query, and its errors as ours; a stream of its rows has an OSError for each of them."""
        with self._lock:
            self.check_open()
            try:
                if self._database is None:
                    self._database = sealed.connect(self.spec, self._tail)
                yield self._database
            except duckdb.InterruptException:
                self.check_open()
                raise BudgetError(self.limits.late) from None
            except duckdb.OutOfMemoryException:
                raise BudgetError(
                    f"the query needs more than {self.limits.memory}; narrow the time range, add a filter, or select "
                    "less"
                ) from None
            except (duckdb.Error, OSError) as error:
                self.check_open()
                raise QueryError(str(error)) from error

    # --- its time ----------------------------------------------------------------------------------------------------

    @property
    def patience(self) -> float:
        """How many seconds a question may still wait for what it reads; the rest of its time is for the answer."""
        seconds, now = _WAITING * self.limits.seconds, time.monotonic()
        if self._until is None:
            self._until = now + seconds
        return max(self._until - now, seconds / _LEAST)

    def budget(self) -> Callable[[], None]:
        """To be called as the work goes on: raises as `check_open`, and `BudgetError` over the time of a query."""
        until = time.monotonic() + self.limits.seconds

        def go_on() -> None:
            self.check_open()
            if time.monotonic() > until:
                raise BudgetError(self.limits.late)

        return go_on

    def check_open(self) -> None:
        """:raises StoppingError: when the host stops; :raises QueryError: when this snapshot is closed."""
        if self._stopped:
            raise StoppingError
        if self._closing:
            raise QueryError("this reader is closed")

    def at_end(self, work: Callable[[], object]) -> None:
        """Have ``work`` done when this snapshot is closed, by whoever closes it."""
        self._resources.callback(work)

    @property
    def closed(self) -> bool:
        return self._closing

    def interrupt(self) -> bool:
        """The host stops: end what runs, answer nothing more. Does not wait; whether a query is still running.

        DuckDB forgets an interrupt that comes just before a query begins, so call it again until nothing runs.
        """
        self._stopped = True
        if self._lock.locked() and not self._closing:
            with suppress(duckdb.Error):  # closed just now
                self._interrupt()
        return self._lock.locked()

    def _interrupt(self) -> None:
        if self._database is not None:
            self._database.interrupt()

    def close(self) -> None:
        """End what runs, wait for that, and release the files and the tail. May be called twice, from any thread."""
        self._closing = True
        while not self._lock.acquire(timeout=_AGAIN_SECONDS):
            self._interrupt()  # again and again: one that comes just before a query begins has no effect on it
        try:
            if self._database is not None:
                self._database.close()
            self._tail = SCHEMA.empty_table()
            self._resources.close()
        finally:
            self._lock.release()
        give_back()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def _at_most(seconds: float, interrupt: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
