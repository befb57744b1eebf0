"""History: the queryable table of all events that the store writer has taken from the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

import pyarrow as pa
from msgspec import Struct

from analytics_core.events import EventBatch
from analytics_core.events.owners import Owners


class Snapshot(Struct, frozen=True):
    """One leased version: immutable files that hold exactly the events below ``position``.

    ``files`` are Parquet paths that may contain events of the asked tenant and range; rows still need the filter.
    ``others`` are the tenant's other files, of which no event is in the range. ``rows`` counts the events of all
    these, ``last`` is the position of the last one, -1 without any. ``table`` is another for another lake.
    Every file has all columns of `events.SCHEMA`, words as plain strings. Serialisable, so that a plugin's process can
    read it too.
    """

    version: int
    position: int
    files: Sequence[str]
    others: Sequence[str] = ()
    rows: int = 0
    last: int = -1
    table: str = ""


class RetentionPolicy(Struct, frozen=True):
    """How many days a tenant's events are kept; None keeps them for ever."""

    days: int | None = 90
    by_tenant: dict[str, int | None] = {}


class Swept(Struct, frozen=True):
    """What an erasure did: ``events`` that are gone from ``files``, files ``deleted`` from the disk, and how many are
    still ``leased``: then it is to be asked for again."""

    events: int
    files: int
    deleted: int
    leased: int


class EventStore(Protocol):
    """Every backend keeps true: a position is stored once, whatever is replayed; a snapshot never changes while leased;
    maintenance runs one change at a time and loses no concurrent append."""

    @property
    def position(self) -> int:
        """One past the last log position that is stored."""
        ...

    def append(self, events: pa.Table, upto: int) -> int:
        """Store `SCHEMA` rows and move ``position`` to ``upto`` in one commit; rows below ``position`` are dropped.

        Returns how many rows were stored. An empty table moves the position alone.
        """
        ...

    def lease(
        self, tenant: str, start: datetime | None = None, end: datetime | None = None
    ) -> AbstractContextManager[Snapshot]:
        """The current version, kept from vacuum while the context is open."""
        ...

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = 64 << 20) -> tuple[list[EventBatch], int]:
        """The stored events from position ``start`` on in order of ``seq``, one batch a tenant, and where to go on.

        This is `log.LogReader.read` for positions that the log has trimmed: ``([], start)`` when ``start`` is not below
        ``position``. Events that retention has dropped are not there. Where to go on is nearer when more than about
        ``max_bytes`` of rows lie in the window.

        :raises StorageError: when the events cannot be read.
        """
        ...

    def compact(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Rewrite small or unsorted files of each partition sorted by (user_id, timestamp, seq); files removed."""
        ...

    def retain(self, policy: RetentionPolicy, now: datetime, *, confirmed: bool = False) -> int:
        """Drop events whose later of event day and received day is past the policy; rows dropped.

        :raises RetentionHeldError: when that is over 10 % of a tenant (under 14 days: over one and a half times the
            share that a day's run drops), or ``now`` jumped, unless ``confirmed``; other tenants are done all the same.
        """
        ...

    def erase(self, tenant: str, owners: Owners, below: int) -> Swept:
        """Drop the events of ``owners`` below position ``below``, and delete all files of the tenant that are in no
        version in use and no lease, however young: earlier versions are gone.

        May be asked for again at any time, and is to be after it was broken off.

        :raises StorageError: when it could not be done; part of it may be.
        """
        ...

    def vacuum(self) -> int:
        """Delete files that no version in use and no lease needs, and that are not young; files deleted."""
        ...

    def close(self) -> None: ...
