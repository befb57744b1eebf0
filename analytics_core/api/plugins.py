"""What runs: plugins, lanes, and the analyses that plugins answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, read_json, reply
from analytics_core.api.services import Services
from analytics_core.lanes import LaneView


class PluginRow(Struct, frozen=True):
    """One plugin; further members may follow. What all tenants together cause is null for callers who are no operator:
    ``reason``, ``lag``, ``events_processed`` and ``errors``."""

    name: str
    version: str
    state: str
    reason: str | None
    since: str
    generation: int
    isolation: str
    lag: int | None
    events_processed: int | None
    hooks: list[str]
    errors: int | None


class LaneRow(Struct, frozen=True):
    """One reader of the log. ``lag``: how many log positions it is behind the durable end. What all tenants together
    cause is null for callers who are no operator: ``position``, ``lag``, ``events`` and ``reason``."""

    name: str
    state: str
    position: int | None
    lag: int | None
    events: int | None
    reason: str | None


class PluginsReply(Struct, frozen=True):
    plugins: list[PluginRow]


class LanesReply(Struct, frozen=True):
    lanes: list[LaneRow]


class AnalysesReply(Struct, frozen=True):
    analyses: list[dict[str, Any]]


_OF_ALL_TENANTS: Final = dict.fromkeys(("reason", "lag", "events_processed", "errors"))


async def plugins(_: web.Request, services: Services, identity: Identity) -> web.Response:
    rows = msgspec.to_builtins(services.host.views())
    return reply({"plugins": rows if identity.operator else [{**row, **_OF_ALL_TENANTS} for row in rows]})


def lane_rows(lanes: Iterable[LaneView], identity: Identity) -> list[LaneRow]:
    """The lanes as this caller may see them."""
    if not identity.operator:
        return [LaneRow(lane.name, lane.state, None, None, None, None) for lane in lanes]
    return [LaneRow(lane.name, lane.state, lane.position, lane.lag, lane.events, lane.reason) for lane in lanes]


async def lanes(_: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply(LanesReply(lane_rows(services.lanes(), identity)))


async def catalogue(_: web.Request, services: Services, identity: Identity) -> web.Response:
    tenant = identity.tenant
    return reply({"analyses": services.analyses.catalogue(tenant, services.timezone(tenant))})


async def ask(request: web.Request, services: Services, identity: Identity) -> web.Response:
    parameters = await read_json(request, services, dict[str, Any])
    name, tenant = request.match_info["name"], identity.tenant
    return reply(await services.analyses.ask(name, parameters, tenant, services.timezone(tenant)))


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/plugins",
        handler=plugins,
        role="reader",
        tag="plugins",
        summary="Every plugin with its state; for operators also the reason for it, its lag and its counts",
        replies={200: Content(PluginsReply)},
    ),
    Operation(
        method="GET",
        path="/api/v1/lanes",
        handler=lanes,
        role="reader",
        tag="plugins",
        summary="Every reader of the log with its state; for operators also its position, lag and reason",
        replies={200: Content(LanesReply)},
    ),
    Operation(
        method="GET",
        path="/api/v1/analyses",
        handler=catalogue,
        role="reader",
        tag="analyses",
        summary="The questions that can be asked, with the JSON Schema of their parameters",
        replies={200: Content(AnalysesReply)},
    ),
    Operation(
        method="POST",
        path="/api/v1/analyses/{name}",
        handler=ask,
        role="reader",
        tag="analyses",
        summary="Ask a question",
        description="The body holds the parameters of the analysis; its schema is in the catalogue.",
        parameters=(Parameter("name", "an analysis of the catalogue", "path", required=True),),
        body=Content({"type": "object"}),
        replies={200: Content({"type": "object"}, description="The answer: rows, insights and how it is drawn")},
        refusals=(400, 404, 413, 415, 422, 502, 503, 504),
    ),
)
