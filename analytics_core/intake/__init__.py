"""The acknowledgement path (DESIGN §5): one way in for every protocol, and 2xx only for what is on disk.

    bytes -> decode -> group -> check -> drop duplicates -> enrich -> committer -> outcome of each request

Requests of one tenant and source share a `Group`, so the fixed cost of columns, hashes and frames is paid once for all
of them. A quiet host groups what came in the same turn of the loop; while one group is under way, what arrives is
decoded and waits for the next, so that groups grow with the load and nobody waits on an idle host.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from analytics_core.config import Intake as IntakeSettings
from analytics_core.errors import BodyTooLargeError, OverloadedError, ParameterError, RejectedError
from analytics_core.events import Event, EventBatch, micros
from analytics_core.events.times import clock_skew
from analytics_core.intake.committer import Committer
from analytics_core.intake.decode import Decoded, decode, inflate, recheck
from analytics_core.intake.group import Group, Ids, Submission, Way
from analytics_core.log import EventLog
from analytics_core.log.dedup import Deduplicator
from analytics_core.records import Outcome

_INFLATE_ON_LOOP = 1 << 12
_USUAL_RATIO = 8
"""How much larger an inflated body is taken to be until it is known."""
_GROUP_EVENTS = 16_384
_MAX_KEY = 255
TellDuplicates = Callable[[str, int, int], None]
"""Is told once for each group: tenant, time of receipt (microseconds UTC), how many. It neither blocks nor raises."""


class Enricher(Protocol):
    """What intake needs of the plugin host."""

    def enriches(self) -> bool: ...

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, npt.NDArray[np.bool_] | None]: ...


class Intake:
    """Accepts events for any tenant. Lives on one event loop; `start` and `stop` frame its committer thread.

    ``tell_duplicates`` is told of what was received before, of clients that went away too.
    """

    def __init__(
        self,
        settings: IntakeSettings,
        log: EventLog,
        dedup: Deduplicator,
        enricher: Enricher,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        tell_duplicates: TellDuplicates = lambda _, __, ___: None,
    ) -> None:
        self.settings = settings
        self._log = log
        self._clock = clock
        self._tell_duplicates = tell_duplicates
        self._committer = Committer(log, clock, self._oldest_receipt)
        self._way = Way(dedup, enricher, self._committer)
        self._ids = Ids()
        self._inflaters = ThreadPoolExecutor(2, thread_name_prefix="inflate")
        self._open: dict[tuple[str, str], deque[Submission]] = {}
        self._under_way: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.queued_bytes = 0
        self._last_received = micros(clock())
        self._in_flight: dict[int, int] = {}
        """By request: no event of it was received before (microseconds)."""
        self._arrived = 0
        self.accepted = 0
        self.duplicates = 0
        self.rejected = 0
        self.clamped = 0
        self.seconds = 0.0
        """Sum over requests of the time from arrival to acknowledgement."""
        self.requests = 0

    def start(self) -> None:
        self._committer.start()

    async def stop(self) -> None:
        """Acknowledge what is under way, then end the committer."""
        while self._open or self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)
        self._committer.stop()
        self._inflaters.shutdown(wait=False)

    async def accept(
        self,
        body: bytes,
        *,
        tenant: str,
        content_type: str = "application/json",
        content_encoding: str = "",
        idempotency_key: str | None = None,
    ) -> Outcome:
        """One native request: bytes in, durable, outcome out. The caller holds `room_for` the body.

        :raises RequestError: for a body that cannot be read, is too large, or holds no good event; nothing is stored.
        :raises OverloadedError: when the queue or the disk is full, or a write failed; nothing is stored.
        """
        if len(body) > self.settings.max_body_bytes:
            raise BodyTooLargeError(self.settings.max_body_bytes, inflated=False)
        if idempotency_key is not None:
            _check_key(idempotency_key)
        if not content_encoding:
            return await self._submit(decode(body, content_type), tenant, "native", idempotency_key)
        expected = min(len(body) * _USUAL_RATIO, self.settings.max_inflated_bytes)
        with self.room_for(expected):
            inflated = await self._inflate(body, content_encoding)
            with self.room_for(max(0, len(inflated) - expected)):
                return await self._submit(decode(inflated, content_type), tenant, "native", idempotency_key)

    async def accept_events(
        self, events: Sequence[Event], *, tenant: str, source: str, sent_at: int | None = None
    ) -> Outcome:
        """Events that another protocol's adapter has read; the same path, bounds and errors as `accept`."""
        if not events:
            return Outcome()
        decoded = recheck(events)
        decoded.sent_at = sent_at
        return await self._submit(decoded, tenant, source, None)

    @property
    def commit_seconds(self) -> float:
        """How long the last write and fdatasync took."""
        return self._committer.commit_seconds

    def room_for(self, size: int) -> Room:
        """A context that holds ``size`` bytes of the bounded queue: from before a body is read until its answer.

        Entering it raises OverloadedError when there is no room.
        """
        return Room(self, size)

    async def _inflate(self, body: bytes, encoding: str) -> bytes:
        limit = self.settings.max_inflated_bytes
        if len(body) <= _INFLATE_ON_LOOP:
            return inflate(body, encoding, limit)
        return await asyncio.get_running_loop().run_in_executor(self._inflaters, inflate, body, encoding, limit)

    async def _submit(self, decoded: Decoded, tenant: str, source: str, idempotency_key: str | None) -> Outcome:
        self._arrived += 1
        number = self._arrived
        self._in_flight[number] = self._last_received  # before the clock is read: no watermark may come in between
        try:
            return await self._take(decoded, tenant, source, idempotency_key, number)
        finally:
            del self._in_flight[number]

    async def _take(
        self, decoded: Decoded, tenant: str, source: str, idempotency_key: str | None, number: int
    ) -> Outcome:
        started = time.perf_counter()
        now = micros(self._clock())
        self._last_received = received_at = max(self._last_received, now)  # the order of receipt never goes back
        self._in_flight[number] = received_at
        shift = clock_skew(decoded.sent_at, now) if decoded.sent_at is not None else 0
        submission = Submission(
            decoded, received_at, shift, idempotency_key, asyncio.get_running_loop().create_future()
        )
        if decoded.events:
            self._join_group(submission, tenant, source)
            await submission.settled
        self.requests += 1
        self.seconds += time.perf_counter() - started
        self.accepted += submission.accepted
        self.duplicates += submission.duplicates
        self.rejected += len(decoded.bad)
        if decoded.bad and not submission.accepted and not submission.duplicates:
            raise RejectedError([{"index": e.index, "field": e.field, "message": e.message} for e in decoded.bad])
        return submission.outcome(self._log.durable)

    def _oldest_receipt(self) -> int | None:
        """Of what is on its way to the committer; it asks from its own thread."""
        return min(list(self._in_flight.values()), default=None)

    def _join_group(self, submission: Submission, tenant: str, source: str) -> None:
        key = (tenant, source)
        waiting = self._open.get(key)
        if waiting is None:
            waiting = self._open[key] = deque()
            if key not in self._under_way:
                asyncio.get_running_loop().call_soon(self._close_group, key)
        waiting.append(submission)

    def _close_group(self, key: tuple[str, str]) -> None:
        """Send off what waits under ``key``, up to about `_GROUP_EVENTS`; the rest goes with the next group."""
        waiting = self._open.get(key)
        if not waiting or key in self._under_way:
            return
        submissions = []
        size = 0
        while waiting and size < _GROUP_EVENTS:
            submissions.append(waiting.popleft())
            size += len(submissions[-1].decoded.events)
        if not waiting:
            del self._open[key]
        group = Group(submissions, *key, self.settings.max_event_bytes, self._ids)
        self._under_way.add(key)
        task = asyncio.ensure_future(group.run(self._way))
        self._tasks.add(task)
        task.add_done_callback(partial(self._group_done, key, group))

    def _group_done(self, key: tuple[str, str], group: Group, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.clamped += group.clamped
        if group.duplicates:
            self._tell_duplicates(key[0], group.received_at, group.duplicates)
        self._under_way.discard(key)
        self._close_group(key)


class Room:
    """Bytes of the queue that are held while the context is open."""

    __slots__ = ("_intake", "_size")

    def __init__(self, intake: Intake, size: int) -> None:
        self._intake = intake
        self._size = size

    def __enter__(self) -> None:
        intake = self._intake
        if intake.queued_bytes + self._size > intake.settings.queue_bytes:
            raise OverloadedError(f"the ingest queue is full ({intake.settings.queue_bytes} bytes)")
        intake.queued_bytes += self._size

    def __exit__(self, *_: object) -> None:
        self._intake.queued_bytes -= self._size


def _check_key(key: str) -> None:
    if not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise ParameterError("Idempotency-Key", f"must be 1 to {_MAX_KEY} printable ASCII characters")
