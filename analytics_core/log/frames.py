"""The file format of the log: frames, how they are checked, and the few disk operations that write them.

A segment is a run of frames, each a multiple of eight bytes: a 48-byte header, then an Arrow IPC stream of one
`events.UNPLACED_SCHEMA` batch, whose positions follow from the header. Arrow IPC alone reads a zeroed tail as valid
rows, therefore the two checksums (CRC32C, RFC 3720 appendix B.4): one over the header, so that a torn body still says
where the next frame would begin, and one over the body with its padding.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import google_crc32c
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.events import UNPLACED_SCHEMA, placed
from analytics_core.events.owners import Owners
from analytics_core.log import Prepared
from analytics_core.log.tombstones import Tombstone

MAGIC: Final = b"ALF\x01"
EVENTS: Final = 1
WATERMARK: Final = 2
"""Time has passed and nothing else: no body, no rows, one position."""
LOST: Final = 3
"""``rows`` positions that had been acknowledged and that recovery could not read: they are never given out again."""
ERASED: Final = 4
"""A tombstone, which takes one position: a MessagePack array of tenant, `Owners` and the key of the erasure."""

_FIELDS = struct.Struct("<4sIIIqqqI")  # magic, kind, body bytes, rows, first, watermark, group, body CRC
_CHECK = struct.Struct("<I")
HEADER_BYTES: Final = _FIELDS.size + _CHECK.size
ALIGNMENT: Final = 8
KINDS: Final = frozenset({EVENTS, WATERMARK, LOST, ERASED})
_OPTIONS: Final = pa.ipc.IpcWriteOptions()
"""Given none, each writer looks in the environment for its own."""


class Header(NamedTuple):
    """One frame's header. ``first`` and ``group`` are positions, ``watermark`` microseconds since 1970 UTC."""

    kind: int
    length: int
    rows: int
    first: int
    watermark: int
    group: int
    body_crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole frame in the file."""
        return HEADER_BYTES + _padded(self.length)

    @property
    def end(self) -> int:
        """The position after this frame."""
        return self.first + (1 if self.kind == WATERMARK else self.rows)


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def prepare(batch: pa.RecordBatch) -> Prepared:
    """The body of the frame of one `UNPLACED_SCHEMA` batch: it holds no position, so it can be made ahead.

    :raises ValueError: for events of several tenants.
    """
    tenants = batch.column("tenant")
    if len(tenants.dictionary) > 1 and len(pc.unique(tenants.indices)) > 1:
        raise ValueError(f"a batch holds one tenant, not {', '.join(pc.unique(tenants).to_pylist())}")
    sink = pa.BufferOutputStream()
    with pa.ipc.RecordBatchStreamWriter(sink, UNPLACED_SCHEMA, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    check = google_crc32c.extend(google_crc32c.value(data), bytes(-len(data) % ALIGNMENT))
    return Prepared(batch.num_rows, data, check)


_NOTHING: Final = Prepared(0, pa.py_buffer(b""), google_crc32c.value(b""))


def frame(kind: int, first: int, watermark: int, group: int, body: Prepared = _NOTHING) -> list[Any]:
    """The parts of one frame, to be joined: header, body, padding."""
    length = len(body.data)
    fields = _FIELDS.pack(MAGIC, kind, length, body.rows, first, watermark, group, body.check)
    return [fields, _CHECK.pack(google_crc32c.value(fields)), body.data, bytes(-length % ALIGNMENT)]


def frame_size(body: Prepared) -> int:
    """Bytes of the whole frame of ``body`` in the file."""
    return HEADER_BYTES + _padded(len(body.data))


def lost(first: int, watermark: int, positions: int) -> list[Any]:
    """The frame that stands for acknowledged ``positions`` which are gone."""
    return frame(LOST, first, watermark, first, _NOTHING._replace(rows=positions))


def erasing(position: int, watermark: int, tenant: str, owners: Owners, key: str) -> list[Any]:
    """The frame of a tombstone."""
    data = msgspec.msgpack.encode((tenant, owners, key))
    check = google_crc32c.extend(google_crc32c.value(data), bytes(-len(data) % ALIGNMENT))
    return frame(ERASED, position, watermark, position, Prepared(1, pa.py_buffer(data), check))


class Window:
    """Bytes of one segment from the file offset ``base`` on, copied or mapped. All offsets are those of the file."""

    __slots__ = ("base", "buffer", "end")

    def __init__(self, buffer: pa.Buffer, base: int = 0) -> None:
        self.buffer = buffer
        self.base = base
        self.end = base + int(buffer.size)

    def header(self, offset: int) -> Header | str:
        """The header at ``offset``, or what is wrong with it."""
        at = offset - self.base
        if offset + HEADER_BYTES > self.end:
            return f"cut short inside its header, {self.end - offset} of {HEADER_BYTES} bytes"
        magic, *fields = _FIELDS.unpack_from(self.buffer, at)
        if magic != MAGIC:
            return f"starts with {magic!r}, not with {MAGIC!r}"
        (check,) = _CHECK.unpack_from(self.buffer, at + _FIELDS.size)
        if google_crc32c.value(self.buffer.slice(at, _FIELDS.size)) != check:
            return "its header fails the checksum"
        header = Header(*fields)
        return header if header.kind in KINDS else f"is of kind {header.kind}; valid are {sorted(KINDS)}"

    def problem(self, offset: int, header: Header) -> str:
        """What is wrong with the body of the frame at ``offset``; empty when it is whole."""
        if offset + header.size > self.end:
            return f"cut short, {self.end - offset} of {header.size} bytes"
        body = self.buffer.slice(offset - self.base + HEADER_BYTES, header.size - HEADER_BYTES)
        return "" if google_crc32c.value(body) == header.body_crc else "its body fails the checksum"

    def events(self, offset: int, header: Header) -> pa.RecordBatch:
        """The `events.SCHEMA` batch of a checked frame, over the memory of this window."""
        return placed(pa.ipc.open_stream(self._body(offset, header)).read_next_batch(), header.first)

    def tombstone(self, offset: int, header: Header) -> Tombstone:
        """What a checked `ERASED` frame says."""
        tenant, owners, key = _erased.decode(self._body(offset, header))
        return Tombstone(header.first, tenant, owners, key, header.watermark)

    def _body(self, offset: int, header: Header) -> pa.Buffer:
        return self.buffer.slice(offset - self.base + HEADER_BYTES, header.length)


_erased: Final = msgspec.msgpack.Decoder(tuple[str, Owners, str])


# --- the disk --------------------------------------------------------------------------------------------------------


class Disk:
    """The operations of the writing side that can fail. Tests give one that does."""

    def create(self, path: Path) -> int:
        """A new empty file, open for writing; its directory entry is durable."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            self.sync_directory(path.parent)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write at ``offset``; how many bytes were taken, which may be fewer than given."""
        return os.pwrite(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def cut(self, descriptor: int, size: int) -> None:
        """Durably shorten a file to ``size`` bytes."""
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def space(self, directory: Path) -> tuple[int, int]:
        """Free bytes for this process, and the size of the file system."""
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
