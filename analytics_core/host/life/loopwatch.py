"""Which plugin keeps the event loop from turning: the acknowledgement path runs on it, and all threads share one lock.

A thread in C code that does not let go of the interpreter lock stops every other. That shows as a loop that does not
turn while one thread uses the processor: then it is that thread's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import structlog

BLOCKED_SECONDS: Final = 0.2
"""A loop that has not turned for so long is blocked."""
STRIKES: Final = 3
WITHIN_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.25
_SHARE: Final = 0.5
_TASKS: Final = Path("/proc/self/task")

_log = structlog.get_logger(__name__)


class _Used(NamedTuple):
    """For how many seconds one thread has run so far, and has waited for a processor that it could have run on."""

    ran: float
    waited: float
    plugin: str
    thread: str


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
    """Watches ``loop``, which turns on the thread that makes this, from a thread of its own, from `start` to `stop`.

    ``owner`` gives the plugin that a thread works for by the thread's name, None for the host's own. ``blame`` is told
    the plugin and for how many seconds its thread has blocked the loop. Where the system does not say how much
    processor time a thread takes (``/proc``), nobody is blamed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, owner: Callable[[str], str | None], blame: Callable[[str, float], None]
    ) -> None:
        self._loop = loop
        self._turns_on = threading.get_native_id()
        self._owner = owner
        self._blame = blame
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _watch(self) -> None:
        """Who holds the lock keeps this thread waiting too, so what counts is when the loop should have turned."""
        before, due = self._used(), time.monotonic() + _PAUSE_SECONDS
        while not self._stopping.wait(_PAUSE_SECONDS):
            turned = threading.Event()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # it is closed
                return
            while not turned.wait(_PAUSE_SECONDS):
                if self._stopping.is_set():  # a loop that has ended never turns
                    return
            blocked = time.monotonic() - due
            after = self._used()
            if blocked >= BLOCKED_SECONDS:
                self._judge(before, after, blocked)
            before, due = after, time.monotonic() + _PAUSE_SECONDS

    def _judge(self, before: dict[int, _Used], after: dict[int, _Used], blocked: float) -> None:
        ran = {task: used.ran - before[task].ran for task, used in after.items() if task in before}
        if not ran:
            return
        busiest = max(ran, key=lambda task: ran[task])
        used = after[busiest]
        wanted = ran[busiest] + used.waited - before[busiest].waited  # as much as if the machine were its alone
        if busiest != self._turns_on and wanted >= _SHARE * (blocked + _PAUSE_SECONDS):
            _log.warning("loop_blocked", plugin=used.plugin, seconds=round(blocked, 3), thread=used.thread)
            self._blame(used.plugin, blocked)

    def _used(self) -> dict[int, _Used]:
        """What the loop's own thread and those that work for plugins have used, by the system's number."""
        threads = {each.native_id: each.name for each in threading.enumerate() if each.native_id is not None}
        owners = {task: plugin for task, name in threads.items() if (plugin := self._owner(name)) is not None}
        found: dict[int, _Used] = {}
        for task in (self._turns_on, *owners):
            try:
                ran, waited, _ = (_TASKS / str(task) / "schedstat").read_text().split()
            except (OSError, ValueError):  # it has ended, or the system keeps no such figures
                continue
            found[task] = _Used(int(ran) / 1e9, int(waited) / 1e9, owners.get(task, ""), threads.get(task, ""))
        return found
