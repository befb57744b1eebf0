"""The lane of a replay: it folds history with another generation of a plugin, behind the plugin's own lane."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Final, Protocol

import msgspec

from analytics_core.config import Lanes as Pace
from analytics_core.errors import HookTimeoutError, ReplayError
from analytics_core.host.life.attempt import Beats
from analytics_core.host.life.change import ComingIn, HandedOver, Handover, ReloadReceipt
from analytics_core.host.replaying.meeting import NEAR_ROWS, FollowingFold, LogUpTo, Met, meet
from analytics_core.host.running.runtime import LOAD_SECONDS, Runtime, patience
from analytics_core.lanes.fold import Fold, Pulse
from analytics_core.lanes.lane import Lane
from analytics_core.log import LogReader
from analytics_core.state.side import SideArea

_CLOSE_SECONDS: Final = 10.0


class Original(Protocol):
    """The running plugin whose outputs are rebuilt."""

    @property
    def name(self) -> str: ...

    @property
    def generation(self) -> int:
        """Which one runs now; 0 when none does any more."""
        ...

    @property
    def lane(self) -> Lane | None:
        """None while it does not run, such as between two attempts."""
        ...

    def succeed(self, runtime: Runtime, handover: Handover) -> ReloadReceipt:
        """Make ``runtime`` the running generation, by ``handover``; what became of it.

        :raises AnalyticsError: when that could not begin; ``runtime`` goes on as it was.
        """
        ...


class Rebuilding:
    """``runtime`` folds the log into ``area``. Everything in it ends with `close`, or goes over in `hand_over`."""

    def __init__(self, original: Original, runtime: Runtime, area: SideArea, log: LogReader, pace: Pace) -> None:
        self.begins_at = 0
        self._original = original
        self._runtime = runtime
        self._area = area
        self._beats = Beats(Pulse())
        self._stopping = threading.Event()
        self._fold: FollowingFold | None = None
        self._end = 0
        log = LogUpTo(log, self.followed)
        self._lane = Lane(area.lane, self._open_fold, log, area.store, pace, pulse=self._beats.pulse)

    def start(self, position: int) -> None:
        """Fold from ``position`` on, which is where history begins or later."""
        self.begins_at = position
        held = self._area.store.claim(self._lane.name)
        self._area.store.commit(msgspec.structs.replace(held, position=position))
        if not self._stopping.is_set():
            self._lane.start()

    @property
    def position(self) -> int:
        return max(self._lane.position, self.begins_at)

    @property
    def events(self) -> int:
        return self._lane.events

    @property
    def reason(self) -> str:
        """What it waits for, if anything."""
        if self._original.lane is not None:
            return ""
        return f"the plugin does not run just now; 'analytics plugins why {self._original.name}' says why"

    def followed(self) -> int:
        """How far the plugin's own lane is; where it was last seen while there is none."""
        lane = self._original.lane
        if lane is not None:
            self._end = lane.position
        return self._end

    def overdue(self) -> HookTimeoutError | None:
        """The hook that hangs, if one does: then the lane is given up, and whoever waits for it is told so."""
        pulse = self._lane.pulse
        if pulse.busy_for() <= (most := patience(self._runtime, pulse.doing)):
            return None
        self._lane.abandon()
        return HookTimeoutError(self._original.name, pulse.doing, most)

    def watch(self) -> None:
        """Called often.

        :raises HookTimeoutError: for a hook that hangs.
        :raises WorkerDiedError: when the plugin's process has ended.
        :raises ReplayError: for whatever else has ended the lane, and when what it has rebuilt cannot be written: on a
            full disk a replay makes room for the rest.
        """
        if (hangs := self.overdue()) is not None:
            raise hangs
        if self._lane.state == "failed" or self._lane.reason:
            raise ReplayError(self._original.name, self._lane.reason)
        if self._lane.state == "running":
            self._runtime.watch()

    def is_near(self) -> bool:
        """Whether the plugin's lane runs, and is hardly further."""
        lane = self._original.lane
        if lane is None or lane.state != "running" or self._lane.state != "running":
            return False
        return 0 <= lane.position - self._lane.position <= NEAR_ROWS

    def meet(self, lane: Lane, act: Callable[[Met], Fold]) -> Future[int]:
        """See `meeting.meet`."""
        return meet(self._lane, lane, self._runtime.seconds + LOAD_SECONDS, act)

    def hand_over(self, lane: Lane, coming_in: ComingIn, since: datetime | None) -> HandedOver:
        """Let the outputs since then, the state and the fold take the place of those of ``lane``, which does not notice
        when that fails. See `Handover`."""
        done: list[HandedOver] = []

        def act(met: Met) -> Fold:
            assert self._fold is not None
            rebuilt = met.rebuilt
            with coming_in(self._beats):
                self._area.switch(
                    msgspec.structs.replace(met.kept, state=rebuilt.state, state_version=rebuilt.state_version), since
                )
            self._lane.stop()
            done.append(HandedOver(met.kept.position, met.fold, time.monotonic() - met.began))
            return self._fold.handed_over()

        self.meet(lane, act).result()
        return done[0]

    def stop(self) -> None:
        """Rest no more and begin nothing new; `close` waits."""
        self._stopping.set()
        self._lane.stop()

    def close(self) -> None:
        """End the lane, by force if need be, and drop the area. The runtime is the caller's to close."""
        self.stop()
        if not self._lane.join(_CLOSE_SECONDS):
            self._lane.abandon()
        self._area.drop()

    def _open_fold(self) -> Fold:
        """On the lane's thread, so that whoever watches its pulse sees also what hangs in here."""
        pulse = self._beats.pulse
        pulse.beat("load")
        self._runtime.load()
        pulse.beat("setup")
        self._runtime.start()
        self._fold = FollowingFold(self._runtime.open_fold(self._beats), self.followed, self._stopping)
        return self._fold
