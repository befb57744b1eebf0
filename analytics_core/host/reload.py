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
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, Literal

import structlog
from msgspec import Struct

from analytics_core.errors import AnalyticsError, HookTimeoutError, LaneEndedError, PluginError, RestartRequiredError
from analytics_core.host.runtime import LOAD_SECONDS, Runtime
from analytics_core.lanes.fold import Fold, Pulse
from analytics_core.lanes.lane import Lane
from analytics_core.state import Checkpoint

SAMPLE_ROWS: Final = 1_000
"""The probe folds the newest events, about so many; what it finds is thrown away."""

_log = structlog.get_logger(__name__)


Outcome = Literal["active", "rolled_back", "restart_required"]


class ReloadReceipt(Struct, frozen=True):
    """What one reload did. ``seconds`` by phase; ``pause`` is how long the lane stood still for it, in seconds.

    ``position``: where in the log the next generation has taken over, None without a lane. ``survivors`` names what
    of the old generation is still alive after it was retired.
    """

    plugin: str
    before: int
    after: int
    outcome: Outcome
    reason: str
    at: datetime
    seconds: dict[str, float]
    pause: float = 0.0
    position: int | None = None
    events_lost: int = 0
    survivors: tuple[str, ...] = ()


class _Beats:
    """Where the beats of the next generation's fold go: to its reload, and from the swap on to the lane."""

    __slots__ = ("pulse",)

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse

    def __call__(self, doing: str) -> None:
        self.pulse.beat(doing)


class Reload:
    """One attempt to bring ``new`` in for ``old``. `run` belongs to a thread of its own; `abandon` to whoever watches.

    ``exchange`` is told when ``new`` is in, before the old one is let go of: from then on every call is for ``new``.
    ``drained`` waits, for so many seconds, until no call on ``old`` is under way.
    """

    def __init__(
        self,
        plugin: str,
        old: Runtime,
        new: Runtime,
        lane: Lane | None,
        *,
        seconds: float,
        exchange: Callable[[frozenset[str]], None],
        drained: Callable[[float], bool],
    ) -> None:
        self.plugin = plugin
        self.pulse = Pulse()
        """What the new generation is in, as long as it does not run in the lane."""
        self._old = old
        self._new = new
        self._lane = lane
        self._seconds = seconds
        self._exchange = exchange
        self._drained = drained
        self._phases: dict[str, float] = {}
        self._pause = 0.0
        self._position: int | None = None
        self._asked: Future[int] | None = None
        self._given_up: HookTimeoutError | None = None
        self._left: Fold | None = None
        self._is_in = False
        self._deciding = threading.Lock()

    def overdue(self) -> bool:
        """Whether the new generation has been in one hook for too long."""
        patience = max(self._seconds, LOAD_SECONDS) if self.pulse.doing == "load" else self._seconds
        return self.pulse.busy_for() > patience

    def abandon(self) -> ReloadReceipt | None:
        """Whatever the new generation is stuck in: it will not come in any more. None when it is in already."""
        with self._deciding:
            if self._is_in or (self._asked is not None and not self._asked.cancel()):
                return None
            self._given_up = HookTimeoutError(self.plugin, self.pulse.doing, self._seconds)
        return self._receipt("rolled_back", str(self._given_up))

    def run(self) -> ReloadReceipt | None:
        """All of it; None when it was abandoned meanwhile."""
        try:
            hooks = self._make()
            if self._lane is not None:
                with suppress(LaneEndedError):  # the next attempt begins from the checkpoint, with the new code
                    self._take_over(self._lane)
            with self._deciding:
                if self._given_up is not None and not self._is_in:
                    raise self._given_up
                self._is_in = True
            self._exchange(hooks)
        except BaseException as error:  # whatever a plugin raises ends its own generation and nothing else
            self.pulse.beat("")
            return self._failed(error)
        return self._retired()

    def _make(self) -> frozenset[str]:
        with self._phase("load"):
            self.pulse.beat("load")
            hooks = self._new.load()
        if self._lane is not None and "process" not in hooks:
            raise PluginError(self.plugin, "the next generation has no 'process', so its lane cannot go on")
        with self._phase("setup"):
            self.pulse.beat("setup")
            self._new.start()
            self.pulse.beat("")
        return hooks

    def _take_over(self, lane: Lane) -> None:
        with self._phase("probe"):
            self._probe(lane)
        beats = _Beats(self.pulse)
        fold = self._new.open_fold(beats)
        with self._phase("swap"):
            try:
                self._position = self._between(lane, lambda old: self._swap(old, fold, lane, beats))
            except BaseException:
                _close(self.plugin, fold)
                raise

    def _probe(self, lane: Lane) -> None:
        """The state as it is now through the new code, and a few events through that."""
        kept: list[Checkpoint] = []

        def look(fold: Fold) -> Fold:
            kept.append(_handed(fold, lane))
            return fold

        self._between(lane, look)
        fold = self._new.open_fold(self.pulse.beat)
        try:
            fold.restore(kept[0])
            fold.advance(lane.sample(SAMPLE_ROWS), SAMPLE_ROWS)
            fold.export()
        finally:
            _close(self.plugin, fold)

    def _swap(self, old: Fold, new: Fold, lane: Lane, beats: _Beats) -> Fold:
        """On the lane's thread."""
        began = time.monotonic()
        beats.pulse = lane.pulse
        try:
            new.restore(_handed(old, lane))
        except BaseException:
            beats.pulse = self.pulse
            raise
        finally:
            self._pause = time.monotonic() - began
        self._left, self._is_in = old, True
        return new

    def _between(self, lane: Lane, action: Callable[[Fold], Fold]) -> int:
        with self._deciding:
            if self._given_up is not None:
                raise self._given_up
            self._asked = asked = lane.between(action)
        try:
            return asked.result(self._seconds)
        except NotYet:
            if asked.cancel():
                raise PluginError(self.plugin, f"its lane came to no end of a batch in {self._seconds:g} s") from None
            return asked.result()
        except CancelledError:
            raise self._given_up or PluginError(self.plugin, "was abandoned") from None
        finally:
            self._asked = None

    def _failed(self, error: BaseException) -> ReloadReceipt | None:
        self._new.close()
        if self._given_up is not None:
            return None
        known = isinstance(error, AnalyticsError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        _log.warning("reload_failed", plugin=self.plugin, problem=reason, exc_info=None if known else error)
        return self._receipt("restart_required" if isinstance(error, RestartRequiredError) else "rolled_back", reason)

    def _retired(self) -> ReloadReceipt:
        with self._phase("retire"):
            if self._left is not None:
                _close(self.plugin, self._left)
                self._left = None
            if not self._drained(self._seconds):
                _log.warning("generation_in_use", plugin=self.plugin, generation=self._old.generation)
            self._old.close()
            survivors = self._old.survivors()
        return self._receipt("active", "", survivors)

    def _receipt(self, outcome: Outcome, reason: str, survivors: tuple[str, ...] = ()) -> ReloadReceipt:
        return ReloadReceipt(
            plugin=self.plugin,
            before=self._old.generation,
            after=self._new.generation,
            outcome=outcome,
            reason=reason,
            at=datetime.now(UTC),
            seconds=dict(self._phases),
            pause=self._pause,
            position=self._position,
            survivors=survivors,
        )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._phases[name] = time.monotonic() - began


def replaced(plugin: str, old: Runtime, new: Runtime) -> ReloadReceipt:
    """The receipt of a change for which nothing had to be handed over, since nothing ran."""
    reason = "nothing ran that could be handed over"
    return ReloadReceipt(plugin, old.generation, new.generation, "active", reason, datetime.now(UTC), {})


def refused(plugin: str, generation: int, reason: str) -> ReloadReceipt:
    """The receipt of a change that a running host does not take in."""
    return ReloadReceipt(plugin, generation, generation, "restart_required", reason, datetime.now(UTC), {})


def _handed(fold: Fold, lane: Lane) -> Checkpoint:
    """The state of a running fold, as a checkpoint would have it."""
    state, version = fold.export(), fold.state_version
    return Checkpoint(lane=lane.name, epoch=0, position=lane.position, state=state, state_version=version)


def _close(plugin: str, fold: Fold) -> None:
    try:
        fold.close()
    except AnalyticsError as error:
        _log.warning("teardown_failed", plugin=plugin, problem=str(error))
