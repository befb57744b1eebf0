"""Whose code this process is in: a count for each plugin in a mapped file, which outlives the process however it ends.

A process that is gone cannot say what it was in, and nothing can be written while it goes. So each call into a plugin
is noted before it begins, by one store into memory that is the system's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Final

import structlog

_ROOM: Final = 128
"""Bytes for one plugin: how many calls are out, at most 255, then its name."""
_PLUGINS: Final = 256
"""Those beyond are not noted."""

_log = structlog.get_logger(__name__)


class UnderWay:
    """The notes of every plugin that runs on threads of this process. Safe for use from any thread.

    Without ``path`` they do not outlive the process. With ``turn_seconds`` the calls take turns, so that one plugin
    alone is noted: each waits for the one before it, at most so long, until `relax`.
    """

    def __init__(self, path: Path | None = None, *, turn_seconds: float = 0.0) -> None:
        self._notes: dict[str, Note] = {}
        self._lock = threading.Lock()
        self._turns = Turns(turn_seconds)
        self._rooms = memoryview(bytearray(_ROOM * _PLUGINS))
        if path is not None:
            try:
                self._rooms = memoryview(_mapped(path))
            except OSError as error:
                _log.error("calls_not_noted", file=str(path), problem=str(error))

    def of(self, plugin: str) -> Note:
        with self._lock:
            if plugin not in self._notes:
                at, name = _ROOM * len(self._notes), plugin.encode()[: _ROOM - 1]
                room = self._rooms[at : at + _ROOM] or memoryview(bytearray(_ROOM))
                room[1 : 1 + len(name)] = name
                self._notes[plugin] = Note(room, self._turns)
            return self._notes[plugin]

    def relax(self) -> None:
        """No call waits for its turn from now on."""
        self._turns.end()


class Note:
    """That of one plugin, as a context: in it, one more of its calls is out."""

    __slots__ = ("_lock", "_out", "_room", "_turns")

    def __init__(self, room: memoryview, turns: Turns) -> None:
        self._room = room
        self._turns = turns
        self._lock = threading.Lock()
        self._out = 0

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *_: object) -> None:
        self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._out += more
            self._room[0] = min(self._out, 255)

    @contextmanager
    def in_turn(self, seconds: float) -> Iterator[None]:
        """The same for a call that can wait, and may take so many ``seconds``."""
        mine = self._turns.take(seconds / 4)
        try:
            with self:
                yield
        finally:
            if mine:
                self._turns.pass_on()


class Turns:
    """One call at a time, as long as nobody has to wait for more than so many ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken = False
        self._changed = threading.Condition()

    def take(self, most: float) -> bool:
        """Wait for the turn; whether it has come."""
        if not self._seconds:
            return False
        with self._changed:
            free = self._changed.wait_for(lambda: not (self._seconds and self._taken), min(self._seconds, most))
            if not (free and self._seconds):
                return False
            self._taken = True
            return True

    def pass_on(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._seconds = 0.0
            self._changed.notify_all()


def left_in(path: Path) -> frozenset[str]:
    """The plugins in whose code the process was that has written this file last; none when there is no such file."""
    try:
        content = path.read_bytes()
    except OSError:
        return frozenset()
    rooms = (content[at : at + _ROOM] for at in range(0, len(content), _ROOM))
    return frozenset(room[1:].rstrip(b"\0").decode(errors="replace") for room in rooms if room[0])


def _mapped(path: Path) -> mmap:
    """A new file in the place of the old one. It is written first: a store into a block that a full disk has not got
    would end the process."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(bytes(_ROOM * _PLUGINS))
    with draft.open("r+b") as file:
        mapped = mmap(file.fileno(), 0)
    draft.replace(path)
    return mapped
