"""What opening a log does before anybody reads it: lock, check, cut a torn end, refuse anything worse.

All frames of one ``append`` name its first position (``group``), because one write is not ordered on its way to the
disk: after a power loss its first frame may be missing and its last one whole. That is a torn end too.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import structlog

from analytics_core.errors import LogCorruptionError, LogLockedError
from analytics_core.log.frames import ALIGNMENT, HEADER_BYTES, MAGIC, Disk, Window
from analytics_core.log.reading import IDS_SUFFIX, segment_firsts, segment_path

_log = structlog.get_logger(__name__)


class Recovered(NamedTuple):
    """A directory that can be read and written: what its last segment holds, and the bytes of the sealed ones."""

    firsts: tuple[int, ...]
    sealed: dict[int, int]
    size: int
    end: int
    watermark: int


class Scan(NamedTuple):
    """What a segment holds: good bytes, the position after them, its last watermark, and what ended the scan."""

    size: int
    end: int
    watermark: int
    problem: str


def scan(path: Path, first: int, durable: int) -> Scan:
    """Check every frame of the last segment. ``durable`` is the recorded position, 0 when it is unknown.

    A bad frame is a torn end when no valid frame follows, or only frames of the same unacknowledged append.

    :raises LogCorruptionError: for any other bad frame.
    """
    data = path.read_bytes()
    window = Window(pa.py_buffer(data))
    offset, position, watermark = 0, first, 0
    while offset < len(data):
        found = window.header(offset)
        problem = found if isinstance(found, str) else window.problem(offset, found)
        if isinstance(found, str) or problem:
            skip = ALIGNMENT if isinstance(found, str) else found.size
            after = _later(data, window, offset + skip, -1 if position < durable else position)
            if after is not None:
                raise LogCorruptionError(path, offset, f"{problem}, and a valid frame follows at byte {after}")
            return Scan(offset, position, watermark, problem)
        if found.first != position:
            raise LogCorruptionError(path, offset, f"it holds position {found.first}, not {position}")
        offset, position, watermark = offset + found.size, found.end, found.watermark
    return Scan(offset, position, watermark, "")


def _later(data: bytes, window: Window, start: int, position: int) -> int | None:
    """Where a valid frame follows that was not written together with the one at ``position``."""
    at = start
    while (at := data.find(MAGIC, at)) >= 0:
        found = window.header(at) if at % ALIGNMENT == 0 else ""
        if isinstance(found, str) or window.problem(at, found):
            at += 1
        elif found.group > position:
            return at
        else:
            at += found.size
    return None


def recover(directory: Path, recorded: int, disk: Disk) -> Recovered:
    """Make the directory whole. ``recorded`` is the durable position that the last owner published, or 0.

    Sealed segments are checked by their first header alone, so that opening stays fast; readers check the rest.

    :raises LogCorruptionError: for a bad frame that is not a torn end.
    :raises OSError: when the end cannot be cut or the first segment cannot be made.
    """
    for left in directory.glob(f"*{IDS_SUFFIX}.tmp"):
        left.unlink()
    firsts = segment_firsts(directory)
    if not firsts:
        os.close(disk.create(segment_path(directory, recorded)))
        return Recovered((recorded,), {}, 0, recorded, 0)
    sealed = {first: _sealed_bytes(segment_path(directory, first), first) for first in firsts[:-1]}
    path = segment_path(directory, firsts[-1])
    found = scan(path, firsts[-1], recorded)
    if found.problem:
        cut = path.stat().st_size - found.size
        _log.warning("torn end of the log cut", path=str(path), offset=found.size, bytes=cut, problem=found.problem)
        _cut(path, found.size, disk)
    watermark = found.watermark or _last_watermark(directory, firsts)
    return Recovered(tuple(firsts), sealed, found.size, found.end, watermark)


def _cut(path: Path, size: int, disk: Disk) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        disk.cut(descriptor, size)
    finally:
        os.close(descriptor)


def _sealed_bytes(path: Path, first: int) -> int:
    with path.open("rb") as file:
        header = Window(pa.py_buffer(file.read(HEADER_BYTES))).header(0)
    if isinstance(header, str):
        raise LogCorruptionError(path, 0, header)
    if header.first != first:
        raise LogCorruptionError(path, 0, f"it holds position {header.first}, not {first}")
    return path.stat().st_size


def _last_watermark(directory: Path, firsts: list[int]) -> int:
    """The clock of a log whose last segment is still empty."""
    if len(firsts) < 2:
        return 0
    path = segment_path(directory, firsts[-2])
    found = scan(path, firsts[-2], firsts[-1])
    if found.problem:
        raise LogCorruptionError(path, found.size, found.problem)
    return found.watermark


def make_directory(directory: Path, disk: Disk) -> None:
    """The directory with all above it, so that a power loss forgets none of them."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        disk.sync_directory(path.parent)


def own(directory: Path) -> int:
    """Lock the directory for this process; the descriptor that holds the lock.

    :raises LogLockedError: when a process holds it; the message has its id.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise LogLockedError(directory, f"process {owner or 'unknown'}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
