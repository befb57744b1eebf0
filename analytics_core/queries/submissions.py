"""The seed API: data handed in for one plugin, stored like any events, and answered by a fold over exactly them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog
from msgspec import Struct

from analytics_core.errors import AnalyticsError, NotFoundError, OverloadedError, ParameterError
from analytics_core.events import MINUTE, Event, EventBatch, micros, moment, placed
from analytics_core.events.columns import Columns, texts, to_batch
from analytics_core.events.times import read_times
from analytics_core.queries.findings import findings
from analytics_core.queries.sessions import read_events
from analytics_core.records import Outcome, ProcessResult
from analytics_core.state import StateStore

KIND: Final = "analysis"
SOURCE: Final = "submission"
MAX_RUNNING: Final = 8
MAX_STEPS: Final = 500
_STEP: Final = 10 * MINUTE

_log = structlog.get_logger(__name__)


class Accept(Protocol):
    """`intake.Intake.accept_events`."""

    def __call__(self, events: Sequence[Event], *, tenant: str, source: str) -> Awaitable[Outcome]: ...


class PluginSeen(Protocol):
    """`host.plugins.PluginView`, as far as it is needed here."""

    @property
    def name(self) -> str: ...
    @property
    def hooks(self) -> Sequence[str]: ...


class Folding(Protocol):
    """`host.calls.Calls`, as far as it is needed here."""

    def enriches(self) -> bool: ...
    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, npt.NDArray[np.bool_] | None]: ...
    async def fold_once(self, plugin: str, batches: Sequence[EventBatch]) -> ProcessResult: ...


class Analysis(Struct, rename="camel"):
    """The stored document of one submission. ``run`` names the process that works on it."""

    analysis_id: str
    type: str
    status: Literal["pending", "done", "failed"]
    submitted_at: str
    run: str
    events: int = 0
    seconds: float = 0.0
    error: str = ""
    insights: list[Any] = []
    patterns: list[Any] = []
    metrics: dict[str, Any] = {}


_analysis: Final = msgspec.json.Decoder(Analysis)  # made before there are threads, as in lanes.checkpoint


class Submissions:
    """Takes submissions and works on at most ``max_running`` at a time; lives on one event loop.

    A submission that was under way when the host ended is shown as failed: its events are in the log, so nothing is
    lost but the answer, which a new submission of the same data gives.
    """

    def __init__(
        self,
        accept: Accept,
        calls: Folding,
        plugins: Callable[[], Iterable[PluginSeen]],
        state: StateStore,
        *,
        max_running: int = MAX_RUNNING,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._accept = accept
        self._calls = calls
        self._plugins = plugins
        self._state = state
        self._max_running = max_running
        self._clock = clock
        self._run = secrets.token_hex(8)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.analyzed = 0
        """Submissions answered since the start."""
        self.seconds = 0.0
        """Sum of the time that they took."""

    async def submit(self, type: str, data: Any, tenant: str) -> str:  # noqa: A002  the wire's word
        """Store the events and begin the analysis; its id. What `result` gives is ready some time later.

        ``data``: ``{"sessions": [{"sessionId", "userId", "startTime", "events": [{"type", "timestamp", "data"}]}]}`` or
        ``{"events": [...]}`` as for ``POST /api/v1/events``. Nothing is stored when anything in it is wrong.

        :raises ParameterError: naming the path; :raises NotFoundError: when no plugin that processes has this name.
        :raises OverloadedError: when too many are under way.
        """
        plugin = self._plugin(type)
        analysis_id = secrets.token_hex(12)
        events = await asyncio.to_thread(read_events, data, analysis_id)
        if self._waiting >= self._max_running:
            raise OverloadedError(f"{self._waiting} analyses are under way, at most {self._max_running} may be")
        self._waiting += 1
        try:
            analysis = Analysis(analysis_id, plugin, "pending", self._clock().isoformat(), self._run, len(events))
            await self._write(analysis, tenant)
            await self._store(analysis, events, tenant)
        except BaseException:
            self._waiting -= 1
            raise
        task = asyncio.ensure_future(self._answer(analysis, events, tenant))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return analysis_id

    async def _store(self, analysis: Analysis, events: Sequence[Event], tenant: str) -> None:
        try:
            await self._accept(events, tenant=tenant, source=SOURCE)
        except AnalyticsError as error:
            analysis.status, analysis.error = "failed", str(error)
            await self._write(analysis, tenant)
            raise

    def result(self, analysis_id: str, tenant: str) -> dict[str, Any] | None:
        """``{"success", "analysisId", "status", "type", "insights", "patterns", "metrics": {...}}``, or None.

        ``success`` is false, and ``error`` says why, when the analysis failed. ``metrics`` maps each name to one
        figure over all windows; a metric with labels to ``{"value", "breakdown": [{"labels", "value"}]}``.
        """
        body = self._state.document(tenant, KIND, analysis_id)
        if body is None:
            return None
        analysis = _analysis.decode(body)
        if analysis.status == "pending" and analysis.run != self._run:
            analysis.status = "failed"
            analysis.error = "the host was restarted during the analysis; its events are stored, submit the data again"
        shown: dict[str, Any] = msgspec.to_builtins(analysis)
        del shown["run"]
        if not analysis.error:
            del shown["error"]
        return {"success": analysis.status != "failed", **shown}

    async def close(self) -> None:
        """Wait for what is under way; those that are cut off are shown as failed after the restart."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _plugin(self, given: str) -> str:
        views = {view.name: view for view in self._plugins()}
        name = given.replace("_", "-")
        able = [view.name for view in views.values() if "process" in view.hooks]
        if name not in views:
            raise NotFoundError("plugin", given, able)
        if name not in able:
            raise ParameterError("type", f"the plugin {name!r} does not process events; valid are: {', '.join(able)}")
        return name

    async def _answer(self, analysis: Analysis, events: Sequence[Event], tenant: str) -> None:
        started = asyncio.get_running_loop().time()
        try:
            batch = await self._enriched(await asyncio.to_thread(as_batch, events, tenant, self._clock()))
            result = await self._calls.fold_once(analysis.type, replayed(batch))
            found = await asyncio.to_thread(findings, analysis.type, result)
            analysis.insights, analysis.patterns, analysis.metrics = found
            analysis.status = "done"
        except AnalyticsError as error:
            analysis.status, analysis.error = "failed", _text(error)
        except Exception as error:  # whatever it was, whoever waits for the result must see an end
            analysis.status, analysis.error = "failed", f"{type(error).__name__}: {_text(error)}"
            _log.exception("analysis_failed", analysis=analysis.analysis_id, plugin=analysis.type, tenant=tenant)
        finally:
            self._waiting -= 1
        analysis.seconds = round(asyncio.get_running_loop().time() - started, 6)
        self.analyzed += 1
        self.seconds += analysis.seconds
        await self._write(analysis, tenant)

    async def _enriched(self, batch: EventBatch) -> EventBatch:
        """As the log has them: what an enrich plugin masks or drops must not reach the fold another way."""
        if not self._calls.enriches():
            return batch
        enriched, dropped = await self._calls.enrich(batch)
        return enriched if dropped is None else enriched.filter(np.logical_not(dropped))

    async def _write(self, analysis: Analysis, tenant: str) -> None:
        body = msgspec.json.encode(analysis)
        await asyncio.to_thread(self._state.document, tenant, KIND, analysis.analysis_id, body)


def _text(error: Exception) -> str:
    """What it says, as far as it can be stored."""
    return str(error).encode(errors="replace").decode()


def as_batch(events: Sequence[Event], tenant: str, now: datetime) -> EventBatch:
    """Checked events as one batch in order of time, as if each had been received when it happened; positions from 0.

    The log says when they were really received, which for a fold would make all of them late.
    """
    columns = Columns.of(events)
    at = read_times(columns.timestamp, np.full(len(events), micros(now), np.int64)).at
    batch = to_batch(
        columns,
        tenant=tenant,
        event_ids=pa.array(columns.message_id, pa.string()),
        properties=texts(columns.properties),
        context=texts(columns.context),
        at=at,
        received_at=at,
        source=SOURCE,
    )
    ordered = batch.take(pa.array(np.argsort(at, kind="stable")))
    return EventBatch(placed(ordered, 0), tenant, moment(int(at.max())))


def replayed(batch: EventBatch) -> list[EventBatch]:
    """The batch cut into at most `MAX_STEPS` stretches of time, each with the watermark of its last event."""
    at = batch.column("timestamp").view(pa.int64()).to_numpy()
    if not len(at):
        return [batch]
    length = max(_STEP, -(-int(at[-1] - at[0] + 1) // MAX_STEPS))
    cuts = [0, *(np.flatnonzero(np.diff((at - at[0]) // length)) + 1).tolist(), len(at)]
    return [
        EventBatch(batch.record_batch.slice(low, high - low), batch.tenant, moment(int(at[high - 1])))
        for low, high in pairwise(cuts)
    ]
