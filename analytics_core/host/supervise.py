"""One plugin's life: attempts to run it, what each failure means, and when the next attempt is made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from analytics_core.errors import (
    AnalyticsError,
    HookFailedError,
    HookTimeoutError,
    LogCorruptionError,
    PluginError,
    WorkerDiedError,
)
from analytics_core.host.attempt import Attempt, MakeLane
from analytics_core.host.health import FINAL, RUNNING, Health, RestartPolicy, Restarts, State
from analytics_core.host.present import Present
from analytics_core.host.reload import Reload, ReloadReceipt, replaced
from analytics_core.host.runtime import LOAD_SECONDS, Runtime
from analytics_core.lanes.lane import Lane

TICK_SECONDS: Final = 0.5
_LAST_COMMIT_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class Life:
    """Keeps one plugin running. `tick` is called twice a second by the host's supervisor; everything else that may
    take long happens on the thread of the present attempt.

    ``needs`` are the lives of the plugins that this one requires: it begins when they run, and is blocked when one of
    them never will. A thread that is in one hook for longer than ``seconds`` is abandoned: its lane is claimed anew,
    which takes away its right to write. A process is killed by its own deadlines instead.
    """

    def __init__(
        self,
        health: Health,
        runtime: Runtime,
        make_lane: MakeLane,
        *,
        seconds: float,
        policy: RestartPolicy,
        needs: Sequence[Life] = (),
    ) -> None:
        self.health = health
        self.present = Present(runtime)
        self._make_lane = make_lane
        self.seconds = seconds
        self._policy = policy
        self._needs = needs
        self._restarts = Restarts(policy)
        self._lock = threading.RLock()
        self._releasing = threading.Lock()
        self.halted = False
        """The lane has met what no further attempt would change and nobody but the operator can mend."""
        self._attempt: Attempt | None = None
        self._next_at: float | None = 0.0
        self._closed = False
        self._reload: Reload | None = None
        self._queued: tuple[Runtime, Callable[[ReloadReceipt], None]] | None = None
        self._settled: Callable[[ReloadReceipt], None] = lambda _: None

    @property
    def runtime(self) -> Runtime:
        return self.present.runtime

    @property
    def hooks(self) -> frozenset[str]:
        return self.present.hooks

    @property
    def lane(self) -> Lane | None:
        """The lane of the present or the last attempt."""
        return self._attempt.lane if self._attempt is not None else None

    @property
    def settled(self) -> bool:
        """Whether the first attempt has come to something, or waits for another plugin."""
        return self.health.state not in ("discovered", "loading", "starting")

    def reload(self, new: Runtime, settled: Callable[[ReloadReceipt], None]) -> None:
        """Bring in the next generation: beside the running one, or in the place of one that does not run.

        Returns at once. ``settled`` is told how it ended, on some thread. While one is under way the latest waits for
        its end, and those between are passed over.
        """
        with self._lock:
            attempt = self._attempt
            if self._closed:
                return
            if self._reload is not None:
                self._queued = new, settled
                return
            if attempt is None or attempt.over or not attempt.running or self.health.state not in RUNNING:
                self._replace(new, settled)
                return
            self.health.move("reloading", f"generation {new.generation} is being made")
            old = self.runtime
            self._reload = reload = Reload(
                self.health.plugin,
                old,
                new,
                attempt.lane,
                seconds=self.seconds,
                exchange=lambda hooks: self._exchange(new, hooks),
                drained=lambda seconds: self.present.drained(old.generation, seconds),
            )

        def run() -> None:
            receipt = reload.run()
            if receipt is not None:
                self._reloaded(reload, receipt, settled)

        self._settled = settled
        threading.Thread(target=run, name=f"reload:{self.health.plugin}", daemon=True).start()

    def _replace(self, new: Runtime, settled: Callable[[ReloadReceipt], None]) -> None:
        """Nothing runs that could be handed over: the next attempt is one of ``new``."""
        attempt, old = self._attempt, self.runtime
        if attempt is not None and not attempt.over:
            attempt.over = True
            attempt.abandon()
        threading.Thread(target=old.close, name=f"close:{self.health.plugin}", daemon=True).start()
        self.present.exchange(new, frozenset())
        self.seconds = new.seconds
        self._attempt, self._next_at, self.halted = None, 0.0, False
        self._restarts = Restarts(self._policy)
        self.health.move("discovered", f"generation {new.generation} is to be tried")
        settled(replaced(self.health.plugin, old, new))

    def _exchange(self, new: Runtime, hooks: frozenset[str]) -> None:
        with self._lock:
            self.present.exchange(new, hooks)
            self.seconds = new.seconds
            self._restarts = Restarts(self._policy)
            if self.health.state == "reloading":
                self.health.move("active", self._remark(), generation=new.generation)
            else:  # the lane has failed meanwhile; its next attempt is one of the new generation
                self.health.generation = new.generation

    def _reloaded(self, reload: Reload, receipt: ReloadReceipt, settled: Callable[[ReloadReceipt], None]) -> None:
        with self._lock:
            if self._reload is not reload:
                return
            self._reload = None
            if receipt.outcome != "active" and self.health.state in RUNNING:
                self.health.move(receipt.outcome, f"generation {receipt.after}: {receipt.reason}")
            queued, self._queued = self._queued, None
        settled(receipt)
        if queued is not None:
            self.reload(*queued)

    def _watch_reload(self) -> None:
        reload = self._reload
        if reload is not None and reload.overdue() and (receipt := reload.abandon()) is not None:
            self._reloaded(reload, receipt, self._settled)

    def tick(self) -> None:
        """Look after the present attempt, and begin the next one when it is due."""
        self._watch_reload()
        with self._lock:
            if self._closed:
                return
            attempt = self._attempt
            if attempt is None or attempt.over:
                if self._next_at is not None and time.monotonic() >= self._next_at and self._may_begin():
                    self._begin()
                return
        if self.runtime.isolation == "thread" and attempt.pulse.busy_for() > (seconds := self._patience(attempt)):
            attempt.abandon()
            self._ended(attempt, HookTimeoutError(self.health.plugin, attempt.pulse.doing, seconds), hung=True)
        elif attempt.running:
            self._watch(attempt)

    def due_in(self) -> float:
        """Seconds until the next attempt; infinite when none is planned."""
        with self._lock:
            planned = self._next_at is not None and not self._closed
            return self._next_at - time.monotonic() if planned and self._next_at is not None else float("inf")

    def _patience(self, attempt: Attempt) -> float:
        return max(self.seconds, LOAD_SECONDS) if attempt.pulse.doing == "load" else self.seconds

    def _watch(self, attempt: Attempt) -> None:
        """Nobody else would see that an idle plugin has died, or that one without a lane has kept well."""
        try:
            self.runtime.watch()
        except WorkerDiedError as error:
            attempt.abandon()
            self._ended(attempt, error)
        if attempt.lane is None and time.monotonic() - attempt.began > self._policy.cool_down:
            self._restarts.committed(0)

    def stop(self) -> None:
        """Ask the present attempt to commit and end; no other follows."""
        with self._lock:
            self._closed = True
            if self._reload is not None:
                self._reload.abandon()
            if self._attempt is not None:
                self._attempt.stop()

    def close(self, seconds: float) -> None:
        """Wait for the end that `stop` asked for, then end the runtime, by force if need be."""
        attempt = self._attempt
        if attempt is not None and attempt.thread is not None and not attempt.over:
            attempt.thread.join(min(seconds, max(self.seconds, _LAST_COMMIT_SECONDS)))
            if attempt.thread.is_alive():
                attempt.abandon()
                _log.warning("plugin_abandoned", plugin=self.health.plugin, doing=attempt.pulse.doing)
        self._release()

    def _release(self) -> None:
        """Let go of all that the plugin holds: its process, its instance, its code. Harmless when repeated."""
        with self._releasing:
            self.runtime.close()

    def _may_begin(self) -> bool:
        for need in self._needs:
            other = need.health
            if other.state in FINAL or (other.state == "blocked" and need._next_at is None):
                self._next_at = None
                self.health.move("blocked", f"requires {other.plugin!r}, which is {other.state}: {other.reason}")
                return False
            if other.state not in RUNNING:
                self.health.move("blocked", f"waits for {other.plugin!r}, which is {other.state}")
                return False
        return True

    def _begin(self) -> None:
        if self.health.state == "quarantined":
            self.health.move("half_open", "one attempt after the rest")
        attempt = Attempt()
        name = f"lane:{self.health.plugin}"
        attempt.thread = threading.Thread(target=self._run, args=(attempt,), name=name, daemon=True)
        attempt.thread.start()  # when the system has no thread left, the attempt stays due
        self._attempt, self._next_at = attempt, None

    def _run(self, attempt: Attempt) -> None:
        error: BaseException | None = None
        try:
            self._live(attempt)
        except BaseException as raised:  # whatever a plugin raises ends its own attempt and nothing else
            error = raised
        attempt.pulse.beat("")
        self._ended(attempt, error)
        if self.health.state in ("load_error", "start_error"):
            self._release()

    def _live(self, attempt: Attempt) -> None:
        first = self.health.state in ("discovered", "blocked", "retrying")
        if first:
            self.health.move("loading", generation=self.runtime.generation)
        attempt.pulse.beat("load")
        self.present.hooks = self.runtime.load()
        if attempt.over:
            return
        if first:
            self.health.move("starting")
        attempt.pulse.beat("setup")
        self.runtime.start()
        attempt.pulse.beat("")
        if "process" not in self.hooks:
            self._running(attempt)
            self.runtime.wait(attempt.stopping)
            return
        lane = self._make_lane(
            lambda: self.runtime.open_fold(attempt.pulse.beat),
            pulse=attempt.pulse,
            on_running=lambda: self._running(attempt),
            on_commit=lambda position: self._committed(attempt, position),
        )
        with self._lock:
            if attempt.over or self._closed:
                return
            attempt.lane = lane
        lane.run()

    def _running(self, attempt: Attempt) -> None:
        """The state is restored. A plugin that has failed while running has yet to show that it gets further."""
        with self._lock:
            if attempt.over:
                return
            attempt.running = True
            if self.health.state == "starting" or "process" not in self.hooks:
                self.health.move("active", self._remark())

    def _committed(self, attempt: Attempt, position: int) -> None:
        with self._lock:
            progress = not attempt.over and self._restarts.committed(position)
            if progress and self.health.state in ("degraded", "half_open", "starting"):
                self.health.move("active", self._remark())

    def _remark(self) -> str:
        if "process" in self.hooks and "export_state" not in self.hooks:
            return "stateless: it has no export_state, so what it folds begins anew at each start"
        return ""

    def _ended(self, attempt: Attempt, error: BaseException | None, *, hung: bool = False) -> None:
        """Judge how an attempt ended; the first judgement holds."""
        with self._lock:
            if attempt.over:
                return
            attempt.over = True
            if self._closed:
                return
            if error is None:
                self.health.move("degraded", "its lane was taken over by another process")
                return
            reason = str(error) if isinstance(error, AnalyticsError) else f"{type(error).__name__}: {error}"
            _log.warning("plugin_failed", plugin=self.health.plugin, problem=reason, exc_info=_trace(error))
            if isinstance(error, LogCorruptionError):
                self._halt(reason)
                return
            if (
                self.health.state == "loading"
                and isinstance(error, PluginError)
                and not isinstance(error, WorkerDiedError)
            ):
                self.health.move("load_error", reason)
            elif self.health.state == "starting" and _refused(error):
                self.health.move("start_error", reason)
            else:
                self._plan(attempt, reason, hung=hung)
            self.health.errors += 1

    def _halt(self, reason: str) -> None:
        """The log is damaged, which is not the plugin's fault: its concurrent hooks go on, its lane cannot."""
        self.halted = True
        after: State = "quarantined" if self.health.state == "half_open" else "degraded"
        self.health.move(after, f"its lane has ended and is not tried again, since the log is damaged: {reason}")

    def _plan(self, attempt: Attempt, reason: str, *, hung: bool) -> None:
        what, seconds = self._restarts.failed(attempt.position, hung=hung)
        self._next_at = time.monotonic() + seconds
        failures = self._restarts.failures
        if what == "rest":
            self.health.move("quarantined", f"{reason}; failure {failures} in a row, it rests for {seconds:g} s")
        else:
            state = self.health.state
            again = f"{reason}; failure {failures} in a row, tried again from its checkpoint in {seconds:g} s"
            self.health.move("retrying" if state in ("loading", "starting") else "degraded", again)


def _refused(error: BaseException) -> bool:
    """Whether the plugin itself said no to its start or its state, which another attempt would not change."""
    return (
        isinstance(error, HookFailedError)
        and not isinstance(error, HookTimeoutError)
        and error.hook in ("setup", "import_state")
    )


def _trace(error: BaseException) -> BaseException | None:
    """The exception with its trace where that says more than the text: in which line of the plugin it arose."""
    told = isinstance(error, AnalyticsError) and error.__cause__ is None
    return None if told or isinstance(error, HookTimeoutError) else error
