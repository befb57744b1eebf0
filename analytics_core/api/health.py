"""How the host is: liveness, the state of its parts, and its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import ANYBODY, Identity
from analytics_core.api.operations import Content, Operation, reply
from analytics_core.api.plugins import LaneRow, lane_rows
from analytics_core.api.retention import text
from analytics_core.api.services import Services
from analytics_core.host.health import RISING
from analytics_core.host.reloader import ManifestsView
from analytics_core.host.views import PluginView
from analytics_core.lanes import LaneView

_TROUBLE: Final = frozenset(
    {"load_error", "start_error", "degraded", "quarantined", "half_open", "retrying", "failed", "refused"}
)
"""States of plugins, lanes and manifests in which something does not work that should."""


class Component(Struct, frozen=True):
    """One part: ``status`` is a plugin's or lane's state, or ``up``; ``retention`` is ``held`` while it waits for an
    operator; ``manifests`` are ``refused`` while a file is bad, so that none is taken in, or ``restart_required``.
    ``reason`` and ``lag`` tell of all tenants together: null for callers who are no operator."""

    status: str
    reason: str | None = None
    lag: int | None = None


class SafeMode(Struct, frozen=True):
    """Why only proven plugins run: so many starts of the host have failed while these plugins were activating.
    ``reason`` is null for callers who are no operator."""

    failures: int
    culprits: list[str]
    reason: str | None = None


class Readiness(Struct, frozen=True):
    """``starting``: the plugins that are on their way up for the first time, and how far they are; without any the host
    is ready. One whose start has failed once does not keep the others from being asked."""

    ready: bool
    starting: dict[str, str]


class Figures(Struct, frozen=True, rename="camel"):
    """``averageProcessingTime``: milliseconds from a request's arrival to its acknowledgement."""

    total_analyzed: int
    average_processing_time: float
    models_loaded: int


class Health(Struct, frozen=True):
    """``metrics`` is null for a caller who has not authenticated, ``safe_mode`` unless the host is in it.

    ``restart_required``: the keys of the manifests that only a restart applies, as ``host.server.port: 8000 -> 9000``;
    null for callers who are no operator.
    """

    success: bool
    status: Literal["healthy", "degraded"]
    uptime: float
    components: dict[str, Component]
    metrics: Figures | None
    safe_mode: SafeMode | None = None
    restart_required: list[str] | None = None


class Operational(Struct, frozen=True):
    """``latest``: the newest value of each live metric of the caller's tenant.

    ``figures`` (what the host counts about itself, since its start) and ``connections`` are null for callers who are no
    operator.
    """

    success: bool
    latest: dict[str, dict[str, Any]]
    lanes: list[LaneRow]
    connections: int | None
    figures: dict[str, int | float] | None


async def alive(_: web.Request, __: Services, ___: Identity) -> web.Response:
    return reply({"status": "ok"})


async def ready(_: web.Request, services: Services, __: Identity) -> web.Response:
    rising = (view for view in services.host.views() if view.state in RISING and not view.errors)
    starting = {view.name: view.state for view in rising}
    if not starting:
        return reply(Readiness(True, {}))
    waiting = reply(Readiness(False, starting), 503)
    waiting.headers["Retry-After"] = "1"
    return waiting


async def health(_: web.Request, services: Services, identity: Identity) -> web.Response:
    views, lanes = services.host.views(), services.lanes()
    components = {"log": Component("up"), "live": Component("up" if services.settings.live.enabled else "disabled")}
    held = "; ".join(text(waiting) for waiting in services.maintenance.held)
    components["retention"] = Component("held" if held else "up", held if identity.operator else None)
    manifests = services.manifests()
    components["manifests"] = _manifests(manifests, identity)
    for lane in lanes:
        components[f"lane:{lane.name}"] = _component(lane, identity)
    for view in views:
        components[f"plugin:{view.name}"] = _component(view, identity)
    safe = _safe_mode(services, identity)
    troubled = safe is not None or any(part.status in _TROUBLE for part in components.values())
    figures = await _figures(services, identity, lanes) if identity is not ANYBODY else None
    uptime = round((datetime.now(UTC) - services.started_at).total_seconds(), 1)
    waiting = list(manifests.restart_required) if identity.operator else None
    return reply(Health(True, "degraded" if troubled else "healthy", uptime, components, figures, safe, waiting))


def _manifests(manifests: ManifestsView, identity: Identity) -> Component:
    if manifests.refused:
        return Component("refused", manifests.refused if identity.operator else None)
    return Component("restart_required" if manifests.restart_required else "up")


def _safe_mode(services: Services, identity: Identity) -> SafeMode | None:
    safe = services.host.guard.safe_mode
    if safe is None:
        return None
    return SafeMode(safe.failures, sorted(safe.culprits), safe.reason if identity.operator else None)


def _component(part: LaneView | PluginView, identity: Identity) -> Component:
    return Component(part.state, part.reason, part.lag) if identity.operator else Component(part.state)


async def _figures(services: Services, identity: Identity, lanes: Sequence[LaneView]) -> Figures:
    """An operator sees the whole host's total, others that of their tenant's history."""
    if identity.role == "operator":
        total = max((lane.events for lane in lanes), default=0)
    else:
        total = await asyncio.to_thread(_count, services, identity.tenant)
    intake = services.intake
    average = round(1000 * intake.seconds / intake.requests, 3) if intake.requests else 0.0
    return Figures(total, average, models_loaded=0)


def _count(services: Services, tenant: str) -> int:
    with services.history.reader(tenant) as reader:
        return int(reader.sql("SELECT count(*) AS n FROM events").column("n")[0].as_py())


async def operational(_: web.Request, services: Services, identity: Identity) -> web.Response:
    latest = dict(services.live_metrics.latest(identity.tenant))
    lanes = lane_rows(services.lanes(), identity)
    if not identity.operator:
        return reply(Operational(True, latest, lanes, None, None))
    return reply(Operational(True, latest, lanes, services.live.connections, dict(services.figures())))


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/healthz",
        handler=alive,
        role="none",
        tag="health",
        summary="Whether the process answers",
        replies={200: Content({"type": "object", "properties": {"status": {"const": "ok"}}})},
    ),
    Operation(
        method="GET",
        path="/readyz",
        handler=ready,
        role="none",
        tag="health",
        summary="Whether every plugin that is to run has come up or failed: 503 while one is on its way",
        replies={200: Content(Readiness), 503: Content(Readiness)},
    ),
    Operation(
        method="GET",
        path="/api/analytics/health",
        handler=health,
        role="none",
        tag="health",
        summary="The state of every part; with a credential also figures, for operators also reasons and lags",
        replies={200: Content(Health)},
    ),
    Operation(
        method="GET",
        path="/api/analytics/metrics",
        handler=operational,
        role="reader",
        tag="health",
        summary="The newest value of each live metric, and the lanes; for operators also the figures of the host",
        replies={200: Content(Operational)},
    ),
)
