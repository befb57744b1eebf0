"""The user-order cache: each tenant's events in user order, brought forward by each question with what came since.

What is in it can be had again from the lake and the log at any time, so whatever is wrong with its files, they go. It
is a list of runs, each later in the log than those before: large ones in files, mapped, and small ones in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import structlog
from msgspec import Struct

from analytics_core.errors import BuildingError
from analytics_core.lake.order_files import Listing, OrderFiles, StoredRun
from analytics_core.lake.user_order import EMPTY, Run, concatenated, cuts, joined, settled
from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.filters import Field
from analytics_core.queries.identity import Identity
from analytics_core.queries.identity.persons import KINDS
from analytics_core.queries.levels import Level, joined_level, rejoined
from analytics_core.queries.marks import PLACE, Columns, Places
from analytics_core.queries.user_order import ROWS, View, Words, run_of
from analytics_core.queries.value_columns import ValueColumns

FLUSH: Final = 1 << 21
"""Events in memory from which they are written to files: 60 MB."""
_SMALL: Final = 1 << 16
"""Runs in memory up to this size become one at once."""
_FACTOR: Final = 4
"""A run in a file is at least so many times as large as the one after it, or they become one."""
_BLOCK: Final = 1 << 20
"""Events that are merged at a time."""
LINKS: Final = frozenset(KINDS)
NOBODY: Final = Identity()
_log = structlog.get_logger(__name__)


class Source(Protocol):
    """`queries.reader.Reader`, as far as it is needed: one snapshot of a tenant's events."""

    @property
    def tenant(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def patience(self) -> float: ...

    def identity(self) -> Identity: ...
    def tail(self, position: int) -> pa.Table: ...
    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table: ...
    def stream(self, query: str, parameters: Mapping[str, Any]) -> Iterator[pa.RecordBatch]: ...
    def close(self) -> None: ...


class Piece(NamedTuple):
    """A run of ids and what of the log is in it and those before it: all below ``upto``, ``seen`` events; ``stored`` is
    its place in the files, None for one in memory. ``level`` has its ids joined to persons."""

    run: Run
    level: Level
    upto: int
    seen: int
    stored: StoredRun | None = None


class Held(Struct, frozen=True, eq=False):
    """What is held of a tenant. Replaced as a whole, so that whoever reads it needs no lock."""

    pieces: tuple[Piece, ...]
    names: Words
    identity: Identity = NOBODY

    @property
    def upto(self) -> int:
        return self.pieces[-1].upto if self.pieces else 0

    @property
    def seen(self) -> int:
        return self.pieces[-1].seen if self.pieces else 0

    def replaced(self, at: int, count: int, piece: Piece) -> Held:
        """With ``piece`` instead of ``count`` others from ``at`` on."""
        return Held((*self.pieces[:at], piece, *self.pieces[at + count :]), self.names, self.identity)

    @property
    def in_memory(self) -> int:
        return sum(len(piece.run) for piece in self.pieces if piece.stored is None)

    def view(self, position: int, columns: Columns) -> View:
        """The events below ``position``, which is not beyond ``upto``."""
        levels = []
        for piece in self.pieces:
            level = piece.level
            if piece.upto > position:
                level = joined_level(piece.run.where(piece.run.place < position), self.identity)
            levels.append(level)
        return View([level for level in levels if len(level)], self.names.words, columns)


class OrderCache:
    """Gives the view of a snapshot. Safe for use from any thread.

    ``directory`` holds a folder for each tenant; ``snapshot`` opens a tenant's events as they are now, for what takes
    longer than a question may wait.
    """

    def __init__(self, directory: Path, snapshot: Callable[[str], Source]) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._tenants: dict[str, _Tenant] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="user-order-cache")

    def view(self, source: Source) -> View:
        """:raises BuildingError: when what is missing takes longer than a question may take."""
        tenant = self._tenant(source.tenant)
        if source.rows - tenant.held.seen > FLUSH:
            self._wait(tenant, "order", tenant.bring, source.patience)
        with tenant.locked(source.patience):
            tenant.forward(source)
            tenant.join(source)
            view = tenant.held.view(source.position, lambda field: self._column(tenant, source, field))
        if tenant.held.in_memory >= FLUSH:
            self._later(tenant.tidy)
        return view

    def _column(self, tenant: _Tenant, source: Source, field: Field) -> ValueColumn | None:
        if not field.path:
            return None
        if not tenant.values.has(field) and source.rows > FLUSH:
            self._wait(tenant, field.name, partial(tenant.values.bring, field), source.patience)
        return tenant.values.column(field, source)

    def drop(self, tenant: str) -> None:
        """Forget a tenant and delete its files; its next question reads all anew."""
        with self._lock:
            found = self._tenants.pop(tenant, None) or _Tenant(tenant, OrderFiles(self._directory / tenant))
        with found.locked(None):
            found.forget()

    def close(self) -> None:
        """Write what is in memory and is worth it, and end."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for tenant in list(self._tenants.values()):
            tenant.tidy(least=_SMALL)
            tenant.values.save()

    def _tenant(self, name: str) -> _Tenant:
        with self._lock:
            if name not in self._tenants:
                self._tenants[name] = _Tenant(name, OrderFiles(self._directory / name))
            return self._tenants[name]

    def _wait(self, tenant: _Tenant, what: str, work: Callable[[Source], None], patience: float) -> None:
        """Have ``work`` done in the background on a snapshot of its own; whoever asks meanwhile waits for the same."""
        with self._lock:
            making = tenant.making.get(what)
            if making is None or making.done():
                making = tenant.making[what] = self._pool.submit(self._work, tenant, work)
        try:
            making.result(patience)
        except TimeoutError:
            raise BuildingError(tenant.name, tenant.read) from None

    def _work(self, tenant: _Tenant, work: Callable[[Source], None]) -> None:
        source = self._snapshot(tenant.name)
        try:
            work(source)
        finally:
            source.close()

    def _later(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # it is closed
            self._pool.submit(work)


class _Tenant:
    """One tenant's runs. ``held`` is changed under the lock."""

    def __init__(self, name: str, files: OrderFiles) -> None:
        self.name = name
        self.making: dict[str, Future[None]] = {}
        """What is made of it in the background."""
        self.read = 0
        """How many events were read for that."""
        self.values = ValueColumns(files.directory / "values")
        self._files = files
        self._lock = threading.Lock()
        self._tidying = threading.Lock()
        self._writing: Run | None = None
        self.held = self._restored()

    @contextmanager
    def locked(self, patience: float | None) -> Iterator[None]:
        """:raises BuildingError: when it is not to be had in time."""
        if not self._lock.acquire(timeout=-1 if patience is None else patience):
            raise BuildingError(self.name, self.read)
        try:
            yield
        finally:
            self._lock.release()

    def _restored(self) -> Held:
        listing = self._files.listing()
        try:
            pieces = [_piece(self._files.open(run), run.upto, run.seen, run) for run in listing.runs]
        except OSError:
            return Held((), Words())
        return Held(tuple(pieces), Words(listing.names))

    def bring(self, source: Source) -> None:
        """`forward`, and what is large goes to files."""
        with self.locked(None):
            self.forward(source)
        self.tidy()

    def forget(self) -> None:
        self.values.forget()
        self.held = Held((), Words())
        self._files.list(Listing())

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, source: Source) -> None:
        """Hold all that ``source`` holds. Under the lock."""
        if self.held.upto > source.position:
            return
        self._take(source)
        if self.held.seen > source.rows:  # retention or an erasure has taken some
            self._keep(source)
        if self.held.seen != source.rows:
            _log.warning("user_order_rebuilt", tenant=self.name, held=self.held.seen, stored=source.rows)
            self.held = Held((), Words())
            self._take(source)

    def _keep(self, source: Source) -> None:
        """Only what ``source`` still has."""
        held = self.held
        places = source.ever(f"SELECT {PLACE} AS place FROM ever", {})["place"].to_numpy()
        there = Places(places, np.ones(len(places), np.bool_), 0)
        runs = [piece.run for piece in held.pieces]

        def kept() -> Iterator[Run]:
            return (run.where(there.at(run.place)) for run in _blocks(runs))

        self.held = Held((self._joined(self._piece(kept, held.upto, len(places))),), held.names, held.identity)

    def _take(self, source: Source) -> None:
        held = self.held
        if source.position == held.upto:
            return
        if source.stored <= held.upto:
            rows = source.tail(held.upto)
            piece = _piece(run_of(rows, held.names), source.position, held.seen + len(rows))
        else:
            piece = self._streamed(source, held)
        pieces = _gathered((*held.pieces, piece), self._writing)
        self.held = Held((*pieces[:-1], self._joined(pieces[-1])), held.names, held.identity)

    def _streamed(self, source: Source, held: Held) -> Piece:
        """What is missing, out of the lake and the log, which give it in no order. What is too much is spilled."""
        runs: list[Run] = []
        seen = held.seen
        for rows in _tables(source.stream(f"{ROWS} WHERE seq >= $upto", {"upto": held.upto})):
            if runs:
                runs[-1] = self._spilled(runs[-1])
            runs.append(run_of(rows, held.names))
            self.read = seen = seen + len(rows)
        if len(runs) <= 1:
            return _piece(runs[0] if runs else EMPTY, source.position, seen)
        return self._piece(lambda: map(settled, _blocks(runs)), source.position, seen)

    def _spilled(self, run: Run) -> Run:
        return self._piece(lambda: [run], 0, 0).run

    def _piece(self, runs: Callable[[], Iterable[Run]], upto: int, seen: int) -> Piece:
        """One of ``runs``, whose visitors follow one another, in a file; in memory when that cannot be written."""
        try:
            stored = self._files.write(runs(), upto, seen)
            return _piece(self._files.open(stored), upto, seen, stored)
        except OSError as error:
            self._tell(error)
            return _piece(concatenated(list(runs())), upto, seen)

    def _tell(self, error: OSError) -> None:
        _log.warning("user_order_not_written", tenant=self.name, reason=str(error))

    # --- persons -----------------------------------------------------------------------------------------------------

    def join(self, source: Source) -> None:
        """Join ids to persons as the events say. Under the lock."""
        held = self.held
        if held.identity.empty and LINKS.isdisjoint(held.names.words):
            return  # none of the events links anything
        identity = source.identity()
        if identity is not held.identity:
            pieces = [piece._replace(level=rejoined(piece.level, held.identity, identity)) for piece in held.pieces]
            self.held = Held(tuple(pieces), held.names, identity)

    def _joined(self, piece: Piece) -> Piece:
        return piece._replace(level=joined_level(piece.run, self.held.identity))

    # --- files -------------------------------------------------------------------------------------------------------

    def tidy(self, least: int = FLUSH) -> None:
        """Write what is in memory to files when it is ``least`` events, and make one of files of near size."""
        with self._tidying:
            pieces = self.held.pieces
            first = next((i for i, piece in enumerate(pieces) if piece.stored is None), len(pieces))
            size = sum(len(piece.run) for piece in pieces[first:])
            while size >= least and first and len(pieces[first - 1].run) < _FACTOR * size:
                first -= 1
                size += len(pieces[first].run)
            try:
                if size >= least and pieces[first:]:
                    self._writing = pieces[-1].run
                    self._write(pieces[first:])
                self._list()
            except OSError as error:  # the runs stay where they are, and the next start reads them anew
                self._tell(error)
            finally:
                self._writing = None

    def _write(self, pieces: Sequence[Piece]) -> None:
        """One run in a file instead of ``pieces``, unless they are others by then."""
        last = pieces[-1]
        stored = self._files.write(_blocks([piece.run for piece in pieces]), last.upto, last.seen)
        made = self._joined(_piece(self._files.open(stored), last.upto, last.seen, stored))
        with self._lock:
            held = self.held
            runs, gone = [piece.run for piece in held.pieces], [piece.run for piece in pieces]
            at = next((i for i, run in enumerate(runs) if run is gone[0]), 0)
            if all(mine is theirs for mine, theirs in zip_longest(runs[at : at + len(gone)], gone)):
                self.held = held.replaced(at, len(gone), made)

    def _list(self) -> None:
        with self._lock:
            held = self.held
        runs = tuple(piece.stored for piece in held.pieces if piece.stored is not None)
        self._files.list(Listing(runs, tuple(held.names.words)))


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, `FLUSH` of them at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= FLUSH:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _piece(run: Run, upto: int, seen: int, stored: StoredRun | None = None) -> Piece:
    return Piece(run, Level(run), upto, seen, stored)


def _gathered(pieces: tuple[Piece, ...], writing: Run | None) -> tuple[Piece, ...]:
    """The last ones in memory as one, as long as each is no more than twice as large as what comes after it;
    ``writing`` and those before it are being written."""
    while len(pieces) > 1:
        before, last = pieces[-2:]
        if before.stored is not None or before.run is writing or len(before.run) > 2 * len(last.run) + _SMALL:
            break
        pieces = (*pieces[:-2], _piece(joined([before.run, last.run]), last.upto, last.seen))
    return pieces


def _blocks(runs: Sequence[Run]) -> Iterator[Run]:
    """All events of ``runs`` in runs of some visitors each, in the order of their keys."""
    for low, high in pairwise(cuts(runs, _BLOCK)):
        yield joined([run.span(low, high) for run in runs])
