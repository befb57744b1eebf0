"""Where a plugin lives: on threads of this process, or in a process of its own. One interface for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import structlog
from msgspec import Struct

from analytics_core.errors import PluginError
from analytics_core.events import EventBatch
from analytics_core.host.code.fingerprint import Copy
from analytics_core.lanes.fold import Fold
from analytics_core.manifest import Limits, PluginManifest
from analytics_core.records import PluginContext, ProcessResult

LOAD_SECONDS: Final = 60.0
"""The least that starting a process and importing a plugin may take, whatever its limit for a call."""

Beat = Callable[[str], None]


class Subject(Struct, frozen=True, kw_only=True):
    """One plugin that is to run: its code, its checked settings, and its bounds. ``seconds`` bounds each hook call."""

    copy: Copy
    manifest: PluginManifest
    settings: dict[str, Any]
    limits: Limits
    seconds: float
    generation: int = 1

    @property
    def name(self) -> str:
        return self.copy.found.name

    @property
    def load_seconds(self) -> float:
        return max(self.seconds, LOAD_SECONDS)

    def check(self) -> None:
        """:raises PluginError: when its sources cannot be read or compiled."""
        if self.copy.sources is None:
            raise PluginError(self.name, f"its sources in {self.copy.found.directory} cannot be read")
        for module in self.copy.sources.values():
            try:
                compile(module.source, str(module.file), "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                raise PluginError(self.name, f"{type(error).__name__}: {error} ({module.file})") from error

    def context(self) -> PluginContext:
        logger = structlog.get_logger(self.name).bind(plugin=self.name)
        return PluginContext(name=self.name, settings=dict(self.settings), logger=logger, generation=self.generation)


class Runtime(Protocol):
    """Two instances of one generation of a plugin: one behind `open_fold`, for the lane, and one behind `acall`.

    `load`, `start` and `open_fold` are called in this order on the thread of one attempt, and again in each later
    attempt; what still holds from an earlier one is kept. After `close` they may begin anew: with the same code,
    whatever the disk has by then.
    """

    @property
    def plugin(self) -> str: ...

    @property
    def isolation(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def seconds(self) -> float:
        """How long one call of a hook may take."""
        ...

    def check(self) -> None:
        """Without running any of it. :raises PluginError: when its sources cannot be read or compiled."""
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

    def hindrance(self, error: BaseException | None = None) -> str:
        """Why no other generation can be made beside this one, or why ``error`` came of trying; empty when one can."""
        ...

    def watch(self) -> None:
        """Called twice a second at least while the plugin runs: end it when it is over its bounds.

        :raises WorkerDiedError: when it has ended.
        """
        ...

    async def acall(self, hook: str, seconds: float, /, **arguments: Any) -> Any:
        """Call a concurrent hook on the event loop."""
        ...

    async def fold_once(self, batches: Sequence[EventBatch], seconds: float) -> ProcessResult: ...

    def twin(self, generation: int) -> Runtime:
        """The same code and settings as another generation, which nothing has begun yet."""
        ...

    def close(self) -> None:
        """Tear down the concurrent instance and end everything. Not called on the event loop."""
        ...

    def survivors(self) -> tuple[str, ...]:
        """What is still alive of it after `close`, by name."""
        ...


class OfSubject:
    """What every runtime says of its subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def plugin(self) -> str:
        return self._subject.name

    @property
    def generation(self) -> int:
        return self._subject.generation

    @property
    def seconds(self) -> float:
        return self._subject.seconds

    def check(self) -> None:
        self._subject.check()


def patience(runtime: Runtime, doing: str) -> float:
    """Seconds that a thread may be in ``doing``."""
    return max(runtime.seconds, LOAD_SECONDS) if doing == "load" else runtime.seconds
