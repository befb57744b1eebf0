"""The durable log: the one place where an event becomes a fact. Everything else reads it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, Protocol

import pyarrow as pa

from analytics_core.events import EventBatch
from analytics_core.events.owners import Owners

MAX_BYTES: Final = 64 << 20
"""What one read gives at most, unless told otherwise."""


class LogReader(Protocol):
    """What lanes see of a log: durable events only, in order of ``seq``.

    A position is an int64 ``seq``. Each event takes one, and so does each watermark that an idle log is given, so
    positions only grow and every reader advances. Safe for use from any thread.
    """

    @property
    def first(self) -> int:
        """The lowest position still held."""
        ...

    @property
    def durable(self) -> int:
        """One past the last durable position. What is at or beyond it does not exist for a reader."""
        ...

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = MAX_BYTES) -> tuple[list[EventBatch], int]:
        """Durable batches from ``start`` on, and the position after them; ``([], start)`` when there is nothing new.

        Each batch is of one tenant and one commit; a watermark is an empty batch of tenant ``""``, a tombstone an empty
        one that names whom it ``erased``; no event of theirs before it is given any more. They are no more than
        ``max_rows`` rows and about ``max_bytes`` together, but at least one batch is given when there is one,
        whatever its size. ``start`` may fall inside a batch: its tail is given.

        :raises TrimmedError: when ``start`` is below ``first``.
        :raises LogCorruptionError: for a frame that fails its check.
        """
        ...

    def wait(self, position: int, timeout: float) -> int:
        """Block until ``durable`` is beyond ``position`` or ``timeout`` seconds are over; the durable position."""
        ...


class Prepared(NamedTuple):
    """A batch as its log will keep it, but for its position. ``check`` is a checksum of ``data``."""

    rows: int
    data: pa.Buffer
    check: int


class EventLog(LogReader, Protocol):
    """The writing side, owned by one thread of one process.

    Every backend keeps true: what ``append`` has returned survives ``kill -9`` and power loss; what it has raised for
    is gone; readers never see part of a batch.
    """

    def prepare(self, batch: pa.RecordBatch) -> Prepared:
        """The part of `append` that needs no position, for any thread: it spares the one that writes.

        :raises ValueError: for a batch of several tenants.
        """
        ...

    def append(self, batches: Sequence[pa.RecordBatch | Prepared], watermark: datetime) -> list[int]:
        """Make `UNPLACED_SCHEMA` batches durable together, one fdatasync for all; the first ``seq`` of each.

        With no batches only the watermark is written.

        :raises LogFullError: before anything is written, when the log's limit or the disk reserve is reached.
        :raises LogWriteError: after the log was cut back to its durable position.
        """
        ...

    def erase(self, tenant: str, owners: Owners, key: str) -> int:
        """Write a tombstone; its position. From any thread. When it returns, no reader in any process is given an event
        of ``owners`` below that position.

        Once `trim` has passed it, nothing of those events is in the log's files. ``key`` is kept with it.

        :raises LogWriteError: when it could not be made durable; it may hold nevertheless.
        """
        ...

    def trim(self, below: int) -> int:
        """Delete whole segments that hold nothing at or above ``below``; the new ``first``."""
        ...

    def close(self) -> None: ...
