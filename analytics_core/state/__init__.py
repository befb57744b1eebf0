"""What the lanes know: checkpoints, cursors, metric points, insights, patterns, the outbox, and small documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec import Struct

from analytics_core.records import Insight, Metric, MetricKind, Pattern
from analytics_core.records import Message as Message


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Where a lane goes on. ``epoch`` is its right to write; ``state`` the exported fold state, None at the start."""

    lane: str
    epoch: int
    position: int
    state: bytes | None = None
    state_version: int = 1
    events: int = 0
    """How many events the lane has processed since its first start."""


class Outputs(Struct, frozen=True, kw_only=True):
    """What a lane found for one tenant since its last commit, all upserts of absolute values."""

    tenant: str
    metrics: Sequence[Metric] = ()
    patterns: Sequence[Pattern] = ()
    insights: Sequence[Insight] = ()


class Point(Struct, frozen=True, kw_only=True):
    """One stored metric value."""

    lane: str
    name: str
    start: datetime
    seconds: int
    labels: dict[str, str]
    kind: MetricKind
    value: float
    sketch: bytes | None = None
    unit: str = ""


class StateStore(Protocol):
    """Every backend keeps true: ``commit`` is one transaction; only the holder of the newest epoch of a lane can write;
    a replayed commit changes nothing. Safe for use from any thread. Whoever has opened a backend closes it."""

    def claim(self, lane: str) -> Checkpoint:
        """Begin a new epoch of ``lane``, which ends all earlier ones, and give where it goes on."""
        ...

    def commit(self, checkpoint: Checkpoint, outputs: Sequence[Outputs] = (), messages: Sequence[Message] = ()) -> int:
        """Write state, position, outputs and outbox together; the outbox position after it.

        A checkpoint with ``state`` None leaves the stored state as it is.

        :raises FencedError: when ``checkpoint.epoch`` is not the newest; nothing is written.
        """
        ...

    def outbox(self, after: int, limit: int = 1000) -> list[Message]:
        """Messages beyond position ``after``, in order. Old ones are dropped by age (an hour) and number (100 000)."""
        ...

    def points(
        self, tenant: str, name: str, start: datetime, end: datetime, labels: Mapping[str, str] | None = None
    ) -> list[Point]:
        """Points of one metric whose window starts in ``[start, end)``, oldest first."""
        ...

    def catalogue(self, tenant: str) -> list[tuple[str, str, MetricKind]]:
        """Every (lane, metric name, kind) that has points."""
        ...

    def records(
        self,
        tenant: str,
        kind: Literal["insight", "pattern"],
        *,
        lane: str | None = None,
        after: int = 0,
        limit: int = 100,
        newest: bool = False,
    ) -> list[dict[str, Any]]:
        """Insights or patterns as stored, each with ``lane``, ``updated_at`` and ``seq`` (the cursor to page with)."""
        ...

    def document(self, tenant: str, kind: str, key: str, body: bytes | None = None) -> bytes | None:
        """Read a small document (an analysis result, a plugin's state record), or write it when ``body`` is given."""
        ...

    def forget(self, before: datetime | None, by_tenant: Mapping[str, datetime | None] = ...) -> int:
        """Drop metric points whose window started, and which were last written, before that moment; insights, patterns
        and documents last written before it; rows dropped.

        ``by_tenant`` has the moments of tenants other than ``before``; None keeps all. The state of lanes stays, and so
        do documents of the machinery itself, whose tenant is no tenant id (``""``, ``_system``).
        """
        ...
