"""The concurrent hooks: who is asked, of which generation, and what a failure counts for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from analytics_core.errors import (
    BudgetError,
    BuildingError,
    HookFailedError,
    MalformedBodyError,
    NotFoundError,
    ParameterError,
    PluginStartingError,
    PluginUnavailableError,
)
from analytics_core.events import Event, EventBatch
from analytics_core.host.enrichment import Enricher, Enrichers, Mask
from analytics_core.host.health import FINAL, RISING, RUNNING, State
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.roster import Roster
from analytics_core.host.life.supervise import Life
from analytics_core.host.running.runtime import Runtime
from analytics_core.host.views import AnalysisSpec, analyses_of
from analytics_core.records import Answer, Enrichment, Outcome, ProcessResult, Question, Reply, Request


class Calls:
    """Calls the plugins of ``roster`` from the event loop. `enlist` is for any thread.

    ``enrich_seconds`` is the time that all plugins which enrich have together for one batch.
    """

    def __init__(self, roster: Roster, enrich_seconds: float) -> None:
        self._roster = roster
        self._enrichers = Enrichers(enrich_seconds)
        self._enlisting = threading.Lock()

    # --- insight -----------------------------------------------------------------------------------------------------

    def analyses(self) -> dict[str, AnalysisSpec]:
        """Every analysis of every plugin that is to run, by name."""
        return {spec.name: spec for choice in self._roster.running() for spec in analyses_of(choice)}

    def generation(self, plugin: str) -> int:
        """Which generation of a plugin would answer now; 0 when it does not run."""
        life = self._roster.lives().get(plugin)
        return 0 if life is None else life.present.runtime.generation

    async def insight(self, question: Question, reader: Any) -> Answer:
        """Ask the plugin that provides the analysis; ``reader`` is the `EventReader` that it gets, with ``to_spec()``.

        :raises NotFoundError: for an unknown analysis.
        :raises ParameterError: when the plugin or the reader refuses a parameter, which is no failure of the plugin.
        :raises BudgetError, BuildingError: when the question is too large, or comes too early: no failure either.
        :raises PluginUnavailableError: while it is not running; `PluginStartingError` while it is on its way up.
        :raises HookFailedError: when it fails; `HookTimeoutError` when it takes too long.
        """
        analyses = self.analyses()
        if question.analysis not in analyses:
            raise NotFoundError("analysis", question.analysis, analyses)
        with self._lent(analyses[question.analysis].plugin) as (runtime, seconds):
            try:
                answer: Answer = await runtime.acall("insight", seconds, question=question, events=reader)
            except HookFailedError as failure:
                if isinstance(failure.__cause__, ParameterError | BudgetError | BuildingError):
                    raise failure.__cause__ from failure
                raise
        return answer

    # --- enrich ------------------------------------------------------------------------------------------------------

    def enlist(self) -> None:
        """Take those that enrich as they are now."""
        with self._enlisting:
            choices = [member.choice for member in self._roster.members()]
            self._enrichers.enlist([self._enricher(c) for c in choices if c.guards or self._may_enrich(c)])

    def enriches(self) -> bool:
        """Whether any plugin that runs or may yet run has ``enrich``.

        One that must not be passed over counts whatever has become of it, unless it is disabled.
        """
        return any(each.choice.guards or self._may_enrich(each.choice) for each in self._roster.members())

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Mask | None]:
        """The batch with changed properties, as long as before, and which rows are to be dropped, shape ``(n,)``.

        :raises OverloadedError: when a plugin with ``on_failure: reject`` gave no answer.
        """
        return await self._enrichers.enrich(batch)

    def _may_enrich(self, choice: Choice) -> bool:
        life = self._roster.lives().get(choice.name)
        return choice.lists("enrich") and life is not None and life.health.state not in FINAL

    def _enricher(self, choice: Choice) -> Enricher:
        async def call(batch: EventBatch, seconds: float) -> Enrichment | None:
            if choice.name not in self._roster.lives():
                raise _unavailable(choice.name, choice.state)
            with self._lent(choice.name) as (runtime, _):
                enrichment: Enrichment | None = await runtime.acall("enrich", seconds, batch=batch)
            return enrichment

        after = choice.manifest.after if choice.manifest is not None else ()
        return Enricher(choice.name, after, "reject" if choice.guards else "pass", call)

    # --- ingest and reply --------------------------------------------------------------------------------------------

    def route(self, method: str, path: str) -> str | None:
        """The plugin that claims an HTTP route."""
        wanted = f"{method} {path}"
        for choice in self._roster.running():
            if choice.manifest is not None and wanted in choice.manifest.provides.routes:
                return choice.name
        return None

    async def ingest(self, plugin: str, request: Request) -> list[Event] | EventBatch:
        """The events that the adapter reads out of a request.

        :raises MalformedBodyError: for a ``ValueError`` of the adapter, which so refuses what its client has sent.
        :raises HookFailedError: for anything else that goes wrong in it.
        :raises PluginUnavailableError: while the plugin is not running.
        """
        with self._lent(plugin) as (runtime, seconds):
            try:
                events: list[Event] | EventBatch = await runtime.acall("ingest", seconds, request=request)
            except HookFailedError as failure:
                if isinstance(failure.__cause__, ValueError):
                    raise MalformedBodyError(str(failure.__cause__)) from failure
                raise
        return events

    async def reply(self, plugin: str, request: Request, outcome: Outcome) -> Reply:
        reply: Reply = await self._call(plugin, "reply", request=request, outcome=outcome)
        return reply

    # --- process, apart from the lane --------------------------------------------------------------------------------

    async def fold_once(self, plugin: str, batches: Sequence[EventBatch]) -> ProcessResult:
        """What a fresh instance finds in exactly these events of one tenant, after time enough to close everything.

        :raises NotFoundError: for a plugin that is not to run.
        :raises PluginUnavailableError: while the plugin is not running.
        """
        self._life_of(plugin)
        if not self._roster.member(plugin).choice.lists("process"):
            raise HookFailedError(plugin, "process", "is not a hook of this plugin, so it folds nothing")
        with self._lent(plugin) as (runtime, seconds):
            return await runtime.fold_once(batches, seconds)

    # --- all ---------------------------------------------------------------------------------------------------------

    async def _call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        with self._lent(plugin) as (runtime, seconds):
            return await runtime.acall(hook, seconds, **arguments)

    @contextmanager
    def _lent(self, plugin: str) -> Iterator[tuple[Runtime, float]]:
        """The present generation for one call, and how long that may take. A hook's failure counts as its plugin's."""
        life = self._life_of(plugin)
        with life.present.lent() as runtime:
            try:
                yield runtime, runtime.seconds
            except HookFailedError as error:
                life.health.errors += 1
                asyncio.get_running_loop().run_in_executor(None, life.failed_call, error, runtime)  # it may write
                raise

    def _life_of(self, plugin: str) -> Life:
        """:raises PluginUnavailableError: unless the plugin runs."""
        lives = self._roster.lives()
        if plugin not in lives:
            raise NotFoundError("running plugin", plugin, lives)
        life = lives[plugin]
        if life.health.state not in RUNNING:
            raise _unavailable(plugin, life.health.state)
        return life


def _unavailable(plugin: str, state: State) -> PluginUnavailableError:
    """Any tenant's client may see this text; why the plugin is in its state may be about another's events."""
    if state in RISING:
        return PluginStartingError(plugin, f"is {state}")
    return PluginUnavailableError(plugin, f"is {state}; GET /api/v1/plugins says why")
