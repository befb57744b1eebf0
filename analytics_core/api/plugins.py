"""What runs: plugins, lanes, and the analyses that plugins answer."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, read_json, reply
from analytics_core.api.services import Services
from analytics_core.lanes import LaneView


class PluginRow(Struct, frozen=True):
    """One plugin as ``GET /api/v1/plugins`` shows it; further members may follow."""

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


class PluginsReply(Struct, frozen=True):
    plugins: list[PluginRow]


class LanesReply(Struct, frozen=True):
    lanes: list[LaneView]


class AnalysesReply(Struct, frozen=True):
    analyses: list[dict[str, Any]]


async def plugins(_: web.Request, services: Services, __: Identity) -> web.Response:
    return reply({"plugins": msgspec.to_builtins(services.host.views())})


async def lanes(_: web.Request, services: Services, __: Identity) -> web.Response:
    return reply({"lanes": services.lanes()})


async def catalogue(_: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply({"analyses": services.analyses.catalogue(identity.tenant)})


async def ask(request: web.Request, services: Services, identity: Identity) -> web.Response:
    parameters = await read_json(request, services, dict[str, Any])
    return reply(await services.analyses.ask(request.match_info["name"], parameters, identity.tenant))


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/plugins",
        handler=plugins,
        role="reader",
        tag="plugins",
        summary="Every plugin with its state and the reason for it",
        replies={200: Content(PluginsReply)},
    ),
    Operation(
        method="GET",
        path="/api/v1/lanes",
        handler=lanes,
        role="reader",
        tag="plugins",
        summary="Every reader of the log with its position and lag",
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
