"""The commands about plugins for a key with the role operator: the same answers, from inside the server."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, query_of, reply, words
from analytics_core.api.plugins import LaneRow, lane_rows
from analytics_core.api.services import Services
from analytics_core.errors import NotFoundError, ParameterError, PluginUnavailableError
from analytics_core.host.code.threads import on_own_thread
from analytics_core.host.examining.examination import Examination
from analytics_core.host.examining.explanation import Explanation
from analytics_core.host.examining.inspection import Inspection
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.views import PluginView

_MOST_REASON: Final = 200
_SECONDS: Final = 30.0
_MOST_SECONDS: Final = 60.0


class SwitchReply(Struct, frozen=True):
    """``changed`` is false when the manifests said so already. ``file`` is the one that has the operator's word, null
    when none speaks of the plugin; ``plugin`` is null when it is not installed. ``refused``: why the server has not
    taken the manifests in, so that the plugin is as it was; null when it has."""

    name: str
    enabled: bool
    changed: bool
    file: str | None
    plugin: PluginView | None
    refused: str | None


class InspectReply(Struct, frozen=True):
    """``declared`` is the plugin as it is installed now, secrets hidden. ``plugin`` and ``lanes`` are how it does, null
    and empty when it does not run; ``reloads`` are its latest receipts, the newest last."""

    declared: Inspection
    plugin: PluginView | None
    lanes: list[LaneRow]
    reloads: list[ReloadReceipt]


class ReloadsReply(Struct, frozen=True):
    """The latest reloads of a plugin since the start of the host, the newest last."""

    reloads: list[ReloadReceipt]


class DoctorReply(Struct, frozen=True):
    """What was found in each plugin; one without ``problems`` is well."""

    plugins: list[Examination]


async def why(request: web.Request, services: Services, _: Identity) -> web.Response:
    return reply(await asyncio.to_thread(services.caretaker.why, request.match_info["name"]))


async def inspect(request: web.Request, services: Services, identity: Identity) -> web.Response:
    name = request.match_info["name"]
    declared, view = await asyncio.to_thread(services.caretaker.inspect, name)
    lanes = lane_rows((lane for lane in services.host.lanes() if lane.name == name), identity)
    reloads = services.host.receipts(name) if view is not None else []
    return reply(InspectReply(declared, view, lanes, reloads))


async def enable(request: web.Request, services: Services, identity: Identity) -> web.Response:
    query_of(request, ())
    return await _switch(request, services, identity, enabled=True, reason="")


async def disable(request: web.Request, services: Services, identity: Identity) -> web.Response:
    reason = query_of(request, ("reason",)).get("reason", "")
    if len(reason) > _MOST_REASON:
        raise ParameterError("reason", f"has {len(reason)} characters; {_MOST_REASON} are the most")
    return await _switch(request, services, identity, enabled=False, reason=reason)


async def _switch(
    request: web.Request, services: Services, identity: Identity, *, enabled: bool, reason: str
) -> web.Response:
    name, switch = request.match_info["name"], services.caretaker.switch
    done, view, refused = await asyncio.to_thread(switch, name, enabled, by=identity.subject, reason=reason)
    return reply(SwitchReply(name, done.enabled, done.changed, done.file, view, refused or None))


async def reload(request: web.Request, services: Services, _: Identity) -> web.Response:
    name = request.match_info["name"]
    try:
        return reply(await asyncio.to_thread(services.caretaker.reload, name))
    except NotFoundError:
        view = next((view for view in services.host.views() if view.name == name), None)
        if view is None:
            raise
        why = f"{view.state}{': ' if view.reason else ''}{view.reason}"
        raise PluginUnavailableError(name, f"is not to run, so nothing is to be reloaded; it is {why}") from None


async def reloads(request: web.Request, services: Services, _: Identity) -> web.Response:
    return reply(ReloadsReply(services.caretaker.receipts(request.match_info["name"])))


async def doctor(request: web.Request, services: Services, _: Identity) -> web.Response:
    query = query_of(request, ("plugins", "seconds"))
    names, seconds = words(query.get("plugins", "")), _seconds(query.get("seconds"))
    examine = services.caretaker.examine
    return reply(DoctorReply(await on_own_thread("doctor", lambda: examine(names, seconds))))


def _seconds(given: str | None) -> float:
    try:
        seconds = _SECONDS if given is None else float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise ParameterError("seconds", f"{given!r} is not valid; valid is a number above 0, at most {_MOST_SECONDS:g}")
    return seconds


def operation(method: Any, path: str, **given: Any) -> Operation:
    """One about plugins, for an operator; ``path`` may have the ``{name}`` of one."""
    named = (Parameter("name", "the plugin", "path", required=True),) if "{name}" in path else ()
    parameters = (*named, *given.pop("parameters", ()))
    return Operation(method=method, path=path, role="operator", tag="plugins", parameters=parameters, **given)


OPERATIONS: Final = (
    operation(
        "GET",
        "/api/v1/plugins/{name}",
        handler=inspect,
        summary="All that the plugin's manifest says, its settings with secrets hidden, and how it does",
        replies={200: Content(InspectReply)},
        refusals=(404, 422),
    ),
    operation(
        "GET",
        "/api/v1/plugins/{name}/why",
        handler=why,
        summary="The exact reason why a plugin does or does not run",
        description="The name may also be that of a distribution, such as one that declares no plugin.",
        replies={200: Content(Explanation)},
        refusals=(404, 422),
    ),
    operation(
        "POST",
        "/api/v1/plugins/{name}/enable",
        handler=enable,
        summary="Let a plugin run: in the server's manifests, and at once",
        replies={200: Content(SwitchReply, description="The plugin as it is on its way up")},
        refusals=(404, 409, 422, 503),
    ),
    operation(
        "POST",
        "/api/v1/plugins/{name}/disable",
        handler=disable,
        summary="Let a plugin run no more: in the server's manifests, and at once",
        description="Its state is kept: enabled again, it goes on behind the last event that it has processed.",
        parameters=(
            Parameter(
                "reason",
                "stands in the manifest, for whoever looks next",
                schema={"type": "string", "maxLength": _MOST_REASON},
            ),
        ),
        replies={200: Content(SwitchReply, description="The plugin; its lane ends with a commit")},
        refusals=(404, 409, 422, 503),
    ),
    operation(
        "POST",
        "/api/v1/plugins/{name}/reload",
        handler=reload,
        summary="Make a new generation of a plugin and hand it the state; answered when it runs or is rolled back",
        replies={200: Content(ReloadReceipt, description="What became of it, as its outcome says")},
        refusals=(404, 503),
    ),
    operation(
        "GET",
        "/api/v1/plugins/{name}/reloads",
        handler=reloads,
        summary="The receipts of a plugin's latest reloads, since the start of the host",
        replies={200: Content(ReloadsReply)},
        refusals=(404,),
    ),
    operation(
        "POST",
        "/api/v1/doctor",
        handler=doctor,
        summary="Load each plugin in a process of its own and show all that is wrong, once at a time",
        description="Each is imported, set up with its settings and torn down, beside the running one.",
        parameters=(
            Parameter("plugins", "only these, comma-separated; without it every installed one"),
            Parameter(
                "seconds",
                f"time for one plugin; without it {_SECONDS:g}",
                schema={"type": "number", "exclusiveMinimum": 0, "maximum": _MOST_SECONDS},
            ),
        ),
        replies={200: Content(DoctorReply)},
        refusals=(404, 409, 422),
    ),
)
