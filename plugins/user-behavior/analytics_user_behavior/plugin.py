"""The hooks of the plugin; what they do is in the modules beside this one."""

from __future__ import annotations

from analytics_core import Answer, EventBatch, EventReader, PluginContext, ProcessResult, Question, hookimpl
from analytics_user_behavior import checkpoint
from analytics_user_behavior.engagement import engagement
from analytics_user_behavior.fold import Limits, TenantFold
from analytics_user_behavior.funnel import funnel
from analytics_user_behavior.sessions import sessions


class UserBehavior:
    """Sessions, engagement and funnels: live by the minute, and exactly for any range that is asked for."""

    def __init__(self) -> None:
        self._limits = Limits()
        self._tenants: dict[str, TenantFold] = {}

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        settings = context.settings
        self._limits = Limits(settings["session_gap_minutes"], settings["lateness_hours"] * 60)

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
        if version not in checkpoint.READABLE:
            valid = ", ".join(map(str, checkpoint.READABLE))
            raise ValueError(f"state version {version} is not known; valid are: {valid}")
        self._tenants = checkpoint.unpack(state, self._limits)

    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        match question.analysis:
            case "sessions":
                return sessions(events, question.range, self._limits.gap)
            case "engagement":
                return engagement(events, question.range)
            case "funnel":
                return funnel(events, question.parameters["steps"], question.parameters["window"])
        raise ValueError(f"analysis {question.analysis!r} is not provided; valid are: sessions, engagement, funnel")
