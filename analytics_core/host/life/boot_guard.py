"""The boot-loop guard: after three failed starts in a row the host comes up in safe mode, and says at which plugin.

A start has failed when the process died without an orderly end while a plugin was activating in it, in a call of a
plugin before it had lived for a while, or before the server was ready. The record of the starts is a file of the data
directory: one line for all that is known when a start begins, and one for each mark since. Beside it is the one in
which the calls are noted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog
from msgspec.structs import replace

from analytics_core.host.code.fingerprint import fingerprint
from analytics_core.host.health import RUNNING, Transition
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.starts import (
    FAILURES,
    Identity,
    Mark,
    Part,
    Phase,
    Record,
    SafeMode,
    begun,
    during,
    gone_well,
    identify,
    screened,
)
from analytics_core.host.running.underway import UnderWay, left_in
from analytics_core.lake.durable import sync_directory, sync_file

SETTLED_SECONDS: Final = 30.0
"""The plugins that run have proven good when the same ones have run for so long in a server that is ready."""
LIVED_SECONDS: Final = 60.0
"""A server that has been ready for so long has not failed at its start, whichever call it dies in."""
TURN_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class Journal:
    """The record on disk. A full disk costs the record and nothing else: it is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._calls = path.with_suffix(".calls")

    def read(self) -> Record:
        """What was last written, with the marks since and the calls that were out. A torn mark is passed over; a torn
        record is an empty one."""
        try:
            first, *marks = self._path.read_bytes().split(b"\n")
            record = msgspec.json.decode(first, type=Record)
        except FileNotFoundError:
            return Record()
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("starts_unreadable", file=str(self._path), problem=str(error))
            return Record()
        start = record.start
        for mark in _marks(marks):
            start = start.marked(mark) if start is not None else None
        return replace(record, start=replace(start, calls=left_in(self._calls)) if start is not None else None)

    def calls(self, turn_seconds: float) -> UnderWay:
        """Where the calls of a start that begins now are noted, which forgets the earlier ones."""
        return UnderWay(self._calls, turn_seconds=turn_seconds)

    def write(self, record: Record) -> None:
        """Replace all of it; on disk when this returns."""
        copy = self._path.with_name(self._path.name + ".tmp")
        try:
            copy.write_bytes(msgspec.json.encode(record))
            sync_file(copy)
            copy.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            _log.error("start_not_recorded", file=str(self._path), problem=str(error))

    def add(self, mark: Mark) -> None:
        """Outlives this process at once, and a loss of power some time later: that is no plugin's fault."""
        try:
            with self._path.open("ab") as file:
                file.write(b"\n" + msgspec.json.encode(mark))
        except OSError as error:
            _log.error("start_not_recorded", file=str(self._path), problem=str(error))


class _Made(NamedTuple):
    identity: Identity
    isolation: str


class BootGuard:
    """Watches the plugins of one start of the host, from its making to `end`. Every method is for any thread.

    Without ``journal`` nothing outlives the process. ``safe_mode`` False forgets earlier failures: everything runs.
    ``calls`` are those of the plugins of the host's own process. After a failed start they take turns, so that the next
    failure has one name: nobody waits for more than ``turn_seconds``. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        *,
        safe_mode: bool = True,
        turn_seconds: float = TURN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        known = journal.read() if journal is not None else Record()
        self._journal = journal
        self._record = begun(known if safe_mode else Record(worked=known.worked), datetime.now(UTC))
        self._safe = self._record.safe
        turn_seconds = turn_seconds if self._record.failed or self._safe else 0.0
        self.calls = journal.calls(turn_seconds) if journal is not None else UnderWay()
        self._clock = clock
        self._changed_at = clock()
        self._ready_at: float | None = None
        self._told = False
        self._made: dict[str, dict[int, _Made]] = {}
        self._running: dict[str, Identity] = {}
        self._lock = threading.Lock()
        self._write()
        for number, start in enumerate(self._record.failed, 1):
            _log.warning(
                "start_failed",
                began=start.began,
                reason=f"it ended {during(start.suspects, start.called)}",
                number=number,
                safe_mode_after=FAILURES,
            )

    @property
    def safe_mode(self) -> SafeMode | None:
        """Why not every plugin may run; None in an ordinary start."""
        return self._safe

    def screen(self, choices: Sequence[Choice], stands_on: Callable[[Choice], str] = lambda _: "") -> Sequence[Choice]:
        """The choices, those ``blocked`` that may not run in safe mode. Once every culprit has changed, it is left.

        ``stands_on`` tells the third-party code that a plugin would run on now from any other.
        """
        if self._safe is None:
            return choices
        present = {
            choice.name: identify(choice, fingerprint(choice.found), stands_on(choice))
            for choice in choices
            if choice.state == "discovered" and choice.found is not None
        }
        with self._lock:
            if self._safe is None:
                return choices
            if not self._safe.holds(present):
                _log.warning("safe_mode_left", changed=sorted(self._safe.culprits))
                self._safe, self._record = None, replace(self._record, safe=None)
                self._write()
                return choices
            judged = screened(choices, present, replace(self._record, safe=self._safe))
            if not self._told:
                self._told = True
                self._tell(judged)
        return judged

    def made(self, choice: Choice, generation: int, *, code: str, stands_on: str = "") -> None:
        """A generation of a plugin was made of the copy with the fingerprint ``code``, and may be activated soon."""
        made = _Made(identify(choice, code, stands_on), choice.isolation)
        with self._lock:
            self._made.setdefault(choice.name, {})[generation] = made

    def observe(self, transition: Transition) -> None:
        """A plugin has changed its state. When this returns of ``loading``, its code may be touched: it is known that
        it activates."""
        plugin, state = transition.plugin, transition.state
        with self._lock:
            generations = self._made.get(plugin, {})
            made = generations.get(transition.generation)
            if made is None:
                return
            phase: Phase | None = "running" if state in RUNNING else None
            if phase is not None:
                self._made[plugin] = {n: each for n, each in generations.items() if n >= transition.generation}
            elif state == "loading" or state == "starting":
                phase = state
            self._plays(plugin, phase, made)
            self._runs(plugin, made.identity if phase == "running" else None)

    def ready(self) -> None:
        """The server answers."""
        with self._lock:
            self._ready_at = self._changed_at = self._clock()
            self._add(Mark(ready=True))

    def tick(self) -> None:
        """Called now and then: records the plugins that run once they have proven good."""
        with self._lock:
            now = self._clock()
            if self._ready_at is None:
                return
            if now - self._changed_at >= SETTLED_SECONDS and not self._activating():
                self._settle()
            elif now - self._ready_at >= LIVED_SECONDS:
                self._live_on()

    def end(self) -> None:
        """The host ends in order. That proves its plugins good when it was ready and none was on its way up; else
        nothing is held against them."""
        with self._lock:
            if self._ready_at is not None and not self._activating():
                self._settle()
            elif self._record.start is not None:
                self._record = replace(self._record, start=None)
                self._write()
            self.calls.relax()

    # --- under the lock ----------------------------------------------------------------------------------------------

    def _activating(self) -> bool:
        return self._record.start is not None and bool(self._record.start.activating)

    def _is_settled(self) -> bool:
        proven = self._safe is not None or self._running == self._record.worked
        return self._record.start is None and proven

    def _settle(self) -> None:
        if not self._is_settled():
            self._record = gone_well(self._record, self._running)
            self._write()
            self.calls.relax()

    def _live_on(self) -> None:
        if self._record.start is not None and not self._record.start.lived:
            self._add(Mark(lived=True))
            self.calls.relax()

    def _plays(self, plugin: str, phase: Phase | None, made: _Made) -> None:
        before = self._record.start.parts.get(plugin) if self._record.start is not None else None
        part = Part(phase, made.identity, made.isolation) if phase is not None else None
        if part != before:
            self._add(Mark(plugin=plugin, part=part))
            self._changed_at = self._clock()

    def _runs(self, plugin: str, identity: Identity | None) -> None:
        if self._running.get(plugin) == identity:
            return
        self._changed_at = self._clock()
        if identity is None:
            del self._running[plugin]
        else:
            self._running[plugin] = identity

    def _add(self, mark: Mark) -> None:
        if self._record.start is None:
            return
        self._record = replace(self._record, start=self._record.start.marked(mark))
        if self._journal is not None:
            self._journal.add(mark)

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.write(self._record)

    def _tell(self, judged: Sequence[Choice]) -> None:
        assert self._safe is not None
        _log.error(
            "safe_mode",
            reason=self._safe.reason,
            culprits=sorted(self._safe.culprits),
            runs=[choice.name for choice in judged if choice.state == "discovered"],
            blocked=[choice.name for choice in judged if choice.state == "blocked"],
            leave="change, disable or remove the culprits, or start once with --no-safe-mode",
        )


def _marks(lines: Sequence[bytes]) -> Iterator[Mark]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Mark)
        except msgspec.DecodeError:  # the end of a write that was cut short
            continue
