"""The embedded lake: a Delta table of Parquet files that this process alone changes and anybody may read."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.config import MB
from analytics_core.errors import RetentionHeldError, StorageError
from analytics_core.events import EventBatch, micros
from analytics_core.events.owners import Owners
from analytics_core.lake import RetentionPolicy, Snapshot, Swept, compact, erasing, retention
from analytics_core.lake.files import LakeFile, TableVersion, in_window, overlaps, partitions, scan, write_files
from analytics_core.lake.log_order import read_window
from analytics_core.lake.table import Table

_ATTEMPTS: Final = 5
_DAY_SECONDS: Final = 86_400


class DeltaStore:
    """`EventStore` over one Delta table at ``directory``, partitioned by tenant and ``part``.

    What `append` has returned for survives ``kill -9`` and power loss. Queries never wait for a change, changes wait
    for each other only while they commit, and a change that meets a concurrent one is done again from what it left.

    ``young_seconds``: how long vacuum spares a file after it was written or replaced. ``file_bytes``: the size from
    which compaction leaves a sorted file alone.

    :raises StorageError: when the table cannot be opened.
    """

    def __init__(self, directory: Path, *, young_seconds: float = 600.0, file_bytes: int = 128 * MB) -> None:
        self._root = directory
        self._spool = directory / "_spool"
        self._young = young_seconds
        self._file_bytes = file_bytes
        self._closing = threading.Event()
        self._changing = threading.Lock()  # held while the table changes
        self._maintaining = threading.Lock()  # held by the one compaction, retention or vacuum; taken before the other
        self._leasing = threading.Lock()  # guards the leases
        self._leases: dict[int, list[str]] = {}
        self._tickets = count()
        self._replaced: dict[str, float] = {}
        shutil.rmtree(self._spool, ignore_errors=True)
        self._table = Table(directory)
        newest = [file.last_received for file in self._table.current.all_files()]
        self._clock = retention.ClockGuard(max([*newest, self._table.retained_at * 1_000_000]) or None)

    @property
    def position(self) -> int:
        return self._table.current.position

    @contextmanager
    def lease(self, tenant: str, start: datetime | None = None, end: datetime | None = None) -> Iterator[Snapshot]:
        """The files of the current version for events with ``start <= timestamp < end``, kept while it is open."""
        low = None if start is None else micros(start)
        high = None if end is None else micros(end)
        with self._held(
            lambda version: version.files.get(tenant, ()), lambda file: overlaps(file, low, high)
        ) as snapshot:
            yield snapshot

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = 64 * MB) -> tuple[list[EventBatch], int]:
        """`EventStore.read`. The window is ``max_rows`` positions wide, so it may hold fewer events, or none."""
        with self._held(lambda version: in_window(version.all_files(), start, start + max_rows)) as snapshot:
            end = min(start + max_rows, snapshot.position)
            if start >= end:
                return [], start
            return read_window(snapshot.files, start, end, max_bytes, self._spool)

    @contextmanager
    def _held(
        self, choose: Callable[[TableVersion], Iterable[LakeFile]], asked: Callable[[LakeFile], bool] = lambda _: True
    ) -> Iterator[Snapshot]:
        """The chosen files of the current version, those that are ``asked`` for apart, kept from vacuum while it is
        open."""
        with self._leasing:
            version = self._table.current
            chosen: tuple[list[str], list[str]] = ([], [])
            rows, last = 0, -1
            for file in choose(version):
                chosen[asked(file)].append(f"{self._root}/{file.path}")
                rows, last = rows + file.rows, max(last, file.last_seq)
            others, files = chosen
            ticket = next(self._tickets)
            self._leases[ticket] = [*files, *others]
        try:
            yield Snapshot(version.number, version.position, files, others, rows, last, self._table.id)
        finally:
            with self._leasing:
                del self._leases[ticket]

    def append(self, events: pa.Table, upto: int) -> int:
        """`EventStore.append`.

        :raises StorageError: when nothing is known to be stored; the same call may be made again.
        :raises ValueError: when an event is at or beyond ``upto``, since a replay would store it twice.
        """
        if events.num_rows and pc.max(events.column("seq")).as_py() >= upto:
            raise ValueError(f"append: there are events at or beyond upto={upto}")
        with self._changing:
            for _ in range(_ATTEMPTS):
                self._table.refresh()
                if upto <= self.position:
                    return 0
                fresh = events.filter(pc.greater_equal(events.column("seq"), self.position))
                if self._table.commit(self._write(fresh), position=upto):
                    return int(fresh.num_rows)
        raise StorageError(f"the lake at {self._root} is changed by another process; one process owns a lake")

    def _write(self, events: pa.Table) -> list[LakeFile]:
        written: list[LakeFile] = []
        try:
            for tenant, part, rows in partitions(events):
                written += write_files(
                    self._root, tenant, part, rows.to_batches(), ordered=False, file_bytes=self._file_bytes
                )
        except (OSError, pa.ArrowException, StorageError) as error:
            self._discard(written)
            raise StorageError(f"writing to the lake at {self._root} failed: {error}") from error
        return written

    def _discard(self, files: Sequence[LakeFile]) -> None:
        for file in files:
            (self._root / file.path).unlink(missing_ok=True)

    # --- maintenance -------------------------------------------------------------------------------------------------

    def compact(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """`EventStore.compact`; see `analytics_core.lake.compact` for what is merged when."""
        removed = 0

        def stop() -> bool:
            return self._closing.is_set() or should_stop()

        with self._maintaining, suppress(compact.StoppedError):
            for group in compact.plan(self._table.current.all_files(), self._file_bytes):
                if stop():
                    break
                rows = compact.sorted_batches(self._root, group, self._spool, stop)
                merged = self._rewrite(group[0], rows, ordered=True)
                removed += len(group) if self._replace(merged, group, data_change=False) else 0
        return removed

    def retain(self, policy: RetentionPolicy, now: datetime, *, confirmed: bool = False) -> int:
        """`EventStore.retain`; see `analytics_core.lake.retention` for the rules. A held tenant holds up no other."""
        dropped = 0
        held: list[RetentionHeldError] = []
        with self._maintaining, suppress(compact.StoppedError):
            version = self._table.current
            newest = max((file.last_received for file in version.all_files()), default=None)
            doubt = None if confirmed else self._clock.doubt(now, newest)
            for sweep in retention.plan(self._root, version, policy, now):
                if self._closing.is_set():
                    return dropped
                if doubt:
                    reason = f"{doubt}; confirm the run if it is right"
                    held.append(RetentionHeldError(sweep.tenant, sweep.share, reason))
                elif sweep.excessive and not confirmed:
                    held.append(RetentionHeldError(sweep.tenant, sweep.share, "confirm the run if that is meant"))
                else:
                    dropped += self._sweep(sweep)
            if not doubt:
                self._believe(now)
        if held:
            held[0].others = held[1:]
            raise held[0]
        return dropped

    def _sweep(self, sweep: retention.Sweep) -> int:
        kept: list[LakeFile] = []
        for file in sweep.mixed:
            rows = compact.until(self._closing.is_set, retention.kept_batches(self._root / file.path, sweep.cutoff))
            kept += self._rewrite(file, rows, ordered=file.ordered)
        return sweep.dropped if self._replace(kept, [*sweep.whole, *sweep.mixed], data_change=True) else 0

    def _believe(self, now: datetime) -> None:
        """Remember the run: for this process always, for later ones once a day."""
        self._clock.believe(now)
        seconds = int(now.timestamp())
        with self._changing:
            self._table.refresh()
            if seconds - self._table.retained_at >= _DAY_SECONDS:
                self._table.commit(retained_at=seconds)

    def _rewrite(self, like: LakeFile, rows: Iterator[pa.RecordBatch], *, ordered: bool) -> list[LakeFile]:
        try:
            return write_files(self._root, like.tenant, like.part, rows, ordered=ordered, file_bytes=self._file_bytes)
        except (OSError, pa.ArrowException, compact.SortError) as error:
            raise StorageError(f"rewriting {like.tenant}/{like.part} of {self._root} failed: {error}") from error

    def _replace(self, added: Sequence[LakeFile], gone: Sequence[LakeFile], *, data_change: bool) -> bool:
        """Put ``added`` in the place of ``gone``, unless one of those is there no longer: then the next run plans anew.

        What is not committed stays for vacuum, since a commit that failed may yet have taken place.
        """
        with self._changing:
            for _ in range(_ATTEMPTS):
                self._table.refresh()
                if not {file.path for file in gone} <= {file.path for file in self._table.current.all_files()}:
                    self._discard(added)
                    return False
                if self._table.commit(added, gone, data_change=data_change):
                    self._replaced.update(dict.fromkeys((file.path for file in gone), time.monotonic()))
                    return True
        return False

    def erase(self, tenant: str, owners: Owners, below: int) -> Swept:
        """`EventStore.erase`. One commit for each file, so that what was done stays done."""
        events = files = 0
        with self._maintaining:
            held = [file for file in self._table.current.files.get(tenant, ()) if file.first_seq < below]
            found = erasing.holding([f"{self._root}/{file.path}" for file in held], owners, below)
            for file in held:
                if count := found.get(f"{self._root}/{file.path}"):
                    self._erase_in(file, owners, below)
                    events, files = events + count, files + 1
            with self._changing:
                return Swept(events, files, *self._clear(tenant))

    def _erase_in(self, file: LakeFile, owners: Owners, below: int) -> None:
        rows = compact.until(self._closing.is_set, erasing.kept_batches(self._root / file.path, owners, below))
        try:
            kept = self._rewrite(file, rows, ordered=file.ordered)
        except compact.StoppedError:
            raise StorageError(f"the lake at {self._root} is being closed") from None
        if not self._replace(kept, [file], data_change=True):
            raise StorageError(f"{self._root}/{file.path} has changed meanwhile; it is to be erased from again")

    def _clear(self, tenant: str) -> tuple[int, int]:
        """Delete the tenant's files that are not of the current version; how many, and how many a lease has kept."""
        self._table.refresh()
        current = {file.path for file in self._table.current.files.get(tenant, ())}
        leased = self._leased()
        gone = [path for path, _ in list(scan(self._root, tenant)) if path not in current]
        for path in gone:
            if path not in leased:
                (self._root / path).unlink(missing_ok=True)
                self._replaced.pop(path, None)
        kept = sum(path in leased for path in gone)
        return len(gone) - kept, kept

    def vacuum(self) -> int:
        """`EventStore.vacuum`. Sums up the Delta log as well and deletes its old commits."""
        deleted = 0
        with self._maintaining, self._changing:
            self._table.refresh()
            spared = self._spared()
            for path, found in list(scan(self._root)):
                if path not in spared and time.time() - found.st_mtime >= self._young:
                    (self._root / path).unlink(missing_ok=True)
                    deleted += 1
            self._table.shorten_log()
        return deleted

    def _spared(self) -> set[str]:
        """Files of the current version, of leases, and those replaced a moment ago. Under the change lock, so that a
        lease taken later can name no file beyond these."""
        limit = time.monotonic() - self._young
        self._replaced = {path: at for path, at in self._replaced.items() if at > limit}
        return {file.path for file in self._table.current.all_files()} | self._leased() | self._replaced.keys()

    def _leased(self) -> set[str]:
        prefix = len(f"{self._root}/")
        with self._leasing:
            return {path[prefix:] for paths in self._leases.values() for path in paths}

    def close(self) -> None:
        """Break off compaction and retention, wait for the commit under way. The store must not be used afterwards."""
        self._closing.set()
        with self._maintaining, self._changing:
            shutil.rmtree(self._spool, ignore_errors=True)
