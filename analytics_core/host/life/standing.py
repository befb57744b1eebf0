"""How one plugin does: what each failure means, and when it is tried again."""

from __future__ import annotations

import threading
import time

import structlog

from analytics_core.errors import (
    HookFailedError,
    HookTimeoutError,
    LogCorruptionError,
    PluginError,
    WorkerDiedError,
)
from analytics_core.host.code.traces import cause_of
from analytics_core.host.health import RUNNING, Health, State
from analytics_core.host.life.budget import Budget, RestartPolicy
from analytics_core.host.life.change import reason_of

_log = structlog.get_logger(__name__)


class Standing:
    """Moves ``health`` and plans the next attempt, at ``next_at`` (monotonic seconds), None for none.

    Safe for use from any thread. ``call_seconds``: how long one call of the present generation may take.
    """

    def __init__(self, health: Health, policy: RestartPolicy, call_seconds: float) -> None:
        self.health = health
        self.next_at: float | None = 0.0
        self.halted = False
        """The lane has met what no further attempt would change and nobody but the operator can mend."""
        self.note = ""
        """What is to be said of it whenever it is well."""
        self._policy = policy
        self._budget = Budget(policy, call_seconds)
        self._strained = False
        self._lock = threading.RLock()

    def due_in(self) -> float:
        """Seconds until the next attempt; infinite when none is planned."""
        with self._lock:
            return self.next_at - time.monotonic() if self.next_at is not None else float("inf")

    def begins_anew(self, call_seconds: float) -> None:
        """Another generation: nothing is held against it, and it need not wait."""
        with self._lock:
            self._budget = Budget(self._policy, call_seconds)
            self._strained = self.halted = False
            self.next_at = 0.0

    def goes_on(self, call_seconds: float) -> None:
        """Another generation, which an attempt that runs has taken in."""
        with self._lock:
            self._budget = Budget(self._policy, call_seconds)
            self._strained = False

    # --- what goes well ----------------------------------------------------------------------------------------------

    def attempted(self) -> None:
        """The attempt that was due has begun."""
        with self._lock:
            self.next_at = None
            if self.health.state == "quarantined" and self._budget.rested:
                self.health.move("half_open", "one attempt after the rest")
            elif self.health.state == "quarantined":
                self.health.move("discovered", "another generation is to be tried")

    def well(self, hooks: frozenset[str], generation: int) -> None:
        """It runs, and there is nothing to be seen of a failure."""
        stateless = "process" in hooks and "export_state" not in hooks
        told = "stateless: it has no export_state, so what it folds begins anew at each start" if stateless else ""
        self.health.move("active", "; ".join(filter(None, (self.note, told))), generation=generation)

    def progressed(self, position: int) -> bool:
        """Its lane has committed at ``position``: whether what it had failed at is behind it."""
        with self._lock:
            states = ("degraded", "half_open", "starting")
            return self._budget.committed(position) and not self._strained and self.health.state in states

    def kept_well(self, since: float) -> bool:
        """A look now and then at what runs without a lane since ``since``, or whose calls have failed: whether it is
        well again."""
        with self._lock:
            if time.monotonic() - since > self._policy.cool_down:
                self._budget.committed(0)
            if not self._strained or self._budget.strained:
                return False
            self._strained = False
            return self.health.state == "degraded"

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def failed(self, error: BaseException, position: int, *, hung: bool) -> None:
        """An attempt has ended with ``error`` in the window that begins at ``position``."""
        with self._lock:
            reason, state = reason_of(error), self.health.state
            _log.warning("plugin_failed", plugin=self.health.plugin, problem=reason, exc_info=cause_of(error))
            if isinstance(error, LogCorruptionError):
                self._halt(reason)
                return
            self.health.errors += 1
            if state == "loading" and isinstance(error, PluginError) and not isinstance(error, WorkerDiedError):
                self.health.move("load_error", reason)
            elif state == "starting" and _refused(error):
                self.health.move("start_error", reason)
            else:
                refused_export = isinstance(error, HookFailedError) and error.hook == "export_state"
                self._plan(position - refused_export, reason, hung=hung)  # a commit of the same is progress then

    def call_failed(self, error: HookFailedError, seconds: float) -> bool:
        """A concurrent call has failed; when it was given up, after ``seconds``. Whether it is to rest now."""
        with self._lock:
            rest = self._budget.called(seconds if isinstance(error, HookTimeoutError) else 0.0)
            if self.health.state not in RUNNING:
                return False
            if rest:
                self._rest(f"{error}; too many calls have failed, it rests for {rest:g} s", rest)
                return True
            if self._budget.strained and self.health.state == "active":
                self._strained = True
                self.health.move("degraded", f"{error}; many of its calls fail")
            return False

    def _halt(self, reason: str) -> None:
        """The log is damaged, which is not the plugin's fault: its concurrent hooks go on, its lane cannot."""
        self.halted = True
        after: State = "quarantined" if self.health.state == "half_open" else "degraded"
        self.health.move(after, f"its lane has ended and is not tried again, since the log is damaged: {reason}")

    def _plan(self, position: int, reason: str, *, hung: bool) -> None:
        what, seconds = self._budget.failed(position, hung=hung)
        failures = self._budget.failures
        if what == "rest":
            self._rest(f"{reason}; failure {failures} in a row, it rests for {seconds:g} s", seconds)
            return
        self.next_at = time.monotonic() + seconds
        again = f"{reason}; failure {failures} in a row, tried again from its checkpoint in {seconds:g} s"
        self.health.move("retrying" if self.health.state in ("loading", "starting") else "degraded", again)

    def _rest(self, reason: str, seconds: float) -> None:
        self.next_at, self._strained = time.monotonic() + seconds, False
        self.health.move("quarantined", reason)


def _refused(error: BaseException) -> bool:
    """Whether the plugin itself said no to its start or its state, which another attempt would not change."""
    return (
        isinstance(error, HookFailedError)
        and not isinstance(error, HookTimeoutError)
        and error.hook in ("setup", "import_state")
    )
