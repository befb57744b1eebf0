"""socket.io at ``/socket.io``: authenticate, subscribe, unsubscribe; live messages out through `socket_wire`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

import socketio
import structlog
from aiohttp import web

from analytics_core.api.auth import LOCAL, Authenticator, Identity, credential
from analytics_core.api.cors import Origins
from analytics_core.api.services import Services
from analytics_core.api.socket_wire import Client, Server, encode
from analytics_core.api.streams import read_subscriptions
from analytics_core.errors import AnalyticsError, UnauthenticatedError
from analytics_core.live import Connection, Subscription

log = structlog.get_logger(__name__)

PATH: Final = "/socket.io/"
_MAX_MESSAGE: Final = 64 * 1024
_AUTHENTICATE_SECONDS: Final = 30.0
_wire_log = logging.getLogger("analytics_core.api.socket.wire")
_wire_log.setLevel(logging.CRITICAL)  # the rest is a line for every packet, and a traceback for each bad one


class _Seat:
    """One socket.io client's place: its connection, its way out, and until when it must have authenticated."""

    def __init__(self, client: Client, connection: Connection) -> None:
        self.client = client
        self.connection = connection
        self.deadline: asyncio.TimerHandle | None = None

    def admit(self, identity: Identity) -> None:
        identity.need("reader")
        self.connection.enter(identity.tenant, identity.expires, operator=identity.operator)
        self.wait_no_longer()

    def wait_no_longer(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class SocketEndpoint:
    """The socket.io server of one app. Every call is answered ``{"ok": true, ...}`` or ``{"ok": false, "error"}``."""

    def __init__(self, services: Services, authenticator: Authenticator, origins: Origins) -> None:
        self._live = services.live
        self._metrics = services.live_metrics
        self._authenticator = authenticator
        self._seats: dict[str, _Seat] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.server = Server(
            async_mode="aiohttp",
            cors_allowed_origins=origins.allow_socket,
            cors_credentials=False,
            max_http_buffer_size=_MAX_MESSAGE,
            logger=_wire_log,
            engineio_logger=_wire_log,
        )
        self.server.most_sockets = 2 * services.settings.live.max_connections + 16
        self.server.on("connect", self._connect)
        self.server.on("disconnect", self._disconnect)
        self.server.on("auth:authenticate", self._answer(self._authenticate))
        self.server.on("subscribe", self._answer(self._subscribe))
        self.server.on("unsubscribe", self._answer(self._unsubscribe))
        self.server.on("*", self._unknown)

    def attach(self, app: web.Application) -> None:
        self.server.attach(app, PATH.strip("/"))

    async def close(self) -> None:
        """After `Live.close`: let the farewells go out, then stop the engine's own tasks."""
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self.server.shutdown()

    def _part(self, sid: str) -> None:
        """Disconnect a client, in a task of its own: `Live` does not wait for it."""
        client = self._seats[sid].client

        async def part() -> None:
            await self.server.disconnect(sid)
            await client.end()

        task = asyncio.ensure_future(part())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _connect(self, sid: str, environ: Mapping[str, Any], auth: Any = None) -> None:
        """Take a place. A credential may come with the handshake, else ``auth:authenticate`` follows."""
        try:
            identity = self._of_handshake(environ, auth)
            socket = self.server.eio.sockets[self.server.manager.eio_sid_from_sid(sid, "/")]
            client = Client(socket, lambda: self._part(sid))
            seat = _Seat(client, self._live.connect(client, encode))
        except AnalyticsError as refusal:
            raise socketio.exceptions.ConnectionRefusedError(str(refusal)) from None
        except Exception:
            log.exception("socket_connect_failed")
            raise
        self._seats[sid] = seat
        if identity is not None:
            seat.admit(identity)
            return
        reason = f"no auth:authenticate within {_AUTHENTICATE_SECONDS:g} s"
        loop = asyncio.get_running_loop()
        seat.deadline = loop.call_later(_AUTHENTICATE_SECONDS, self._live.drop, seat.connection, reason)

    def _of_handshake(self, environ: Mapping[str, Any], auth: Any) -> Identity | None:
        """Who connects, or None when no credential came with the handshake."""
        if not self._authenticator.enabled:
            return LOCAL
        given = _token(auth) or _handshake_credential(environ)
        return self._authenticator.identify(given) if given else None

    async def _disconnect(self, sid: str, _reason: str = "") -> None:
        seat = self._seats.pop(sid, None)
        if seat is not None:
            seat.connection.close()
            seat.client.left()
            seat.wait_no_longer()

    def _answer(self, call: Callable[[_Seat, Any], dict[str, Any]]) -> Callable[..., Awaitable[dict[str, Any]]]:
        """A handler that turns the call's errors into refusals with a reason."""

        async def handle(sid: str, *arguments: Any) -> dict[str, Any]:
            seat = self._seats.get(sid)
            if seat is None:
                return {"ok": False, "error": "this connection is closing"}
            try:
                return {"ok": True, **call(seat, arguments[0] if arguments else None)}
            except AnalyticsError as refusal:
                return {"ok": False, "error": str(refusal)}
            except Exception:
                log.exception("socket_call_failed", call=call.__name__, tenant=seat.connection.tenant)
                return {"ok": False, "error": "the server failed; its log names the cause"}

        return handle

    def _authenticate(self, seat: _Seat, given: Any) -> dict[str, Any]:
        identity = self._authenticator.identify(_token(given))
        seat.admit(identity)
        user = given.get("userId") if isinstance(given, Mapping) else None
        return {"tenant": identity.tenant, "role": identity.role, "subject": identity.subject, "userId": user}

    def _subscribe(self, seat: _Seat, given: Any) -> dict[str, Any]:
        connection = _entered(seat)
        wishes = read_subscriptions(given)
        connection.subscribe(wishes)
        return {"streams": sorted(connection.wishes), "latest": self._latest(connection, wishes)}

    def _unsubscribe(self, seat: _Seat, given: Any) -> dict[str, Any]:
        connection = _entered(seat)
        connection.unsubscribe(read_subscriptions(given))
        return {"streams": sorted(connection.wishes)}

    def _latest(self, connection: Connection, wishes: list[Subscription]) -> dict[str, Any]:
        """The newest value of each live metric that was just asked for, so that nobody waits for the next window."""
        latest = dict(self._metrics.latest(connection.tenant or ""))
        metric_wishes = [w for w in wishes if w.stream == "metric"]
        return {name: v for name, v in latest.items() if any(not w.metrics or name in w.metrics for w in metric_wishes)}

    async def _unknown(self, event: str, _sid: str, *_: Any) -> dict[str, Any]:
        known = "auth:authenticate, subscribe, unsubscribe"
        return {"ok": False, "error": f"{str(event)[:40]!r} is not known here; valid are: {known}"}


def _entered(seat: _Seat) -> Connection:
    if seat.connection.tenant is None:
        raise UnauthenticatedError("send auth:authenticate {token, userId} first")
    return seat.connection


def _token(given: Any) -> str | None:
    """``{"token": ...}`` or ``{"apiKey": ...}``, as in the handshake's ``auth`` and in ``auth:authenticate``."""
    if not isinstance(given, Mapping):
        return None
    token = given.get("token") or given.get("apiKey")
    return token if isinstance(token, str) else None


def _handshake_credential(environ: Mapping[str, Any]) -> str | None:
    request: web.Request = environ["aiohttp.request"]
    query = parse_qs(request.query_string)
    return credential(request, in_query=True, optional=True) or next(iter(query.get("token", [])), None)
