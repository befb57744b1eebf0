"""The hooks of the plugin; what they do is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analytics_core import (
    Answer,
    EventBatch,
    EventReader,
    PluginContext,
    ProcessResult,
    Question,
    TimeRange,
    hash_strings,
    hookimpl,
)
from analytics_user_behavior import checkpoint
from analytics_user_behavior.breakdown import breakdown
from analytics_user_behavior.changes import changes
from analytics_user_behavior.compare import compare
from analytics_user_behavior.engagement import engagement
from analytics_user_behavior.fold import Limits, TenantFold
from analytics_user_behavior.frequency import frequency
from analytics_user_behavior.funnel import funnel
from analytics_user_behavior.lifecycle import lifecycle
from analytics_user_behavior.paths import paths
from analytics_user_behavior.patterns import patterns
from analytics_user_behavior.retention import retention
from analytics_user_behavior.sessions import sessions
from analytics_user_behavior.stickiness import stickiness

_ANALYSES: Mapping[str, Callable[[EventReader, TimeRange, Mapping[str, Any], Limits], Answer]] = {
    "sessions": lambda events, asked, given, limits: sessions(events, asked, limits.gap, given),
    "engagement": lambda events, asked, given, _: engagement(events, asked, given),
    "retention": lambda events, asked, given, _: retention(events, asked, given),
    "stickiness": lambda events, asked, given, _: stickiness(events, asked, given),
    "frequency": lambda events, asked, given, limits: frequency(events, asked, given, limits.gap),
    "lifecycle": lambda events, asked, given, _: lifecycle(events, asked, given),
    "breakdown": lambda events, _, given, __: breakdown(events, given),
    "changes": lambda events, asked, _, limits: changes(events, asked, limits.gap),
    "funnel": lambda events, _, given, limits: funnel(events, given, limits.gap),
    "paths": lambda events, _, given, limits: paths(events, given, limits.gap),
    "patterns": lambda events, _, given, limits: patterns(events, given, limits.gap),
    "compare": lambda events, asked, given, limits: compare(events, asked, given, limits.gap),
}
"""What answers each analysis, given the events, the range, the checked parameters and the limits of the settings."""


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
    def erase(self, tenant: str, ids: Sequence[str]) -> None:
        """Their open sessions go. What else is kept are sums, and sketches and session ids of clients that name nobody;
        a session under a client's id is over with the gap."""
        fold = self._tenants.get(tenant)
        if fold is not None:
            fold.open.drop(hash_strings(ids))

    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        analysis = _ANALYSES.get(question.analysis)
        if analysis is None:
            raise ValueError(f"analysis {question.analysis!r} is not provided; valid are: {', '.join(_ANALYSES)}")
        return analysis(events, question.range, question.parameters, self._limits)
