"""The file of a recording: what was asked of a hook, and what came of it.

The four bytes of `MAGIC`, of which the last is the version, then frames: length, CRC32 and msgpack of one `Frame`. Each
is written whole before the call goes on, so that a process that dies in a call leaves the batch that killed it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import AnalyticsError
from analytics_core.events import EventBatch, micros, moment

MAGIC: Final = b"ALR\x01"
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
    """Call ``number``, counted from 1 over the whole file. ``batch``: see `batch_bytes`."""

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


def batch_bytes(batch: EventBatch) -> bytes:
    """An Arrow IPC stream of one record batch, with ``tenant`` and ``watermark`` (microseconds) in its metadata."""
    told = {"tenant": batch.tenant, "watermark": str(micros(batch.watermark))}
    record_batch = batch.record_batch.replace_schema_metadata(told)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record_batch.schema) as writer:
        writer.write_batch(record_batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def batch_of(data: bytes) -> EventBatch:
    """The batch of `batch_bytes`."""
    record_batch = pa.ipc.open_stream(data).read_next_batch()
    told = record_batch.schema.metadata
    watermark = moment(int(told[b"watermark"]))
    return EventBatch(record_batch.replace_schema_metadata(None), told[b"tenant"].decode(), watermark)
