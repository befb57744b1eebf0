"""A plugin on threads of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from analytics_core.errors import AnalyticsError, HookFailedError, HookTimeoutError, PluginUnavailableError
from analytics_core.events import EventBatch
from analytics_core.host.code.dispatch import Instance
from analytics_core.host.code.generation import Generation, load
from analytics_core.host.code.registries import hindrance, refusal
from analytics_core.host.code.threads import MAX_HUNG, Overdue, on_own_thread
from analytics_core.host.running.runtime import Beat, OfSubject, Subject
from analytics_core.host.running.underway import Note
from analytics_core.lanes.fold import Backlog, Fold, HookFold, fold_once
from analytics_core.log import LogReader
from analytics_core.records import ProcessResult

_log = structlog.get_logger(__name__)


class _Noted:
    """An instance that takes turns and whose calls are noted, for one thread."""

    def __init__(self, instance: Instance, note: Note, seconds: float) -> None:
        self._instance = instance
        self._note = note
        self._seconds = seconds

    @property
    def hooks(self) -> frozenset[str]:
        return self._instance.hooks

    def call(self, hook: str, **arguments: Any) -> Any:
        with self._note.in_turn(self._seconds):
            return self._instance.call(hook, **arguments)

    def close(self) -> None:
        self._instance.close()


class ThreadRuntime(OfSubject):
    """The plugin shares this process, its interpreter lock and its memory: only its author is to be trusted.

    Whenever its code is run, that is in ``note``: it may be the last thing that this process does.
    """

    isolation = "thread"

    def __init__(self, subject: Subject, log: LogReader, note: Note, backlog: Backlog | None = None) -> None:
        super().__init__(subject)
        self._log = log
        self._note = note
        self._backlog = backlog
        self._generation: Generation | None = None
        self._retired: Generation | None = None
        self._concurrent: Instance | None = None
        self._folds = Overdue()
        self._closing = threading.Lock()

    def load(self) -> frozenset[str]:
        with self._note.in_turn(self._subject.load_seconds):
            return self._loaded().hooks

    def start(self) -> None:
        if self._concurrent is None:
            instance = self._instance(self._loaded())
            with self._note.in_turn(self.seconds):
                instance.call("setup", context=self._subject.context())
            self._concurrent = instance

    def open_fold(self, beat: Beat) -> Fold:
        beat("setup")
        instance = self._noted(self._loaded())
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

    def hindrance(self, error: BaseException | None = None) -> str:
        registered = self._generation.registered() if self._generation is not None else ()
        return hindrance(registered) if error is None else refusal(error) if registered else ""

    def watch(self) -> None:
        """Threads have no memory or processor time of their own to bound."""

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        if self._concurrent is None:
            raise PluginUnavailableError(self._subject.name, "is not started")
        with self._note:
            return await self._concurrent.acall(hook, seconds, **arguments)

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult:
        name, generation = self._subject.name, self._generation
        if generation is None:
            raise PluginUnavailableError(name, "is not started")
        context = self._subject.context()
        if self._folds.count >= MAX_HUNG:
            raise HookFailedError(name, "process", f"{MAX_HUNG} earlier folds hang; the plugin needs a restart")
        fold = self._folds.watched(lambda: fold_once(name, self._noted(generation), batches, context))
        try:
            async with asyncio.timeout(seconds):
                return await on_own_thread(f"fold:{name}", fold)
        except TimeoutError:
            raise HookTimeoutError(name, "process", seconds) from None
        finally:
            self._folds.give_up(fold)

    def twin(self, generation: int) -> ThreadRuntime:
        subject = msgspec.structs.replace(self._subject, generation=generation)
        return ThreadRuntime(subject, self._log, self._note, self._backlog)

    def close(self) -> None:
        with self._closing:
            instance, self._concurrent = self._concurrent, None
            generation, self._generation = self._generation, None
            self._retired = generation or self._retired
        if instance is not None:
            try:
                with self._note.in_turn(self.seconds):
                    instance.call("teardown")
            except AnalyticsError as error:
                _log.warning("teardown_failed", plugin=self._subject.name, problem=str(error))
            instance.close()
        if generation is not None:
            generation.retire()

    def survivors(self) -> tuple[str, ...]:
        return self._retired.survivors() if self._retired is not None else ()

    def _instance(self, generation: Generation) -> Instance:
        with self._note.in_turn(self.seconds):
            return generation.instance()

    def _noted(self, generation: Generation) -> _Noted:
        return _Noted(self._instance(generation), self._note, self.seconds)

    def _loaded(self) -> Generation:
        if self._generation is None:
            if self._retired is not None:
                self._retired.retire()  # its teardown may hang; the code is to be loaded anew
            copy = self._subject.copy
            self._generation = load(copy.found, self._subject.generation, copy.sources)
        return self._generation
