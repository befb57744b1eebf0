"""Events in: the native route, and the routes that plugins claim for foreign protocols."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Authenticator, Identity
from analytics_core.api.operations import (
    AiohttpHandler,
    Content,
    Operation,
    Parameter,
    declared_length,
    read_body,
    read_inflated,
)
from analytics_core.api.problems import INGEST_PATH
from analytics_core.api.services import Services
from analytics_core.errors import HookFailedError, MalformedBodyError, OverloadedError, RejectedError
from analytics_core.events import Event, EventBatch, FieldError
from analytics_core.records import Outcome, Request

_IDENTIFIER: Final[dict[str, Any]] = {"type": ["string", "integer", "null"]}
_TIME: Final[dict[str, Any]] = {
    "type": ["string", "number", "null"],
    "description": "ISO 8601, or seconds or milliseconds since 1970; the time of receipt when missing",
}
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["event"],
    "properties": {
        "event": {"type": "string", "description": "the event's name"},
        "properties": {"type": "object"},
        "userId": _IDENTIFIER,
        "anonymousId": _IDENTIFIER,
        "sessionId": _IDENTIFIER,
        "timestamp": _TIME,
        "messageId": {"type": ["string", "null"], "description": "the same id is counted once"},
        "context": {"type": "object"},
    },
}
_BATCH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["events"],
    "properties": {"events": {"type": "array", "items": EVENT}, "sentAt": _TIME},
}


class Receipt(Struct, frozen=True):
    """What became of a request's events. They are on disk; ``seq`` is the log position that has them all."""

    accepted: int
    duplicates: int
    rejected: list[FieldError]
    deduplicated: str
    seq: int | None


async def accept(request: web.Request, services: Services, identity: Identity) -> web.Response:
    headers = request.headers
    intake = services.intake
    with intake.room_for(declared_length(request)):
        outcome = await intake.accept(
            await read_body(request),
            tenant=identity.tenant,
            content_type=headers.get("Content-Type", ""),
            content_encoding=headers.get("Content-Encoding", ""),
            idempotency_key=headers.get("Idempotency-Key"),
        )
    receipt = Receipt(outcome.accepted, outcome.duplicates, list(outcome.rejected), outcome.deduplicated, outcome.seq)
    return web.Response(status=202, body=_encode(receipt), headers=_JSON_HEADERS)


_SECRET: Final = frozenset({"authorization", "x-api-key", "cookie"})
_encode = msgspec.json.Encoder().encode
_JSON_HEADERS: Final = {"Content-Type": "application/json"}

ACCEPT: Final = Operation(
    method="POST",
    path=INGEST_PATH,
    handler=accept,
    role="writer",
    tag="events",
    summary="Store events; answered when they are on disk",
    description="One event, an array, {events, sentAt} or NDJSON. Good events are kept when a neighbour is bad.",
    parameters=(
        Parameter("Idempotency-Key", "makes a request without messageIds safe to repeat", "header"),
        Parameter("Content-Encoding", "gzip, deflate or zstd", "header"),
    ),
    body=Content(
        {"oneOf": [EVENT, {"type": "array", "items": EVENT}, _BATCH]},
        ("application/json", "application/x-ndjson", "text/plain"),
    ),
    replies={202: Content(Receipt, description="What became of each event")},
    refusals=(400, 413, 415, 422, 503),
)


def plugin_route(services: Services, authenticator: Authenticator, plugin: str) -> AiohttpHandler:
    """The aiohttp handler of a route that ``plugin`` claims: adapter, the one ingest path, the adapter's answer."""

    async def handle(request: web.Request) -> web.Response:
        identity = authenticator.caller(request)
        identity.need("writer")
        with services.intake.room_for(declared_length(request)):
            return await _adapt(request, services, identity, plugin)

    return handle


async def _adapt(request: web.Request, services: Services, identity: Identity, plugin: str) -> web.Response:
    asked = Request(
        method=request.method,
        path=request.path,
        headers={name.lower(): value for name, value in request.headers.items() if name.lower() not in _SECRET},
        query={name: value for name, value in request.query.items() if name != "api_key"},
        body=await read_inflated(request, services),
        tenant=identity.tenant,
    )
    try:
        events = await services.host.calls.ingest(plugin, asked)
    except HookFailedError as failure:
        if isinstance(failure.__cause__, ValueError):  # how an adapter says that the client is wrong
            raise MalformedBodyError(str(failure.__cause__)) from failure
        raise
    outcome = await _store(events, services, identity, plugin)
    answer = await services.host.calls.reply(plugin, asked, outcome)
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


async def _store(events: list[Event] | EventBatch, services: Services, identity: Identity, plugin: str) -> Outcome:
    """The outcome, refusals included: the adapter says them in its protocol's own terms."""
    if isinstance(events, EventBatch):
        events = _unpacked(events)
    try:
        return await services.intake.accept_events(events, tenant=identity.tenant, source=plugin)
    except RejectedError as error:
        return Outcome(rejected=[FieldError(**bad) for bad in error.rejected])
    except OverloadedError as error:
        return Outcome(overloaded=str(error))


def _unpacked(batch: EventBatch) -> list[Event]:
    """A batch that an adapter built, as the events that every check of the one ingest path applies to."""
    names = ("name", "event_id", "user_id", "anonymous_id", "session_id", "properties", "context")
    columns = [batch.column(name).to_pylist() for name in names]
    times = [at.isoformat() for at in batch.column("timestamp").to_pylist()]
    return [
        Event(
            name=name,
            message_id=event_id or None,
            user_id=user,
            anonymous_id=anonymous,
            session_id=session,
            properties=msgspec.Raw(properties.encode()),
            context=msgspec.Raw(context.encode()),
            timestamp=at,
        )
        for name, event_id, user, anonymous, session, properties, context, at in zip(*columns, times, strict=True)
    ]
