"""The acknowledgement path over the real log: counted once, kept when a neighbour is bad, all or nothing on failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from analytics_core.config import Intake as IntakeSettings
from analytics_core.errors import LogFullError, LogWriteError, OverloadedError, ParameterError, RejectedError
from analytics_core.events import Event, EventBatch, micros
from analytics_core.intake import Intake
from analytics_core.log.dedup import Deduplicator
from analytics_core.log.segments import SegmentLog
from analytics_core.records import Outcome

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


class Plain:
    """A host without enrich plugins."""

    def enriches(self) -> bool:
        return False

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
        raise AssertionError("not asked")


class GatedLog:
    """The real log, whose appends wait at a gate and may be told to fail: the moment between queue and disk."""

    def __init__(self, log: SegmentLog) -> None:
        self._log = log
        self.gate = threading.Event()
        self.gate.set()
        self.fail: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, batches: Sequence[pa.RecordBatch], watermark: datetime) -> list[int]:
        assert self.gate.wait(30)
        if batches and self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return self._log.append(batches, watermark)


class House:
    def __init__(self, intake: Intake, log: GatedLog) -> None:
        self.intake = intake
        self.log = log

    async def post(self, events: Any, **arguments: Any) -> Outcome:
        body = events if isinstance(events, bytes) else msgspec.json.encode(events)
        tenant = arguments.pop("tenant", "default")
        with self.intake.room_for(len(body)):
            return await self.intake.accept(body, tenant=tenant, **arguments)

    def rows(self) -> list[tuple[str, str]]:
        batches, _ = self.log.read(self.log.first, 1_000_000)
        return [(b.tenant, row.name) for b in batches for row in b.rows()]


@asynccontextmanager
async def house(
    tmp_path: Path,
    enricher: Any = None,
    clock: Callable[[], datetime] = lambda: NOW,
    tell: Callable[[str, int, int], None] = lambda *_: None,
    **settings: Any,
) -> AsyncIterator[House]:
    real = SegmentLog(tmp_path / "log", disk_reserve_bytes=0)
    log = GatedLog(real)
    dedup = Deduplicator(real, 100_000)
    intake = Intake(IntakeSettings(**settings), log, dedup, enricher or Plain(), clock=clock, tell_duplicates=tell)
    intake.start()
    try:
        yield House(intake, log)
    finally:
        log.gate.set()
        await intake.stop()
        dedup.close()
        log.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def event(name: str, id_: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"event": name, **({"messageId": id_} if id_ else {}), **fields}


def test_acknowledged_is_readable_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            outcome = await h.post([event("a", "1"), event("b", "2")])
            assert (outcome.accepted, outcome.duplicates, outcome.deduplicated) == (2, 0, "messageId")
            assert outcome.seq == h.log.durable - 1
            assert h.rows() == [("default", "a"), ("default", "b")]

    run(scenario)


def test_good_events_are_kept_when_a_neighbour_is_bad(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, max_event_bytes=100) as h:
            outcome = await h.post(
                [
                    event("a"),
                    event("b", timestamp="1970-01-01"),
                    event("c", properties=5),
                    {"properties": {}},
                    event("d", properties=None),
                    event(""),
                    event("e", properties={"x": "y" * 200}),
                    event("f", userId="u" * 600),
                    event("g" * 300),
                    event("h"),
                ]
            )
            assert outcome.accepted == 3
            assert [(e.index, e.field) for e in outcome.rejected] == [
                (1, "timestamp"),
                (2, "properties"),
                (3, "event"),
                (5, "event"),
                (6, "properties"),
                (7, "userId"),
                (8, "event"),
            ]
            assert outcome.rejected[1].message == "must be a JSON object, not a number"
            assert [name for _, name in h.rows()] == ["a", "d", "h"]

    run(scenario)


def test_all_bad_is_an_error_and_stores_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            with pytest.raises(RejectedError, match="all 2 events"):
                await h.post([{"properties": {}}, event("a", timestamp="never")])
            assert h.rows() == []

    run(scenario)


def test_an_empty_request_is_accepted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            assert (await h.post([])).accepted == 0

    run(scenario)


def test_a_request_sent_again_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            await h.post([event("a", "1"), event("b", "2")])
            again = await h.post([event("a", "1"), event("b", "2"), event("c", "3")])
            assert (again.accepted, again.duplicates) == (1, 2)
            assert len(h.rows()) == 3

    run(scenario)


def test_an_idempotency_key_stands_in_for_message_ids(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            body = [event("a"), {"bad": 1}, event("b")]
            first = await h.post(body, idempotency_key="k1")
            again = await h.post(body, idempotency_key="k1")
            other = await h.post(body, idempotency_key="k2")
            assert (first.accepted, first.deduplicated) == (2, "idempotencyKey")
            assert (again.accepted, again.duplicates) == (0, 2)
            assert other.accepted == 2
            assert (await h.post([event("a")])).deduplicated == "none"

    run(scenario)


def test_the_same_id_of_another_tenant_is_another_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            await h.post([event("a", "1")], tenant="one")
            assert (await h.post([event("a", "1")], tenant="two")).accepted == 1

    run(scenario)


def test_duplicates_are_told_once_by_tenant_and_time_of_receipt(tmp_path: Path) -> None:
    """Also those within one body, and those of a client that went away; but none that was answered with an error."""
    told: list[tuple[str, int, int]] = []

    async def scenario() -> None:
        async with house(tmp_path, tell=lambda *given: told.append(given)) as h:
            await h.post([event("a", "1"), event("a", "1"), event("b", "2")])
            await h.post([event("a", "1"), event("b", "2"), event("c", "3")])
            await h.post([event("a", "1")], tenant="acme")
            gone = asyncio.create_task(h.post([event("a", "1")], tenant="acme"))
            await asyncio.sleep(0)
            gone.cancel()
            h.log.fail = LogFullError("full")
            with pytest.raises(OverloadedError):
                await h.post([event("a", "1"), event("d", "4")])

    run(scenario)
    assert told == [("default", micros(NOW), 1), ("default", micros(NOW), 2), ("acme", micros(NOW), 1)]


def test_a_duplicate_in_flight_waits_for_the_first_and_is_stored_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            h.log.gate.clear()
            first = asyncio.ensure_future(h.post([event("a", "1")]))
            await settled()
            second = asyncio.ensure_future(h.post([event("a", "1"), event("b", "2")]))
            await settled()
            assert not first.done()
            assert not second.done()
            h.log.gate.set()
            assert (await first).accepted == 1
            outcome = await second
            assert (outcome.accepted, outcome.duplicates) == (1, 1)
            assert sorted(name for _, name in h.rows()) == ["a", "b"]

    run(scenario)


@pytest.mark.parametrize(
    "error", [LogFullError("no space"), LogWriteError("x.seg", OSError("I/O error")), OSError("boom")]
)
def test_a_failed_write_makes_its_ids_new_again(tmp_path: Path, error: Exception) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            h.log.gate.clear()
            h.log.fail = error
            first = asyncio.ensure_future(h.post([event("a", "1")]))
            await settled()
            second = asyncio.ensure_future(h.post([event("a", "1")]))
            await settled()
            h.log.gate.set()
            with pytest.raises(OverloadedError):
                await first
            assert (await second).accepted == 1, "the copy that waited is looked at again, and is new"
            assert (await h.post([event("a", "1")])).duplicates == 1
            assert len(h.rows()) == 1

    run(scenario)


def test_one_turn_of_the_loop_is_one_commit_and_every_request_gets_its_own_outcome(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            bodies = [[event("a", f"{i}"), event("a", f"{i}"), event("b", "shared"), {"x": 1}] for i in range(20)]
            outcomes = await asyncio.gather(*(h.post(body) for body in bodies))
            assert sum(o.accepted for o in outcomes) == 21
            assert sum(o.duplicates for o in outcomes) == 39
            assert all([e.index for e in o.rejected] == [3] for o in outcomes)
            assert len(h.rows()) == 21

    run(scenario)


def test_a_full_queue_is_refused_and_recovers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, queue_bytes=60) as h:
            h.log.gate.clear()
            first = asyncio.ensure_future(h.post([event("a", "1")]))
            await settled()
            with pytest.raises(OverloadedError, match="the ingest queue is full"):
                await h.post([event("b", "2"), event("c", "3")])
            h.log.gate.set()
            await first
            assert (await h.post([event("b", "2")])).accepted == 1
            assert h.intake.queued_bytes == 0

    run(scenario)


def test_no_watermark_is_later_than_an_event_on_its_way(tmp_path: Path) -> None:
    """Else a fold would see more time pass live than in a replay, where only the order of the log counts."""

    class Slow(Plain):
        def __init__(self) -> None:
            self.entered, self.go = asyncio.Event(), asyncio.Event()

        def enriches(self) -> bool:
            return True

        async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
            self.entered.set()
            await self.go.wait()
            return batch, None

    async def scenario() -> None:
        times = [NOW]
        slow = Slow()
        async with house(tmp_path, slow, clock=lambda: times[0]) as h:
            posted = asyncio.create_task(h.post(event("a", "1")))
            await slow.entered.wait()
            times[0] = NOW + timedelta(minutes=10)
            before = h.log.durable
            assert await asyncio.to_thread(h.log.wait, before, 30) > before
            slow.go.set()
            await posted
            batches, _ = h.log.read(before)
            assert [(len(b), b.watermark) for b in batches if not len(b)] == [(0, NOW)]
            (row,) = [row for b in batches for row in b.rows()]
            assert row.received_at == NOW

    run(scenario)


def test_enrichment_changes_and_drops_before_the_commit(tmp_path: Path) -> None:
    class Masks(Plain):
        def enriches(self) -> bool:
            return True

        async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
            masked = pa.array(['{"card":"***"}'] * len(batch))
            at = batch.record_batch.schema.get_field_index("properties")
            changed = batch.record_batch.set_column(at, batch.record_batch.schema.field(at), masked)
            drop = np.array([name == "bot" for name in batch.column("name").to_pylist()])
            return EventBatch(changed, batch.tenant, batch.watermark), drop

    async def scenario() -> None:
        async with house(tmp_path, Masks()) as h:
            outcome = await h.post([event("a", "1", properties={"card": "4711"}), event("bot", "2")])
            assert outcome.accepted == 1
            assert [(e.index, e.message) for e in outcome.rejected] == [(1, "dropped by an enrich plugin")]
            batches, _ = h.log.read(h.log.first)
            assert [row.properties for b in batches for row in b.rows()] == [{"card": "***"}]

    run(scenario)


def test_an_event_that_was_dropped_is_no_duplicate_later(tmp_path: Path) -> None:
    class Drops(Plain):
        names: tuple[str, ...] = ("bot",)

        def enriches(self) -> bool:
            return True

        async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
            return batch, np.array([name in self.names for name in batch.column("name").to_pylist()])

    async def scenario() -> None:
        enricher = Drops()
        async with house(tmp_path, enricher) as h:
            assert (await h.post([event("a", "1"), event("bot", "2")])).accepted == 1
            with pytest.raises(RejectedError):
                await h.post([event("bot", "2")])
            enricher.names = ()
            outcome = await h.post([event("a", "1"), event("bot", "2")])
            assert (outcome.accepted, outcome.duplicates) == (1, 1)
            assert [name for _, name in h.rows()] == ["a", "bot"]

    run(scenario)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("1e999", "must be a JSON object, not a number"),
        ('"x"', "must be a JSON object, not a string"),
        ("[1]", "must be a JSON object, not an array"),
        ("true", "must be a JSON object, not true"),
        ('{"a":' * 65 + "1" + "}" * 65, "is nested deeper than 64 levels"),
        ('{"a":"' + "[" * 500 + '","b":' + "[" * 64 + "]" * 64 + "}", "is nested deeper than 64 levels"),
    ],
)
def test_unfit_properties_are_an_error_of_their_event(tmp_path: Path, properties: str, message: str) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            outcome = await h.post(f'[{{"event":"a","properties":{properties}}},{{"event":"b"}}]'.encode())
            assert [(e.index, e.field, e.message) for e in outcome.rejected] == [(0, "properties", message)]
            assert outcome.accepted == 1

    run(scenario)


def test_brackets_in_text_are_no_depth(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            assert (await h.post([event("a", properties={"x": "[{" * 500 + '"\\'})])).accepted == 1

    run(scenario)


@pytest.mark.parametrize("key", ["", "k" * 256, "caf\xe9", "ab\udcff", "a\nb"], ids=range(5))
def test_an_unfit_idempotency_key_is_refused_and_harms_nobody(tmp_path: Path, key: str) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            with pytest.raises(ParameterError, match="Idempotency-Key: must be 1 to 255 printable"):
                await h.post([event("a")], idempotency_key=key)
            assert (await h.post([event("a")], idempotency_key="fit")).accepted == 1
            assert h.intake.queued_bytes == 0

    run(scenario)


def test_a_fault_in_a_group_settles_every_request_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            with monkeypatch.context() as patched:
                patched.setattr("analytics_core.intake.group.unplaced", lambda *_, **__: 1 / 0)
                posts = (h.post([event("a", f"{i}")]) for i in range(5))
                outcomes = await asyncio.gather(*posts, return_exceptions=True)
            assert [type(o) for o in outcomes] == [LogWriteError] * 5
            assert (await h.post([event("a", "0")])).accepted == 1

    run(scenario)


def test_a_rejecting_enricher_stores_nothing_and_the_ids_stay_new(tmp_path: Path) -> None:
    class Rejects(Plain):
        down = True

        def enriches(self) -> bool:
            return self.down

        async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
            raise OverloadedError("plugin 'mask' is needed and does not answer")

    async def scenario() -> None:
        enricher = Rejects()
        async with house(tmp_path, enricher) as h:
            with pytest.raises(OverloadedError, match="mask"):
                await h.post([event("a", "1")])
            enricher.down = False
            assert (await h.post([event("a", "1")])).accepted == 1

    run(scenario)


def test_skew_is_corrected_and_the_clients_own_time_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            await h.post(
                {
                    "events": [event("a", "1", timestamp="2025-06-01T09:00:00Z"), event("b", "2")],
                    "sentAt": "2025-06-01T09:00:10Z",
                }
            )
            batches, _ = h.log.read(h.log.first)
            a, b = [row for batch in batches for row in batch.rows()]
            assert a.timestamp == NOW
            assert a.context == {"originalTimestamp": "2025-06-01T09:00:00Z"}
            assert (b.timestamp, b.context) == (NOW, {})

    run(scenario)


def test_a_client_that_goes_away_leaves_nothing_undone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            h.log.gate.clear()
            gone = asyncio.ensure_future(h.post([event("a", "1")]))
            await settled()
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            h.log.gate.set()
            assert (await h.post([event("a", "1")])).duplicates == 1
            assert len(h.rows()) == 1

    run(scenario)


def test_a_quiet_log_gets_watermarks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            before = h.log.durable
            assert await asyncio.to_thread(h.log.wait, before, 30) > before
            batches, _ = h.log.read(before)
            assert [(b.tenant, len(b), b.watermark) for b in batches[:1]] == [("", 0, NOW)]

    run(scenario)


def test_adapters_share_the_path(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as h:
            outcome = await h.intake.accept_events(
                [Event.of("a", {"x": 1}, message_id="1")], tenant="default", source="segment"
            )
            assert outcome.accepted == 1
            batches, _ = h.log.read(h.log.first)
            assert batches[0].column("source").to_pylist() == ["segment"]
            unfit = [
                Event(name="bad", properties=msgspec.Raw(b"{oops")),
                Event(name="bad", properties=msgspec.Raw(b'{"x":"\xff"}')),
                Event(name="bad\ud800"),
                Event.of("good"),
                Event(name="", properties=msgspec.Raw(b"{}")),
            ]
            outcome = await h.intake.accept_events(unfit, tenant="default", source="segment")
            assert [e.index for e in outcome.rejected] == [0, 1, 2, 4]
            assert outcome.accepted == 1

    run(scenario)


async def settled() -> None:
    """Let every callback that is due run; what still waits then waits for the gate."""
    for _ in range(20):
        await asyncio.sleep(0)
