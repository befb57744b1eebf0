"""One group: the events of all requests of one tenant and source that have gathered since the group before it.

A row is one event; ``owner[row]`` is the request it came with, so each request gets its own counts and errors back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog
from msgspec import Raw

from analytics_core.errors import AnalyticsError, LogWriteError
from analytics_core.events import UNPLACED_SCHEMA, Event, EventBatch, FieldError, moment, placed
from analytics_core.events.columns import Columns, all_are, unplaced
from analytics_core.events.times import read_times
from analytics_core.intake.checks import Errors, id_texts, json_objects, name_words
from analytics_core.intake.committer import Committer
from analytics_core.intake.decode import Decoded
from analytics_core.log.dedup import Deduplicator, Pending
from analytics_core.records import Outcome

if TYPE_CHECKING:
    from analytics_core.intake import Enricher

_log = structlog.get_logger("intake")
Int64s = npt.NDArray[np.int64]
"""Shape ``(n,)``: one for each row."""


class Submission:
    """One request on its way: what it brought, and what became of it so far."""

    __slots__ = (
        "accepted",
        "decoded",
        "deduplicated",
        "duplicates",
        "idempotency_key",
        "received_at",
        "seq",
        "settled",
        "shift",
    )

    def __init__(
        self,
        decoded: Decoded,
        received_at: int,
        shift: int,
        idempotency_key: str | None,
        settled: asyncio.Future[None],
    ) -> None:
        self.decoded = decoded
        self.received_at = received_at
        self.shift = shift
        self.idempotency_key = idempotency_key
        self.settled = settled
        self.accepted = 0
        self.duplicates = 0
        self.deduplicated: Literal["messageId", "idempotencyKey", "none"] = "messageId"
        """By what its events are counted once."""
        self.seq: int | None = None

    def reject(self, row: int, field: str, message: str) -> None:
        """``row`` counts the request's decoded events from 0."""
        self.decoded.bad.append(FieldError(self.decoded.index[row], field, message))

    def outcome(self, durable: int) -> Outcome:
        """``durable``: the log's position now, below which what the duplicates repeat is to be found."""
        seq = durable - 1 if self.duplicates or self.seq is None else self.seq
        return Outcome(
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected=sorted(self.decoded.bad, key=lambda e: e.index),
            deduplicated=self.deduplicated,
            seq=seq if seq >= 0 else None,
        )


class Ids:
    """Fresh event ids: 128 random bits as 32 hex digits, cut from one random block per group."""

    def take(self, count: int) -> list[str]:
        block = os.urandom(16 * count).hex()
        return [block[at : at + 32] for at in range(0, 32 * count, 32)]


class Rows(NamedTuple):
    """Events as columns, which rows of the group they are, and which submission each belongs to, all in one order."""

    batch: pa.RecordBatch
    row: Int64s
    owner: Int64s

    def where(self, mask: npt.NDArray[np.bool_]) -> Rows:
        if mask.all():
            return self
        return Rows(self.batch.filter(pa.array(mask)), self.row[mask], self.owner[mask])


class Way(NamedTuple):
    """What a group passes on its way to the log."""

    dedup: Deduplicator
    enricher: Enricher
    committer: Committer


class Group:
    """`run` checks the rows, drops duplicates, enriches, commits, and settles every submission whatever happens."""

    def __init__(
        self, submissions: Sequence[Submission], tenant: str, source: str, max_event_bytes: int, ids: Ids
    ) -> None:
        self._submissions = submissions
        self._tenant = tenant
        self._source = source
        self._max_event_bytes = max_event_bytes
        self._ids = ids
        self.received_at = submissions[0].received_at
        self.clamped = 0
        """How many events said to be from the far future."""
        self.duplicates = 0

    def _checked(self) -> Rows:
        """The good rows; the others are told to their submissions."""
        counts = [len(s.decoded.events) for s in self._submissions]
        self._starts = list(accumulate(counts, initial=0))
        owner = np.arange(len(counts)).repeat(counts)
        columns = Columns.of(_flatten(self._submissions))
        received = np.array([s.received_at for s in self._submissions], np.int64)[owner]
        columns.message_id = self._event_ids(columns.message_id, owner)
        errors: Errors = {}
        at = self._times(columns, received, owner, errors)
        batch = unplaced(
            tenant=self._tenant,
            source=self._source,
            at=at,
            received_at=received,
            properties=json_objects("properties", columns.properties, self._max_event_bytes, errors),
            context=json_objects("context", columns.context, self._max_event_bytes, errors),
            names=name_words(columns.name, errors),
            ids=id_texts(columns, errors),
        )
        rows = Rows(batch, np.arange(len(owner)), owner)
        if not errors:
            return rows
        for row, (field, message) in errors.items():
            self._reject(row, owner[row], field, message)
        good = np.ones(len(owner), np.bool_)
        good[list(errors)] = False
        return rows.where(good)

    def _times(self, columns: Columns, received: Int64s, owner: Int64s, errors: Errors) -> Int64s:
        """Checked timestamps, microseconds UTC; where they are changed, contexts keep the client's own."""
        if all_are(columns.timestamp, None):
            return received
        shift = np.array([s.shift for s in self._submissions], np.int64)[owner]
        times = read_times(columns.timestamp, received, shift if shift.any() else None)
        errors.update((row, ("timestamp", text)) for row, text in times.errors.items())
        self.clamped = int(times.clamped.sum())
        changed = times.clamped | (shift != 0)
        if changed.any():
            columns.context = _with_original(columns, np.flatnonzero(changed).tolist())
        return times.at

    def _event_ids(self, given: Sequence[str | None], owner: Int64s) -> Sequence[str | None]:
        if all(given):
            return given
        missing = [row for row, value in enumerate(given) if not value]
        fresh = self._ids.take(len(missing))
        filled = list(given)
        for row, made in zip(missing, fresh, strict=True):
            submission = self._submissions[owner[row]]
            key = submission.idempotency_key
            submission.deduplicated = "idempotencyKey" if key else "none"
            local = int(row - self._starts[owner[row]])
            filled[row] = f"{key}:{submission.decoded.index[local]}" if key else made
        return filled

    def _reject(self, row: int, owner: int, field: str, message: str) -> None:
        self._submissions[owner].reject(int(row - self._starts[owner]), field, message)

    async def run(self, way: Way) -> None:
        """Settle every submission: with its counts, or with the error that kept its rows out of the log."""
        failure: Exception | None = None
        try:
            await self._store(self._checked(), way)
        except AnalyticsError as error:
            failure = error
        except BaseException as error:
            _log.exception("group_failed", tenant=self._tenant)
            failure = LogWriteError("the log", error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._settle(failure)

    def _settle(self, failure: Exception | None) -> None:
        for submission in self._submissions:
            if submission.settled.done():  # its client has gone
                continue
            if failure is None:
                submission.settled.set_result(None)
            else:
                submission.settled.set_exception(failure)

    async def _store(self, rows: Rows, way: Way) -> None:
        """Commit the rows that are new. Rows whose id is still on its way with another group wait for its outcome and
        are then looked at again: stored means duplicate, failed means new."""
        if not len(rows.row):
            return
        admission = way.dedup.admit(way.dedup.hashes(self._tenant, rows.batch.column("event_id")))
        if admission.pending is not None:
            await self._commit(rows.where(admission.new), admission.pending, way)
        if admission.new.all():
            return
        others = rows.where(~admission.new)
        if admission.waits:
            outcomes = (asyncio.wrap_future(pending.future) for pending in admission.waits)
            await asyncio.gather(*outcomes, return_exceptions=True)
            await self._store(others, way)
        else:
            self.duplicates += len(others.row)
            for submission, count in self._shares(others.owner):
                submission.duplicates += count

    async def _commit(self, rows: Rows, pending: Pending, way: Way) -> None:
        try:
            if way.enricher.enriches():
                rows, pending = await self._enrich(rows, pending, way)
            if not len(rows.row):
                return
            first = await asyncio.wrap_future(way.committer.submit(rows.batch))
        except BaseException as error:
            if not pending.future.done():
                way.dedup.fail(pending, error)
            raise
        way.dedup.commit(pending, first)
        end = first
        for submission, count in self._shares(rows.owner):
            end += count
            submission.accepted += count
            submission.seq = end - 1

    async def _enrich(self, rows: Rows, pending: Pending, way: Way) -> tuple[Rows, Pending]:
        """The rows as the enrich plugins leave them, without those that they drop; and what is pending now.

        What was dropped will not be in the log, so its ids are made new again. Nobody else can come in between: who
        waits for ``pending`` runs in a later turn of the loop.
        """
        now = moment(self._submissions[0].received_at)
        enriched, dropped = await way.enricher.enrich(EventBatch(placed(rows.batch, 0), self._tenant, now))
        rows = rows._replace(batch=enriched.record_batch.select(UNPLACED_SCHEMA.names).cast(UNPLACED_SCHEMA))
        if dropped is None or not dropped.any():
            return rows, pending
        for row, owner in zip(rows.row[dropped].tolist(), rows.owner[dropped].tolist(), strict=True):
            self._reject(row, owner, "event", "dropped by an enrich plugin")
        kept = rows.where(~dropped)
        way.dedup.fail(pending, LogWriteError("the log", ValueError("dropped by an enrich plugin")))
        if len(kept.row):
            again = way.dedup.admit(way.dedup.hashes(self._tenant, kept.batch.column("event_id")))
            assert again.pending is not None
            pending = again.pending
        return kept, pending

    def _shares(self, owner: Int64s) -> Iterator[tuple[Submission, int]]:
        """The submissions that have any of these rows, in order, and how many."""
        counts = np.bincount(owner, minlength=len(self._submissions)).tolist()
        return ((s, count) for s, count in zip(self._submissions, counts, strict=True) if count)


def _flatten(submissions: Sequence[Submission]) -> list[Event]:
    if len(submissions) == 1:
        return submissions[0].decoded.events
    return [event for submission in submissions for event in submission.decoded.events]


def _with_original(columns: Columns, rows: list[int]) -> list[Raw]:
    """Contexts that keep the client's own timestamp where the rules of time have changed it."""
    contexts = list(columns.context)
    for row in rows:
        if columns.timestamp[row] is None:
            continue
        try:
            context: dict[str, Any] = msgspec.json.decode(contexts[row], type=dict[str, Any])
        except msgspec.DecodeError:  # no object: the check of its field says so
            continue
        context["originalTimestamp"] = columns.timestamp[row]
        contexts[row] = Raw(msgspec.json.encode(context))
    return contexts
