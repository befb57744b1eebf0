"""Under `socket`: how one encoded message reaches every socket.io client that wants it.

Stock ``emit`` makes a task for each receiver, engine.io's writer makes another for each packet, and stock WebSockets
compress for each one. Here a message becomes one packet and one WebSocket frame; the same bytes are written to every
WebSocket whose client keeps up, and wait in a bounded backlog for one that does not. Long-polling clients take packets
from engine.io's own queue.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import engineio
import socketio
from aiohttp import web
from engineio.async_drivers import aiohttp as driver
from engineio.async_socket import AsyncSocket
from engineio.packet import MESSAGE, NOOP, Packet

_LAST_WORDS_SECONDS: Final = 5.0
_QUIET_SECONDS: Final = 0.25
_PACKETS: Final = 16


class LivePacket(Packet):  # type: ignore[misc]
    """An engine.io packet, encoded when it is made; ``frame`` is the same as an unmasked WebSocket text frame."""

    def __init__(self, text: str) -> None:
        super().__init__(MESSAGE, text)
        payload = self.encode().encode()
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x81, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x81, 126, size)
        else:
            head = struct.pack("!BBQ", 0x81, 127, size)
        self.frame = head + payload


def encode(event: str, _: str, data: bytes) -> LivePacket:
    """One message for all clients; ``data`` is JSON text already."""
    return LivePacket(f"2[{json.dumps(event)},{data.decode()}]")


class _WebSocket(driver.WebSocket):  # type: ignore[misc]
    """The driver's WebSocket without compression, known to its engine.io socket so that frames can be written to it."""

    def __init__(self, handler: Callable[..., Awaitable[Any]], server: Any) -> None:
        super().__init__(handler, server)
        self._owner: AsyncSocket = handler.__self__  # type: ignore[attr-defined]
        self.request: web.Request
        self.done = asyncio.Event()

    async def __call__(self, environ: dict[str, Any]) -> web.WebSocketResponse:
        self.environ = environ
        self.request = environ["aiohttp.request"]
        self._sock = web.WebSocketResponse(max_msg_size=self.server.max_http_buffer_size, compress=False)
        await self._sock.prepare(self.request)
        self._owner.websocket = self
        try:
            await self.handler(self)
        except (ValueError, RecursionError):  # what the client sent is no packet: engine.io lets that through
            self._owner.queue.put_nowait(None)
            await self._owner.close(wait=False, abort=True)
        finally:
            self.done.set()
        return self._sock


class _Queue(asyncio.Queue[Packet]):
    """engine.io's queue of one client, emptied by at most `_PACKETS` a poll: stock clients refuse more at once."""

    _taken = 0

    async def get(self) -> Packet:
        self._taken = 0
        return await super().get()

    def get_nowait(self) -> Packet:
        if self._taken >= _PACKETS:
            raise asyncio.QueueEmpty
        self._taken += 1
        return super().get_nowait()

    def clear(self) -> None:
        while not self.empty():
            self._taken = 0
            self.get_nowait()
            self.task_done()


class _Engine(engineio.AsyncServer):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._async: dict[str, Any] = {**driver._async, "websocket": _WebSocket}

    def create_queue(self, *_: Any, **__: Any) -> _Queue:
        return _Queue()


class Server(socketio.AsyncServer):  # type: ignore[misc]
    """``most_sockets`` bounds clients that opened a transport, whether or not they ever speak socket.io."""

    most_sockets: int

    def _engineio_server_class(self) -> type[_Engine]:
        return _Engine

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> str | None:
        if len(self.eio.sockets) > self.most_sockets:
            return "too many connections"
        await super()._handle_eio_connect(eio_sid, environ)
        return None


class Client:
    """One socket.io client as a `live.Sink`. ``farewell`` is called once when it is to be disconnected."""

    def __init__(self, socket: AsyncSocket, farewell: Callable[[], None]) -> None:
        self._socket = socket
        self._farewell = farewell
        self._loop = asyncio.get_running_loop()
        self._queued_at = -_QUIET_SECONDS
        self._transport: asyncio.Transport | None = None
        self._high = 0
        self._backlog: deque[LivePacket] = deque()
        self._flushing: asyncio.Task[None] | None = None

    def send(self, packet: LivePacket) -> int:
        transport = self._transport or self._settle()
        if self._socket.closed or (transport is not None and transport.is_closing()):
            return 0
        if transport is None:
            self._queued_at = self._loop.time()
            self._socket.queue.put_nowait(packet)
            return int(self._socket.queue.qsize())
        if not self._backlog and transport.get_write_buffer_size() <= self._high:
            transport.write(packet.frame)
            return 0
        self._backlog.append(packet)
        if self._flushing is None and self._websocket is not None:
            self._flushing = self._loop.create_task(self._flush(self._websocket, transport))
        return len(self._backlog)

    def drop(self, reason: str) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
        self._backlog.clear()
        self._socket.queue.clear()
        self._socket.queue.put_nowait(encode("error", "", json.dumps({"error": reason}).encode()))
        self._farewell()

    def left(self) -> None:
        """The client said goodbye: answer the poll that it may still have open, which engine.io leaves hanging."""
        if self._websocket is None:
            self._socket.queue.put_nowait(Packet(NOOP))

    async def end(self) -> None:
        """Close the transport when the last words are out, or when the client has not taken them for too long."""
        websocket = self._websocket
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                if websocket is None:
                    await self._socket.queue.join()  # until the next poll takes them
                await self._socket.close(wait=False)
                if websocket is not None:
                    await websocket.done.wait()
        except TimeoutError:
            await self._socket.close(wait=False)
            if websocket is not None and websocket.request.transport is not None:
                websocket.request.transport.abort()

    @property
    def _websocket(self) -> _WebSocket | None:
        return getattr(self._socket, "websocket", None)

    def _settle(self) -> asyncio.Transport | None:
        """The transport to write frames to: a WebSocket's, once no earlier message can still be in engine.io's queue.

        Its writer holds a packet for a few turns of the loop between the queue and the transport, hence the wait.
        """
        websocket = self._websocket
        quiet = self._loop.time() - self._queued_at >= _QUIET_SECONDS
        if websocket is None or not self._socket.upgraded or not self._socket.queue.empty() or not quiet:
            return None
        self._transport = websocket.request.transport
        if self._transport is not None:
            self._high = self._transport.get_write_buffer_limits()[1]
        return self._transport

    async def _flush(self, websocket: _WebSocket, transport: asyncio.Transport) -> None:
        """Write the backlog as the client takes it."""
        try:
            while self._backlog:
                await websocket.request.writer.drain()
                while self._backlog and transport.get_write_buffer_size() <= self._high:
                    transport.write(self._backlog.popleft().frame)
        except ConnectionResetError:
            self._backlog.clear()  # the client went; engine.io notices it too
        finally:
            self._flushing = None
