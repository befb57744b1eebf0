"""What the API calls: `Services`, opened by the app and handed to `analytics_core.api.build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from analytics_core.config import Settings
from analytics_core.events import Event, EventBatch
from analytics_core.lanes import LaneView
from analytics_core.live import Live
from analytics_core.log import LogReader
from analytics_core.records import Outcome, Reply, Request


class Intake(Protocol):
    """`analytics_core.intake.Intake`, as far as the API needs it."""

    requests: int
    seconds: float

    async def accept(
        self,
        body: bytes,
        *,
        tenant: str,
        content_type: str = ...,
        content_encoding: str = ...,
        idempotency_key: str | None = None,
    ) -> Outcome: ...

    async def accept_events(
        self, events: Sequence[Event], *, tenant: str, source: str, sent_at: int | None = None
    ) -> Outcome: ...


class Host(Protocol):
    """The plugin host. ``views`` gives structs that are shown as they are."""

    def views(self) -> Sequence[Any]: ...

    def route(self, method: str, path: str) -> str | None: ...

    async def ingest(self, plugin: str, request: Request) -> list[Event] | EventBatch: ...

    async def reply(self, plugin: str, request: Request, outcome: Outcome) -> Reply: ...


class Metrics(Protocol):
    def query(
        self,
        tenant: str,
        names: Sequence[str],
        start: str | datetime,
        end: str | datetime,
        interval: str,
        timezone: str,
        breakdown: Sequence[str] | None = None,
    ) -> Mapping[str, Any]: ...


class Analyses(Protocol):
    def catalogue(self, tenant: str) -> Sequence[Any]: ...

    async def ask(self, name: str, parameters: dict[str, Any], tenant: str) -> Mapping[str, Any]: ...


class Submissions(Protocol):
    async def submit(self, type_: str, data: dict[str, Any], tenant: str, /) -> str: ...

    def result(self, id_: str, tenant: str, /) -> Mapping[str, Any] | None: ...


class LiveMetrics(Protocol):
    def latest(self, tenant: str) -> dict[str, dict[str, Any]]: ...


@dataclass(frozen=True)
class Services:
    settings: Settings
    deployment: Any
    intake: Intake
    host: Host
    lanes: Callable[[], Sequence[LaneView]]
    history: Any
    metrics: Metrics
    analyses: Analyses
    submissions: Submissions
    state: Any
    log: LogReader
    live: Live
    live_metrics: LiveMetrics
    started_at: datetime
