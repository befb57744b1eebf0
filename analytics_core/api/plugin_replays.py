"""Replays: a plugin's outputs rebuilt from history by its present code, the difference, and the word to switch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.caretaking import operation
from analytics_core.api.operations import Content, Parameter, read_json, reply
from analytics_core.api.services import Services
from analytics_core.errors import NotFoundError, ParameterError
from analytics_core.events import moment
from analytics_core.host.replaying.view import ReplayView
from analytics_core.metrics.buckets import instant
from analytics_core.queries.ranges import time_range


class ReplayRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``since``: ``30d``, ``12h``, a date or an ISO 8601 time, each the start of its UTC day; null is all that is
    kept."""

    since: str | None = None


class ReplaysReply(Struct, frozen=True):
    """The latest replay of the plugin since the start of the host, if there was one."""

    replays: list[ReplayView]


async def begin(request: web.Request, services: Services, _: Identity) -> web.Response:
    told = await read_json(request, services, ReplayRequest)
    since = since_of(told.since, datetime.now(UTC))
    return reply(await asyncio.to_thread(services.replays.begin, request.match_info["name"], since), 202)


async def replays(request: web.Request, services: Services, _: Identity) -> web.Response:
    name, known = request.match_info["name"], [view.name for view in services.host.views()]
    if name not in known:
        raise NotFoundError("plugin", name, known)
    return reply(ReplaysReply(services.replays.of(name)))


async def view(request: web.Request, services: Services, _: Identity) -> web.Response:
    return reply(services.replays.view(request.match_info["name"], request.match_info["id"]))


async def switch(request: web.Request, services: Services, _: Identity) -> web.Response:
    return await _on(request, services.replays.switch)


async def discard(request: web.Request, services: Services, _: Identity) -> web.Response:
    return await _on(request, services.replays.discard)


async def _on(request: web.Request, act: Callable[[str, str], ReplayView]) -> web.Response:
    return reply(await asyncio.to_thread(act, request.match_info["name"], request.match_info["id"]))


def since_of(given: str | None, now: datetime) -> datetime | None:
    """:raises ParameterError: for what is neither a span, a date nor a time, or lies in the future."""
    if given is None:
        return None
    try:
        at = _span_or_time(given, now)
    except ParameterError:
        valid = "a span such as '30d' or '12w', a date (2025-01-31), or an ISO 8601 time from 2000 on"
        raise ParameterError("since", f"{given[:64]!r} is no past time; valid are {valid}") from None
    if at > now:
        raise ParameterError("since", f"{at.isoformat()} is in the future")
    return at


def _span_or_time(given: str, now: datetime) -> datetime:
    if given.strip()[-1:] in ("m", "h", "d", "w"):
        return time_range(given, "UTC", now, "since").start
    return moment(instant(given, "UTC", "since"))


_PATH: Final = "/api/v1/plugins/{name}/replays"
_ONE: Final = _PATH + "/{id}"
_ID: Final = (Parameter("id", "the replay, as its begin has named it", "path", required=True),)
OPERATIONS: Final = (
    operation(
        "POST",
        _PATH,
        handler=begin,
        summary="Begin to rebuild a plugin's outputs from history with its present code, into a side area",
        description="The outputs that everybody sees stay as they are until the replay is switched to.",
        body=Content(ReplayRequest),
        replies={202: Content(ReplayView, description="The replay, which has begun")},
        refusals=(400, 404, 409, 413, 415, 422, 503),
    ),
    operation(
        "GET",
        _PATH,
        handler=replays,
        summary="The latest replay of a plugin",
        replies={200: Content(ReplaysReply)},
        refusals=(404,),
    ),
    operation(
        "GET",
        _ONE,
        parameters=_ID,
        handler=view,
        summary="How far a replay is, and when it is ready how its outputs differ from the present ones",
        replies={200: Content(ReplayView)},
        refusals=(404,),
    ),
    operation(
        "POST",
        _ONE + "/switch",
        parameters=_ID,
        handler=switch,
        summary="Let a replay that is ready take the place of the plugin's outputs and state; answered when it is done",
        replies={200: Content(ReplayView, description="The replay, switched to")},
        refusals=(404, 409),
    ),
    operation(
        "DELETE",
        _ONE,
        parameters=_ID,
        handler=discard,
        summary="Drop what a replay has rebuilt",
        replies={200: Content(ReplayView, description="The replay, discarded")},
        refusals=(404, 409),
    ),
)
