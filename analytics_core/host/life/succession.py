"""The generations of one plugin, one after the other: which change is under way, which waits, and how each ends."""

from __future__ import annotations

import threading
import time
from typing import Final, Protocol

import structlog

from analytics_core.errors import AnalyticsError, PluginUnavailableError
from analytics_core.host.health import RUNNING, Health
from analytics_core.host.life.attempt import Attempt
from analytics_core.host.life.change import Change, ReloadReceipt, ended, reason_of
from analytics_core.host.life.present import Present
from analytics_core.host.life.reload import Reload, aside
from analytics_core.host.life.trial import Trial
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.lane import Lane

_STOPPED: Final = "its host is stopping"

_TRIED_AGAIN: Final = RUNNING - {"reloading"} | {"quarantined"}
"""States of a plugin that has run, and will be tried again though it does not run just now."""

_log = structlog.get_logger(__name__)


class Carrier(Protocol):
    """What a succession needs of the life that it belongs to."""

    @property
    def health(self) -> Health: ...

    @property
    def present(self) -> Present: ...

    @property
    def lane(self) -> Lane | None:
        """That of the present or the last attempt."""
        ...

    def carrier(self) -> Attempt | None:
        """The attempt that runs now and may carry the next generation on."""
        ...

    def exchange(self, change: Change, hooks: frozenset[str]) -> None:
        """Calls are for the new generation from now on. :raises PluginUnavailableError: when all has ended."""
        ...

    def halt_attempt(self, attempt: Attempt) -> None:
        """No other attempt follows this one by itself."""
        ...

    def begin(self, trial: Trial) -> None:
        """The next attempt is that of a trial, which is told how it ended."""
        ...


class Succession:
    """Brings changes in, one after the other. Of those that come meanwhile the latest waits; others are passed over.

    `ask` returns at once; `watch` is called twice a second at least.
    """

    def __init__(self, life: Carrier) -> None:
        self._life = life
        self._lock = threading.RLock()
        self._change: Change | None = None
        self._reload: Reload | None = None
        self._trial: Trial | None = None
        self._next: Change | None = None
        self._closed = False

    def ask(self, change: Change) -> None:
        number = change.runtime.generation
        passed: Change | None = None
        with self._lock:
            replaced = self._trial if self._trial is not None and not self._trial.over else None
            self._trial = None
            if self._closed:
                passed = change
            elif self._change is not None and replaced is None:
                passed, self._next = self._next, change
            else:
                self._start(change)
                self._change = change
        if replaced is not None:
            replaced.superseded(_STOPPED if self._closed else _after(number))
        if passed is not None:
            reason = _STOPPED if passed is change else _after(number)
            passed.settle(ended(passed.runtime, self._life.health.generation, "superseded", reason))

    def _start(self, change: Change) -> None:
        aside(lambda: self._carry_out(change), f"reload:{change.runtime.plugin}")

    @property
    def busy(self) -> bool:
        """Whether a change is under way."""
        return self._change is not None

    def watch(self) -> None:
        """Give up a reload whose new generation hangs."""
        change, reload = self._change, self._reload
        if change is not None and reload is not None and reload.overdue():
            receipt = reload.abandon()
            if receipt is not None:
                self._tell(receipt)
                self._settle(change, receipt)

    def stop(self) -> None:
        """No change comes in from now on."""
        with self._lock:
            self._closed = True
            change, reload, trial = self._change, self._reload, self._trial
            waiting, self._next, self._trial = self._next, None, None
        if waiting is not None:
            waiting.settle(ended(waiting.runtime, self._life.health.generation, "superseded", _STOPPED))
        if trial is not None:
            trial.superseded(_STOPPED)
        stopped = PluginUnavailableError(self._life.health.plugin, _STOPPED)
        if change is not None and reload is not None and (receipt := reload.abandon(stopped)) is not None:
            self._settle(change, receipt)

    def _carry_out(self, change: Change) -> None:
        """On a thread of its own, which a hanging plugin may keep for ever. It ends, whatever goes wrong in it."""
        try:
            self._bring_in(change)
        except Exception as error:
            _log.exception("change_failed", plugin=change.runtime.plugin)
            before = self._life.present.runtime.generation
            self._settle(change, ended(change.runtime, before, "rolled_back", reason_of(error)))

    def _bring_in(self, change: Change) -> None:
        attempt = self._life.carrier()
        if attempt is None and change.handover is not None:
            change.runtime.close()
            present = self._life.present.runtime.generation
            self._settle(change, ended(change.runtime, present, "rolled_back", "it does not run just now"))
        elif attempt is None:
            tried_again = self._life.health.state in _TRIED_AGAIN
            self._begin(change, self._life.present.runtime if tried_again else None, {}, failed=True)
        elif change.strategy == "stop_first":
            self._stop_first(change, attempt)
        else:
            self._side_by_side(change, attempt)

    def _side_by_side(self, change: Change, attempt: Attempt) -> None:
        old, life = attempt.runtime, self._life
        life.health.move("reloading", f"generation {change.runtime.generation} is being made")
        reload = Reload(
            attempt,
            change,
            exchange=lambda hooks: life.exchange(change, hooks),
            drained=lambda seconds: life.present.drained(old.generation, seconds),
        )
        with self._lock:
            if not self._closed:
                self._reload = reload
        if self._reload is not reload:
            self._settle(change, ended(change.runtime, old.generation, "superseded", _STOPPED))
            return
        result = reload.run()
        if result == "begin":
            self._make_way(attempt, change)
            failed = attempt.lane is not None and attempt.lane.state == "failed"
            self._begin(change, old, reload.seconds, failed=failed)
        elif result is not None:
            self._tell(result)
            self._settle(change, result)

    def _stop_first(self, change: Change, attempt: Attempt) -> None:
        """For a plugin of which no two can be there at once. Its sources are compiled before anything is stopped."""
        old, began = attempt.runtime, time.monotonic()
        try:
            change.runtime.check()
        except AnalyticsError as error:
            receipt = ended(change.runtime, old.generation, "rolled_back", str(error))
            self._tell(receipt)
            self._settle(change, receipt)
            return
        self._life.health.move("reloading", f"it is stopped before generation {change.runtime.generation} is made")
        self._make_way(attempt, change)
        self._life.present.drained(old.generation, old.seconds)
        aside(old.close, f"close:{old.plugin}").join(old.seconds)
        self._begin(change, old, {"stop": time.monotonic() - began})

    def _make_way(self, attempt: Attempt, change: Change) -> None:
        """The old generation takes no further call and no further event, and commits what it has."""
        self._life.halt_attempt(attempt)
        self._life.present.exchange(change.runtime, frozenset())
        attempt.end(attempt.runtime.seconds)

    def _begin(
        self, change: Change, fallback: Runtime | None, seconds: dict[str, float], *, failed: bool = False
    ) -> None:
        before = self._life.present.runtime.generation if fallback is None else fallback.generation
        lane = self._life.lane
        left_at = lane.committed if lane is not None else None
        drained = self._life.present.drained

        def settle(receipt: ReloadReceipt) -> None:
            self._settle(change, receipt)

        trial = Trial(change, before, fallback, left_at, seconds, drained, settle, failed=failed)
        with self._lock:
            self._trial, self._reload = trial, None
            self._life.begin(trial)

    def _tell(self, receipt: ReloadReceipt) -> None:
        health = self._life.health
        if receipt.outcome in ("rolled_back", "restart_required") and health.state in RUNNING:
            health.move(receipt.outcome, f"generation {receipt.after}: {receipt.reason}")

    def _settle(self, change: Change, receipt: ReloadReceipt) -> None:
        """The end of ``change``; then comes the one that waits."""
        change.settle(receipt)
        with self._lock:
            if self._change is not change:
                return
            self._reload = self._trial = None
            self._change, self._next = self._next, None
            if self._change is not None:
                self._start(self._change)


def _after(number: int) -> str:
    return f"generation {number} has come after it"
