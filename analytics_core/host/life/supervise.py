"""One plugin's life: attempts to run it, one after the other, and the generations that they are of."""

from __future__ import annotations

import threading
from typing import Final, Protocol

import structlog

from analytics_core.errors import HookFailedError, HookTimeoutError, PluginUnavailableError, WorkerDiedError
from analytics_core.host.code.traces import cause_of
from analytics_core.host.health import BEGINNING, RUNNING, Health, State
from analytics_core.host.life.attempt import Attempt, MakeLane
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.change import Change, outcome_of, reason_of
from analytics_core.host.life.present import Present
from analytics_core.host.life.reload import aside
from analytics_core.host.life.standing import Standing
from analytics_core.host.life.succession import Succession
from analytics_core.host.life.trial import Trial
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.lane import Lane

TICK_SECONDS: Final = 0.5
_LAST_COMMIT_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class Turn(Protocol):
    """When a plugin may begin, as far as others are concerned."""

    def obstacle(self) -> str:
        """The plugin that it requires and that does not run; empty when there is none."""
        ...

    def too_early(self) -> bool:
        """Whether one that it is to come after is on its way up."""
        ...


class Life:
    """Keeps one plugin running. `tick` is called by the host's supervisor, twice a second at least; everything else
    that may take long happens on the thread of the present attempt.

    A thread that is in one hook for too long is abandoned: its lane is claimed anew, which takes away its right to
    write. A process is killed by its own deadlines instead.
    """

    def __init__(
        self, health: Health, runtime: Runtime, make_lane: MakeLane, *, policy: RestartPolicy, turn: Turn
    ) -> None:
        self.health = health
        self.present = Present(runtime)
        self.succession = Succession(self)
        self.standing = Standing(health, policy, runtime.seconds)
        self._make_lane = make_lane
        self._turn = turn
        self._lock = threading.RLock()
        self._attempt: Attempt | None = None
        self._lane: Lane | None = None
        self._trial: Trial | None = None
        self._closed = False
        self._released = False

    @property
    def runtime(self) -> Runtime:
        return self.present.runtime

    @property
    def hooks(self) -> frozenset[str]:
        return self.present.hooks

    @property
    def lane(self) -> Lane | None:
        """The lane that has run last, which says how far the plugin is; before, that of the first attempt."""
        attempt = self._attempt
        return self._lane or (attempt.lane if attempt is not None else None)

    @property
    def settled(self) -> bool:
        """Whether the first attempt has come to something, or waits for another plugin."""
        return self.health.state not in BEGINNING

    # --- the supervisor ----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look after the present attempt, and begin the next one when it is due."""
        self.succession.watch()
        if not self._lock.acquire(blocking=False):
            return  # somebody is at it; the next look will do
        try:
            if self._closed:
                return
            attempt = self._attempt
            if attempt is None or attempt.over:
                if self.standing.due_in() <= 0 and self._may_begin():
                    self._begin()
                return
        finally:
            self._lock.release()
        if (seconds := attempt.overdue()) > 0:
            attempt.abandon()
            self._ended(attempt, HookTimeoutError(self.health.plugin, attempt.pulse.doing, seconds), hung=True)
        elif attempt.running:
            self._watch(attempt)

    def due_in(self) -> float:
        """Seconds until the next attempt; infinite when none is planned."""
        due = float("inf") if self._closed else self.standing.due_in()
        return due if due > 0 else TICK_SECONDS  # it waits for another plugin

    def failed_call(self, error: HookFailedError, runtime: Runtime) -> None:
        """A concurrent hook of ``runtime`` has failed. Of an earlier generation nothing is held against this one."""
        with self._lock:
            if self._closed or runtime is not self.runtime:
                return
            if self.standing.call_failed(error, runtime.seconds) and self._attempt is not None:
                self._attempt.over = True
                self._attempt.stop()  # what it has folded is committed

    def stop(self) -> None:
        """Ask the present attempt to commit and end; no other follows."""
        with self._lock:
            self._closed = True
            attempt = self._attempt
        self.succession.stop()
        if attempt is not None:
            attempt.stop()

    def close(self, seconds: float) -> None:
        """Wait for the end that `stop` asked for, then end the runtime, by force if need be."""
        attempt = self._attempt
        if attempt is not None:
            most = min(seconds, max(self.runtime.seconds, _LAST_COMMIT_SECONDS))
            if not attempt.end(0.0 if attempt.over else most):
                _log.warning("plugin_abandoned", plugin=self.health.plugin, doing=attempt.pulse.doing)
        with self._lock:
            self._released = True
            fallback = self._trial.fallback if self._trial is not None else None
        self.runtime.close()
        if fallback is not None:
            fallback.close()

    # --- succession --------------------------------------------------------------------------------------------------

    def carrier(self) -> Attempt | None:
        """The attempt that runs now and may carry the next generation on."""
        attempt = self._attempt
        runs = attempt is not None and attempt.running and not attempt.over
        return attempt if runs and self.health.state in RUNNING else None

    def exchange(self, change: Change, hooks: frozenset[str]) -> None:
        """Calls are for the new generation from now on, and so is every later attempt.

        :raises PluginUnavailableError: when all has ended already.
        """
        new = change.runtime
        with self._lock:
            if self._released:
                raise PluginUnavailableError(self.health.plugin, "was stopped meanwhile")
            self.present.exchange(new, hooks)
            if self._attempt is not None and self._attempt.running and not self._attempt.over:
                self._attempt.runtime = new
                self.standing.goes_on(new.seconds)
            else:
                self._give_up_attempt()
                self.standing.begins_anew(new.seconds)  # it has failed meanwhile
            if self.health.state == "reloading":
                self.standing.well(hooks, new.generation)
            else:
                self.health.generation = new.generation
        change.came_in()

    def halt_attempt(self, attempt: Attempt) -> None:
        """No other attempt follows this one by itself."""
        with self._lock:
            attempt.over = True
            if self._attempt is attempt:
                self.standing.next_at = None

    def begin(self, trial: Trial) -> None:
        """The next attempt is that of ``trial``, in the place of whatever was to be tried."""
        new = trial.change.runtime
        with self._lock:
            earlier, self._trial = self._trial, trial
            if earlier is not None and trial.fallback is None:
                trial.fallback = earlier.fallback
            old = self.runtime
            self._give_up_attempt()
            self.present.exchange(new, frozenset())
            self.standing.begins_anew(new.seconds)
            closed = self._closed
            if not closed and trial.fallback is None:
                self.health.move("discovered", f"generation {new.generation} is to be tried")
            elif not closed:
                self.health.move("reloading", f"generation {new.generation} begins from the checkpoint")
        if old is not new and old is not trial.fallback:
            aside(old.close, f"close:{self.health.plugin}")
        if closed:
            trial.superseded("its host is stopping")
            new.close()
            if trial.fallback is not None:
                trial.fallback.close()

    def _give_up_attempt(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None and not attempt.over:
            attempt.over = True
            attempt.abandon()

    def _tried(self, error: BaseException | None) -> bool:
        """The end of a trial, if one is under way; whether the generation before it runs again."""
        with self._lock:
            trial, self._trial = self._trial, None
            if trial is None:
                return False
            trial.over = True
            fallback = trial.fallback if error is not None else None
            if error is not None and fallback is not None:
                self.present.exchange(fallback, frozenset())
                self.standing.begins_anew(fallback.seconds)
                reason = f"generation {trial.change.runtime.generation}: {reason_of(error)}"
                _log.warning("reload_failed", plugin=self.health.plugin, problem=reason, exc_info=cause_of(error))
                self.health.move(outcome_of(error), reason, generation=fallback.generation)
        if fallback is None:  # it runs, or nothing else does
            trial.change.came_in()
        else:
            aside(trial.change.runtime.close, f"close:{self.health.plugin}")
        aside(lambda: trial.ended(error), f"retire:{self.health.plugin}")
        return fallback is not None

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _may_begin(self) -> bool:
        if self.health.state == "reloading":
            return True  # as beside one that runs
        obstacle = self._turn.obstacle()
        if obstacle and self.health.state in ("discovered", "blocked"):
            self.health.move("blocked", obstacle)
        return not obstacle and not self._turn.too_early()

    def _begin(self) -> None:
        attempt = Attempt(self.runtime)
        name = f"lane:{self.health.plugin}"
        attempt.thread = threading.Thread(target=self._run, args=(attempt,), name=name, daemon=True)
        self._attempt = attempt
        try:
            attempt.thread.start()
        except RuntimeError:  # the system has no thread left: the attempt stays due
            attempt.over, attempt.thread = True, None
            raise
        self.standing.attempted()

    def _run(self, attempt: Attempt) -> None:
        error: BaseException | None = None
        try:
            self._live(attempt)
        except BaseException as raised:  # whatever a plugin raises ends its own attempt and nothing else
            error = raised
        attempt.pulse.beat("")
        self._ended(attempt, error)
        with self._lock:
            refused = self.health.state in ("load_error", "start_error")
            present = attempt.runtime is self.runtime and not refused
            awaited = self._trial is not None and attempt.runtime is self._trial.fallback
        if not (present or awaited or attempt.running):
            attempt.runtime.close()

    def _live(self, attempt: Attempt) -> None:
        runtime = attempt.runtime
        first = self._rises(attempt, "loading", frozenset({"discovered", "blocked", "retrying"}))
        attempt.pulse.beat("load")
        hooks = runtime.load()
        if first:
            self._rises(attempt, "starting", frozenset({"loading"}))
        if attempt.over:
            return
        attempt.pulse.beat("setup")
        runtime.start()
        attempt.pulse.beat("")
        with self._lock:
            if attempt.over or self._closed:
                return
            self.present.exchange(runtime, hooks)
        if "process" not in hooks:
            self._running(attempt)
            attempt.stopping.wait()
            return
        lane = self._make_lane(
            lambda: runtime.open_fold(attempt.beats),
            pulse=attempt.pulse,
            on_running=lambda: self._running(attempt),
            on_commit=lambda position: self._committed(attempt, position),
        )
        with self._lock:
            if attempt.over or self._closed:
                return
            attempt.lane = lane
        lane.run()

    def _rises(self, attempt: Attempt, state: State, after: frozenset[State]) -> bool:
        """Whether the attempt, unless it is over, has brought the plugin from one of ``after`` to ``state``."""
        with self._lock:
            if attempt.over or self.health.state not in after:
                return False
            self.health.move(state, generation=attempt.runtime.generation)
            return True

    def _running(self, attempt: Attempt) -> None:
        """The state is restored. A plugin that has failed while running has yet to show that it gets further."""
        with self._lock:
            if attempt.over:
                return
            attempt.running, self._lane = True, attempt.lane
            decided = self._trial is not None and self._trial.runs(attempt.lane)
            fresh = self._trial is not None or self.health.state in ("starting", "reloading")
            if fresh or "process" not in self.hooks:
                self.standing.well(self.hooks, attempt.runtime.generation)
        if decided:
            self._tried(None)

    def _committed(self, attempt: Attempt, position: int) -> None:
        with self._lock:
            if attempt.over:
                return
            if self.standing.progressed(position):
                self.standing.well(self.hooks, attempt.runtime.generation)
        self._tried(None)

    def _watch(self, attempt: Attempt) -> None:
        """Nobody else would see that an idle plugin has died, or that one without a lane has kept well."""
        try:
            attempt.runtime.watch()
        except WorkerDiedError as error:
            attempt.abandon()
            self._ended(attempt, error)
            return
        with self._lock:
            since = attempt.began if attempt.lane is None else float("inf")
            if not attempt.over and self.standing.kept_well(since):
                self.standing.well(self.hooks, attempt.runtime.generation)
            decided = not attempt.over and self._trial is not None and self._trial.due_in() <= 0
        if decided:
            self._tried(None)

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
            elif not self._tried(error):
                self.standing.failed(error, attempt.position, hung=hung)
