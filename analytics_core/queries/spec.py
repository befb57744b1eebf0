"""Which snapshot a question is asked of, by reference, and what it may use."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from analytics_core.log.tombstones import Tombstone
from analytics_core.metrics.filters import Filter
from analytics_core.queries.cohorts import Cohort
from analytics_core.records import TimeRange


class Limits(Struct, frozen=True):
    """What one question may use. ``seconds`` is per query."""

    seconds: float = 30.0
    memory: str = "1GB"
    threads: int = 2

    @property
    def late(self) -> str:
        """What is said of a question that takes longer."""
        return f"no answer within {self.seconds:g} s; narrow the time range, add a filter, or group more coarsely"


class SnapshotSpec(Struct, frozen=True, kw_only=True):
    """A snapshot of a tenant's events, and which of them are asked for. Picklable: any process that sees the data
    directory can open the same one, while the snapshot that has it is open, which keeps the files leased.

    ``files`` hold what is in the range, ``others`` the rest of the tenant's events; ``rows`` counts both. The log has
    what is from ``position`` to before ``durable``. What ``erased`` names may still be in them, and is not shown.
    """

    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    rows: int = 0
    lake: str = ""
    position: int = 0
    durable: int = 0
    tenant: str
    range: TimeRange
    filters: tuple[Filter, ...] = ()
    cohort: Cohort | None = None
    erased: tuple[Tombstone, ...] = ()
    log_directory: Path | None = None
    limits: Limits = Limits()
