"""``GET /api/v1/stream``: live messages as Server-Sent Events, with ids to resume from."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import msgspec
from aiohttp import web

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, query_of, words
from analytics_core.api.services import Services
from analytics_core.api.streams import read_subscriptions
from analytics_core.live import STREAMS, Connection

HEARTBEAT_SECONDS: Final = 15.0
_LAST_WORDS_SECONDS: Final = 5.0
_RETRY: Final = b"retry: 2000\n\n"
_HEARTBEAT: Final = b": heartbeat\n\n"
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_PARAMETERS: Final = (
    Parameter("stream", f"one or more of {', '.join(STREAMS)}, separated by commas; all but analytics when missing"),
    Parameter("metrics", "names of metrics, separated by commas"),
    Parameter("severity", "severities of insights and alerts, separated by commas"),
    Parameter("labels", "labels that must be equal: country:de,plan:pro"),
    Parameter("lastEventId", "as the Last-Event-ID header"),
    Parameter("api_key", "an API key or token, where no header can be sent"),
    Parameter("Last-Event-ID", "send what came after this id again, then go on", "header"),
)
_ALL: Final = [stream for stream in STREAMS if stream != "analytics"]  # which repeats what the others say
_KNOWN: Final = {p.name: p for p in _PARAMETERS if p.place == "query"}


def encode(event: str, id_: str, data: bytes) -> bytes:
    """One message in the event-stream format; JSON text holds no line break."""
    return b"event: %s\nid: %s\ndata: %s\n\n" % (event.encode(), id_.encode(), data)


def _said(event: str, **body: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(body))


class EventStream:
    """One SSE client as a `live.Sink`: messages wait here until the socket takes them."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._last_words: bytes | None = None
        self._abort: asyncio.TimerHandle | None = None

    def send(self, encoded: bytes) -> int:
        self._waiting.append(encoded)
        self._news.set()
        return len(self._waiting)

    def drop(self, reason: str) -> None:
        self._waiting.clear()
        self._last_words = _said("error", error=reason)
        self._news.set()
        # A client that reads nothing would hold the connection in a full socket for ever.
        self._abort = asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, self._cut)

    async def run(self, response: web.StreamResponse, heartbeat: float) -> None:
        """Write what comes, and a heartbeat when nothing does, until the client goes or is dropped."""
        try:
            while self._last_words is None:
                try:
                    async with asyncio.timeout(heartbeat):
                        await self._news.wait()
                except TimeoutError:
                    await response.write(_HEARTBEAT)
                    continue
                self._news.clear()
                if self._waiting:
                    chunk = b"".join(self._waiting)
                    self._waiting.clear()
                    await response.write(chunk)
            await response.write(self._last_words)
        finally:
            if self._abort is not None:
                self._abort.cancel()

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


async def stream(request: web.Request, services: Services, identity: Identity) -> web.StreamResponse:
    asked = query_of(request, _KNOWN)
    wishes = read_subscriptions(
        {
            "stream": words(asked.get("stream", "")) or (None if asked.get("metrics") else _ALL),
            "metrics": words(asked.get("metrics", "")),
            "filters": {"severity": words(asked.get("severity", "")), "labels": _labels(asked.get("labels", ""))},
        }
    )
    sink = EventStream(request)
    response = web.StreamResponse(headers=_HEADERS)
    connection = services.live.connect(sink, encode)
    try:
        connection.enter(identity.tenant, identity.expires, operator=identity.operator)
        connection.subscribe(wishes)
        last_id = request.headers.get("Last-Event-ID") or asked.get("lastEventId")
        missed = _missed(services, connection, last_id) if last_id else b""
        await response.prepare(request)
        await response.write(_RETRY + missed)
        await sink.run(response, HEARTBEAT_SECONDS)
    except ConnectionResetError:
        pass  # the client went: the usual end of a stream
    finally:
        connection.close()
    return response


def _missed(services: Services, connection: Connection, last_id: str) -> bytes:
    """What came since ``last_id``, after a ``gap`` event when that is not all."""
    again, gap = services.live.missed(connection, last_id)
    return b"".join([*([_said("gap", lastEventId=last_id, reason=gap)] if gap else []), *again])


def _labels(text: str) -> dict[str, str]:
    pairs = [word.partition(":") for word in words(text)]
    return {name.strip(): value.strip() for name, _, value in pairs}


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/stream",
        handler=stream,
        role="reader",
        tag="live",
        summary="Live messages as Server-Sent Events",
        description=(
            "Events: metric, insight:new, alert:<severity>, plugin:state, analytics:update. A 'gap' event says that "
            "messages since Last-Event-ID are lost, an 'error' event why the server ends the stream."
        ),
        parameters=_PARAMETERS,
        replies={200: Content({"type": "string"}, ("text/event-stream",), "The stream")},
        refusals=(422, 503),
        key_in_query=True,
    ),
)
