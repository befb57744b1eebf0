"""What the host shows of its plugins."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from analytics_core.bus import Bus
from analytics_core.errors import StorageError
from analytics_core.host.health import Health, Transition
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.lanes.lane import Lane
from analytics_core.state import Message, StateStore

_log = structlog.get_logger(__name__)


class PluginView(Struct, frozen=True):
    """One entry of ``GET /api/v1/plugins``. ``lag`` is in log positions, ``errors`` counts failures since the start."""

    name: str
    version: str
    state: str
    reason: str
    since: str
    generation: int
    isolation: str
    lag: int
    events_processed: int
    hooks: list[str]
    errors: int


class AnalysisSpec(Struct, frozen=True):
    """One question that can be asked. ``schema`` is the JSON Schema of its parameters.

    ``insights``: the parameters with which it is asked for insights; None when it is not.
    """

    name: str
    plugin: str
    title: str
    schema: dict[str, Any]
    insights: dict[str, Any] | None = None


def plugin_view(choice: Choice, health: Health, lane: Lane | None) -> PluginView:
    seen = lane.view() if lane is not None else None
    return PluginView(
        name=choice.name,
        version=choice.version,
        state=health.state,
        reason=health.reason or (seen.reason if seen is not None else ""),
        since=health.since.astimezone(UTC).isoformat(),
        generation=health.generation,
        isolation=choice.isolation,
        lag=seen.lag if seen is not None else 0,
        events_processed=seen.events if seen is not None else 0,
        hooks=sorted(choice.manifest.hooks) if choice.manifest is not None else [],
        errors=health.errors,
    )


def analyses_of(choice: Choice) -> list[AnalysisSpec]:
    provided = choice.manifest.provides.analyses if choice.manifest is not None else ()
    return [AnalysisSpec(a.name, choice.name, a.title, a.parameters, a.asked_with) for a in provided]


def announce(transition: Transition, state: StateStore, bus: Bus) -> None:
    """A transition as one log line, one record (the document ``plugin`` of no tenant) and one push."""
    plugin = transition.plugin
    _log.info("plugin_state", **msgspec.to_builtins(transition))
    body = msgspec.json.encode(transition)
    try:
        state.document("", "plugin", plugin, body)
    except StorageError as error:  # a full disk must not keep a plugin from being stopped
        _log.error("plugin_state_not_recorded", plugin=plugin, problem=str(error))
    at = transition.since.timestamp()
    bus.publish(Message(id=f"plugin:{plugin}:{at:.6f}", topic="plugin", tenant="", body=body))


def record(receipt: ReloadReceipt, state: StateStore) -> None:
    """A receipt as one log line and one record: the document ``reload`` of the plugin."""
    _log.info("plugin_reload", **msgspec.to_builtins(receipt))
    try:
        state.document("", "reload", receipt.plugin, msgspec.json.encode(receipt))
    except StorageError as error:
        _log.error("receipt_not_recorded", plugin=receipt.plugin, problem=str(error))
