"""One run of a plugin, from loading to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

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


class Attempt:
    """One run of a plugin, from loading to its end, on a thread of its own."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.lane: Lane | None = None
        self.over = False
        self.running = False
        self.began = time.monotonic()
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()

    @property
    def position(self) -> int:
        return self.lane.position if self.lane is not None else -1

    def stop(self) -> None:
        self.stopping.set()
        if self.lane is not None:
            self.lane.stop()

    def abandon(self) -> None:
        self.stopping.set()
        if self.lane is not None:
            self.lane.abandon()
