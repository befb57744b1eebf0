"""One run of a plugin, from loading to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from analytics_core.host.running.runtime import Runtime, patience
from analytics_core.lanes.fold import Fold, Pulse
from analytics_core.lanes.lane import Lane


class MakeLane(Protocol):
    def __call__(
        self,
        open_fold: Callable[[], Fold],
        /,
        *,
        pulse: Pulse,
        on_running: Callable[[], None],
        on_commit: Callable[[int], None],
    ) -> Lane: ...


class Beats:
    """Where the beats of one fold go: to the pulse of whoever's thread it is on."""

    __slots__ = ("pulse",)

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def __call__(self, doing: str) -> None:
        self.pulse.beat(doing)


class Attempt:
    """One run of a plugin on a thread of its own. A reload exchanges its ``runtime`` and its fold without ending it.

    ``beats`` are those of the fold that the lane drives.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.pulse = Pulse()
        self.beats = Beats(self.pulse)
        self.lane: Lane | None = None
        self.over = False
        self.running = False
        self.began = time.monotonic()
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()

    @property
    def position(self) -> int:
        return self.lane.position if self.lane is not None else -1

    def overdue(self) -> float:
        """How long it may be in what it has been in for longer; 0 when it is in time."""
        most = patience(self.runtime, self.pulse.doing)
        return most if self.runtime.isolation == "thread" and self.pulse.busy_for() > most else 0.0

    def stop(self) -> None:
        self.stopping.set()
        if self.lane is not None:
            self.lane.stop()

    def abandon(self) -> None:
        self.stopping.set()
        if self.lane is not None:
            self.lane.abandon()

    def end(self, seconds: float) -> bool:
        """`stop` and wait for the last commit, at most so long; then abandon it. Whether it ended by itself."""
        self.stop()
        if self.thread is not None:
            self.thread.join(seconds)
            if self.thread.is_alive():
                self.abandon()
                return False
        return True
