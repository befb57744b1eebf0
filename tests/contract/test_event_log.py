"""What every `EventLog` keeps true, over every backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from analytics_core.errors import TrimmedError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA, EventBatch
from analytics_core.events.owners import Owners
from analytics_core.log import EventLog, LogReader
from analytics_core.log.segments import SegmentLog, SegmentReader

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
Open = Callable[[], EventLog]


def events(count: int, tenant: str = "acme", name: str = "e") -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "tenant": [tenant] * count,
            "event_id": [f"{name}-{i}" for i in range(count)],
            "name": [("page_viewed", "cart_opened")[i % 2] for i in range(count)],
            "user_id": [f"u{i}" if i % 3 else None for i in range(count)],
            "anonymous_id": [None] * count,
            "session_id": [None] * count,
            "timestamp": [NOW + timedelta(seconds=i) for i in range(count)],
            "received_at": [NOW] * count,
            "source": ["native"] * count,
            "properties": [f'{{"n":{i}}}' for i in range(count)],
            "context": ["{}"] * count,
        },
        schema=UNPLACED_SCHEMA,
    )


def seqs(batches: list[EventBatch]) -> list[int]:
    return [seq for batch in batches for seq in batch.column("seq").to_pylist()]


def read_all(log: LogReader, start: int = 0, max_rows: int = 65_536) -> list[EventBatch]:
    found = []
    while True:
        batches, start = log.read(start, max_rows)
        if not batches:
            return found
        found += batches


@pytest.fixture(params=["segments"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the log of this test; a second call closes the first one's."""
    opened: list[EventLog] = []

    def open_log() -> EventLog:
        if opened:
            opened[-1].close()
        opened.append(SegmentLog(tmp_path / "p0", segment_bytes=20_000, disk_reserve_bytes=0))
        return opened[-1]

    yield open_log
    if opened:
        opened[-1].close()


@pytest.fixture
def log(reopen: Open) -> EventLog:
    return reopen()


def test_each_event_and_each_watermark_takes_one_position(log: EventLog) -> None:
    assert log.append([events(3), events(2, "other")], NOW) == [0, 3]
    assert log.append([], NOW) == []
    assert log.append([events(1)], NOW) == [6]
    assert log.durable == 7
    batches = read_all(log)
    assert [(b.tenant, len(b)) for b in batches] == [("acme", 3), ("other", 2), ("", 0), ("acme", 1)]
    assert seqs(batches) == [0, 1, 2, 3, 4, 6]


def test_a_reader_at_the_end_of_a_trimmed_segment_reads_on(log: EventLog) -> None:
    for _ in range(4):
        log.append([events(300)], NOW)
    _, position = log.read(0, 300)
    assert log.trim(position) == position, "one segment for each append"
    assert seqs(read_all(log, position)) == list(range(position, log.durable))


def test_events_come_back_as_they_were(log: EventLog) -> None:
    sent = events(50)
    log.append([sent], NOW)
    (batch,), position = log.read(0)
    assert position == 50
    assert batch.record_batch.schema == SCHEMA
    assert batch.record_batch.select(UNPLACED_SCHEMA.names) == sent
    assert set(batch.column("partition").to_pylist()) == {0}
    assert batch.watermark == NOW


def test_a_slice_of_a_batch_is_stored_as_that_slice(log: EventLog) -> None:
    log.append([events(50).slice(20, 7)], NOW)
    (batch,), _ = log.read(0)
    assert batch.column("event_id").to_pylist() == [f"e-{i}" for i in range(20, 27)]


@pytest.mark.parametrize("start", range(12))
def test_a_start_inside_a_batch_gives_its_tail(log: EventLog, start: int) -> None:
    log.append([events(5), events(5)], NOW)
    log.append([], NOW)
    log.append([events(1)], NOW)
    expected = [*range(10), 11]
    assert seqs(read_all(log, start)) == [seq for seq in expected if seq >= start]


def test_max_rows_bounds_a_read_but_for_one_batch(log: EventLog) -> None:
    for _ in range(3):
        log.append([events(10)], NOW)
    batches, position = log.read(0, 3)
    assert (len(batches), position) == (1, 10)
    batches, position = log.read(0, 25)
    assert (len(batches), position) == (2, 20)
    batches, position = log.read(5, 15)
    assert (seqs(batches), position) == (list(range(5, 20)), 20)


def test_max_bytes_bounds_a_read_but_for_one_batch(log: EventLog) -> None:
    for _ in range(6):
        log.append([events(10)], NOW)
    one = len(log.read(0, 60, 1)[0])
    assert one == 1
    all_of_it, end = log.read(0, 60)
    assert (len(all_of_it), end) == (6, 60)
    size = sum(batch.record_batch.nbytes for batch in all_of_it)
    found, position = log.read(0, 60, size // 2)
    assert 1 <= len(found) <= 3
    assert position == 10 * len(found)
    assert seqs(log.read(position, 60, 1)[0]) == list(range(position, position + 10))


def test_there_is_nothing_at_or_beyond_the_durable_position(log: EventLog) -> None:
    assert log.read(0) == ([], 0)
    log.append([events(2)], NOW)
    assert log.read(2) == ([], 2)
    assert log.read(99) == ([], 99)


def test_batches_without_rows_take_no_position(log: EventLog) -> None:
    assert log.append([events(0), events(2), events(0)], NOW) == [0, 0, 2]
    assert log.durable == 2
    log.append([events(0)], NOW)
    assert log.durable == 3  # a watermark alone


def test_a_batch_of_several_tenants_is_refused_whole(log: EventLog) -> None:
    mixed = pa.Table.from_batches([events(1, "acme"), events(1, "other")]).unify_dictionaries().combine_chunks()
    with pytest.raises(ValueError, match="one tenant, not acme, other"):
        log.append([events(1), mixed.to_batches()[0]], NOW)
    assert log.durable == 0
    one_of_two = mixed.to_batches()[0].slice(1)
    log.append([one_of_two], NOW)
    assert [b.tenant for b in read_all(log)] == ["other"]


def test_the_watermark_never_goes_back(reopen: Open) -> None:
    log = reopen()
    log.append([events(1)], NOW)
    log.append([events(1)], NOW - timedelta(hours=1))
    log = reopen()
    log.append([], NOW - timedelta(hours=2))
    log.append([], NOW + timedelta(microseconds=1))
    later = NOW + timedelta(microseconds=1)
    assert [b.watermark for b in read_all(log)] == [NOW, NOW, NOW, later]


def test_a_reopened_log_goes_on(reopen: Open) -> None:
    log = reopen()
    for _ in range(20):
        log.append([events(30)], NOW)
    log = reopen()
    assert log.durable == 600
    assert log.append([events(1)], NOW) == [600]
    assert seqs(read_all(log)) == list(range(601))


def test_wait_returns_as_soon_as_there_is_more(log: EventLog) -> None:
    assert log.wait(0, 0) == 0
    waiting, seen = threading.Event(), []

    def reader() -> None:
        waiting.set()
        seen.append(log.wait(0, 60))

    thread = threading.Thread(target=reader)
    thread.start()
    waiting.wait()
    log.append([events(4)], NOW)
    thread.join(60)
    assert seen == [4]
    assert log.wait(3, 60) == 4


def test_trim_deletes_what_is_wholly_below(log: EventLog) -> None:
    for _ in range(40):
        log.append([events(50)], NOW)
    assert log.trim(0) == 0
    first = log.trim(1000)
    assert 0 < first <= 1000
    assert log.first == first
    with pytest.raises(TrimmedError, match=f"position 0 is no longer in the log, which starts at {first}"):
        log.read(0)
    assert seqs(read_all(log, first)) == list(range(first, 2000))
    assert log.trim(10**9) < 2000  # never what is being written


def test_a_batch_outlives_the_segment_it_was_read_from(log: EventLog) -> None:
    for _ in range(40):
        log.append([events(50)], NOW)
    held = read_all(log)
    log.trim(2000)
    assert seqs(held) == list(range(2000))
    assert held[0].column("event_id")[49].as_py() == "e-49"


def test_readers_of_many_threads_see_each_event_once_in_order(log: EventLog) -> None:
    total, found = 3000, {}

    def follow(reader: int) -> None:
        position, mine = 0, []
        while position < total:
            log.wait(position, 60)
            batches, position = log.read(position, 500)
            mine += seqs(batches)
        found[reader] = mine

    threads = [threading.Thread(target=follow, args=(reader,)) for reader in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(total // 20):
        log.append([events(15), events(5, "other")], NOW)
    for thread in threads:
        thread.join(60)
    assert found == {reader: list(range(total)) for reader in range(4)}


def test_a_reader_of_the_directory_sees_the_same(log: EventLog) -> None:
    assert isinstance(log, SegmentLog)
    for _ in range(20):
        log.append([events(50)], NOW)
    with SegmentReader(log.directory) as reader:
        assert (reader.first, reader.durable) == (log.first, log.durable)
        assert seqs(read_all(reader, 0, 77)) == list(range(1000))
        log.append([events(1)], NOW)
        assert reader.wait(1000, 60) == 1001
        assert seqs(reader.read(1000)[0]) == [1000]
        first = log.trim(500)
        assert reader.first == first
        with pytest.raises(TrimmedError):
            reader.read(0)


# --- erasure


def ids(batches: list[EventBatch]) -> list[str | None]:
    return [user for batch in batches for user in batch.column("user_id").to_pylist()]


def tombstones(batches: list[EventBatch]) -> list[tuple[str, tuple[str, ...]]]:
    return [(batch.tenant, batch.erased) for batch in batches if batch.erased]


@pytest.mark.parametrize("start", [0, 1, 3, 6, 7, 12, 13])
def test_what_is_erased_is_read_no_more_and_nothing_else_is_missing(log: EventLog, start: int) -> None:
    log.append([events(6), events(6, "other")], NOW)
    assert (
        log.erase(
            "acme",
            Owners(
                (
                    "u1",
                    "nobody",
                )
            ),
            "k",
        )
        == 12
    )
    assert log.append([events(6)], NOW) == [13]
    found = read_all(log, start)
    gone = {1}
    assert seqs(found) == [seq for seq in [*range(12), *range(13, 19)] if seq >= start and seq not in gone]
    assert tombstones(found) == ([("acme", ("u1", "nobody"))] if start <= 12 else [])
    assert all(not len(batch) for batch in found if batch.erased)
    assert log.durable == 19


def test_anonymous_ids_are_erased_too_and_a_batch_may_lose_all_its_events(log: EventLog) -> None:
    sent = events(3).set_column(
        UNPLACED_SCHEMA.get_field_index("anonymous_id"), "anonymous_id", pa.array(["v", "w", "v"])
    )
    log.append([sent], NOW)
    log.erase("acme", Owners(("v",)), "k1")
    assert seqs(read_all(log)) == [1]
    log.erase("acme", Owners(("w",)), "k2")
    assert seqs(read_all(log)) == []
    assert [len(batch) for batch in read_all(log)] == [0, 0, 0]


def test_an_erasure_holds_after_a_restart_and_for_readers_of_other_processes(reopen: Open, tmp_path: Path) -> None:
    log = reopen()
    log.append([events(6)], NOW)
    with SegmentReader(tmp_path / "p0") as other:
        assert "u1" in ids(read_all(other))
        log.erase("acme", Owners(("u1",)), "k")
        assert "u1" not in ids(read_all(other))
    again = reopen()
    assert "u1" not in ids(read_all(again))
    assert tombstones(read_all(again)) == [("acme", ("u1",))]


def test_all_up_to_a_tombstone_can_be_trimmed_as_soon_as_something_follows(log: EventLog) -> None:
    log.append([events(6)], NOW)
    position = log.erase("acme", Owners(("u1",)), "k")
    assert log.trim(log.durable) == position, "what is written last is never trimmed"
    log.append([], NOW)
    assert log.trim(log.durable) == position + 1


def test_the_clock_of_a_tombstone_is_the_logs(log: EventLog) -> None:
    log.append([events(1)], NOW + timedelta(seconds=5))
    log.erase("acme", Owners(("x",)), "k")
    assert [batch.watermark for batch in read_all(log)] == [NOW + timedelta(seconds=5)] * 2


def test_an_erasure_beside_a_writer_loses_nothing(log: EventLog) -> None:
    writer = threading.Thread(target=lambda: [log.append([events(4)], NOW) for _ in range(60)])
    writer.start()
    positions = [log.erase("acme", Owners(("u1",)), f"k{i}") for i in range(10)]
    writer.join()
    found = read_all(log)
    last = positions[-1]
    assert log.durable == 60 * 4 + 10
    kept = [(seq, user) for b in found for seq, user in zip(seqs([b]), ids([b]), strict=True)]
    assert all(user != "u1" or seq > last for seq, user in kept)
    assert sum(user == "u2" for _, user in kept) == 60
