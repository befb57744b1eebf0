"""HTTP and live: parse, call, reply. `build` makes the aiohttp application of the opened `Services`."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from aiohttp import web

from analytics_core.api import (
    analytics,
    caretaking,
    cohorts,
    events,
    health,
    identity,
    ingest,
    insights,
    metrics,
    openapi,
    plugin_replays,
    plugins,
    problems,
    retention,
    sse,
    users,
)
from analytics_core.api.auth import Authenticator, Identity
from analytics_core.api.cors import Origins, preflight
from analytics_core.api.operations import Content, Operation, bind, reply
from analytics_core.api.services import Services as Services
from analytics_core.api.socket import PATH as SOCKET_PATH
from analytics_core.api.socket import SocketEndpoint

_SHUTDOWN_SECONDS: Final = 5.0


async def _index(_: web.Request, __: Services, ___: Identity) -> web.Response:
    urls = {f"{o.method} {o.path}": o.summary for o in OPERATIONS if o.path != "/"}
    return reply({"name": "analytics", "openapi": "/api/v1/openapi.json", "socket": SOCKET_PATH, "urls": urls})


@cache
def _document() -> dict[str, Any]:
    return openapi.document(OPERATIONS)


async def _openapi(_: web.Request, __: Services, ___: Identity) -> web.Response:
    return reply(_document())


OPERATIONS: Final[tuple[Operation, ...]] = (
    ingest.ACCEPT,
    *metrics.OPERATIONS,
    *plugins.OPERATIONS,
    *insights.OPERATIONS,
    *cohorts.OPERATIONS,
    *caretaking.OPERATIONS,
    *plugin_replays.OPERATIONS,
    *analytics.OPERATIONS,
    *events.OPERATIONS,
    *sse.OPERATIONS,
    *health.OPERATIONS,
    *retention.OPERATIONS,
    *users.OPERATIONS,
    *identity.OPERATIONS,  # after them: a user's own path takes any last word
    Operation(
        method="GET",
        path="/api/v1/openapi.json",
        handler=_openapi,
        role="none",
        tag="health",
        summary="This description",
        replies={200: Content({"type": "object"})},
    ),
    Operation(
        method="GET",
        path="/",
        handler=_index,
        role="none",
        tag="health",
        summary="What is where",
        replies={200: Content({"type": "object"})},
    ),
)
"""Every route but socket.io's, and those that plugins claim."""


def build(services: Services) -> web.Application:
    """The application. Serve it with `runner`, since it reads compressed bodies itself.

    :raises ConfigError: for API keys that cannot be used.
    """
    authenticator = Authenticator(services.settings.auth)
    origins = Origins(services.settings.server)

    async def unrouted(request: web.Request) -> web.StreamResponse:
        """A preflight, a route that a plugin claims, or what the router said."""
        answer = preflight(request)
        if answer is not None:
            return answer
        plugin = services.host.calls.route(request.method, request.path)
        if plugin is not None:
            return await ingest.plugin_route(services, authenticator, plugin)(request)
        assert request.match_info.http_exception is not None
        raise request.match_info.http_exception

    app = web.Application(
        client_max_size=services.settings.intake.max_body_bytes, middlewares=[problems.edge(unrouted)]
    )
    for operation in OPERATIONS:
        handler = bind(operation, services, authenticator, origins)
        if operation.method == "GET":
            app.router.add_get(operation.path, handler, allow_head=not operation.key_in_query)
        else:
            app.router.add_route(operation.method, operation.path, handler)

    async def prepare(request: web.BaseRequest, response: web.StreamResponse) -> None:
        problems.identify_response(request, response)
        origins.mark(request, response)

    app.on_response_prepare.append(prepare)
    socket = SocketEndpoint(services, authenticator, origins) if services.settings.live.enabled else None
    if socket is not None:
        socket.attach(app)

    async def end_live(_: web.Application) -> None:
        services.live.close()
        if socket is not None:
            await socket.close()

    app.on_shutdown.append(end_live)
    return app


def runner(app: web.Application) -> web.AppRunner:
    """How the application is served: bodies arrive as they were sent, so that inflation is capped; no access log."""
    return web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=_SHUTDOWN_SECONDS)
