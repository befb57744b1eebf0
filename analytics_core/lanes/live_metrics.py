"""The lane that pushes figures while they change: windows of one minute, from the log to the bus."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, Self

import msgspec
import structlog
from msgspec import Struct

from analytics_core.bus import Bus
from analytics_core.errors import LogCorruptionError, TrimmedError
from analytics_core.events import EventBatch, moment
from analytics_core.lanes import LaneView
from analytics_core.lanes.checkpoint import Tenants
from analytics_core.log import LogReader
from analytics_core.state import Message

NAME: Final = "live-metrics"
_WINDOW_ROWS: Final = 65_536
_WAIT_SECONDS: Final = 0.5
_REST: Final = 4
"""For each second of work so many of rest: a round costs mostly by the round, and the acknowledgement goes first."""
_REST_MOST: Final = 0.1
"""Seconds. Without it the rest would grow with the work that it lets gather, and both without end."""
_PACE_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 1.0
_FARTHEST: Final = 4_000_000
"""Positions that a start goes back at most: fresh figures now are worth more than a complete first minute."""

_log = structlog.get_logger(__name__)


class Change(Struct, frozen=True):
    """The new figure of one window. ``start`` and ``length`` are microseconds."""

    tenant: str
    metric: str
    labels: dict[str, str]
    start: int
    length: int
    value: float


class Windows(Protocol):
    """What folds the batches; one thread at a time."""

    def begin(self, since: datetime) -> None:
        """Show no window that starts before ``since``."""
        ...

    def add(self, batch: EventBatch) -> None: ...

    def renew(self, catch_up: Callable[[Self], None]) -> frozenset[str] | None:
        """Follow changed definitions: the metrics whose figures hold no longer; None when nothing has changed.

        ``catch_up`` is given windows of the new definitions alone, to begin and to bring to where the lane is.
        """
        ...

    def changes(self) -> Iterable[Change]:
        """What differs from the figures given last."""
        ...

    @property
    def oldest(self) -> int:
        """Windows that start before this (microseconds) are forgotten."""
        ...

    @property
    def problem(self) -> str:
        """Which metrics cannot be counted at present; empty when all can. Names no event."""
        ...


class LiveMetrics:
    """Reads the log from the current minute on and publishes each figure that changed, at most every 50 ms.

    It keeps no checkpoint: after a restart the current minute is read again, so its window is complete. A slow bus
    cannot hold it up, since `Bus.publish` never blocks. Figures are pushes only; history answers questions. Between two
    reads it follows changed definitions: what is new is counted from the log, likewise from the current minute on.

    Whatever fails is logged and shown as the reason, and the next round goes on; a damaged log alone ends the lane.
    """

    def __init__(self, log: LogReader, bus: Bus, windows: Windows) -> None:
        self._log = log
        self._bus = bus
        self._windows = windows
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._latest: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {}
        self._oldest = 0
        self._run_id = secrets.token_hex(4)
        self._sent = 0
        self._position = 0
        self._events = 0
        self._state = "starting"
        self._reason = ""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run_logged, name=f"lane:{NAME}", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = 10.0) -> None:
        """Publish what is read and end the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def latest(self, tenant: str) -> dict[str, dict[str, Any]]:
        """The newest window of each metric without labels: ``{metric: {"value", "window": {"start", "end"}}}``.

        A metric without an event in any window that is still kept is not among them.
        """
        return {metric: shown for metric, (_, shown) in self._latest.get(tenant, {}).items()}

    def view(self) -> LaneView:
        lag = max(0, self._log.durable - self._position)
        reason = self._reason or self._windows.problem
        return LaneView(NAME, self._state, self._position, lag, self._events, reason)

    def _run_logged(self) -> None:
        begun = False
        while not self._stopping.is_set():
            try:
                if not begun:
                    self._position = self._begin(self._windows, self._log.durable)
                    begun = True
                self._round()
                self._state, self._reason = "running", ""
            except LogCorruptionError as error:
                self._state, self._reason = "failed", str(error)
                _log.exception("lane_failed", lane=NAME, position=self._position)
                return
            except Exception as error:  # a lane that dies in silence would show old figures for ever
                self._state, self._reason = "retrying", f"a round failed ({type(error).__name__}, see the log)"
                _log.exception("lane_round_failed", lane=NAME, position=self._position, retry_seconds=_RETRY_SECONDS)
                self._stopping.wait(_RETRY_SECONDS)
        self._state = "stopped"

    def _round(self) -> None:
        """The first figure after a quiet time goes out at once; while events flow, all of one pace go together."""
        news = behind = self._log.wait(self._position, _WAIT_SECONDS) > self._position
        begun = time.monotonic()
        while behind and (behind := self._read()) and time.monotonic() - begun < _PACE_SECONDS:
            pass
        if self._renew() or news:
            self._publish()
        if news and not behind:
            self._stopping.wait(rest_after(time.monotonic() - begun))

    def _read(self) -> bool:
        """Take one window of the log; whether there may be more."""
        try:
            batches, self._position = self._log.read(self._position, _WINDOW_ROWS)
        except TrimmedError as error:
            _log.warning("live_metrics_behind", skipped=error.first - self._position)
            self._position = error.first
            self._windows.begin(datetime.now(UTC))
            return True
        try:
            grouped = Tenants().regroup(batches)
            for batch in grouped or batches[-1:]:
                self._windows.add(batch)
        except Exception:
            self._windows.begin(datetime.now(UTC))  # the present ones would lack these events
            raise
        self._events += sum(map(len, grouped))
        return bool(batches)

    def _renew(self) -> bool:
        """Follow changed definitions; whether there were any. The position is between two batches."""
        gone = self._windows.renew(self._catch_up)
        if gone is None:
            return False
        self._latest = {
            tenant: {metric: held for metric, held in metrics.items() if metric not in gone}
            for tenant, metrics in self._latest.items()
        }
        _log.info("live_metrics_changed", metrics=sorted(gone), position=self._position)
        return True

    def _catch_up(self, windows: Windows) -> None:
        at = self._begin(windows, self._position)
        while at < self._position:
            batches, at = self._log.read(at, min(_WINDOW_ROWS, self._position - at))
            for batch in Tenants().regroup(batches) or batches[-1:]:
                windows.add(batch)

    def _publish(self) -> None:
        fresh: dict[str, dict[str, tuple[int, dict[str, Any]]]] = {}
        for change in self._windows.changes():
            window = {"start": _iso(change.start), "end": _iso(change.start + change.length)}
            body = {"metric": change.metric, "value": change.value, "window": window, "labels": change.labels}
            self._sent += 1
            self._bus.publish(
                Message(
                    id=f"live:{self._run_id}:{self._sent}",
                    topic="metric",
                    tenant=change.tenant,
                    body=msgspec.json.encode(body),
                )
            )
            known = fresh.setdefault(change.tenant, dict(self._latest.get(change.tenant, {})))
            held = known.get(change.metric)
            if not change.labels and (held is None or held[0] <= change.start):
                known[change.metric] = change.start, {"value": change.value, "window": window}
        if fresh or self._windows.oldest != self._oldest:
            self._oldest = self._windows.oldest
            self._latest = _since(self._oldest, {**self._latest, **fresh})

    def _begin(self, windows: Windows, end: int) -> int:
        """A position from which the whole current minute is read: back from ``end`` in steps that grow fourfold.

        ``windows`` begin with that minute; with the next one when its events are no longer all there.
        """
        since = datetime.now(UTC).replace(second=0, microsecond=0)
        step, at = 1_024, end
        while at > self._log.first and end - at < _FARTHEST:
            at = max(self._log.first, end - step)
            try:
                batches, _ = self._log.read(at, 1)
            except TrimmedError:
                continue
            if batches and batches[0].watermark < since:
                windows.begin(since)
                return at
            step *= 4
        if at:  # the minute's begin is no longer in the log, or too far back
            since += timedelta(minutes=1)
        windows.begin(since if at else moment(0))
        return at


def rest_after(spent: float) -> float:
    """Seconds to let events gather after a round that took ``spent``.

    What arrives waits for a rest and a round at most: 125 ms when a round takes 25. Under a load that needs the share
    u < 1 of the time rounds settle at ``u / (1 - u)`` of the longest rest, so the lag is bounded.
    """
    return min(max(_PACE_SECONDS - spent, spent * _REST), _REST_MOST)


def _since(
    oldest: int, latest: dict[str, dict[str, tuple[int, dict[str, Any]]]]
) -> dict[str, dict[str, tuple[int, dict[str, Any]]]]:
    """``latest`` without windows that start before ``oldest``, and without tenants that have no other."""
    kept = {tenant: {m: held for m, held in metrics.items() if held[0] >= oldest} for tenant, metrics in latest.items()}
    return {tenant: metrics for tenant, metrics in kept.items() if metrics}


def _iso(at: int) -> str:
    return moment(at).isoformat().replace("+00:00", "Z")
