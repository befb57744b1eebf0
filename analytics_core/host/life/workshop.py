"""Makes what runs of a choice: its life, its generations, its lane."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from analytics_core.config import Settings
from analytics_core.host.code.fingerprint import Copy
from analytics_core.host.health import Health
from analytics_core.host.installed.dependencies import Dependencies
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.boot_guard import BootGuard
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.member import Turn
from analytics_core.host.life.supervise import Life
from analytics_core.host.running.process_runtime import ProcessRuntime
from analytics_core.host.running.runtime import Runtime, Subject
from analytics_core.host.running.thread_runtime import ThreadRuntime
from analytics_core.lanes.fold import Backlog, Fold
from analytics_core.lanes.lane import Lane
from analytics_core.log import LogReader
from analytics_core.log.segments import partition_directory
from analytics_core.state import StateStore


class Workshop:
    """``on_commit`` is told each position that a lane has made durable."""

    def __init__(
        self,
        settings: Settings,
        log: LogReader,
        state: StateStore,
        *,
        backlog: Backlog | None,
        policy: RestartPolicy,
        guard: BootGuard,
        on_commit: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._log = log
        self._state = state
        self._backlog = backlog
        self._policy = policy
        self._guard = guard
        self._on_commit = on_commit
        self._dependencies: Dependencies | None = None

    def look(self) -> None:
        """See what third-party code is installed now. Goes before each round of questions, on one thread at a time."""
        if self._dependencies is None:
            self._dependencies = Dependencies()
        else:
            self._dependencies.look()

    def drift(self, choice: Choice) -> str:
        """What of the third-party code that a plugin stands on this process has in another version; empty for none."""
        if choice.found is None or self._dependencies is None:
            return ""
        return "; ".join(map(str, self._dependencies.changed(choice.found, choice.isolation)))

    def stands_on(self, choice: Choice) -> str:
        """What tells the third-party code that is installed for a plugin from any other."""
        if choice.found is None or self._dependencies is None:
            return ""
        return self._dependencies.identity(choice.found)

    def life(self, choice: Choice, health: Health, runtime: Runtime, turn: Turn) -> Life:
        return Life(health, runtime, partial(self._lane, choice.name), policy=self._policy, turn=turn)

    def runtime(self, choice: Choice, copy: Copy, generation: int) -> Runtime:
        """Generation ``generation`` of a plugin that is to run, not loaded yet."""
        assert choice.manifest is not None
        self._guard.made(choice, generation, code=copy.fingerprint, stands_on=self.stands_on(choice))
        subject = Subject(
            copy=copy,
            manifest=choice.manifest,
            settings=choice.settings,
            limits=choice.limits,
            seconds=choice.limits.call_seconds or self._settings.lanes.hang_seconds,
            generation=generation,
        )
        if choice.isolation == "thread":
            return ThreadRuntime(subject, self._log, self._guard.calls.of(choice.name), self._backlog)
        return ProcessRuntime(subject, partition_directory(self._settings.storage.data_dir), self._backlog)

    def _lane(self, name: str, open_fold: Callable[[], Fold], /, **watchers: Any) -> Lane:
        told = watchers.pop("on_commit")

        def on_commit(position: int) -> None:
            told(position)
            self._on_commit(position)

        return Lane(name, open_fold, self._log, self._state, self._settings.lanes, on_commit=on_commit, **watchers)
