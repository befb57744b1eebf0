"""A lane that rebuilds what another one has found: it follows that one, and both can be held at one position."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, NamedTuple

import msgspec

from analytics_core.errors import AnalyticsError
from analytics_core.events import EventBatch
from analytics_core.lanes.fold import Fold, Step
from analytics_core.lanes.lane import Lane
from analytics_core.log import MAX_BYTES, LogReader
from analytics_core.state import Checkpoint

PATIENCE: Final = 5.0
"""Seconds that the followed lane waits for the other one to come up with it."""
NEAR_ROWS: Final = 65_536
"""A lane that is behind by no more is near."""
_POLL_SECONDS: Final = 0.05


class NotMetError(AnalyticsError):
    """The two lanes came to no common position; nothing has changed, and a later try may succeed."""


class LogUpTo:
    """The log as far as ``end()`` says, for a lane that is to stay behind another one."""

    def __init__(self, log: LogReader, end: Callable[[], int]) -> None:
        self._log = log
        self._end = end

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def durable(self) -> int:
        return min(self._log.durable, self._end())

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = MAX_BYTES) -> tuple[list[EventBatch], int]:
        return self._log.read(start, max_rows, max_bytes)

    def wait(self, position: int, timeout: float) -> int:
        if self.durable <= position:
            time.sleep(min(timeout, _POLL_SECONDS))
        return self.durable


class FollowingFold:
    """``fold`` for a lane on a `LogUpTo`: it goes no further than ``end()``, and as long as that is far away it rests
    after each window for as long as the window took, until ``stopping``, so that it takes half a processor at most.

    A fold that has failed refuses all further use, since its state is undefined.
    """

    def __init__(self, fold: Fold, end: Callable[[], int], stopping: threading.Event) -> None:
        self._fold: Fold | None = fold
        self._end = end
        self._stopping = stopping
        self._failure: BaseException | None = None

    @property
    def state_version(self) -> int:
        return self._present().state_version

    def restore(self, checkpoint: Checkpoint) -> None:
        self._present().restore(checkpoint)

    def advance(self, position: int, max_rows: int) -> Step:
        left = self._end() - position
        began = time.monotonic()
        try:
            step = self._present().advance(position, max(1, min(max_rows, left)))
        except BaseException as error:
            self._failure = error
            raise
        if left > NEAR_ROWS:
            self._stopping.wait(time.monotonic() - began)
        return step

    def export(self) -> bytes:
        return self._present().export()

    def handed_over(self) -> Fold:
        """The fold itself, for another lane to go on with. Nothing is left here to close."""
        fold, self._fold = self._present(), None
        return fold

    def close(self) -> None:
        if self._fold is not None:
            self._fold.close()

    def _present(self) -> Fold:
        if self._failure is not None:
            raise self._failure
        assert self._fold is not None, "it was handed over"
        return self._fold


class Met(NamedTuple):
    """Both lanes at one position, all below it durable. ``rebuilt`` has the state, ``kept`` the other lane's right to
    write; ``began`` is when that one stopped for this, on the monotonic clock."""

    began: float
    fold: Fold
    kept: Checkpoint
    rebuilt: Checkpoint


def meet(side: Lane, lane: Lane, seconds: float, act: Callable[[Met], Fold]) -> Future[int]:
    """Hold ``side`` and the ``lane`` that it follows at one position and do ``act`` on the thread of ``lane``, which
    goes on with the fold that it gives; the position.

    ``lane`` stands still for what it has taken in since ``side`` was last where it is. Whatever the future raises,
    ``lane`` goes on with its own fold: `NotMetError`, or what ``act`` or a fold has raised. ``seconds`` is how long a
    batch of ``lane`` may take.

    :raises LaneEndedError: when either is over; the future raises it when one ends first.
    """

    def join(fold: Fold) -> Fold:
        if lane.position < side.position:
            raise NotMetError(f"lane {lane.name!r} is behind {side.name!r}")
        side.settle(fold, lane.position)
        _together(side, fold, lane, seconds, act)
        return fold

    return side.between(join)


def _together(side: Lane, fold: Fold, lane: Lane, seconds: float, act: Callable[[Met], Fold]) -> None:
    """On the thread of ``side``, whose ``fold`` is up to where ``lane`` was a moment ago."""
    kept: Future[Checkpoint] = Future()
    rebuilt: Future[Checkpoint] = Future()

    def hold(held: Fold) -> Fold:
        began = time.monotonic()
        kept.set_result(lane.settle(held))
        try:
            found = rebuilt.result(PATIENCE)
        except TimeoutError:
            raise NotMetError(f"{side.name!r} did not come up with lane {lane.name!r} in {PATIENCE:g} s") from None
        return act(Met(began, held, kept.result(), found))

    holding = lane.between(hold)
    holding.add_done_callback(lambda _: _unreached(kept, holding))
    try:
        at = _result(kept, holding, seconds, lane)
        done = side.settle(fold, at.position)
        if done.position != at.position:
            raise NotMetError(f"position {at.position} is inside a batch, which is read as a whole")
        rebuilt.set_result(
            msgspec.structs.replace(done, state=fold.export(), state_version=fold.state_version, events=side.events)
        )
    except BaseException as error:
        if not rebuilt.done():
            rebuilt.set_exception(error)
        raise
    holding.result()


def _unreached(kept: Future[Checkpoint], holding: Future[int]) -> None:
    if not kept.done():
        error = None if holding.cancelled() else holding.exception()
        kept.set_exception(error or NotMetError("it was given up"))


def _result(kept: Future[Checkpoint], holding: Future[int], seconds: float, lane: Lane) -> Checkpoint:
    try:
        return kept.result(seconds)
    except TimeoutError:
        if kept.done():
            raise
        if holding.cancel():
            raise NotMetError(f"lane {lane.name!r} came to no end of a batch in {seconds:g} s") from None
        return kept.result(seconds)
