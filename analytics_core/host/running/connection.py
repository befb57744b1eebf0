"""The concurrent calls of a plugin's process, multiplexed over one socket on the event loop."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any, Final, Protocol

import msgspec

from analytics_core.errors import HookTimeoutError, WorkerDiedError
from analytics_core.host.running.crossing import RESULTS
from analytics_core.host.running.wire import HEADER, BadFrameError, Failure, decode, encode, frame, size_of, unframe

_GRACE: Final = 0.5
"""Seconds that the worker has to report a deadline of its own before the host stops waiting for it."""
_STRIKES: Final = 4


class Ended(Protocol):
    """What a connection needs of its worker."""

    def kill(self, why: str) -> None: ...

    def how(self) -> str: ...


class Connection:
    """The concurrent calls of one worker, on the event loop of whoever makes the first."""

    def __init__(self, plugin: str, connection: socket.socket, worker: Ended) -> None:
        self._plugin = plugin
        self._connection = connection
        self._worker = worker
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[tuple[str, msgspec.Raw]]]] = {}
        self._opening: asyncio.Task[asyncio.StreamWriter] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._strikes = 0
        self._cut_off: frozenset[str] = frozenset()

    def out(self) -> frozenset[str]:
        """The hooks that are under way; in the end, those that were when the worker ended."""
        return self._cut_off | {hook for hook, _ in self._waiting.copy().values()}

    async def call(self, hook: str, seconds: float, arguments: dict[str, Any]) -> Any:
        body = {
            "hook": hook,
            "seconds": seconds,
            "arguments": {k: msgspec.Raw(encode(v)) for k, v in arguments.items()},
        }
        number = next(self._numbers)
        future: asyncio.Future[tuple[str, msgspec.Raw]] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds + _GRACE):
                writer = await self._writer()
                self._waiting[number] = hook, future
                writer.writelines(frame(number, "call", body))
                await writer.drain()
                word, raw = await future
        except TimeoutError:
            self._strike()
            raise HookTimeoutError(self._plugin, hook, seconds) from None
        except OSError:
            raise WorkerDiedError(self._plugin, await asyncio.to_thread(self._worker.how)) from None
        finally:
            self._waiting.pop(number, None)
        if word == "error":
            error = decode(raw, Failure).error(self._plugin)
            if isinstance(error, HookTimeoutError):
                self._strike()
            raise error
        self._strikes = 0
        return decode(raw, RESULTS[hook])

    def close(self) -> None:
        """Callable from any thread. Calls under way end as if the worker had died."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_on_loop)
        else:
            self._connection.close()

    def _close_on_loop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._opening is not None and self._opening.done() and not self._opening.cancelled():
            self._opening.result().close()

    def _strike(self) -> None:
        self._strikes += 1
        if self._strikes >= _STRIKES:
            self._worker.kill(f"{self._strikes} calls in a row got no answer in time")

    async def _writer(self) -> asyncio.StreamWriter:
        if self._opening is None:
            self._loop = asyncio.get_running_loop()
            self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(sock=self._connection)
        self._reading = asyncio.ensure_future(self._read(reader))
        return writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size = size_of(await reader.readexactly(HEADER.size))
                number, word, raw = unframe(await reader.readexactly(size))
                _, future = self._waiting.get(number, ("", None))
                if future is not None and not future.done():
                    future.set_result((word, raw))
        except BadFrameError as error:
            self._worker.kill(f"it sent {error}")
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._cut_off = self.out()
            for _, future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the worker has ended"))
