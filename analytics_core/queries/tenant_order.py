"""One tenant's events in user order: a list of runs, each later in the log than those before; large ones in files,
mapped, and small ones in memory.

What is here can be had again from the lake and the log at any time, so whatever is wrong with its files, they go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Final

import numpy as np
import pyarrow as pa
import structlog
from msgspec.structs import replace

from analytics_core.errors import BuildingError
from analytics_core.lake.order_files import Listing, OrderFiles
from analytics_core.lake.user_order import EMPTY, Run, concatenated, cuts, joined, settled
from analytics_core.queries.handed_order import HandedOrder
from analytics_core.queries.levels import LINKS, joined_level, rejoined
from analytics_core.queries.marks import PLACE, Places
from analytics_core.queries.pieces import SMALL, Held, Piece, gathered, in_memory, piece_of
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.user_order import ROWS, Words, run_of
from analytics_core.queries.value_columns import ValueColumns

FLUSH: Final = 1 << 21
"""Events in memory from which they are written to files: 60 MB."""
_FACTOR: Final = 4
"""A run in a file is at least so many times as large as the one after it, or they become one."""
_BLOCK: Final = 1 << 20
"""Events that are merged at a time."""
_READ: Final = 1 << 19
"""Events that are sorted at a time; as rows they take several times what they take as a run."""
_log = structlog.get_logger(__name__)


class TenantOrder:
    """``held`` is changed under the lock. It rests until `awake`: then it holds nothing, and its files may.

    ``go_on`` is called now and then by what takes long, and raises when there is to be no more.
    """

    def __init__(self, name: str, files: OrderFiles, go_on: Callable[[], None]) -> None:
        self.name = name
        self.making: dict[str, Future[None]] = {}
        """What is made of it in the background."""
        self.read = 0
        """How many events were read for that."""
        self.values = ValueColumns(files.directory / "values", name)
        self.held = Held((), Words())
        self.resting = True
        self._files = files
        self._go_on = go_on
        self._lake = ""
        self._lock = threading.Lock()
        self._tidying = threading.Lock()
        self._writing: Run | None = None

    @contextmanager
    def locked(self, patience: float | None) -> Iterator[None]:
        """:raises BuildingError: when it is not to be had in time."""
        if not self._lock.acquire(timeout=-1 if patience is None else patience):
            raise self.refuse()
        try:
            yield
        finally:
            self._lock.release()

    def refuse(self) -> BuildingError:
        """What is said to whoever cannot wait."""
        return BuildingError(f"the events of tenant {self.name!r} are being put in user order, {self.read:,} are")

    def awake(self, source: Snapshot) -> None:
        """Hold what is in the files. Under the lock."""
        if not self.resting:
            return
        listing = self._files.listing()
        if not self._fits(listing, source):
            self.values.forget()  # what they hold was read from another log
            listing = Listing()
        try:
            pieces = tuple(piece_of(self._files.open(run), run.upto, run.seen, run) for run in listing.runs)
        except OSError:
            listing, pieces = Listing(), ()
        self.held, self._lake, self.resting = Held(pieces, Words(listing.names)), source.lake, False

    def _fits(self, listing: Listing, source: Snapshot) -> bool:
        """Whether it was made of this lake and log."""
        return listing.lake == source.lake and all(run.upto <= source.position for run in listing.runs)

    def rest(self) -> None:
        """Hold nothing in memory. What is worth it is in files then."""
        self.save()
        self.values.rest()
        with self._lock:
            self.held, self.resting = Held((), Words()), True

    def handed(self, source: Snapshot) -> HandedOrder | None:
        """What is in files of what ``source`` holds; None for nothing."""
        runs, names = self.held.stored(source.position), tuple(self.held.names.words)
        if self.resting:
            listing = self._files.listing()
            runs, names = (listing.runs if self._fits(listing, source) else ()), listing.names
        return HandedOrder(self._files.directory, runs, names) if runs else None

    def bring(self, source: Snapshot) -> None:
        """Hold what ``source`` holds and nothing else, and what is large goes to files."""
        with self.locked(None):
            self.awake(source)
            if not self.forward(source):
                self.mend(source)
        self.tidy(FLUSH)

    def forget(self) -> None:
        """Delete the files. Under the lock."""
        self.values.forget()
        self.held = Held((), Words())
        try:
            self._list()
        except OSError as error:
            self._tell(error)

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, source: Snapshot) -> bool:
        """Hold all that ``source`` holds; whether that is all that is held. Under the lock."""
        if self.held.upto < source.position:
            self._take(source)
        return self.held.upto > source.position or self.held.seen == source.rows

    def mend(self, source: Snapshot) -> None:
        """Hold nothing that ``source`` does not. Under the lock, after `forward`."""
        if self.held.seen > source.rows:  # retention or an erasure has taken some
            self._keep(source)
        if self.held.seen != source.rows:
            _log.warning("user_order_rebuilt", tenant=self.name, held=self.held.seen, stored=source.rows)
            self.held = Held((), Words())
            self._take(source)

    def _keep(self, source: Snapshot) -> None:
        """Only what ``source`` still has."""
        held = self.held
        places = source.ever(f"SELECT {PLACE} AS place FROM ever", {})["place"].to_numpy()
        there = Places(places, np.ones(len(places), np.bool_), 0)
        runs = [piece.run for piece in held.pieces]

        def kept() -> Iterator[Run]:
            return (run.where(there.at(run.place)) for run in self._blocks(runs))

        self.held = replace(held, pieces=(self._joined(self._piece(kept, held.upto, len(places))),))

    def _take(self, source: Snapshot) -> None:
        held = self.held
        if source.stored <= held.upto:
            rows = source.tail(held.upto)
            piece = piece_of(run_of(rows, held.names), source.position, held.seen + len(rows))
        else:
            piece = self._streamed(source, held)
        pieces = gathered((*held.pieces, piece), self._writing)
        self.held = replace(held, pieces=(*pieces[:-1], self._joined(pieces[-1])))

    def _streamed(self, source: Snapshot, held: Held) -> Piece:
        """What is missing, out of the lake and the log, which give it in no order. What is too much is spilled."""
        runs: list[Run] = []
        spilled = 0
        seen = held.seen
        for rows in _tables(source.stream(f"{ROWS} WHERE seq >= $upto", {"upto": held.upto})):
            if sum(map(len, runs[spilled:])) >= FLUSH:
                runs[spilled:] = [self._spilled(runs[spilled:])]
                spilled += 1
            runs.append(run_of(rows, held.names))
            self.read = seen = seen + len(rows)
        if len(runs) <= 1:
            return piece_of(runs[0] if runs else EMPTY, source.position, seen)
        if not spilled:
            return piece_of(settled(joined(runs)), source.position, seen)
        return self._piece(lambda: map(settled, self._blocks(runs)), source.position, seen)

    def _spilled(self, runs: Sequence[Run]) -> Run:
        return self._piece(lambda: [joined(runs)], 0, 0).run

    def _piece(self, runs: Callable[[], Iterable[Run]], upto: int, seen: int) -> Piece:
        """One of ``runs``, whose visitors follow one another, in a file; in memory when that cannot be written."""
        try:
            stored = self._files.write(runs(), upto, seen)
            return piece_of(self._files.open(stored), upto, seen, stored)
        except OSError as error:
            self._tell(error)
            return piece_of(concatenated(list(runs())), upto, seen)

    def _blocks(self, runs: Sequence[Run]) -> Iterator[Run]:
        for run in _blocks(runs):
            self._go_on()
            yield run

    def _tell(self, error: OSError) -> None:
        _log.warning("user_order_not_written", tenant=self.name, reason=str(error))

    # --- persons -----------------------------------------------------------------------------------------------------

    def join(self, source: Snapshot) -> None:
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

    def tidy(self, least: int) -> None:
        """Write what is in memory to files when it is ``least`` events, and make one of files of near size."""
        with self._tidying:
            pieces = self.held.pieces
            first = in_memory(pieces)
            size = sum(len(piece.run) for piece in pieces[first:])
            while size >= least and first and len(pieces[first - 1].run) < _FACTOR * size:
                first -= 1
                size += len(pieces[first].run)
            self._store(pieces[first:] if size >= least else (), self._blocks)

    def save(self) -> None:
        """Write what is in memory and is worth it, and nothing else: there may be no time."""
        with self._tidying:
            pieces = self.held.pieces[in_memory(self.held.pieces) :]
            worth = sum(len(piece.run) for piece in pieces) >= SMALL
            self._store(pieces if worth else (), _blocks)
        self.values.save()

    def _store(self, pieces: Sequence[Piece], blocks: Callable[[Sequence[Run]], Iterator[Run]]) -> None:
        """One run in a file instead of ``pieces``."""
        try:
            if pieces:
                last, identity = pieces[-1], self.held.identity
                self._writing = last.run
                stored = self._files.write(blocks([piece.run for piece in pieces]), last.upto, last.seen)
                run = self._files.open(stored)
                level = joined_level(run, identity)
                with self._lock:
                    level = rejoined(level, identity, self.held.identity)
                    self._replace(pieces, Piece(run, level, last.upto, last.seen, stored))
            with self._lock:
                if not self.resting:
                    self._list()
        except OSError as error:  # the runs stay where they are, and the next start reads them anew
            self._tell(error)
        finally:
            self._writing = None

    def _replace(self, pieces: Sequence[Piece], made: Piece) -> None:
        """Unless they are others by now."""
        runs, gone = [piece.run for piece in self.held.pieces], [piece.run for piece in pieces]
        at = next((i for i, run in enumerate(runs) if run is gone[0]), 0)
        if all(mine is theirs for mine, theirs in zip_longest(runs[at : at + len(gone)], gone)):
            self.held = self.held.having(made, at, len(gone))

    def _list(self) -> None:
        """Under the lock, by which nothing is being written that nobody holds yet."""
        held = self.held
        self._files.list(Listing(held.stored(held.upto), tuple(held.names.words), self._lake))
        self._files.sweep({piece.stored.folder for piece in held.pieces if piece.stored is not None})


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, `_READ` of them at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _READ:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _blocks(runs: Sequence[Run]) -> Iterator[Run]:
    """All events of ``runs`` in runs of some visitors each, in the order of their keys."""
    for low, high in pairwise(cuts(runs, _BLOCK)):
        yield joined([run.span(low, high) for run in runs])
