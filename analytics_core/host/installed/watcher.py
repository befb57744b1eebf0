"""When to look again: tells that manifests, sources or distributions have changed, once they are quiet.

Notifications of the system say when to look, a look (`analytics_core.host.installed.sight`) says what is different. So
a file system that notifies of nothing ends in the right state too, by a slower look.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import structlog
from watchfiles._rust_notify import RustNotify

from analytics_core.host.installed.sight import FRESH_SECONDS, Sight, see_distributions, see_manifests, see_sources

Reason = Literal["manifests", "sources", "distributions"]

_STEP_MS: Final = 50
"""How often the notifications are asked for, and so how late one may come."""
_COVERINGS: Final = 3
"""How often in a row directories that change while they are being covered are covered anew."""

_log = structlog.get_logger(__name__)


class _Place(NamedTuple):
    reason: Reason
    path: Path


class Watcher:
    """Calls ``changed`` with the reasons, on a thread of its own, when things have been quiet for ``settle_seconds``,
    but ``longest_seconds`` after the first change at the latest.

    What has changed after `start` or `watch` returned is told, so read after them. More is told than has changed: a
    file that was only touched, or one that may have been written twice in one tick of its file system's clock. With
    ``polling``, and where notifications cannot be had, a look each ``poll_seconds`` finds the changes; else one each
    ``look_seconds`` finds those that no notification told of. An error in ``changed`` is logged.
    """

    def __init__(
        self,
        manifests: Path,
        changed: Callable[[frozenset[Reason]], None],
        *,
        polling: bool = False,
        settle_seconds: float = 0.1,
        longest_seconds: float = 1.0,
        look_seconds: float = 5.0,
        poll_seconds: float = 0.5,
    ) -> None:
        self._changed = changed
        self._settle_seconds = settle_seconds
        self._longest_seconds = longest_seconds
        self._look_seconds = look_seconds
        self._poll_seconds = poll_seconds
        self._wake = threading.Event()
        self._notices = _Notices(self._wake, polling=polling)
        self._lock = threading.Lock()
        self._sights: dict[_Place, Sight] = {
            _Place("manifests", manifests): Sight(),
            _Place("distributions", Path()): Sight(),
        }
        self._heard: set[Path] = set()
        self._pending: set[Reason] = set()
        self._first = self._last = self._look_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        with self._lock:
            self._sights = {place: self._see(place) for place in self._sights}
        self._thread.start()

    def watch(self, places: Iterable[Path]) -> None:
        """Watch these directories and files of sources, and no longer those of an earlier call. From any thread."""
        with self._lock:
            kept = {place: sight for place, sight in self._sights.items() if place.reason != "sources"}
            for place in sorted({_Place("sources", path) for path in places}):
                kept[place] = self._sights.get(place) or self._see(place)
            self._sights = kept
        self._wake.set()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; ``changed`` is not called any more, unless it does not return within ``timeout`` seconds."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # --- on its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._round()
            except Exception:
                _log.exception("watch_failed")
                self._wake.wait(self._look_seconds)
        self._notices.close()

    def _round(self) -> None:
        """Wait for news, look when there are any or it is time, and tell what has settled."""
        for _ in range(_COVERINGS):
            if not self._notices.cover(self._directories()):
                break
            self._look(set())  # at what came before it was covered
        heard = self._hear()
        if self._stopping:
            return
        if heard or self._pending or time.monotonic() >= self._look_at:
            self._look(heard)
        now = time.monotonic()
        if self._pending and (now >= self._last + self._settle_seconds or now >= self._first + self._longest_seconds):
            self._tell()

    def _hear(self) -> set[Path]:
        """The paths with news that matter, as soon as there are any, or none when it is time to look."""
        due = self._last + self._settle_seconds if self._pending else self._look_at
        news = self._notices.wait(max(due - time.monotonic(), 0.0))
        if self._wake.is_set():  # and the news, if there were any, are lost
            self._wake.clear()
            self._look_at = 0.0
        with self._lock:
            sights = list(self._sights.values())
        heard = {path for path in news if any(sight.wants(path) for sight in sights)}
        if not heard.isdisjoint(self._notices.covered):
            self._notices.close()  # the directory under the same name, even the same inode, may be a new one
        self._heard |= heard
        return heard

    def _look(self, heard: set[Path]) -> None:
        with self._lock:
            before, self._sights = self._sights, {place: self._see(place) for place in self._sights}
            after = self._sights
        differing = {
            place.reason
            for place, sight in after.items()
            if sight.stamps != before[place].stamps or not heard.isdisjoint(sight.stamps)
        }
        now = time.monotonic()
        self._look_at = now + (self._look_seconds if self._notices.on else self._poll_seconds)
        if differing:
            self._first = self._first if self._pending else now
            self._last = now
            self._pending |= differing

    def _tell(self) -> None:
        reasons, self._pending = frozenset(self._pending), set()
        self._look_at = min(self._look_at, time.monotonic() + FRESH_SECONDS)
        try:
            self._changed(reasons)
        except Exception:
            _log.exception("change_not_handled", reasons=sorted(reasons))

    def _see(self, place: _Place) -> Sight:
        heard = self._heard if self._notices.on else ()
        if place.reason == "distributions":
            return see_distributions(list(sys.path), heard)
        return (see_manifests if place.reason == "manifests" else see_sources)(place.path, heard)

    def _directories(self) -> dict[Path, tuple[int, int]]:
        with self._lock:
            return {path: inode for sight in self._sights.values() for path, inode in sight.directories.items()}


class _Notices:
    """What the system tells of the entries of the directories ``covered``. ``on`` turns False for good when it cannot
    be had."""

    def __init__(self, wake: threading.Event, *, polling: bool) -> None:
        self.on = not polling
        self._wake = wake
        self._notify: RustNotify | None = None
        self.covered: dict[Path, tuple[int, int]] = {}

    def cover(self, directories: Mapping[Path, tuple[int, int]]) -> bool:
        """Be told of these directories alone. True when that began only now, so that something may have been missed."""
        if not self.on or (self._notify is not None and directories == self.covered):
            return False
        self.close()
        self.covered = dict(directories)
        try:
            self._notify = RustNotify(
                [str(directory) for directory in directories],
                debug=False,
                force_polling=False,
                poll_delay_ms=0,
                recursive=False,
                ignore_permission_denied=False,  # else a limit that is reached is not told
            )
        except FileNotFoundError:  # one has gone since the look
            self._notify = None
        except Exception as error:
            self._give_up(error)
        return True

    def wait(self, seconds: float) -> set[Path]:
        """The paths with news; none when the time is over or somebody wakes."""
        if self._notify is None:
            self._wake.wait(seconds)
            return set()
        try:
            told = self._notify.watch(_STEP_MS, _STEP_MS, max(int(1000 * seconds), 1), self._wake)
        except Exception as error:
            self._give_up(error)
            return set()
        return {Path(path) for _, path in told} if isinstance(told, set) else set()

    def close(self) -> None:
        if self._notify is not None:
            self._notify.close()
        self._notify = None

    def _give_up(self, error: Exception) -> None:
        self.close()
        self.on = False
        _log.warning("watching_by_polling", reason=str(error), advice="raise fs.inotify.max_user_watches")
