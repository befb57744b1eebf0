"""Runs in files: one folder each with a file a column, mapped and never read as a whole.

They are a cache. What is torn, of another format or of another machine's byte order is no error: it is not there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from analytics_core.lake.durable import sync_file
from analytics_core.lake.user_order import COLUMNS, EMPTY, Run

FORMAT: Final = 2
_LISTING: Final = "order.json"
_TYPES: Final[dict[str, Any]] = {"key": np.dtype(np.uint64), "end": np.dtype(np.int64), **COLUMNS}


class StoredRun(Struct, frozen=True):
    """One run in its folder, and what of the log it holds: all below ``upto``, with the runs before it; ``seen`` is how
    many events that were, those of nobody as well."""

    folder: str
    users: int
    events: int
    upto: int
    seen: int


class Listing(Struct, frozen=True):
    """Which runs are a tenant's, in log order, the words of their names, and of which lake they were read."""

    runs: tuple[StoredRun, ...] = ()
    names: tuple[str, ...] = ()
    lake: str = ""
    format: int = FORMAT
    order: str = sys.byteorder


class OrderFiles:
    """The runs of one tenant below ``directory``, which this process alone changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def listing(self) -> Listing:
        """What was last listed; nothing when it cannot be used."""
        try:
            found = msgspec.json.decode((self.directory / _LISTING).read_bytes(), type=Listing)
        except (OSError, msgspec.MsgspecError):
            return Listing()
        return found if (found.format, found.order) == (FORMAT, sys.byteorder) else Listing()

    def open(self, stored: StoredRun) -> Run:
        """The run, mapped. :raises OSError: when it is not there as a whole."""
        if not stored.events:
            return EMPTY
        lengths = {"key": stored.users, "end": stored.users}
        return Run(*(self._mapped(stored.folder, name, lengths.get(name, stored.events)) for name in _TYPES))

    def _mapped(self, folder: str, name: str, length: int) -> Any:
        path, kind = self.directory / folder / name, _TYPES[name]
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != length * kind.itemsize:
                raise FileNotFoundError(f"{path} is not whole")
            content = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(content, kind)

    def write(self, pieces: Iterable[Run], upto: int, seen: int) -> StoredRun:
        """One run of ``pieces``, which share no visitor and come in the order of their keys.

        :raises OSError: when it cannot be written; then nothing of it is left.
        """
        folder = f"run-{uuid.uuid4().hex}"
        path = self.directory / folder
        path.mkdir(parents=True)
        try:
            users, events = self._write(path, pieces)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return StoredRun(folder, users, events, upto, seen)

    def _write(self, path: Path, pieces: Iterable[Run]) -> tuple[int, int]:
        users = events = 0
        with ExitStack() as stack:
            files = {name: stack.enter_context((path / name).open("xb")) for name in _TYPES}
            for run in pieces:
                for name, file in files.items():
                    column = run.end + events if name == "end" else getattr(run, name)
                    file.write(np.ascontiguousarray(column).data)
                users, events = users + len(run.key), events + len(run)
        for name in _TYPES:
            sync_file(path / name)
        return users, events

    def list(self, listing: Listing) -> None:
        """Let ``listing`` hold. :raises OSError: when it cannot be written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = self.directory / f"{_LISTING}.tmp"
        draft.write_bytes(msgspec.json.encode(listing))
        sync_file(draft)
        draft.replace(self.directory / _LISTING)

    def sweep(self, kept: set[str]) -> None:
        """Delete the folders of all runs but ``kept``; whoever has mapped one keeps its content."""
        for path in self.directory.glob("run-*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
