"""The process of an ``isolation: process`` plugin. `analytics_core.host.running.process` is the host's side of it.

Run as ``python -m analytics_core.host.running LANE CALLS LIFE``, the numbers of three inherited descriptors.
The main thread serves the lane, one request at a time; a second thread runs an event loop that serves the concurrent
hooks on the second instance, so that a long ``process`` holds up no ``insight``. Events do not pass through the
sockets: the worker reads the log itself, at the positions that the host names.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from analytics_core.events import EventBatch
from analytics_core.host.code.dispatch import Instance, unheard
from analytics_core.host.code.generation import Generation, load
from analytics_core.host.running.channel import Channel
from analytics_core.host.running.crossing import ARGUMENTS, Call, Hello
from analytics_core.host.running.wire import HEADER, Events, Failure, decode, frame, size_of, unframe
from analytics_core.lanes.fold import HookFold, Step, fold_once
from analytics_core.log.segments import SegmentReader
from analytics_core.records import PluginContext
from analytics_core.state import Checkpoint


class Worker:
    """One generation of one plugin, served over two sockets."""

    def __init__(self, lane: socket.socket, calls: socket.socket) -> None:
        self._lane = Channel(lane)
        self._calls = calls
        self._number = 0
        self._hello: Hello
        self._generation: Generation
        self._log: SegmentReader | None = None
        self._fold: HookFold
        self._concurrent: Instance | None = None

    def serve(self) -> None:
        """Answer the lane's requests until the host closes the connection, then tear down the concurrent instance."""
        ops: dict[str, Callable[[msgspec.Raw], Any]] = {
            "load": self._load,
            "start": self._start,
            "open": self._open,
            "restore": lambda body: self._fold.restore(decode(body, Checkpoint)),
            "advance": self._advance,
            "fold": self._folded,
            "export": lambda _: self._fold.export(),
            "close": lambda _: self._fold.close(),
        }
        with contextlib.suppress(EOFError):
            while True:
                self._number, op, body = self._lane.receive()
                try:
                    answer = frame(self._number, "ok", ops[op](body))
                except BaseException as error:  # a plugin may raise anything; the host decides
                    answer = frame(self._number, "error", Failure.of(error))
                self._lane.send_frame(answer)
        if self._concurrent is not None:
            self._concurrent.call("teardown")

    def _load(self, body: msgspec.Raw) -> list[str]:
        self._hello = hello = decode(body, trusted=True)
        _cap_data(2 * hello.memory_bytes)
        self._generation = load(hello.copy.found, hello.generation, hello.copy.sources)
        return sorted(self._generation.hooks)

    def _start(self, _: msgspec.Raw) -> None:
        """Set up the concurrent instance and serve it from then on, on a thread of its own."""
        self._concurrent = self._generation.instance()
        self._beat("setup")
        self._concurrent.call("setup", context=self._context())
        calls = Calls(self._generation, self._context(), self._concurrent)
        threading.Thread(target=asyncio.run, args=(calls.serve(self._calls),), name="calls", daemon=True).start()

    def _open(self, _: msgspec.Raw) -> int:
        instance = self._generation.instance()
        if self._log is None:
            self._log = SegmentReader(self._hello.log_directory)
        version = self._generation.manifest.reload.state_version
        self._fold = HookFold(self._generation.plugin, instance, self._log, state_version=version, beat=self._beat)
        self._beat("setup")
        instance.call("setup", context=self._context())
        return version

    def _advance(self, body: msgspec.Raw) -> Step:
        return self._fold.advance(*decode(body, tuple[int, int]))

    def _folded(self, body: msgspec.Raw) -> Step:
        return self._fold.fold(*decode(body, tuple[list[EventBatch], int]))

    def _beat(self, doing: str) -> None:
        self._lane.send(self._number, "beat", doing)

    def _context(self) -> PluginContext:
        name, number = self._generation.plugin, self._generation.number
        logger = structlog.get_logger(name).bind(plugin=name)
        return PluginContext(name=name, settings=dict(self._hello.settings), logger=logger, generation=number)


class Calls:
    """The concurrent side: any number of calls at once, answered in the order in which they finish."""

    def __init__(self, generation: Generation, context: PluginContext, instance: Instance) -> None:
        self._generation = generation
        self._context = context
        self._instance = instance
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Answer until the host closes the connection."""
        reader, writer = await asyncio.open_connection(sock=connection)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = size_of(await reader.readexactly(HEADER.size))
                number, _, body = unframe(await reader.readexactly(size))
                task = asyncio.ensure_future(self._answer(number, decode(body, Call), writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, call: Call, writer: asyncio.StreamWriter) -> None:
        try:
            value = await self._call(call)
            answer = frame(number, "ok", Events(value) if call.hook == "ingest" and isinstance(value, list) else value)
        except Exception as error:  # a plugin may raise anything; the host decides
            answer = frame(number, "error", Failure.of(error))
        writer.writelines(answer)
        await writer.drain()

    async def _call(self, call: Call) -> Any:
        arguments = {
            name: decode(value, ARGUMENTS[name], trusted=True)
            for name, value in call.arguments.items()
            if name in ARGUMENTS
        }
        if call.hook == "fold_once":
            return await asyncio.to_thread(self._fold_once, arguments["batches"])
        with contextlib.ExitStack() as stack:
            if "events" in arguments:
                arguments["events"] = await asyncio.to_thread(_opened, arguments["events"], stack)
            return await self._instance.acall(call.hook, call.seconds, **arguments)

    def _fold_once(self, batches: list[EventBatch]) -> Any:
        return fold_once(self._generation.plugin, self._generation.instance(), batches, self._context)


def _opened(spec: Any, stack: contextlib.ExitStack) -> Any:
    """The reader that ``spec.open()`` gives, closed with ``stack`` when it is a context manager."""
    reader = spec.open()
    return stack.enter_context(reader) if hasattr(reader, "__exit__") else reader


def _cap_data(extra: int) -> None:
    """Let allocations fail beyond ``extra`` bytes over what is mapped now.

    The host watches the anonymous memory and ends a worker over its limit. This is the backstop for a plugin that
    takes gigabytes between two looks: RLIMIT_DATA counts private writable mappings, and so neither the mapped log
    nor the address space that allocators and Arrow only reserve, as RLIMIT_AS would.
    """
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a lower hard limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + extra, hard))


def _end_with_host(life: int) -> None:
    """End when the host does, even if plugin code holds the interpreter: the kernel then signals SIGIO for the pipe
    ``life``, whose other end only the host holds, and nobody handles SIGIO."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def _leave_the_end_to_the_host() -> None:
    """Ctrl-C reaches the whole terminal, SIGTERM often the whole group. What the plugin starts hears both: that it has
    been forked off is no moment in which one is lost."""
    both = {signal.SIGINT, signal.SIGTERM}

    def hear() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        unblock()

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)

    for number in both:
        signal.signal(number, unheard)
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, both), after_in_parent=unblock, after_in_child=hear
    )


def main() -> None:
    lane, calls, life = (int(word) for word in sys.argv[1:4])
    _leave_the_end_to_the_host()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # before the host, if memory runs out
    _end_with_host(life)
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )
    try:
        Worker(socket.socket(fileno=lane), socket.socket(fileno=calls)).serve()
    except ConnectionError:
        code = 0
    except BaseException:  # the last words of this process go to the host's log
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    os._exit(code)  # without waiting for plugin threads, which may never end
