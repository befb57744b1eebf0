"""Where a plugin lives: on threads of this process, or in a process of its own. One interface for both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog
from msgspec import Struct

from analytics_core.errors import (
    AnalyticsError,
    HookFailedError,
    HookTimeoutError,
    PluginUnavailableError,
    WorkerDiedError,
)
from analytics_core.events import EventBatch
from analytics_core.host.crossing import Hello
from analytics_core.host.discovery import Found
from analytics_core.host.dispatch import Instance
from analytics_core.host.generation import Generation, load
from analytics_core.host.process import ProcessFold, WorkerProcess, spec_of
from analytics_core.host.threads import MAX_HUNG, Overdue
from analytics_core.host.wire import Trusted
from analytics_core.lanes.fold import Backlog, Fold, HookFold, fold_once
from analytics_core.log import LogReader
from analytics_core.manifest import Limits, PluginManifest
from analytics_core.records import PluginContext, ProcessResult

DEFAULT_MEMORY_MB: Final = 1024
LOAD_SECONDS: Final = 60.0
"""The least that starting a process and importing a plugin may take, whatever its limit for a call."""

T = TypeVar("T")
Beat = Callable[[str], None]

_log = structlog.get_logger(__name__)


class Subject(Struct, frozen=True, kw_only=True):
    """One plugin that is to run: its code, its checked settings, and its bounds. ``seconds`` bounds each hook call."""

    found: Found
    manifest: PluginManifest
    settings: dict[str, Any]
    limits: Limits
    seconds: float
    generation: int = 1

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def load_seconds(self) -> float:
        return max(self.seconds, LOAD_SECONDS)

    def context(self) -> PluginContext:
        logger = structlog.get_logger(self.name).bind(plugin=self.name)
        return PluginContext(name=self.name, settings=dict(self.settings), logger=logger, generation=self.generation)


class Runtime(Protocol):
    """Two instances of one plugin: one behind `open_fold`, for the lane, and one behind `acall`.

    `load`, `start`, `open_fold` and `wait` are called in this order on the thread of one attempt, and again in each
    later attempt; what still holds from an earlier one is kept.
    """

    @property
    def isolation(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def seconds(self) -> float:
        """How long one call of a hook may take."""
        ...

    def load(self) -> frozenset[str]:
        """Import the plugin and check it; its hooks."""
        ...

    def start(self) -> None:
        """Set up the concurrent instance."""
        ...

    def open_fold(self, beat: Beat) -> Fold:
        """A fresh fold instance, set up."""
        ...

    def wait(self, stopping: threading.Event) -> None:
        """Block while the plugin lives. :raises WorkerDiedError: when it ends before ``stopping`` is set."""
        ...

    def watch(self) -> None:
        """Called twice a second while the plugin runs: end it when it is over its bounds.

        :raises WorkerDiedError: when it has ended.
        """
        ...

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        """Call a concurrent hook on the event loop."""
        ...

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult: ...

    def close(self) -> None:
        """Tear down the concurrent instance and end everything. Not called on the event loop."""
        ...

    def survivors(self) -> tuple[str, ...]:
        """What is still alive of it after `close`, by name."""
        ...


class ThreadRuntime:
    """The plugin shares this process, its interpreter lock and its memory: only its author is to be trusted."""

    isolation = "thread"

    def __init__(self, subject: Subject, log: LogReader, backlog: Backlog | None = None) -> None:
        self._subject = subject
        self._log = log
        self._backlog = backlog
        self._generation: Generation | None = None
        self._concurrent: Instance | None = None
        self._folds = Overdue()

    @property
    def generation(self) -> int:
        return self._subject.generation

    @property
    def seconds(self) -> float:
        return self._subject.seconds

    def load(self) -> frozenset[str]:
        return self._loaded().hooks

    def start(self) -> None:
        if self._concurrent is None:
            instance = self._loaded().instance()
            instance.call("setup", context=self._subject.context())
            self._concurrent = instance

    def open_fold(self, beat: Beat) -> Fold:
        instance = self._loaded().instance()
        beat("setup")
        instance.call("setup", context=self._subject.context())
        beat("")
        return HookFold(
            self._subject.name,
            instance,
            self._log,
            state_version=self._subject.manifest.reload.state_version,
            backlog=self._backlog,
            beat=beat,
        )

    def wait(self, stopping: threading.Event) -> None:
        stopping.wait()

    def watch(self) -> None:
        """Threads have no memory or processor time of their own to bound."""

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        if self._concurrent is None:
            raise PluginUnavailableError(self._subject.name, "is not started")
        return await self._concurrent.acall(hook, seconds, **arguments)

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult:
        name = self._subject.name
        context = self._subject.context()
        generation = self._loaded()
        if self._folds.count >= MAX_HUNG:
            raise HookFailedError(name, "process", f"{MAX_HUNG} earlier folds hang; the plugin needs a restart")
        fold = self._folds.watched(lambda: fold_once(name, generation.instance(), batches, context))
        try:
            async with asyncio.timeout(seconds):
                return await on_own_thread(f"fold:{name}", fold)
        except TimeoutError:
            raise HookTimeoutError(name, "process", seconds) from None
        finally:
            self._folds.give_up(fold)

    def close(self) -> None:
        instance, self._concurrent = self._concurrent, None
        if instance is not None:
            try:
                instance.call("teardown")
            except AnalyticsError as error:
                _log.warning("teardown_failed", plugin=self._subject.name, problem=str(error))
            instance.close()
        if self._generation is not None:
            self._generation.retire()

    def survivors(self) -> tuple[str, ...]:
        return self._generation.survivors() if self._generation is not None else ()

    def _loaded(self) -> Generation:
        if self._generation is None:
            self._generation = load(self._subject.found, self._subject.generation)
        return self._generation


class ProcessRuntime:
    """The plugin has a process of its own, which is started anew when it has ended."""

    isolation = "process"

    def __init__(self, subject: Subject, log_directory: Path, backlog: Backlog | None = None) -> None:
        self._subject = subject
        self._log_directory = log_directory
        self._backlog = backlog
        self._worker: WorkerProcess | None = None
        self._hooks: frozenset[str] = frozenset()
        self._started = False
        memory = subject.limits.memory_mb or DEFAULT_MEMORY_MB
        self._memory_bytes = memory << 20

    @property
    def generation(self) -> int:
        return self._subject.generation

    @property
    def seconds(self) -> float:
        return self._subject.seconds

    def load(self) -> frozenset[str]:
        if self._worker is not None and self._worker.alive:
            return self._hooks
        if self._worker is not None:
            self._worker.close()
        self._started = False
        self._worker = WorkerProcess(self._subject.name)
        hello = Hello(
            found=self._subject.found,
            generation=self._subject.generation,
            settings=self._subject.settings,
            log_directory=self._log_directory,
            memory_bytes=self._memory_bytes,
        )
        self._hooks = frozenset(self._worker.request("load", Trusted(hello), list[str], self._subject.load_seconds))
        return self._hooks

    def start(self) -> None:
        if not self._started:
            self._running().request("start", None, None, self._subject.seconds)
            self._started = True

    def open_fold(self, beat: Beat) -> Fold:
        return ProcessFold(self._running(), self._subject.seconds, backlog=self._backlog, beat=beat)

    def wait(self, stopping: threading.Event) -> None:
        worker = self._running()
        while not stopping.wait(0.25):
            if not worker.alive:
                raise WorkerDiedError(self._subject.name, worker.how())

    def watch(self) -> None:
        worker = self._running()
        if not worker.alive:
            raise WorkerDiedError(self._subject.name, worker.how())
        used = worker.anonymous_bytes()
        if used is not None and used > self._memory_bytes:
            worker.kill(f"it used {used >> 20} MB of memory; its limit is {self._memory_bytes >> 20} MB")
        allowed = self._subject.limits.cpu_seconds
        if allowed is not None and (taken := worker.cpu_in_request()) > allowed:
            worker.kill(f"one step of its lane took {taken:.1f} s of processor time; its limit is {allowed:g} s")

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        if self._worker is None or not self._started or not self._worker.alive:
            raise PluginUnavailableError(self._subject.name, "its process is being started")
        if "events" in arguments:
            arguments["events"] = spec_of(arguments["events"])
        return await self._worker.acall(hook, seconds, **arguments)

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult:
        result: ProcessResult = await self.acall("fold_once", seconds, batches=list(batches))
        return result

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def survivors(self) -> tuple[str, ...]:
        return ()  # all that it was is gone with its process

    def _running(self) -> WorkerProcess:
        if self._worker is None:
            raise PluginUnavailableError(self._subject.name, "its process is not started")
        return self._worker


async def on_own_thread(name: str, call: Callable[[], T]) -> T:
    """``call`` on a daemon thread of its own: a call that never returns blocks no pool and no shutdown."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if future.done() else result())

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            problem = error
            settle(lambda: future.set_exception(problem))
        else:
            settle(lambda: future.set_result(value))

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
