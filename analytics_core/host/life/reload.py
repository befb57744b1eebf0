"""From one generation of a running plugin to the next: made beside the old one, tried, and swapped between two batches.

    load -> setup -> probe -> swap -> retire

The old generation processes until the swap and again when anything before it fails. Its state crosses as the bytes
that a checkpoint holds, never as live objects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from typing import Any, Final, Literal

import structlog

from analytics_core.errors import AnalyticsError, HookTimeoutError, LaneEndedError, PluginError, RestartRequiredError
from analytics_core.host.code.traces import cause_of
from analytics_core.host.life.attempt import Attempt, Beats
from analytics_core.host.life.change import Change, Outcome, ReloadReceipt, ended, outcome_of, reason_of
from analytics_core.host.running.runtime import LOAD_SECONDS, Runtime, patience
from analytics_core.lanes.fold import Fold, Pulse
from analytics_core.lanes.lane import Action, Lane
from analytics_core.memory import give_back
from analytics_core.state import Checkpoint

SAMPLE_ROWS: Final = 1_000
"""The probe folds about so many events; what it finds is thrown away."""

_log = structlog.get_logger(__name__)


class _NothingHandedOverError(Exception):
    """The old generation could not say what its state is."""


class Reload:
    """One attempt to bring ``change`` in for what ``attempt`` runs.

    `run` belongs to a thread of its own; `overdue` and `abandon` to whoever watches. ``exchange`` is told when the new
    generation is in, before the old one is let go of: from then on every call is for it. ``drained`` waits, for so many
    seconds, until no call on the old one is under way.
    """

    def __init__(
        self,
        attempt: Attempt,
        change: Change,
        exchange: Callable[[frozenset[str]], None],
        drained: Callable[[float], bool],
    ) -> None:
        self.pulse = Pulse()
        """What the new generation is in, as long as it does not run in the lane."""
        self.seconds: dict[str, float] = {}
        self._attempt = attempt
        self._old = attempt.runtime
        self._new = change.runtime
        self._handover = change.handover
        self._exchange = exchange
        self._drained = drained
        self._pause = 0.0
        self._state_bytes = 0
        self._position: int | None = None
        self._left_at: int | None = None
        self._asked: Future[int] | None = None
        self._given_up: AnalyticsError | None = None
        self._restoring = False
        self._left: Fold | None = None
        self._is_in = False
        self._deciding = threading.Lock()

    def overdue(self) -> bool:
        """Whether the new generation has been in one hook for too long."""
        return self.pulse.busy_for() > patience(self._new, self.pulse.doing)

    def abandon(self, why: AnalyticsError | None = None) -> ReloadReceipt | None:
        """Whatever the new generation is stuck in: it will not come in any more. None when it is in already."""
        doing = self.pulse.doing
        why = why or HookTimeoutError(self._new.plugin, doing, patience(self._new, doing))
        with self._deciding:
            if self._is_in or (self._asked is not None and not self._asked.cancel()):
                return None
            self._given_up = why
        return self._receipt("rolled_back", str(why))

    def run(self) -> ReloadReceipt | Literal["begin"] | None:
        """All of it. ``begin`` when the new generation is made, and must begin from the checkpoint, since what ran has
        ended or cannot hand over; None when this was abandoned meanwhile."""
        try:
            hooks = self._make()
            if not self._handed_over(hooks):
                return "begin"
            self._exchange(hooks)
        except BaseException as error:  # whatever a plugin raises ends its own generation and nothing else
            self.pulse.beat("")
            return self._failed(error)
        return self._retired()

    def _make(self) -> frozenset[str]:
        if self._new.isolation == "thread" and (reason := self._old.hindrance()):
            raise RestartRequiredError(self._old.plugin, reason)
        with self._phase("load"):
            self.pulse.beat("load")
            hooks = self._new.load()
        with self._phase("setup"):
            self.pulse.beat("setup")
            try:
                self._new.start()
            except PluginError as error:
                if reason := self._old.hindrance(error):
                    raise RestartRequiredError(self._old.plugin, reason) from error
                raise
            self.pulse.beat("")
        return hooks

    def _handed_over(self, hooks: frozenset[str]) -> bool:
        lane = self._attempt.lane
        if self._handover is not None:
            if lane is None:
                raise PluginError(self._old.plugin, "has no lane that could go on")
            with self._phase("swap"):
                self._position, self._left, self._pause = self._handover(lane, self._coming_in)
            return True
        if (lane is not None) != ("process" in hooks):
            return False
        if lane is not None:
            try:
                self._take_over(lane)
            except _NothingHandedOverError as error:
                _log.warning("nothing_handed_over", plugin=self._old.plugin, problem=str(error.__cause__))
                return False
            except LaneEndedError:
                if self._restoring:
                    raise HookTimeoutError(self._new.plugin, "import_state", self._old.seconds) from None
                return False
        with self._deciding:
            if self._given_up is not None and not self._is_in:
                raise self._given_up
            self._is_in = True
        return True

    def _take_over(self, lane: Lane) -> None:
        with self._phase("probe"):
            self._probe(lane)
        beats = Beats(self.pulse)
        fold = self._new.open_fold(beats)
        with self._phase("swap"):
            try:
                self._position, self._left = self._between(lane, lambda old: self._swap(old, fold, lane, beats))
            except BaseException:
                if not self._restoring:  # else the lane's thread is in it, and closes it when it ever comes back
                    _close(self._new.plugin, fold)
                raise

    def _probe(self, lane: Lane) -> None:
        """The state as it is now through the new code, and a few events through that."""
        kept: list[Checkpoint] = []

        def look(fold: Fold) -> Fold:
            kept.append(_handed(fold, lane))
            return fold

        position, _ = self._between(lane, look)
        fold = self._new.open_fold(self.pulse.beat)
        try:
            fold.restore(kept[0])
            fold.advance(lane.sample(position, SAMPLE_ROWS), SAMPLE_ROWS)
            fold.export()
        finally:
            _close(self._new.plugin, fold)

    def _swap(self, old: Fold, new: Fold, lane: Lane, beats: Beats) -> Fold:
        """On the lane's thread."""
        try:
            state = _handed(old, lane)
            self._left_at, self._state_bytes = state.position, len(state.state or b"")
            beats.pulse, self._restoring = lane.pulse, True
            new.restore(state)
            self._restoring = False
        except BaseException:
            beats.pulse, self._restoring = self.pulse, False
            raise
        self._attempt.beats.pulse, self._attempt.beats = Pulse(), beats
        self._is_in = True
        return new

    @contextmanager
    def _coming_in(self, beats: Beats) -> Iterator[None]:
        """On the lane's thread. From now on nothing gives the new generation up, unless what is done in it fails."""
        assert self._attempt.lane is not None
        with self._deciding:
            if self._given_up is not None:
                raise self._given_up
            self._is_in = True
        try:
            yield
        except BaseException:
            self._is_in = False
            raise
        beats.pulse = self._attempt.lane.pulse
        self._attempt.beats.pulse, self._attempt.beats = Pulse(), beats

    def _between(self, lane: Lane, action: Action) -> tuple[int, Fold]:
        """Where that was, and the fold that was driven until then."""
        before: list[Fold] = []

        def noted(fold: Fold) -> Fold:
            began = time.monotonic()
            before.append(fold)
            try:
                return action(fold)
            finally:
                self._pause = max(self._pause, time.monotonic() - began)

        with self._deciding:
            if self._given_up is not None:
                raise self._given_up
            self._asked = asked = lane.between(noted)
        most = self._old.seconds + LOAD_SECONDS
        try:
            return asked.result(most), before[0]
        except NotYet:
            if not asked.cancel():
                lane.abandon()
            raise PluginError(self._old.plugin, f"its lane came to no end of a batch in {most:g} s") from None
        except CancelledError:
            raise self._given_up or PluginError(self._old.plugin, "its reload was given up") from None
        finally:
            self._asked = None

    def _failed(self, error: BaseException) -> ReloadReceipt | None:
        aside(self._new.close, f"close:{self._new.plugin}")
        if self._given_up is not None:
            return None
        reason = reason_of(error)
        _log.warning("reload_failed", plugin=self._new.plugin, problem=reason, exc_info=cause_of(error))
        return self._receipt(outcome_of(error), reason)

    def _retired(self) -> ReloadReceipt:
        """Whatever the old generation's teardown does, this ends: what does not is named as a survivor."""
        with self._phase("retire"):
            left = [] if self._left is None else [self._left]
            self._left = None
            survivors = retired(self._old, left, self._drained)
        lost = gap(self._left_at, self._position)
        return self._receipt(
            "active",
            "",
            pause=self._pause,
            state_bytes=self._state_bytes,
            position=self._position,
            events_lost=lost,
            survivors=survivors,
        )

    def _receipt(self, outcome: Outcome, reason: str, **figures: Any) -> ReloadReceipt:
        return ended(self._new, self._old.generation, outcome, reason, seconds=self.seconds, **figures)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - began


def gap(left_at: int | None, resumed_at: int | None) -> int:
    """How many positions no generation has processed; below 0, how many were processed by both. 0 when unknown."""
    return resumed_at - left_at if left_at is not None and resumed_at is not None else 0


def retired(old: Runtime, left: list[Fold], drained: Callable[[float], bool]) -> tuple[str, ...]:
    """End a generation that no new call is for; what is still alive of it then, by name. Takes a bounded time.

    ``left`` holds its fold, if it has one, and is emptied.
    """

    def let_go() -> None:
        while left:
            _close(old.plugin, left.pop())
        if not drained(old.seconds):
            _log.warning("generation_in_use", plugin=old.plugin, generation=old.generation)
        old.close()

    going = aside(let_go, f"retire:{old.plugin}")
    going.join(2 * old.seconds + 1.0)
    hangs = (f"its teardown, which has not ended: thread {going.name!r}",) if going.is_alive() else ()
    survivors = (*hangs, *old.survivors())
    give_back()
    return survivors


def aside(call: Callable[[], None], name: str) -> threading.Thread:
    """On a thread that nobody has to wait for: a plugin's teardown may hang."""
    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    return thread


def _handed(fold: Fold, lane: Lane) -> Checkpoint:
    """The state of a running fold, as a checkpoint would have it."""
    try:
        state, version = fold.export(), fold.state_version
    except Exception as error:
        raise _NothingHandedOverError from error
    return Checkpoint(lane=lane.name, epoch=0, position=lane.position, state=state, state_version=version)


def _close(plugin: str, fold: Fold) -> None:
    try:
        fold.close()
    except AnalyticsError as error:
        _log.warning("teardown_failed", plugin=plugin, problem=str(error))
