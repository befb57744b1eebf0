"""The file of a recording: what was asked of a hook, and what came of it.

The four bytes of `MAGIC`, of which the last is the version, then frames: length, CRC32 and msgpack of one `Frame`. Each
is written whole before the call goes on, so that a process that dies in a call leaves the batch that killed it.
"""

from __future__ import annotations

import fcntl
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Final

import msgspec
from msgspec import Struct

from analytics_core.errors import AnalyticsError
from analytics_core.events import EventBatch
from analytics_core.host.running.wire import encode

MAGIC: Final = b"ALR\x02"
_HEAD: Final = struct.Struct("<II")  # bytes of the body, its CRC32


class RecordingError(AnalyticsError):
    """A file that is no recording, or one that cannot be read on."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


class Of(Struct, frozen=True, tag="of"):
    """The first frame: whose calls these are."""

    plugin: str
    hook: str


class Begun(Struct, frozen=True, tag="begun"):
    """An instance is called for the first time. ``state`` is what it then held, as a checkpoint keeps it, if any."""

    instance: int
    state: bytes | None
    version: int


class Called(Struct, frozen=True, tag="called"):
    """Call ``number``, counted from 1 over the whole file. ``batch`` is as `host.wire` encodes it."""

    number: int
    instance: int
    batch: bytes


class Answered(Struct, frozen=True, tag="answered"):
    """What call ``number`` gave, as `host.wire` encodes it, or what it raised."""

    number: int
    result: bytes
    failure: str = ""


Frame = Of | Begun | Called | Answered


class Content(Struct, frozen=True):
    """What is whole of a file: ``size`` bytes. ``note`` says what is not; empty when everything is."""

    of: Of | None
    frames: list[Begun | Called | Answered]
    size: int
    note: str


def frame(content: Frame) -> bytes:
    body = msgspec.msgpack.encode(content)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def read(path: Path) -> Content:
    """All that is whole in the file; a torn end is noted, as a process leaves it that was killed while it wrote.

    :raises RecordingError: for a file of another kind or version, or one that is damaged before its end.
    """
    data = path.read_bytes()
    _check_magic(path, data)
    frames: list[Any] = []
    size = len(MAGIC) if len(data) >= len(MAGIC) else 0
    for body in _bodies(path, data):
        frames.append(_frames.decode(body))
        size += _HEAD.size + len(body)
    note = f"{path}: torn at byte {size} of {len(data)}; what comes before it is whole" if size < len(data) else ""
    if not frames:
        return Content(None, [], size, note)
    if not isinstance(frames[0], Of):
        raise RecordingError(path, "does not say whose calls it holds")
    return Content(frames[0], frames[1:], size, note)


def _check_magic(path: Path, data: bytes) -> None:
    kind, version = data[:3], data[3:4]
    if not MAGIC.startswith(kind):
        raise RecordingError(path, f"starts with {kind!r}, so it is no recording of analytics_core.testing.record")
    if version and version != MAGIC[3:]:
        raise RecordingError(path, f"is a recording of version {version[0]}; this version reads {MAGIC[3]}")


def _bodies(path: Path, data: bytes) -> Iterator[bytes]:
    at = len(MAGIC)
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        begin, end = at + _HEAD.size, at + _HEAD.size + length
        if end > len(data):
            return
        body = data[begin:end]
        if zlib.crc32(body) != check:
            if end == len(data):
                return
            raise RecordingError(path, f"is damaged at byte {at}: the checksum fails and more frames follow")
        yield body
        at = end


_frames: Final = msgspec.msgpack.Decoder(Frame)


class Tape:
    """A recording that grows, from any thread: the only one that writes to its file. `tape_at` gives it.

    :raises RecordingError: when another process writes to the file, or when it is no recording, or not one of ``of``.
    """

    def __init__(self, path: Path, of: Of) -> None:
        self.path = path
        self._lock = Lock()
        self._file = path.open("ab", buffering=0)
        weakref.finalize(self, self._file.close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordingError(path, "is being written by another process; give another file") from None
        content = read(path)
        self.of = content.of or of
        self.check(of)
        self._calls = max((each.number for each in content.frames if isinstance(each, Called)), default=0)
        self._instances = max((each.instance for each in content.frames if isinstance(each, Begun)), default=0)
        self._file.truncate(content.size)  # nobody could read what is written behind a torn end
        if content.size == 0:
            self._file.write(MAGIC)
        if content.of is None:
            self._write(of)

    def check(self, of: Of) -> None:
        """:raises RecordingError: when it is the recording of something else."""
        if self.of != of:
            kept = f"{self.of.plugin}.{self.of.hook}"
            raise RecordingError(
                self.path, f"is a recording of {kept}, not of {of.plugin}.{of.hook}; give another file"
            )

    def begin(self, state: bytes | None, version: int) -> int:
        """The number of a further instance, which holds ``state`` before its first call."""
        with self._lock:
            self._instances += 1
            self._write(Begun(self._instances, state, version))
            return self._instances

    def call(self, instance: int, batch: EventBatch) -> int:
        """The number of a call that is about to be made."""
        with self._lock:
            self._calls += 1
            self._write(Called(self._calls, instance, encode(batch)))
            return self._calls

    def answer(self, number: int, result: bytes, failure: str = "") -> None:
        with self._lock:
            self._write(Answered(number, result, failure))

    def _write(self, content: Frame) -> None:
        self._file.write(frame(content))


_tapes: Final[weakref.WeakValueDictionary[tuple[int, int], Tape]] = weakref.WeakValueDictionary()
"""Those that are being written in this process."""
_opening: Final = Lock()


def tape_at(path: Path, of: Of) -> Tape:
    """The tape of the file at ``path``, which may be there already; one for all who record into it.

    :raises RecordingError: as `Tape` does.
    """
    with _opening:
        tape = _tapes.get(_file_of(path)) if path.exists() else None
        if tape is None:
            tape = Tape(path, of)
            _tapes[_file_of(path)] = tape
        tape.check(of)
        return tape


def _file_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
