"""A lane: one consumer of the log with its own cursor, checkpoint and thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import blake2b
from typing import Final

import msgspec
import structlog

from analytics_core.config import Lanes as Pace
from analytics_core.errors import AnalyticsError, FencedError, LaneEndedError, StorageError
from analytics_core.lanes import LaneView
from analytics_core.lanes.fold import Fold, Pulse, Step
from analytics_core.lanes.outputs import Pending
from analytics_core.log import LogReader
from analytics_core.state import Checkpoint, StateStore

WINDOW_ROWS: Final = 65_536
_GATHER_SECONDS: Final = 0.25
"""A lane's results go out with its checkpoint, so it may let events gather: a fold costs by the call, not the event."""
_GATHER_ROWS: Final = 16_384
_WAIT_SECONDS: Final = 0.25
"""How soon an idle lane sees that it is to stop."""
_IDLE_COMMITS: Final = 12
"""A lane in which nothing changes keeps its cursor once in so many checkpoint intervals."""
PENDING_MOST: Final = 50_000
"""Outputs that may wait for a commit. With more a lane commits early, and reads no further while that is refused."""

_log = structlog.get_logger(__name__)

Action = Callable[[Fold], Fold]
"""What is to be done with a lane's fold between two batches; the fold that it gives goes on."""


class Lane:
    """Drives one `Fold` from its checkpoint on, until it is stopped, fenced or failed.

    Each commit is one transaction of state, position, outputs and outbox, so a lane that starts again, here or after
    ``kill -9``, counts nothing twice and misses nothing. A lane runs once; for another attempt make another.

    ``open_fold`` is called on the lane's thread after the lane was claimed: from then on no earlier lane of this name
    can write. ``on_running`` is told once when the state is restored, ``on_commit`` each durable position. ``pulse``
    says what the lane is in.
    """

    def __init__(
        self,
        name: str,
        open_fold: Callable[[], Fold],
        log: LogReader,
        store: StateStore,
        pace: Pace,
        *,
        pulse: Pulse | None = None,
        on_running: Callable[[], None] = lambda: None,
        on_commit: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.pulse = pulse or Pulse()
        self.position = 0
        self.events = 0
        self.state = "starting"
        self.reason = ""
        self._open_fold = open_fold
        self._log = log
        self._store = store
        self._pace = pace
        self._on_running = on_running
        self._on_commit = on_commit
        self._stopping = threading.Event()
        self._nudged = threading.Event()
        self._asking = threading.Lock()
        self._asked: deque[tuple[Action, Future[int]]] = deque()
        self._answering: Future[int] | None = None
        self._over = False
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self._pending = Pending(name)
        self._checkpoint = Checkpoint(lane=name, epoch=0, position=0)
        self._digest = b""
        self._changed = True
        self._refused = False
        self._committed_at = time.monotonic()
        self._turned_at = 0.0

    def start(self) -> None:
        """Run on a thread of its own."""
        self._thread = threading.Thread(target=self._run_logged, name=f"lane:{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for a last commit and the end. Returns at once; `join` waits."""
        self._stopping.set()
        self._nudged.set()

    def abandon(self) -> None:
        """Whatever the thread is stuck in: it is to write nothing more, and to end when it wakes."""
        self._abandoned = True
        self._stopping.set()
        self._nudged.set()
        self._answer_nobody()

    def between(self, action: Action) -> Future[int]:
        """Have ``action`` done on the lane's thread between two batches, after those that were asked for before.

        The future gives the position at which that was, or what ``action`` raised: the fold is then still the same. It
        may be cancelled as long as it waits. When the lane is abandoned while it is at the action, the future raises
        at once, and the fold that the action may still give is closed.

        :raises LaneEndedError: when the lane is over; the future raises it when the lane ends first.
        """
        future: Future[int] = Future()
        with self._asking:
            if self._over:
                raise LaneEndedError(self.name)
            self._asked.append((action, future))
        self._nudged.set()
        return future

    def settle(self, fold: Fold, position: int = 0) -> Checkpoint:
        """For an action of `between`: fold on up to ``position`` when that is ahead, and commit; what is durable now.

        :raises StorageError: when the commit fails; all that waits is kept for the next.
        """
        while self.position < position:
            self._take(fold.advance(self.position, min(WINDOW_ROWS, position - self.position)))
        if self.position > self._checkpoint.position:
            self._commit(fold)
        return self._checkpoint

    @property
    def committed(self) -> int | None:
        """The position up to which results and state are durable; None before the lane is claimed."""
        return self._checkpoint.position if self._checkpoint.epoch else None

    def sample(self, position: int, rows: int) -> int:
        """Where to read about ``rows`` events: from ``position`` on when there are any, else those before it."""
        return position if self._log.durable > position else max(min(self._log.first, position), position - rows)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread; whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def view(self) -> LaneView:
        lag = max(0, self._log.durable - self.position)
        return LaneView(self.name, self.state, self.position, lag, self.events, self.reason)

    def run(self) -> None:
        """The lane's whole life on the calling thread. Returns when stopped or fenced.

        :raises AnalyticsError: what ended it; the last commit holds, so a new lane goes on from there.
        """
        fold: Fold | None = None
        try:
            self._claim()
            fold = self._open_fold()
            fold.restore(self._checkpoint)
            self._checkpoint = msgspec.structs.replace(self._checkpoint, state=None)  # the fold has it now
            self.state = "running"
            self._on_running()
            while not self._stopping.is_set():
                fold = self._between(fold)
                if not self._stopping.is_set():
                    self._turn(fold)
            if not self._abandoned and self.position > self._checkpoint.position:
                self._commit(fold)
            self.state = "stopped"
        except FencedError:
            self.state = "fenced"
            _log.info("lane_replaced", lane=self.name, epoch=self._checkpoint.epoch)
        except BaseException as error:
            self.state, self.reason = "failed", str(error)
            raise
        finally:
            self.pulse.beat("")
            self._answer_nobody()
            if fold is not None:
                self._close(fold)

    def _close(self, fold: Fold) -> None:
        try:
            fold.close()
        except AnalyticsError as error:  # what ended the lane matters more than how its end went
            _log.warning("teardown_failed", lane=self.name, problem=str(error))

    def _run_logged(self) -> None:
        try:
            self.run()
        except Exception:
            _log.exception("lane_failed", lane=self.name, position=self.position)

    def _claim(self) -> None:
        self._checkpoint = self._store.claim(self.name)
        self.position = self._checkpoint.position
        self.events = self._checkpoint.events
        self._digest = _digest(self._checkpoint.state, self._checkpoint.state_version)
        self._committed_at = time.monotonic()

    def _between(self, fold: Fold) -> Fold:
        self._nudged.clear()
        while (asked := self._next_action()) is not None:
            action, future = asked
            try:
                after = action(fold)
            except BaseException as error:
                self._answer(future, error)
                continue
            if self._answer(future, None):
                if after is not fold:
                    self._changed, self._digest = True, b""
                fold = after
            elif after is not fold:
                self._close(after)
        return fold

    def _next_action(self) -> tuple[Action, Future[int]] | None:
        with self._asking:
            while self._asked:
                action, future = self._asked.popleft()
                if future.set_running_or_notify_cancel():
                    self._answering = future
                    return action, future
        return None

    def _answer(self, future: Future[int], error: BaseException | None) -> bool:
        """Whether the answer still counts: nobody waits for that of an abandoned lane."""
        with self._asking:
            self._answering = None
            if future.done():
                return False
            if error is None:
                future.set_result(self.position)
            else:
                future.set_exception(error)
            return True

    def _answer_nobody(self) -> None:
        with self._asking:
            self._over = True
            futures = [future for _, future in self._asked if future.set_running_or_notify_cancel()]
            if self._answering is not None and not self._answering.done():
                futures.append(self._answering)
            self._asked.clear()
            for future in futures:
                future.set_exception(LaneEndedError(self.name))

    def _turn(self, fold: Fold) -> None:
        """One window if there is one, and a commit when it is due."""
        if self._refused and len(self._pending) >= PENDING_MOST:
            self._stopping.wait(min(_WAIT_SECONDS, self._pace.checkpoint_seconds))
        else:
            self._read_on(fold)
        if self._due():
            self._try_commit(fold)

    def _read_on(self, fold: Fold) -> None:
        durable = self._log.wait(self.position, min(_WAIT_SECONDS, self._pace.checkpoint_seconds))
        if durable - self.position < _GATHER_ROWS:
            gather = min(_GATHER_SECONDS, self._pace.checkpoint_seconds)
            self._nudged.wait(max(0.0, self._turned_at + gather - time.monotonic()))
        self._turned_at = time.monotonic()
        if durable > self.position and not self._nudged.is_set():
            self._take(fold.advance(self.position, WINDOW_ROWS))

    def _try_commit(self, fold: Fold) -> None:
        try:
            self._commit(fold)
            self.reason = ""
        except FencedError:
            raise
        except (StorageError, OSError) as error:  # the store's trouble: all that waits is kept for the next try
            self._refused = True
            waits = len(self._pending)
            held = f"; {waits} outputs wait, so it reads no further" if waits >= PENDING_MOST else ""
            self.reason = f"the checkpoint could not be written: {error}{held}"
            self._committed_at = time.monotonic()
            _log.error("checkpoint_failed", lane=self.name, position=self.position, waiting=waits, problem=str(error))

    def _take(self, step: Step) -> None:
        self.position = step.position
        self.events += step.events
        for tenant, result in step.results:
            self._pending.add(tenant, result)
        if step.events or step.erased or len(self._pending):
            self._changed = True

    def _due(self) -> bool:
        if self.position == self._checkpoint.position:
            return False
        waited = time.monotonic() - self._committed_at
        if not self._changed:
            return waited >= self._pace.checkpoint_seconds * _IDLE_COMMITS
        if self._refused:
            return waited >= self._pace.checkpoint_seconds
        return (
            waited >= self._pace.checkpoint_seconds
            or self.events - self._checkpoint.events >= self._pace.checkpoint_events
            or len(self._pending) >= PENDING_MOST
        )

    def _commit(self, fold: Fold) -> None:
        """State, position, outputs and outbox in one transaction. An unchanged state is not written again."""
        state = fold.export()
        digest = _digest(state, fold.state_version)
        unchanged = digest == self._digest
        checkpoint = Checkpoint(
            lane=self.name,
            epoch=self._checkpoint.epoch,
            position=self.position,
            state=None if unchanged else state,
            state_version=fold.state_version,
            events=self.events,
        )
        self._store.commit(checkpoint, self._pending.outputs(), self._pending.messages())
        self._pending.committed()
        self._checkpoint = msgspec.structs.replace(checkpoint, state=None)
        self._digest = digest
        self._changed = self._refused = False
        self._committed_at = time.monotonic()
        self._on_commit(self.position)


def _digest(state: bytes | None, version: int) -> bytes:
    return blake2b(state, digest_size=16, salt=version.to_bytes(8, "big")).digest() if state is not None else b""
