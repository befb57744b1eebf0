"""Which plugin keeps the event loop from turning: the acknowledgement path runs on it, and all threads share one lock.

A thread in C code that does not let go of the interpreter lock stops every other. That shows as a loop that does not
turn while one thread uses the processor: then it is that thread's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

BLOCKED_SECONDS: Final = 0.2
"""A loop that has not turned for so long is blocked."""
STRIKES: Final = 3
WITHIN_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.25
_SHARE: Final = 0.5
_TASKS: Final = Path("/proc/self/task")

_log = structlog.get_logger(__name__)


class Blame:
    """Who has blocked the loop, and how often of late. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def add(self, plugin: str, seconds: float) -> str:
        """Note it; what to say once that was too often, else empty."""
        now = self._clock()
        seen = self._seen.setdefault(plugin, deque(maxlen=STRIKES))
        seen.append((now, seconds))
        if len(seen) < STRIKES or now - seen[0][0] > WITHIN_SECONDS:
            return ""
        total = sum(each for _, each in seen)
        return f"has blocked the event loop {STRIKES} times within {WITHIN_SECONDS:g} s, for {total:.1f} s in all"


class LoopWatch:
    """Watches ``loop`` from a thread of its own, from `start` to `stop`.

    ``owner`` gives the plugin that a thread works for by the thread's name, None for the host's own. ``blame`` is told
    the plugin and for how many seconds its thread has blocked the loop. Where the system does not say how much
    processor time a thread takes (``/proc``), nobody is blamed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, owner: Callable[[str], str | None], blame: Callable[[str, float], None]
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._blame = blame
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(_PAUSE_SECONDS):
            before, began = _processor_seconds(), time.monotonic()
            turned = threading.Event()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # it is closed
                return
            if not turned.wait(BLOCKED_SECONDS):
                turned.wait()
            blocked = time.monotonic() - began
            if blocked >= BLOCKED_SECONDS:
                self._judge(before, blocked)

    def _judge(self, before: Mapping[int, float], blocked: float) -> None:
        after = _processor_seconds()
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        taken = {task: seconds - before.get(task, 0.0) for task, seconds in after.items() if task in names}
        if not taken:
            return
        busiest = max(taken, key=lambda task: taken[task])
        plugin = self._owner(names[busiest])
        if plugin is not None and taken[busiest] >= _SHARE * blocked:
            _log.warning("loop_blocked", plugin=plugin, seconds=round(blocked, 3), thread=names[busiest])
            self._blame(plugin, blocked)


def _processor_seconds() -> dict[int, float]:
    """What each thread of this process has used so far."""
    used: dict[int, float] = {}
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return used
    for task in tasks:
        try:
            used[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):  # it has ended, or the system keeps no such figures
            continue
    return used
