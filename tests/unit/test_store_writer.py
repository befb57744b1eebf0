"""The store writer over a real log and a real lake: an exact copy, whatever fails in between."""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analytics_core.config import Storage
from analytics_core.errors import StorageError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA
from analytics_core.lake import RetentionPolicy
from analytics_core.lake.delta import DeltaStore
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.log.segments import SegmentLog

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
PATIENT = Storage(store_commit_seconds=3600, maintenance_seconds=3600)
EVERYTHING = 2**62

Make = Callable[..., StoreWriter]


def batch(count: int, first: int = 0, tenant: str = "acme", at: datetime = NOW) -> pa.RecordBatch:
    columns = {
        "tenant": [tenant] * count,
        "event_id": [f"{tenant}-{first + n}" for n in range(count)],
        "name": [f"name{n % 3}" for n in range(count)],
        "user_id": [None if n % 4 else f"u{n}" for n in range(count)],
        "anonymous_id": ["å"] * count,
        "session_id": [None] * count,
        "timestamp": [at] * count,
        "received_at": [at] * count,
        "source": ["native"] * count,
        "properties": [f'{{"n":{n}}}' for n in range(count)],
        "context": ["{}"] * count,
    }
    arrays = [pa.array(columns[field.name], _plain(field.type)).cast(field.type) for field in UNPLACED_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=UNPLACED_SCHEMA)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SegmentLog]:
    log = SegmentLog(tmp_path / "log", segment_bytes=8_192, disk_reserve_bytes=0)
    yield log
    log.close()


@pytest.fixture
def lake(tmp_path: Path) -> DeltaStore:
    return DeltaStore(tmp_path / "lake")


@pytest.fixture
def writer(log: SegmentLog, lake: DeltaStore) -> Iterator[Make]:
    """Makes and starts a writer over the same log and lake; all are stopped at the end."""
    made: list[StoreWriter] = []

    def make(storage: Storage = PATIENT, store: Any = lake, **how: Any) -> StoreWriter:
        made.append(StoreWriter(log, store, storage, **{"dedup_floor": lambda: EVERYTHING, **how}))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


def fill(log: SegmentLog, batches: int, rows: int = 20) -> pa.Table:
    """Append commits of two tenants and watermarks; the log's rows before anything is trimmed."""
    for n in range(batches):
        log.append([batch(rows, n * rows), batch(3, n * 3, "globex")], NOW)
        log.append([], NOW)
    return in_log(log)


def in_log(log: SegmentLog) -> pa.Table:
    position, found = log.first, [SCHEMA.empty_table()]
    while position < log.durable:
        batches, position = log.read(position)
        found += [pa.Table.from_batches([b.record_batch]) for b in batches if len(b)]
    return _comparable(pa.concat_tables(found))


def in_lake(lake: DeltaStore) -> pa.Table:
    found = [SCHEMA.empty_table()]
    for tenant in ("acme", "globex"):
        with lake.lease(tenant) as snapshot:
            found += [pq.ParquetFile(file).read().cast(SCHEMA) for file in snapshot.files]
    return _comparable(pa.concat_tables(found))


def _comparable(table: pa.Table) -> pa.Table:
    return table.cast(pa.schema([field.with_type(_plain(field.type)) for field in SCHEMA])).sort_by("seq")


class Watched:
    """A real store that shows what it is told, and can be made to refuse or to stop."""

    def __init__(self, store: DeltaStore) -> None:
        self.store = store
        self.appended: list[int] = []
        self.news = threading.Condition()
        self.refuse: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def append(self, events: pa.Table, upto: int) -> int:
        if self.refuse is not None:
            raise self.refuse
        stored = self.store.append(events, upto)
        with self.news:
            self.appended.append(events.nbytes)
            self.news.notify_all()
        return stored

    def wait_for_appends(self, count: int) -> bool:
        with self.news:
            return self.news.wait_for(lambda: len(self.appended) >= count, 20)


def test_the_lake_becomes_an_exact_copy_of_the_log(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    expected = fill(log, 30)
    copying = writer()
    assert copying.flush() == log.durable == lake.position
    assert in_lake(lake).equals(expected)
    view = copying.view()
    assert (view.name, view.position, view.lag, view.events) == ("store-writer", log.durable, 0, expected.num_rows)


def test_it_goes_on_where_the_lake_ends(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    expected = fill(log, 10)
    first = writer()
    first.flush()
    first.stop()
    assert first.view().state == "stopped"
    log.append([batch(7, 1000)], NOW)
    second = writer()
    assert second.flush() == log.durable
    assert second.view().events == 7
    copied = in_lake(lake)
    assert copied.slice(0, expected.num_rows).equals(expected)
    assert copied.column("seq").to_pylist()[-7:] == list(range(log.durable - 7, log.durable))


def test_stopping_commits_what_is_durable(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    expected = fill(log, 3)
    writer().stop()
    assert in_lake(lake).equals(expected)


def test_a_commit_comes_by_itself_after_its_seconds(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    watched = Watched(lake)
    writer(Storage(store_commit_seconds=0.01, maintenance_seconds=3600), watched)
    expected = fill(log, 1)
    assert watched.wait_for_appends(1)
    assert in_lake(lake).num_rows > 0
    log.append([batch(5, 500)], NOW)
    assert watched.wait_for_appends(2)
    assert expected.num_rows <= in_lake(lake).num_rows


def test_a_backlog_is_copied_in_bounded_pieces(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    rows = 5_000
    for n in range(12):
        log.append([batch(rows, n * rows)], NOW)
    one = log.read(0, 1)[0][0].record_batch.nbytes
    watched = Watched(lake)
    storage = Storage(store_commit_seconds=3600, store_commit_bytes=2 * one, maintenance_seconds=3600)
    copying = writer(storage, watched)
    assert copying.flush(timeout=10) == log.durable, copying.view().reason
    assert len(watched.appended) >= 4
    assert max(watched.appended) <= 4 * one
    assert in_lake(lake).column("seq").to_pylist() == list(range(12 * rows))


def test_the_position_passes_watermarks(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    for _ in range(5):
        log.append([], NOW)
    assert writer().flush() == lake.position == 5


# --- trimming


def test_the_log_is_trimmed_up_to_the_dedup_floor_only(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    fill(log, 40)
    floor = log.segments[len(log.segments) // 2]
    held_back = writer(dedup_floor=lambda: floor)
    held_back.flush()
    held_back.stop()
    assert log.first == floor
    assert lake.position == log.durable > floor


def test_the_log_is_trimmed_up_to_the_lake_only(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    fill(log, 40)
    watched = Watched(lake)
    watched.refuse = StorageError("no space left")
    stuck = writer(store=watched)
    assert stuck.flush(timeout=0.05) == 0
    assert log.first == 0
    watched.refuse = None
    assert stuck.flush() == log.durable
    stuck.stop()
    assert log.first > 0


def test_the_log_is_trimmed_as_soon_as_the_dedup_floor_moves(log: SegmentLog, writer: Make) -> None:
    """A full log takes no event, so no commit follows: room must come without one."""
    fill(log, 40)
    floor = [0]
    copying = writer(dedup_floor=lambda: floor[0])
    copying.flush()
    assert log.first == 0
    floor[0] = EVERYTHING
    deadline = time.monotonic() + 20
    while log.first < log.segments[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- failures


def test_a_full_disk_is_shown_and_waited_for(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    expected = fill(log, 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    copying = writer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_024, hard))
    try:
        assert copying.flush(timeout=0.4) == 0
        view = copying.view()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (view.state, view.lag) == ("retrying", log.durable)
    assert "File too large" in view.reason
    assert copying.flush() == log.durable
    assert in_lake(lake).equals(expected)
    copying.stop()
    assert copying.view().reason == ""


def test_any_failure_is_shown_and_retried(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    expected = fill(log, 2)
    watched = Watched(lake)
    watched.refuse = ZeroDivisionError("nobody thought of this")
    copying = writer(store=watched)
    copying.flush(timeout=0.3)
    assert (copying.view().state, copying.view().reason) == ("retrying", "nobody thought of this")
    watched.refuse = None
    assert copying.flush() == log.durable
    assert in_lake(lake).equals(expected)


def test_a_log_that_does_not_belong_to_the_lake_is_refused(tmp_path: Path, log: SegmentLog, lake: DeltaStore) -> None:
    fill(log, 2)
    ahead = DeltaStore(tmp_path / "ahead")
    ahead.append(SCHEMA.empty_table(), log.durable + 1)
    with pytest.raises(StorageError, match=f"the log ends at {log.durable}, but the lake holds all below"):
        StoreWriter(log, ahead, PATIENT, dedup_floor=lambda: 0).start()
    fill(log, 40)
    log.trim(log.durable)
    with pytest.raises(StorageError, match="events between are missing"):
        StoreWriter(log, lake, PATIENT, dedup_floor=lambda: 0).start()


def test_a_damaged_log_ends_the_lane_and_is_told(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    fill(log, 40)
    damaged = log.directory / f"{log.segments[2]:020d}.seg"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    told: list[StorageError] = []
    heard = threading.Event()

    def on_fatal(error: StorageError) -> None:
        told.append(error)
        heard.set()

    copying = writer(Storage(store_commit_seconds=0.01, maintenance_seconds=3600), on_fatal=on_fatal)
    assert heard.wait(20)
    assert [str(damaged) in str(error) and "bad frame at byte" in str(error) for error in told] == [True]
    assert (copying.view().state, copying.view().reason) == ("failed", str(told[0]))


# --- maintenance


def test_maintenance_runs_by_itself(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    fill(log, 3)
    compacted = threading.Event()

    class Compacting(Watched):
        def compact(self, should_stop: Callable[[], bool]) -> int:
            removed = self.store.compact(should_stop)
            if removed:
                compacted.set()
            return removed

    copying = writer(Storage(store_commit_seconds=3600, maintenance_seconds=0.01), Compacting(lake), now=lambda: NOW)
    copying.flush()
    assert compacted.wait(20)
    with lake.lease("acme") as snapshot:
        assert all(Path(file).name.startswith("sorted-") for file in snapshot.files)


def test_a_held_retention_is_shown_until_it_is_confirmed(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    log.append([batch(50, at=NOW - timedelta(days=100))], NOW)
    log.append([batch(50, 50)], NOW)
    copying = writer(policy=RetentionPolicy(days=90), now=lambda: NOW)
    copying.flush()
    copying.maintain()
    assert "tenant 'acme': retention would drop 50%" in copying.view().reason
    assert in_lake(lake).num_rows == 100
    copying.maintain(confirmed=True)
    assert copying.view().reason == ""
    assert np.array_equal(in_lake(lake).column("seq").to_numpy(), np.arange(50, 100))


def test_one_part_of_maintenance_that_fails_stops_no_other(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    class Broken(Watched):
        vacuumed = 0

        def compact(self, should_stop: Callable[[], bool]) -> int:
            raise StorageError("out of spill space")

        def vacuum(self) -> int:
            self.vacuumed += 1
            return self.store.vacuum()

    broken = Broken(lake)
    copying = writer(store=broken)
    copying.maintain()
    assert broken.vacuumed == 1
    assert copying.view().reason == "compaction: out of spill space"
    log.append([batch(1)], NOW)
    assert copying.flush() == log.durable


def test_what_is_held_is_listed_and_runs_when_it_is_confirmed(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    for tenant in ("acme", "globex"):
        log.append([batch(50, at=NOW - timedelta(days=100), tenant=tenant)], NOW)
        log.append([batch(50, 50, tenant=tenant)], NOW)
    done = threading.Event()

    class Retaining(Watched):
        def vacuum(self) -> int:
            done.set()
            return self.store.vacuum()

    copying = writer(store=Retaining(lake), policy=RetentionPolicy(days=90), now=lambda: NOW)
    copying.flush()
    assert not copying.confirm_retention()
    copying.maintain()
    assert sorted((held.tenant, held.share) for held in copying.held) == [("acme", 0.5), ("globex", 0.5)]
    assert "confirm the run" in copying.held[0].reason
    done.clear()
    assert copying.confirm_retention()
    assert done.wait(20)
    assert not copying.held
    assert in_lake(lake).num_rows == 100


def test_what_was_found_is_forgotten_with_the_events(log: SegmentLog, lake: DeltaStore, writer: Make) -> None:
    log.append([batch(50, at=NOW - timedelta(days=100))], NOW)
    log.append([batch(50, 50)], NOW)
    clock, asked = [NOW], []

    def forget(before: datetime | None, by_tenant: Mapping[str, datetime | None]) -> int:
        asked.append((before, by_tenant))
        return 1

    policy = RetentionPolicy(days=90, by_tenant={"globex": 7, "keeper": None})
    copying = writer(policy=policy, now=lambda: clock[0], forget=forget)
    copying.flush()
    copying.maintain()
    assert asked == []  # retention asks first
    copying.maintain(confirmed=True)
    copying.maintain()
    midnight = datetime(2025, 1, 31, tzinfo=UTC)
    first = (midnight - timedelta(days=90), {"globex": midnight - timedelta(days=7), "keeper": None})
    assert asked == [first]
    clock[0] += timedelta(days=1)
    copying.maintain()
    assert len(asked) == 2


def test_another_policy_holds_at_once_and_what_was_held_by_the_one_before_is_not_confirmed(
    log: SegmentLog, lake: DeltaStore, writer: Make
) -> None:
    log.append([batch(50, at=NOW - timedelta(days=100))], NOW)
    log.append([batch(50, 50)], NOW)
    rounds: queue.SimpleQueue[None] = queue.SimpleQueue()

    class Retaining(Watched):
        def vacuum(self) -> int:
            rounds.put(None)
            return self.store.vacuum()

    copying = writer(store=Retaining(lake), policy=RetentionPolicy(days=None), now=lambda: NOW)
    copying.flush()
    copying.maintain()
    rounds.get(timeout=20)
    copying.retain_by(RetentionPolicy(days=None))
    assert rounds.empty(), "the same policy is no news"
    copying.retain_by(RetentionPolicy(days=90))
    rounds.get(timeout=20)
    assert [held.tenant for held in copying.held] == ["acme"]
    copying.retain_by(RetentionPolicy(days=90, by_tenant={"acme": None}))
    assert not copying.confirm_retention()
    rounds.get(timeout=20)
    assert not copying.held
    assert in_lake(lake).num_rows == 100
