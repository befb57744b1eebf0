"""The hooks of the plugin; what they do is in the modules beside this one."""

from __future__ import annotations

from analytics_core import Answer, EventBatch, EventReader, PluginContext, ProcessResult, Question, hookimpl
from analytics_performance import checkpoint
from analytics_performance.fold import Limits, TenantFold
from analytics_performance.latency import latency


class Performance:
    """How many requests there are, how many fail, and how long they take."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._tenants: dict[str, TenantFold] = {}

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        settings = context.settings
        self._limits = Limits(settings["lateness_hours"] * 60, settings["max_names"])

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        fold = self._tenants.get(batch.tenant)
        if fold is None:
            if not len(batch):
                return None  # time passes for nobody
            first = int(batch.column("received_at")[0].value) // 60_000_000
            fold = self._tenants[batch.tenant] = TenantFold(self._limits, first)
        return fold.process(batch)

    @hookimpl
    def export_state(self) -> bytes:
        return checkpoint.pack(self._tenants)

    @hookimpl
    def import_state(self, state: bytes, version: int) -> None:
        if version != checkpoint.VERSION:
            raise ValueError(f"state version {version} is not known; valid is {checkpoint.VERSION}")
        self._tenants = checkpoint.unpack(state, self._limits)

    @hookimpl
    def erase(self) -> None:
        """Counts and durations by event name are of nobody in particular: there is nothing to forget."""

    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        if question.analysis != "latency":
            raise ValueError(f"analysis {question.analysis!r} is not provided; valid is: latency")
        return latency(events, question.range.timezone, **question.parameters)
