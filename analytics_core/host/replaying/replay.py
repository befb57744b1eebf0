"""One replay: a plugin's outputs rebuilt from history by its present code, compared, and switched to when told so.

    replaying -> ready -> switching -> switched

The code runs as a generation of its own, as isolated as the plugin, and writes into a side area. A switch makes that
generation the running one, with the outputs and the state that it has rebuilt, at one position of the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from analytics_core.errors import AnalyticsError, LaneEndedError, ReplayError, StorageError
from analytics_core.host.life.change import ComingIn, HandedOver, ReloadReceipt, reason_of
from analytics_core.host.replaying.meeting import Met, NotMetError
from analytics_core.host.replaying.rebuilding import Original, Rebuilding
from analytics_core.host.replaying.view import ReplayState, ReplayView
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.beginning import History
from analytics_core.lanes.fold import Fold
from analytics_core.lanes.lane import Lane
from analytics_core.state.side import Difference, SideArea

_OVER: Final = frozenset({"switched", "failed", "stale", "discarded"})
LEAD: Final = timedelta(days=1)
"""A replay since some day begins to read so much earlier: an event may be received before the time that it carries, by
a day at most, and what was under way at midnight is then known."""
DECISION_SECONDS: Final = 24 * 3600.0
"""How long a replay that is ready waits for its decision."""
_TICK_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0
_DAY: Final = timedelta(days=1)

_log = structlog.get_logger(__name__)


class Replay:
    """Made and started by `Replays`. Safe for use from any thread; `switch` blocks until it is done."""

    def __init__(
        self,
        id_: str,
        original: Original,
        generation: int,
        runtime: Runtime,
        area: SideArea,
        rebuilding: Rebuilding,
        history: History,
        since: datetime | None,
    ) -> None:
        """``generation`` is the one whose code ``runtime`` has."""
        self.id = id_
        self._original = original
        self._generation = generation
        self._runtime = runtime
        self._area = area
        self._rebuilding = rebuilding
        self._history = history
        self._since = None if since is None else _midnight(since)
        self._kept_from: datetime | None = None
        self._note = ""
        self._state: ReplayState = "replaying"
        self._reason = ""
        self._problem = ""
        self._difference: Difference | None = None
        self._receipt: ReloadReceipt | None = None
        self._began, self._began_at = time.monotonic(), datetime.now(UTC)
        self._ready_at = 0.0
        self._next_look = 0.0
        self._looking: Future[int] | None = None
        self._compare: Callable[[], Difference] | None = None
        self._deciding = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{original.name}~replay", daemon=True)

    @property
    def over(self) -> bool:
        return self._state in _OVER

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait until nothing is left of a replay that is over."""
        self._thread.join(seconds)

    def view(self) -> ReplayView:
        rebuilding, replaying = self._rebuilding, self._state == "replaying"
        begin, position = rebuilding.begins_at, rebuilding.position
        whole = max(rebuilding.followed(), position) - begin
        progress = ((position - begin) / whole if whole else 0.0) if self._difference is None else 1.0
        spent = time.monotonic() - self._began
        return ReplayView(
            id=self.id,
            plugin=self._original.name,
            state=self._state,
            reason=self._reason or (rebuilding.reason or self._problem if replaying else ""),
            generation=self._runtime.generation,
            since=self._since,
            kept_from=self._kept_from,
            started_at=self._began_at,
            note=self._note,
            events=rebuilding.events,
            position=position,
            progress=progress,
            eta_seconds=spent / progress * (1 - progress) if replaying and progress else None,
            difference=self._difference,
            receipt=self._receipt,
        )

    def switch(self) -> ReplayView:
        """Let what was rebuilt take the place of the plugin's outputs and state.

        :raises ReplayError: when it is not ready; when that could not begin, so that it stays ready; or when it did not
            succeed. Nothing has changed then.
        """
        name = self._original.name
        with self._deciding:
            if self._state != "ready":
                raise ReplayError(name, f"replay {self.id} is {self._state}{f': {self._reason}' * bool(self._reason)}")
            self._state = "switching"
        try:
            self._receipt = receipt = self._original.succeed(self._runtime, self._hand_over)
        except Exception as error:
            self._state = "ready"
            raise ReplayError(name, f"nothing was switched: {reason_of(error)}") from error
        with self._deciding:
            if receipt.outcome != "active":
                self._settle("failed", f"nothing was switched: {receipt.reason}")
                raise ReplayError(name, self._reason)
            self._settle("switched", "")
        return self.view()

    def discard(self, reason: str = "") -> ReplayView:
        """Drop what was rebuilt. :raises ReplayError: when it is being switched to just now."""
        if not reason and self._difference is not None and self._difference.equal:
            reason = "equal to what is there; nothing to switch"
        with self._deciding:
            if self._state == "switching":
                raise ReplayError(self._original.name, f"replay {self.id} is switching")
            self._settle("discarded", reason)
        return self.view()

    def _hand_over(self, lane: Lane, coming_in: ComingIn) -> HandedOver:
        if reason := self._outdated():
            raise ReplayError(self._original.name, reason)
        return self._rebuilding.hand_over(lane, coming_in, self._since)

    # --- its own thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._do(lambda: self._rebuilding.start(self._beginning()))
        while not self._over.wait(_TICK_SECONDS):
            self._do(self._look)
        self._compare = None
        try:
            self._rebuilding.close()
        finally:
            if self._state != "switched":
                self._runtime.close()

    def _do(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # whatever it is ends the replay and nothing else
            if not isinstance(error, AnalyticsError):
                _log.exception("replay_failed", plugin=self._original.name)
            self._finish("failed", reason_of(error))

    def _beginning(self) -> int:
        """Where to begin. All that is kept is all that there is, however early the time that was asked for."""
        first = self._history.next(0)
        self._kept_from = first.at if first is not None else None
        if first is not None and self._since is not None and self._since > first.at:
            return self._history.since(self._since - LEAD)
        if self._since is not None:
            begins = f"begins later, at {first.at:%Y-%m-%d %H:%M} UTC" if first is not None else "is empty"
            self._note = f"asked for since {self._since:%Y-%m-%d}; history {begins}, so all of it is rebuilt"
        self._since = None
        return first.position if first is not None else 0

    def _look(self) -> None:
        """Ten times a second."""
        if self._state == "switching":
            self._rebuilding.overdue()
            return
        self._rebuilding.watch()
        now = time.monotonic()
        if reason := self._outdated():
            self._finish("stale", reason)
        elif self._looking is not None:
            self._see(self._looking)
        elif self._state == "replaying" and now >= self._next_look and self._rebuilding.is_near():
            self._ask_to_look()
        elif self._state == "ready" and now - self._ready_at > DECISION_SECONDS:
            self._finish("discarded", f"nobody has decided in {DECISION_SECONDS / 3600:g} h")

    def _outdated(self) -> str:
        """Why what is rebuilt is no longer what the plugin's code finds; empty while it is."""
        running = self._original.generation
        if running and running == self._generation:
            return ""
        now = f"generation {running} runs" if running else "none runs"
        return f"this is the code of generation {self._generation}; {now} now"

    def _ask_to_look(self) -> None:
        lane = self._original.lane
        self._next_look = time.monotonic() + _RETRY_SECONDS
        if lane is not None:
            try:
                self._looking = self._rebuilding.meet(lane, self._hold)
            except LaneEndedError:  # its next attempt will have another
                return

    def _hold(self, met: Met) -> Fold:
        """On the thread of the plugin's lane: keep both as they are, to be compared later."""
        self._since = self._begins(met)
        self._compare = self._area.look(met.kept.position, self._since)
        return met.fold

    def _begins(self, met: Met) -> datetime | None:
        """From which windows on nothing is missing in what was rebuilt; None when that holds for all.

        The plugin's lane has counted every event that it was given, so with fewer some are no longer kept.
        """
        if self._since is not None or self._kept_from is None or met.rebuilt.events >= met.kept.events:
            return self._since
        first = _midnight(self._kept_from) + _DAY
        self._note = f"history begins at {self._kept_from:%Y-%m-%d %H:%M} UTC; windows before {first:%Y-%m-%d} stay"
        return first

    def _see(self, looking: Future[int]) -> None:
        if not looking.done():
            return
        self._looking = None
        try:
            looking.result()
        except (NotMetError, LaneEndedError, StorageError) as error:
            self._problem = str(error)
            _log.info("replay_waits", plugin=self._original.name, problem=self._problem)
            return
        compare, self._compare = self._compare, None
        assert compare is not None
        self._difference = compare()
        with self._deciding:
            if self._state == "replaying":
                self._state, self._ready_at = "ready", time.monotonic()

    def _finish(self, state: ReplayState, reason: str) -> None:
        """Unless it is being switched to, which ends by itself."""
        with self._deciding:
            if self._state != "switching":
                self._settle(state, reason)

    def _settle(self, state: ReplayState, reason: str) -> None:
        if self.over:
            return
        self._state, self._reason = state, reason
        _log.info("replay_over", plugin=self._original.name, replay=self.id, state=state, reason=reason)
        self._rebuilding.stop()
        self._over.set()


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
