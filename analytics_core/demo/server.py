"""The server as a child process of the demo: started, waited for, ended, and its last words kept."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import aiohttp

from analytics_core.errors import ConfigError, NoServerError, ServerDiedError

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
_PROBE_SECONDS: Final = 0.05
_LAST_LINES: Final = 15
_LINE_BYTES: Final = 1 << 20


def free_port(host: str, port: int) -> int:
    """``port``, or any free one for 0. :raises ConfigError: when it cannot be listened on."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"{host}:{port}", f"cannot be listened on ({error.strerror}); choose another with --port or ANALYTICS_PORT"
        ) from error


class ServerProcess:
    """``analytics serve`` with ``arguments``, from entering the context to leaving it.

    It has a session of its own, so that Ctrl-C reaches the demo alone, which then ends it in order.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = (sys.executable, "-m", "analytics_core.cli", "serve", *arguments)
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE_BYTES,
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._reading

    async def ready(self, session: aiohttp.ClientSession, url: str) -> None:
        """Wait until it answers and its plugins are up, or have failed.

        :raises ServerDiedError: when it ends instead.
        :raises NoServerError: when that takes over a minute.
        """
        clock = asyncio.get_running_loop().time
        give_up = clock() + _START_SECONDS
        ended = asyncio.create_task(self.died())
        try:
            while clock() < give_up:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{url}/readyz") as response:
                        if response.status == 200:
                            return
                await asyncio.wait([ended], timeout=_PROBE_SECONDS)
                if ended.done():
                    ended.result()
            raise NoServerError(url, f"it has not started within {_START_SECONDS:.0f} s")
        finally:
            ended.cancel()

    async def died(self) -> None:
        """Returns never. :raises ServerDiedError: when the process ends."""
        code = await self._process.wait()
        await self._reading
        raise ServerDiedError(code, self._lines)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for text in self._process.stdout:
                self._lines.append(text.decode(errors="replace").rstrip())
        except ValueError:  # a line beyond the limit: the server must not block on a full pipe
            self._lines.append("(a line too long to show)")
            while await self._process.stdout.read(_LINE_BYTES):
                pass
