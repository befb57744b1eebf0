"""The acknowledgement path (DESIGN §5): one way in for every protocol, and 2xx only for what is on disk.

    bytes -> decode -> group (one per tenant and source and turn of the loop) -> check -> drop duplicates -> enrich
          -> committer -> outcome of each request

Requests that arrive in the same turn of the event loop share one `Group`, so the fixed cost of columns, hashes and
frames is paid once for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from analytics_core.config import Intake as IntakeSettings
from analytics_core.errors import BodyTooLargeError, OverloadedError, RejectedError
from analytics_core.events import Event, EventBatch, clock_skew, micros
from analytics_core.intake.committer import Committer
from analytics_core.intake.decode import Decoded, decode, inflate
from analytics_core.intake.group import Group, Ids, Submission
from analytics_core.log import EventLog
from analytics_core.log.dedup import Deduplicator
from analytics_core.records import Outcome

_INFLATE_ON_LOOP = 1 << 16
_GROUP_EVENTS = 16_384


class Enricher(Protocol):
    """What intake needs of the plugin host."""

    def enriches(self) -> bool: ...

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, npt.NDArray[np.bool_] | None]: ...


class Intake:
    """Accepts events for any tenant. Lives on one event loop; `start` and `stop` frame its committer thread."""

    def __init__(
        self,
        settings: IntakeSettings,
        log: EventLog,
        dedup: Deduplicator,
        enricher: Enricher,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._log = log
        self._dedup = dedup
        self._enricher = enricher
        self._clock = clock
        self._committer = Committer(log, clock)
        self._ids = Ids()
        self._open: dict[tuple[str, str], list[Submission]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued_bytes = 0
        self._last_received = 0
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
        await asyncio.to_thread(self._committer.stop)

    async def accept(
        self,
        body: bytes,
        *,
        tenant: str,
        content_type: str = "application/json",
        content_encoding: str = "",
        idempotency_key: str | None = None,
    ) -> Outcome:
        """One native request: bytes in, durable, outcome out.

        :raises RequestError: for a body that cannot be read, is too large, or holds no good event; nothing is stored.
        :raises OverloadedError: when the queue or the disk is full, or a write failed; nothing is stored.
        """
        if len(body) > self._settings.max_body_bytes:
            raise BodyTooLargeError(self._settings.max_body_bytes, inflated=False)
        with self._room_for(len(body)):
            inflated = await self._inflate(body, content_encoding) if content_encoding else body
            with self._room_for(len(inflated) - len(body)):
                return await self._submit(decode(inflated, content_type), tenant, "native", idempotency_key)

    async def accept_events(
        self, events: Sequence[Event], *, tenant: str, source: str, sent_at: int | None = None
    ) -> Outcome:
        """Events that another protocol's adapter has read; the same path, bounds and errors as `accept`."""
        size = sum(len(e.properties) + len(e.context) for e in events)
        with self._room_for(size):
            return await self._submit(Decoded(list(events), range(len(events)), [], sent_at), tenant, source, None)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        if self._queued_bytes + size > self._settings.queue_bytes:
            raise OverloadedError(f"the ingest queue is full ({self._settings.queue_bytes} bytes)")
        self._queued_bytes += size
        try:
            yield
        finally:
            self._queued_bytes -= size

    async def _inflate(self, body: bytes, encoding: str) -> bytes:
        limit = self._settings.max_inflated_bytes
        if len(body) <= _INFLATE_ON_LOOP:
            return inflate(body, encoding, limit)
        return await asyncio.to_thread(inflate, body, encoding, limit)

    async def _submit(self, decoded: Decoded, tenant: str, source: str, idempotency_key: str | None) -> Outcome:
        started = time.perf_counter()
        received_at = self._received_at()
        shift = clock_skew(decoded.sent_at, received_at) if decoded.sent_at is not None else 0
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

    def _received_at(self) -> int:
        """The wall clock, never going back: the log's order of receipt survives a clock that does."""
        self._last_received = max(self._last_received, micros(self._clock()))
        return self._last_received

    def _join_group(self, submission: Submission, tenant: str, source: str) -> None:
        if not self._open:
            asyncio.get_running_loop().call_soon(self._close_groups)
        self._open.setdefault((tenant, source), []).append(submission)

    def _close_groups(self) -> None:
        opened, self._open = self._open, {}
        for (tenant, source), submissions in opened.items():
            for part in _parts(submissions):
                group = Group(part, tenant, source, self._settings.max_event_bytes, self._ids)
                self.clamped += group.clamped
                task = asyncio.ensure_future(group.run(self._dedup, self._enricher, self._committer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)


def _parts(submissions: list[Submission]) -> Iterator[list[Submission]]:
    """Cut what came in one turn so that no group is much over `_GROUP_EVENTS`."""
    part: list[Submission] = []
    size = 0
    for submission in submissions:
        part.append(submission)
        size += len(submission.decoded.events)
        if size >= _GROUP_EVENTS:
            yield part
            part, size = [], 0
    if part:
        yield part
