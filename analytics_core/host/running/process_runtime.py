"""A plugin in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from analytics_core.errors import PluginStartingError, PluginUnavailableError, WorkerDiedError
from analytics_core.events import EventBatch
from analytics_core.host.running.crossing import Hello
from analytics_core.host.running.process import ProcessFold, WorkerProcess, spec_of
from analytics_core.host.running.runtime import Beat, OfSubject, Subject
from analytics_core.host.running.wire import Trusted
from analytics_core.lanes.fold import Backlog, Fold
from analytics_core.manifest import DEFAULT_MEMORY_MB
from analytics_core.records import ProcessResult


class ProcessRuntime(OfSubject):
    """The plugin has a process of its own, which is started anew when it has ended."""

    isolation = "process"

    def __init__(self, subject: Subject, log_directory: Path, backlog: Backlog | None = None) -> None:
        super().__init__(subject)
        self._log_directory = log_directory
        self._backlog = backlog
        self._worker: WorkerProcess | None = None
        self._hooks: frozenset[str] = frozenset()
        self._started = False
        memory = subject.limits.memory_mb or DEFAULT_MEMORY_MB
        self._memory_bytes = memory << 20

    def load(self) -> frozenset[str]:
        if self._worker is not None and self._worker.alive:
            return self._hooks
        self.close()  # what has died, which nobody else may close once more
        self._started = False
        self._worker = WorkerProcess(self._subject.name)
        hello = Hello(
            copy=self._subject.copy,
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

    def hindrance(self, error: BaseException | None = None) -> str:  # noqa: ARG002
        return ""  # each process has registries of its own

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
            raise PluginStartingError(self._subject.name, "its process is being started")
        if "events" in arguments:
            arguments["events"] = spec_of(arguments["events"])
        return await self._worker.acall(hook, seconds, **arguments)

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult:
        result: ProcessResult = await self.acall("fold_once", seconds, batches=list(batches))
        return result

    def twin(self, generation: int) -> ProcessRuntime:
        subject = msgspec.structs.replace(self._subject, generation=generation)
        return ProcessRuntime(subject, self._log_directory, self._backlog)

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
