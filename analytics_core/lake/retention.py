"""Retention: which events are past their policy, and when a run must stop and ask."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from analytics_core.events import TIMESTAMP, micros
from analytics_core.lake import RetentionPolicy
from analytics_core.lake.files import ROW_GROUP, LakeFile, TableVersion

_SHARE: Final = 0.10
_DAY: Final = timedelta(days=1)
_JUMP: Final = timedelta(days=2)
_ABSENCE: Final = timedelta(days=14)
"""How long a host may have been off before its clock is doubted."""


class Sweep(Struct, frozen=True):
    """What a run would do to one tenant: files that go whole, files that lose some rows, and how many rows that is."""

    tenant: str
    days: int
    cutoff: int
    whole: Sequence[LakeFile]
    mixed: Sequence[LakeFile]
    dropped: int
    total: int

    @property
    def share(self) -> float:
        return self.dropped / self.total

    @property
    def excessive(self) -> bool:
        """Over 10 %; for a policy of under 14 days, of which each daily run drops ``1 / (days + 1)`` as a matter of
        course, over one and a half times that."""
        return self.share > max(_SHARE, 1.5 / (max(self.days, 1) + 1))


def plan(root: Path, version: TableVersion, policy: RetentionPolicy, now: datetime) -> list[Sweep]:
    """One sweep per tenant that has expired events.

    An event has expired when both its own day and the day it was received are more than the policy's days before
    today (all in UTC): an import of old events counts from the import.
    """
    sweeps = []
    for tenant, files in version.files.items():
        days = policy.by_tenant.get(tenant, policy.days)
        if days is None:
            continue
        today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        cutoff = micros(today) - days * 86_400_000_000
        whole = [file for file in files if max(file.last_event, file.last_received) < cutoff]
        doubtful = [
            file
            for file in files
            if max(file.first_event, file.first_received) < cutoff <= max(file.last_event, file.last_received)
        ]
        expired = {file.path: _expired_rows(root, file, cutoff) for file in doubtful}
        mixed = [file for file in doubtful if expired[file.path]]
        dropped = sum(file.rows for file in whole) + sum(expired.values())
        if dropped:
            sweeps.append(Sweep(tenant, days, cutoff, whole, mixed, dropped, sum(file.rows for file in files)))
    return sweeps


def _expired_rows(root: Path, file: LakeFile, cutoff: int) -> int:
    with pq.ParquetFile(root / file.path) as opened:
        batches = opened.iter_batches(ROW_GROUP, columns=["timestamp", "received_at"])
        return sum(batch.num_rows - (pc.sum(_kept(batch, cutoff)).as_py() or 0) for batch in batches)


def kept_batches(path: Path, cutoff: int) -> Iterator[pa.RecordBatch]:
    """The rows of one file that have not expired, in their order."""
    with pq.ParquetFile(path) as opened:
        for batch in opened.iter_batches(ROW_GROUP):
            yield batch.filter(_kept(batch, cutoff))


def _kept(batch: pa.RecordBatch, cutoff: int) -> pa.Array:
    limit = pa.scalar(cutoff, TIMESTAMP)
    return pc.or_(
        pc.greater_equal(batch.column("timestamp"), limit), pc.greater_equal(batch.column("received_at"), limit)
    )


class ClockGuard:
    """Doubts a clock that ran ahead, which would make everything look old.

    Between two runs of one process the wall clock must agree with the uptime within two days. For the first run the
    measure is ``seen``: the newest moment that the table knew when it was opened; the clock may be 14 days beyond it
    (a host may be off for a holiday). A run that was held sets no new measure, so it is asked about until confirmed.
    """

    def __init__(self, seen: int | None) -> None:
        self._seen = seen
        self._last: tuple[datetime, float] | None = None

    def doubt(self, now: datetime, newest: int | None) -> str | None:
        """Why ``now`` is not believed, if so. ``newest`` (microseconds) stands in when nothing was known at first."""
        if self._last is not None:
            wall, uptime = self._last
            ahead = now - wall - timedelta(seconds=_uptime() - uptime)
            return None if ahead <= _JUMP else f"the clock went {ahead / _DAY:.0f} days ahead of the time that passed"
        seen = newest if self._seen is None else self._seen
        ahead = timedelta(microseconds=micros(now) - seen) if seen is not None else _ABSENCE
        if ahead <= _ABSENCE:
            return None
        return f"the clock is {ahead / _DAY:.0f} days after anything that was stored"

    def believe(self, now: datetime) -> None:
        """``now`` was right: the next run is measured from here."""
        self._last = (now, _uptime())


def _uptime() -> float:
    """Seconds that also count while the machine sleeps, where the system can say."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
