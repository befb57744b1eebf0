"""History: one snapshot of the lake and the log's tail for each question, fresh to the last acknowledged event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakSet

from msgspec.structs import replace

from analytics_core.errors import BusyError, QueryError, StoppingError, TrimmedError
from analytics_core.lake import EventStore
from analytics_core.log import LogReader
from analytics_core.log.tombstones import Tombstone
from analytics_core.metrics.filters import Filter
from analytics_core.queries.cohorts import Cohort
from analytics_core.queries.export import WINDOW_SECONDS, Export
from analytics_core.queries.export_formats import Format
from analytics_core.queries.identity.reading import Identities
from analytics_core.queries.order_cache import OrderCache
from analytics_core.queries.pages import read_page
from analytics_core.queries.projection import Shown
from analytics_core.queries.ranges import ALL_TIME as ALL_TIME
from analytics_core.queries.reader import MetricSource, Order, Reader, Sorted
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.spec import Limits, SnapshotSpec
from analytics_core.queries.tail import TailCache, read_tail
from analytics_core.records import TimeRange

MAX_NAMES: Final = 10_000
MAX_EXPORTS: Final = 2
"""At once: each has up to some hundred megabytes, and keeps the files of its snapshot."""
_ATTEMPTS: Final = 5
_AGAIN_SECONDS: Final = 0.05


class Version(NamedTuple):
    """Which events a tenant has: how many, the position of the last, and which erasures have been; where these are
    equal, so are the events. ``watermark`` is the log's clock."""

    rows: int
    last: int
    erased: tuple[int, ...]
    watermark: datetime | None


class History:
    """Reads what `store` has and, beyond its position, what `log` has: each durable event exactly once.

    Safe for use from any thread. ``log_directory`` is where another process finds the log; not given, it is asked of
    the log, and a log that has none (Redis) gives snapshots that stay in this process. ``erased`` gives the tombstones
    that hold now. ``cache`` is where events are kept in user order; without it they are sorted for each question anew.
    """

    def __init__(
        self,
        log: LogReader,
        store: EventStore,
        *,
        log_directory: Path | None = None,
        erased: Callable[[], Sequence[Tombstone]] = tuple,
        cache: Path | None = None,
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> None:
        self._log = log
        self._store = store
        self._directory = log_directory or getattr(log, "directory", None)
        self._erased = erased
        self._limits = limits
        self._tails = TailCache(log)
        self._cache = None if cache is None else OrderCache(cache, self.snapshot)
        self._order: Order = self._cache or Sorted()
        self.identities = Identities(self.snapshot, lambda tenant: self.changed(tenant)[:3])
        self._snapshots: WeakSet[Snapshot] = WeakSet()
        self._lock = threading.Lock()
        self._stopping = False
        self._exports = threading.BoundedSemaphore(MAX_EXPORTS)

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
        if self._cache is not None:
            self._cache.stop()
        threading.Thread(target=self._interrupt_all, name="history:interrupt", daemon=True).start()

    def close(self) -> None:
        """Write the cache and end. No question may be asked afterwards."""
        self.interrupt()
        if self._cache is not None:
            self._cache.close()

    def forget(self, tenant: str) -> None:
        """Drop what is cached of a tenant. Its next question reads all anew."""
        self._tails.forget()
        self.identities.forget(tenant)
        if self._cache is not None:
            self._cache.drop(tenant)

    def earlier(self, tenant: str, position: int) -> int:
        """How many snapshots of a tenant are open that were taken before the log came beyond ``position``: what they
        hold may yet be cached."""
        return sum(
            snapshot.tenant == tenant and snapshot.spec.durable <= position and not snapshot.closed
            for snapshot in self._opened()
        )

    def _interrupt_all(self) -> None:
        """Until none runs: an interrupt that comes just before a query begins has no effect on it."""
        while sum(snapshot.interrupt() for snapshot in self._opened()):
            time.sleep(_AGAIN_SECONDS)

    def _opened(self) -> list[Snapshot]:
        with self._lock:
            return list(self._snapshots)

    def reader(
        self,
        tenant: str,
        range: TimeRange = ALL_TIME,  # noqa: A002
        filters: Sequence[Filter] = (),
        *,
        cohort: Cohort | None = None,
        metrics: MetricSource | None = None,
        seconds: float | None = None,
    ) -> Reader:
        """A snapshot taken now; close it, or use it as a context manager, to release the files it reads.

        ``seconds`` is the budget of one query, where it is to be another than the usual one.

        :raises QueryError: when the log is trimmed faster than a snapshot can be taken.
        :raises StoppingError: when the host stops.
        """
        limits = replace(self._limits, seconds=seconds or self._limits.seconds)
        asked = SnapshotSpec(tenant=tenant, range=range, filters=tuple(filters), cohort=cohort, limits=limits)
        return Reader(self._taken(asked), self._order, metrics)

    def snapshot(self, tenant: str) -> Snapshot:
        """All events of a tenant now. Raises as `reader`."""
        return self._taken(SnapshotSpec(tenant=tenant, range=ALL_TIME, limits=self._limits))

    def _taken(self, asked: SnapshotSpec) -> Snapshot:
        for _ in range(_ATTEMPTS):
            try:
                return self._leased(asked)
            except TrimmedError as error:  # a commit and a trim came between lease and read: lease the newer version
                last = error
        raise QueryError(f"no snapshot after {_ATTEMPTS} attempts: {last}")

    def _leased(self, asked: SnapshotSpec) -> Snapshot:
        if self._stopping:
            raise StoppingError
        tenant = asked.tenant
        erased = tuple(t for t in self._erased() if t.tenant == tenant and not t.swept)  # before the version is leased
        with ExitStack() as stack:
            leased = stack.enter_context(self._store.lease(tenant, asked.range.start, asked.range.end))
            durable = max(self._log.durable, leased.position)
            tail = self._tails.read(tenant, leased.position, durable)
            spec = replace(
                asked,
                files=_absolute(leased.files),
                others=_absolute(leased.others),
                rows=leased.rows,
                lake=leased.table,
                position=leased.position,
                durable=durable,
                log_directory=self._directory,
                erased=erased,
            )
            snapshot = Snapshot(spec, tail, stack.pop_all(), self.identities.at)
        with self._lock:
            self._snapshots.add(snapshot)
            late = self._stopping
        if late:
            snapshot.interrupt()
        return snapshot

    def changed(self, tenant: str) -> Version:
        """What the tenant's events are now: equal as long as none has come or gone. Cheap, no file is read."""
        with self._store.lease(tenant) as leased:
            tail = self._tails.read(tenant, leased.position, max(self._log.durable, leased.position))
        places = tail.table.column("seq")
        erased = tuple(t.position for t in self._erased() if t.tenant == tenant)
        last = places[-1].as_py() if len(places) else leased.last
        return Version(leased.rows + len(places), last, erased, tail.watermark)

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

    page = read_page

    def export(
        self,
        tenant: str,
        range: TimeRange,  # noqa: A002
        filters: Sequence[Filter],
        fields: Sequence[Shown],
        format: Format,  # noqa: A002
    ) -> Export:
        """The events of a snapshot taken now as a stream; close it to release the files it reads.

        :raises BusyError: when `MAX_EXPORTS` are under way.
        """
        if not self._exports.acquire(blocking=False):
            raise BusyError(f"{MAX_EXPORTS} exports are under way")
        with ExitStack() as stack:
            stack.callback(self._exports.release)
            reader = stack.enter_context(self.reader(tenant, range, filters, seconds=WINDOW_SECONDS))
            return Export(reader, fields, format, stack.pop_all().close)


def _absolute(files: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(Path(file).absolute()) for file in files)
