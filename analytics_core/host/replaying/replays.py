"""The replays of a host: at most one of each plugin at a time, and the last one of each to look back at."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final, Protocol

import structlog

from analytics_core.config import Lanes as Pace
from analytics_core.errors import NotFoundError, ReplayError
from analytics_core.host.replaying.rebuilding import Original, Rebuilding
from analytics_core.host.replaying.replay import Replay
from analytics_core.host.replaying.view import ReplayView
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.beginning import History
from analytics_core.lanes.fold import Backlog
from analytics_core.log import LogReader
from analytics_core.state.side import SideAreas

_CLOSE_SECONDS: Final = 20.0

_log = structlog.get_logger(__name__)


class Replayable(Original, Protocol):
    """A running plugin that folds."""

    def twin(self) -> Runtime:
        """The code that runs, as a generation of its own, which nothing has begun yet."""
        ...


class Replays:
    """Begins, finds and ends replays. ``originals`` gives a running plugin by its name, or says why it cannot.

    Safe for use from any thread; on the event loop only `of` and `view`. `start` and `close` frame it.
    """

    def __init__(
        self,
        originals: Callable[[str], Replayable],
        log: LogReader,
        backlog: Backlog | None,
        areas: SideAreas,
        pace: Pace,
    ) -> None:
        self._originals = originals
        self._log = log
        self._history = History(log, backlog)
        self._areas = areas
        self._pace = pace
        self._lock = threading.Lock()
        self._latest: dict[str, Replay] = {}
        self._closed = False

    def start(self) -> None:
        """Drop what an earlier process has left half done."""
        if count := self._areas.clear():
            _log.info("replays_dropped", count=count)

    def begin(self, plugin: str, since: datetime | None = None) -> ReplayView:
        """Begin to rebuild the outputs of a plugin, of windows from the UTC day of ``since`` on.

        :raises NotFoundError: for a name that no plugin has.
        :raises ReplayError: while it does not run, and for one that folds nothing, of which no two can run, or which is
            replayed already.
        """
        original = self._originals(plugin)
        with self._lock:
            before = self._latest.get(plugin)
            if before is not None and not before.over:
                raise ReplayError(
                    plugin, f"replay {before.id} is {before.view().state}; switch to it or discard it first"
                )
            if self._closed:
                raise ReplayError(plugin, "its host is stopping")
            replay = self._latest[plugin] = self._made(original, since)
            replay.start()
        return replay.view()

    def of(self, plugin: str) -> list[ReplayView]:
        """The latest replay of a plugin, if there was one since the start."""
        replay = self._latest.get(plugin)
        return [replay.view()] if replay is not None else []

    def view(self, plugin: str, id_: str) -> ReplayView:
        """:raises NotFoundError: for any but the latest one."""
        return self._found(plugin, id_).view()

    def switch(self, plugin: str, id_: str) -> ReplayView:
        """See `Replay.switch`."""
        return self._found(plugin, id_).switch()

    def discard(self, plugin: str, id_: str) -> ReplayView:
        """See `Replay.discard`."""
        return self._found(plugin, id_).discard()

    def close(self) -> None:
        """Discard what is under way."""
        with self._lock:
            self._closed = True
        for replay in self.discard_all("its host is stopping"):
            replay.join(_CLOSE_SECONDS)

    def discard_all(self, reason: str) -> list[Replay]:
        """Discard what is under way or waits, of all plugins."""
        with self._lock:
            replays = list(self._latest.values())
        for replay in replays:
            with suppress(ReplayError):  # one that is being switched to ends by itself
                replay.discard(reason)
        return replays

    def _made(self, original: Replayable, since: datetime | None) -> Replay:
        id_ = secrets.token_hex(4)
        generation = original.generation  # before the twin is made: a change in between makes the replay stale
        runtime = original.twin()
        area = self._areas.open(original.name, id_)
        rebuilding = Rebuilding(original, runtime, area, self._log, self._pace)
        return Replay(id_, original, generation, runtime, area, rebuilding, self._history, since)

    def _found(self, plugin: str, id_: str) -> Replay:
        replay = self._latest.get(plugin)
        if replay is None or replay.id != id_:
            raise NotFoundError(f"replay of {plugin!r}", id_, [replay.id] if replay is not None else [])
        return replay
