"""Tombstones: whose events are erased, and from which position of the log on theirs count again.

    erased   beside the segments: the tombstones that are still to be applied somewhere, as JSON

A tombstone is a frame of the log (`log.frames`), so that folds meet it in order. The file is what makes every reader
filter at once, in this process or another: who reads the log looks at it after each read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.errors import StorageError
from analytics_core.events import EventBatch, moment
from analytics_core.events.owners import Owners

FILE: Final = "erased"


class Tombstone(Struct, frozen=True):
    """The events of ``tenant`` below ``position`` that are those of ``owners`` are no more.

    ``key`` is that of the erasure, ``at`` the log's clock, microseconds. ``swept``: the lake holds none of them, so a
    query needs no filter.
    """

    position: int
    tenant: str
    owners: Owners
    key: str
    at: int
    swept: bool = False


class Tombstones:
    """Those of the log in ``directory``. One process writes, any number read; safe for use from any thread."""

    def __init__(self, directory: Path, sync_directory: Callable[[Path], None] = lambda _: None) -> None:
        self._path = directory / FILE
        self._sync_directory = sync_directory
        self._lock = Lock()
        self._known: tuple[tuple[int, int, int] | None, tuple[Tombstone, ...]] = (None, ())

    def current(self) -> tuple[Tombstone, ...]:
        """Those that hold now, oldest first. :raises StorageError: when the file cannot be read."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        mark = (found.st_ino, found.st_size, found.st_mtime_ns)
        known, tombstones = self._known
        if mark != known:
            tombstones = self._read()
            self._known = mark, tombstones
        return tombstones

    def add(self, tombstone: Tombstone) -> None:
        """Durable when it returns. :raises OSError: when it cannot be written."""
        with self._lock:
            self._write([*self.current(), tombstone])

    def sweep(self, position: int) -> None:
        """The lake holds nothing any more of what the tombstone at ``position`` erased. :raises OSError: as `add`."""
        with self._lock:
            self._write(
                [msgspec.structs.replace(t, swept=True) if t.position == position else t for t in self.current()]
            )

    def forget(self, position: int) -> None:
        """The tombstone at ``position`` is applied everywhere. :raises OSError: as `add`."""
        with self._lock:
            self._write([t for t in self.current() if t.position != position])

    def _read(self) -> tuple[Tombstone, ...]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Tombstone, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            raise StorageError(f"{self._path} cannot be read: {error}; restore it from a backup") from error

    def _write(self, tombstones: Sequence[Tombstone]) -> None:
        """A new file in the place of the old one."""
        made = self._path.with_suffix(".new")
        with made.open("wb") as file:
            file.write(msgspec.json.encode(tombstones))
            file.flush()
            os.fsync(file.fileno())
        made.replace(self._path)
        self._sync_directory(self._path.parent)


def spared(batches: list[EventBatch], tombstones: Sequence[Tombstone]) -> list[EventBatch]:
    """The batches without what was erased; one that loses all its events becomes an empty one."""
    if not tombstones:
        return batches
    return [_spared(batch, [t for t in tombstones if t.tenant == batch.tenant]) for batch in batches]


def _spared(batch: EventBatch, tombstones: Sequence[Tombstone]) -> EventBatch:
    for tombstone in tombstones:
        if len(batch) and batch.column("seq")[0].as_py() < tombstone.position:
            batch = batch.filter(pc.invert(tombstone.owners.mask(batch.record_batch, tombstone.position)))
    return batch


def woven(
    read: Callable[[int, int], tuple[list[EventBatch], int]], current: Callable[[], Sequence[Tombstone]]
) -> Callable[[int, int], tuple[list[EventBatch], int]]:
    """``read(start, max_rows)`` gives history from the lake, which has no tombstones: what this gives has them in their
    place, and nothing that was erased."""

    def reading(start: int, max_rows: int) -> tuple[list[EventBatch], int]:
        ahead = min((t.position for t in current() if t.position >= start), default=start + max_rows)
        batches, end = read(start, max(1, min(max_rows, ahead - start)))
        marks = [mark(t) for t in current() if start <= t.position < end]
        return [*spared(batches, current()), *marks], end

    return reading


def mark(tombstone: Tombstone) -> EventBatch:
    """What a reader of the log is given at the position of a tombstone."""
    return EventBatch.empty(tombstone.tenant, moment(tombstone.at), tombstone.owners.ids)
