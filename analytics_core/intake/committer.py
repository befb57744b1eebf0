"""The one thread that writes the log: everything that waits goes out in one write and one fdatasync."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime

import pyarrow as pa
import structlog

from analytics_core.errors import AnalyticsError, LogWriteError
from analytics_core.events import moment
from analytics_core.log import EventLog, Prepared

_log = structlog.get_logger("intake")
IDLE_SECONDS = 1.0


class Committer:
    """Takes batches from the event loop, makes them durable in order, and settles each one's future.

    When nothing comes for a second it writes the watermark, so that folds see time pass on a quiet log. It is never
    later than ``oldest()``, the receipt of the oldest event that is still on its way here, microseconds.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        oldest: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._oldest = oldest
        self._waiting: queue.SimpleQueue[tuple[Prepared, Future[int]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self.commit_seconds = 0.0
        """How long the last group's write and fdatasync took."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, then end."""
        self._waiting.put(None)
        self._thread.join()

    def submit(self, batch: pa.RecordBatch) -> Future[int]:
        """Queue an `UNPLACED_SCHEMA` batch; the future gives its first ``seq`` once durable, or the log's error.

        It is prepared here, so that the committer has little to ask of the interpreter between two writes.
        """
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()  # what is queued is written: nobody can take it back
        self._waiting.put((self._log.prepare(batch), future))
        return future

    def _run(self) -> None:
        while True:
            group, last = self._next_group()
            if group:
                self._commit(group)
            elif not last:
                self._tick()
            if last:
                return

    def _next_group(self) -> tuple[list[tuple[Prepared, Future[int]]], bool]:
        """All that is waiting, or nothing after a quiet second; and whether this is the end."""
        group = []
        try:
            item = self._waiting.get(timeout=IDLE_SECONDS)
            while item is not None:
                group.append(item)
                item = self._waiting.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _commit(self, group: Sequence[tuple[Prepared, Future[int]]]) -> None:
        started = time.perf_counter()
        try:
            positions = self._log.append([batch for batch, _ in group], self._clock())
        except AnalyticsError as error:
            _log.warning("commit_refused", batches=len(group), error=str(error))
            for _, future in group:
                future.set_exception(error)
        except Exception as error:
            _log.exception("commit_failed", batches=len(group))
            for _, future in group:
                future.set_exception(LogWriteError("the log", error))
        else:
            self.commit_seconds = time.perf_counter() - started
            for (_, future), position in zip(group, positions, strict=True):
                future.set_result(position)

    def _tick(self) -> None:
        now, oldest = self._clock(), self._oldest()
        try:
            self._log.append([], now if oldest is None else min(now, moment(oldest)))
        except AnalyticsError as error:
            _log.warning("watermark_not_written", error=str(error))
