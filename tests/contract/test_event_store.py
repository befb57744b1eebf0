"""What every `EventStore` keeps true. Written once; each backend is one entry of `BACKENDS`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_core.errors import RetentionHeldError
from analytics_core.events import SCHEMA, micros
from analytics_core.events.owners import Owners
from analytics_core.lake import EventStore, RetentionPolicy
from analytics_core.lake.delta import DeltaStore

Open = Callable[[], EventStore]
NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)

BACKENDS: dict[str, Callable[[Path], EventStore]] = {
    "delta": lambda directory: DeltaStore(directory / "events", young_seconds=0),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Callable[[Path], EventStore]:
    return BACKENDS[request.param]


@pytest.fixture
def reopen(backend: Callable[[Path], EventStore], tmp_path: Path) -> Open:
    return lambda: backend(tmp_path)


@pytest.fixture
def store(reopen: Open) -> Iterator[EventStore]:
    store = reopen()
    yield store
    store.close()


def events(
    seqs: Sequence[int],
    at: datetime | Sequence[datetime] = NOON,
    received: datetime | Sequence[datetime] | None = None,
    tenant: str = "acme",
) -> pa.Table:
    """Rows with the given positions; by default they are received when they happen."""
    n = len(seqs)
    times = [at] * n if isinstance(at, datetime) else list(at)
    receipts = times if received is None else [received] * n if isinstance(received, datetime) else list(received)
    columns = {
        "partition": np.zeros(n, np.int16),
        "seq": np.array(seqs, np.int64),
        "tenant": [tenant] * n,
        "event_id": [f"id-{seq}" for seq in seqs],
        "name": ["view" if seq % 2 else "buy" for seq in seqs],
        "user_id": [None if seq % 5 == 0 else f"u{seq % 3}" for seq in seqs],
        "anonymous_id": [f"ä{seq}" for seq in seqs],
        "session_id": [None] * n,
        "timestamp": times,
        "received_at": receipts,
        "source": ["native"] * n,
        "properties": [f'{{"n":{seq}}}' for seq in seqs],
        "context": ["{}"] * n,
    }
    arrays = [pa.array(columns[field.name], _plain(field.type)).cast(field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind


def read(files: Sequence[str]) -> pa.Table:
    tables = [pq.ParquetFile(file).read() for file in files]
    return pa.concat_tables(tables) if tables else events([]).cast(PLAIN)


PLAIN = pa.schema([field.with_type(_plain(field.type)) for field in SCHEMA])


def stored(store: EventStore, tenant: str = "acme") -> list[int]:
    """Every position that the store holds, as often as it holds it."""
    with store.lease(tenant) as snapshot:
        return sorted(read(snapshot.files).column("seq").to_pylist())


# --- append


def test_a_new_store_is_empty(store: EventStore) -> None:
    assert store.position == 0
    with store.lease("acme") as snapshot:
        assert (snapshot.position, list(snapshot.files)) == (0, [])


def test_what_was_appended_is_read_back_exactly_also_after_a_restart(store: EventStore, reopen: Open) -> None:
    given = events(range(100), [NOON + timedelta(microseconds=seq) for seq in range(100)])
    assert store.append(given, 100) == 100
    store.close()
    again = reopen()
    with again.lease("acme") as snapshot:
        assert snapshot.position == again.position == 100
        for file in snapshot.files:
            assert pq.read_schema(file).names == SCHEMA.names
        assert read(snapshot.files).sort_by("seq").cast(PLAIN).equals(given.cast(PLAIN))


def test_a_replayed_append_is_stored_once(store: EventStore, reopen: Open) -> None:
    assert store.append(events(range(10)), 10) == 10
    assert store.append(events(range(10)), 10) == 0
    assert store.append(events(range(5, 15)), 15) == 5
    store.close()
    again = reopen()
    assert again.append(events(range(15)), 15) == 0
    assert again.append(events(range(12, 20)), 20) == 5
    assert stored(again) == list(range(20))


def test_an_empty_append_moves_the_position_alone(store: EventStore, reopen: Open) -> None:
    assert store.append(events([]), 7) == 0
    assert store.append(events(range(9)), 9) == 2
    assert (store.position, stored(store)) == (9, [7, 8])
    assert store.append(events([]), 3) == 0
    store.close()
    assert reopen().position == 9


def test_an_event_beyond_the_given_position_is_refused(store: EventStore) -> None:
    with pytest.raises(ValueError, match="upto=4"):
        store.append(events(range(5)), 4)
    assert (store.position, stored(store)) == (0, [])


def test_tenants_share_no_file(store: EventStore) -> None:
    both = pa.concat_tables([events([0, 2], tenant="acme"), events([1, 3], tenant="globex")])
    assert store.append(both.sort_by("seq"), 4) == 4
    assert (stored(store, "acme"), stored(store, "globex"), stored(store, "other")) == ([0, 2], [1, 3], [])
    store.compact()
    assert (stored(store, "acme"), stored(store, "globex")) == ([0, 2], [1, 3])


# --- lease

_moments = st.integers(0, 92 * 86_400_000_000 - 1).map(lambda us: NOON - 91 * DAY + timedelta(microseconds=us))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(_moments, min_size=1, max_size=6), min_size=1, max_size=3),
    received=_moments,
    start=st.none() | _moments,
    end=st.none() | _moments,
    compacted=st.booleans(),
)
def test_a_lease_never_leaves_out_a_matching_event(
    backend: Callable[[Path], EventStore],
    batches: list[list[datetime]],
    received: datetime,
    start: datetime | None,
    end: datetime | None,
    compacted: bool,
) -> None:
    times = [at for batch in batches for at in batch]
    with TemporaryDirectory() as directory:
        store = backend(Path(directory))
        for batch in batches:
            first = store.position
            store.append(events(range(first, first + len(batch)), batch, received), first + len(batch))
        if compacted:
            store.compact()
        for opened in (store, backend(Path(directory))):
            with opened.lease("acme", start, end) as snapshot:
                found = set(read(snapshot.files).column("seq").to_pylist())
            wanted = {
                seq for seq, at in enumerate(times) if (start is None or at >= start) and (end is None or at < end)
            }
            assert wanted <= found


def test_a_lease_leaves_out_files_of_other_times(store: EventStore) -> None:
    for day in range(4):
        store.append(events(range(day * 10, day * 10 + 10), NOON + day * DAY), day * 10 + 10)
    with store.lease("acme", NOON + DAY, NOON + 2 * DAY) as snapshot:
        assert sorted(read(snapshot.files).column("seq").to_pylist()) == list(range(10, 20))


def test_a_leased_snapshot_outlives_every_change(store: EventStore) -> None:
    for first in range(0, 50, 10):
        store.append(events(range(first, first + 10), NOON - 30 * DAY), first + 10)
    with store.lease("acme") as old:
        store.compact()
        store.append(events(range(50, 60)), 60)
        store.retain(RetentionPolicy(days=7), NOON, confirmed=True)
        store.vacuum()
        assert sorted(read(old.files).column("seq").to_pylist()) == list(range(50))
        with store.lease("acme") as new:
            assert sorted(read(new.files).column("seq").to_pylist()) == list(range(50, 60))
            assert new.version > old.version
    assert store.vacuum() > 0
    assert not any(Path(file).exists() for file in old.files)
    assert stored(store) == list(range(50, 60))


# --- compaction


def test_compaction_sorts_and_merges_and_loses_nothing(store: EventStore) -> None:
    for first in range(0, 60, 10):
        times = [NOON - timedelta(seconds=seq % 7) for seq in range(first, first + 10)]
        store.append(events(range(first, first + 10), times), first + 10)
    assert store.compact() == 6
    with store.lease("acme") as snapshot:
        assert len(snapshot.files) == 1
        rows = read(snapshot.files).select(["user_id", "timestamp", "seq"]).to_pylist()
    keys = [(row["user_id"] is None, row["user_id"] or "", row["timestamp"], row["seq"]) for row in rows]
    assert keys == sorted(keys)
    assert stored(store) == list(range(60))
    assert store.compact() == 0


def test_compaction_leaves_a_big_sorted_file_until_as_much_has_gathered(store: EventStore) -> None:
    store.append(events(range(5000)), 5000)
    assert store.compact() == 1
    with store.lease("acme") as snapshot:
        (big,) = snapshot.files
    store.append(events(range(5000, 5010)), 5010)
    assert store.compact() == 1
    with store.lease("acme") as snapshot:
        assert big in snapshot.files
        assert len(snapshot.files) == 2
    store.append(events(range(5010, 11000)), 11000)
    assert store.compact() == 3
    assert stored(store) == list(range(11000))


def test_compaction_stops_when_it_is_told(store: EventStore) -> None:
    store.append(events(range(10)), 10)
    assert store.compact(lambda: True) == 0
    assert store.compact() == 1


def _appending(store: EventStore, at: datetime, batches: int) -> threading.Thread:
    def run() -> None:
        for _ in range(batches):
            first = store.position
            store.append(events(range(first, first + 20), at), first + 20)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_appends_during_compaction_are_neither_lost_nor_doubled(store: EventStore) -> None:
    store.append(events(range(20)), 20)
    thread = _appending(store, NOON, 25)
    removed = 0
    while thread.is_alive():
        removed += store.compact()
        store.vacuum()
    thread.join()
    assert removed > 1
    assert stored(store) == list(range(store.position)) == list(range(520))


def test_appends_during_retention_are_neither_lost_nor_doubled(store: EventStore) -> None:
    old = [NOON - 30 * DAY if seq % 2 else NOON for seq in range(200)]
    store.append(events(range(200), old), 200)
    thread = _appending(store, NOON, 25)
    dropped = 0
    while thread.is_alive():
        dropped += store.retain(RetentionPolicy(days=7), NOON, confirmed=True)
        store.compact()
    thread.join()
    assert dropped == 100
    assert stored(store) == [seq for seq in range(700) if seq >= 200 or not seq % 2]


# --- retention


def test_retention_counts_from_the_later_of_event_day_and_received_day(store: EventStore) -> None:
    midnight = NOON.replace(hour=0)
    last_kept = midnight - 7 * DAY
    moments = [
        (last_kept, last_kept),  # just kept
        (last_kept - timedelta(microseconds=1), last_kept - timedelta(microseconds=1)),  # just dropped
        (last_kept - 400 * DAY, NOON),  # an old import
        (last_kept - 400 * DAY, last_kept - DAY),  # an import of long ago
        (NOON, NOON),
    ]
    store.append(events(range(5), [at for at, _ in moments], [received for _, received in moments]), 5)
    assert store.retain(RetentionPolicy(days=7), NOON, confirmed=True) == 2
    assert stored(store) == [0, 2, 4]
    assert store.retain(RetentionPolicy(days=7), NOON) == 0


def test_retention_is_set_per_tenant_and_none_keeps_for_ever(store: EventStore) -> None:
    tenants = ("acme", "globex", "initech")
    old = NOON - 50 * DAY
    rows = [events([seq], old, tenant=tenant) for seq, tenant in enumerate(tenants)]
    store.append(pa.concat_tables(rows), 3)
    policy = RetentionPolicy(days=90, by_tenant={"globex": 30, "initech": None})
    assert store.retain(policy, NOON, confirmed=True) == 1
    assert [stored(store, tenant) for tenant in tenants] == [[0], [], [2]]
    assert store.retain(RetentionPolicy(days=None), NOON + 900 * DAY, confirmed=True) == 0


def test_a_run_that_would_drop_too_much_waits_for_the_operator(store: EventStore) -> None:
    times = [NOON - 100 * DAY] * 11 + [NOON] * 89
    store.append(events(range(100), times), 100)
    store.append(events([100], NOON - 100 * DAY, tenant="globex"), 101)
    store.append(events(range(101, 121), NOON, tenant="globex"), 121)
    with pytest.raises(RetentionHeldError, match=r"'acme': retention would drop 11% .* confirm"):
        store.retain(RetentionPolicy(days=90), NOON)
    assert len(stored(store)) == 100
    assert len(stored(store, "globex")) == 20, "a tenant that is held holds up no other"
    assert store.retain(RetentionPolicy(days=90), NOON, confirmed=True) == 11
    assert stored(store) == list(range(11, 100))


def test_up_to_a_tenth_is_dropped_without_asking(store: EventStore) -> None:
    store.append(events(range(100), [NOON - 100 * DAY] * 10 + [NOON] * 90), 100)
    assert store.retain(RetentionPolicy(days=90), NOON) == 10


def test_the_daily_share_of_a_short_policy_is_no_surprise(store: EventStore) -> None:
    times = [NOON - back * DAY for back in range(4) for _ in range(10)]
    store.append(events(range(40), times), 40)
    assert store.retain(RetentionPolicy(days=2), NOON) == 10
    store.append(events(range(40, 80), NOON - 3 * DAY), 80)
    with pytest.raises(RetentionHeldError, match="would drop 57%"):
        store.retain(RetentionPolicy(days=2), NOON)


def test_a_clock_that_ran_ahead_drops_nothing(store: EventStore) -> None:
    store.append(events(range(100), [NOON - back * DAY for back in range(100)]), 100)
    policy = RetentionPolicy(days=95)
    assert store.retain(policy, NOON) == 4
    with pytest.raises(RetentionHeldError, match="the clock went 3 days ahead"):
        store.retain(policy, NOON + 3 * DAY)
    with pytest.raises(RetentionHeldError, match="the clock went 3 days ahead"):
        store.retain(policy, NOON + 3 * DAY)
    assert store.retain(policy, NOON + 3 * DAY, confirmed=True) == 3
    assert store.retain(policy, NOON + 4 * DAY) == 1, "a confirmed run is what the next is measured by"


def test_a_clock_that_is_wrong_from_the_start_drops_nothing(store: EventStore, reopen: Open) -> None:
    store.append(events(range(100), [NOON - back * DAY for back in range(100)]), 100)
    store.close()
    again = reopen()
    wrong = NOON + 3650 * DAY
    again.append(events([100], wrong), 101)  # what the wrong clock stamps must not vouch for it
    with pytest.raises(RetentionHeldError, match="the clock is 3650 days after anything that was stored"):
        again.retain(RetentionPolicy(days=90), wrong)
    assert len(stored(again)) == 101


def test_an_absence_is_no_jump_when_a_run_vouches_for_the_time(store: EventStore, reopen: Open) -> None:
    store.append(events(range(100), [NOON - back * DAY for back in range(100)]), 100)
    assert store.retain(RetentionPolicy(days=115), NOON + 12 * DAY) == 0
    store.close()
    again = reopen()
    assert again.retain(RetentionPolicy(days=115), NOON + 20 * DAY) == 4
    again.close()


def test_vacuum_deletes_nothing_that_is_in_use(store: EventStore) -> None:
    for first in range(0, 30, 10):
        store.append(events(range(first, first + 10)), first + 10)
    assert store.vacuum() == 0
    store.compact()
    assert store.vacuum() == 3
    assert stored(store) == list(range(30))


def test_micros_of_the_snapshot_are_exact(store: EventStore) -> None:
    """A boundary between two microseconds must not be rounded away by the statistics of a file."""
    edge = NOON + timedelta(microseconds=1)
    store.append(events([0], NOON), 1)
    store.append(events([1], edge), 2)
    with store.lease("acme", edge, edge + timedelta(microseconds=1)) as snapshot:
        assert read(snapshot.files).column("seq").to_pylist() == [1]
    assert micros(edge) - micros(NOON) == 1


@given(st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_history_is_read_in_log_order_in_windows(backend: Callable[[Path], EventStore], data: st.DataObject) -> None:
    seqs = sorted(data.draw(st.sets(st.integers(0, 200), min_size=1, max_size=60)))
    tenants = [data.draw(st.sampled_from(["acme", "globex"])) for _ in seqs]
    with TemporaryDirectory() as folder:
        store = backend(Path(folder))
        cut = data.draw(st.integers(0, len(seqs)))
        for part, upto in ((slice(0, cut), seqs[cut] if cut < len(seqs) else 201), (slice(cut, None), 201)):
            listed = list(zip(seqs[part], tenants[part], strict=True))
            rows = [events([seq], NOON + timedelta(seconds=seq), tenant=tenant) for seq, tenant in listed]
            store.append(pa.concat_tables(rows) if rows else events([]), upto)
        if data.draw(st.booleans()):
            store.compact()
        width = data.draw(st.sampled_from([25, 64, 250]))
        found: list[tuple[int, str]] = []
        at = 0
        while at < store.position:
            batches, after = store.read(at, width)
            assert after == min(at + width, store.position)
            for batch in batches:
                inside = batch.column("seq").to_pylist()
                assert inside == sorted(inside)
                assert batch.record_batch.schema == SCHEMA
                assert batch.watermark >= max(batch.column("received_at").to_pylist())
                found += [(seq, batch.tenant) for seq in inside]
            at = after
        assert sorted(found) == list(zip(seqs, tenants, strict=True))
        assert store.read(at) == ([], at)
        store.close()


def test_a_window_of_history_is_bounded_in_bytes(store: EventStore) -> None:
    rows = events(range(4000), [NOON + timedelta(seconds=seq) for seq in range(4000)])
    store.append(rows, 4100)
    store.compact()
    found: list[int] = []
    at, windows = 0, 0
    while at < store.position:
        batches, after = store.read(at, 5000, rows.nbytes // 4)
        assert after > at
        assert sum(batch.record_batch.nbytes for batch in batches) <= rows.nbytes // 2
        found += [seq for batch in batches for seq in batch.column("seq").to_pylist()]
        at, windows = after, windows + 1
    assert found == list(range(4000))
    assert 3 < windows < 12
    (first, *_), after = store.read(0, 5000, 1)
    assert 0 < after < 4000
    assert first.column("seq").to_pylist() == list(range(after))


# --- erasure


def erased_from(rows: pa.Table, asked: Sequence[str], below: int, linked: Sequence[str] = ()) -> list[int]:
    """The positions that are left, one row at a time."""

    def theirs(user: str | None, visitor: str) -> bool:
        if user in asked or visitor in asked or user in linked:
            return True
        return user is None and visitor in linked

    columns = (rows.column(name).to_pylist() for name in ("seq", "user_id", "anonymous_id"))
    return [seq for seq, user, visitor in zip(*columns, strict=True) if seq >= below or not theirs(user, visitor)]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    cut=st.integers(0, 25),
    ids=st.lists(st.sampled_from(["u0", "u1", "ä0", "ä7", "nobody"]), min_size=1, max_size=2),
    linked=st.lists(st.sampled_from(["u2", "ä5", "ä8", "nobody else"]), max_size=3),
    below=st.integers(0, 26),
    compacted=st.booleans(),
)
def test_an_erasure_takes_what_carries_the_ids_below_its_position_and_nothing_else(
    backend: Callable[[Path], EventStore],
    days: list[int],
    cut: int,
    ids: list[str],
    linked: list[str],
    below: int,
    compacted: bool,
) -> None:
    rows = events(range(len(days)), [NOON + day * DAY for day in days], NOON)
    with TemporaryDirectory() as directory:
        store = backend(Path(directory))
        store.append(pa.concat_tables([rows.slice(0, cut), events([0], tenant="globex")]), max(cut, 1))
        store.append(rows.slice(cut), len(days) + 1)
        if compacted:
            store.compact()
        held, others = stored(store), stored(store, "globex")
        swept = store.erase("acme", Owners(tuple(ids), tuple(linked)), below)
        left = [seq for seq in erased_from(rows, ids, below, linked) if seq in held]
        assert (stored(store), stored(store, "globex")) == (left, others)
        assert (swept.events, swept.leased) == (len(held) - len(left), 0)
        assert store.erase("acme", Owners(tuple(ids), tuple(linked)), below).events == 0
        position = store.position
        store.close()
        again = backend(Path(directory))
        assert (stored(again), again.position) == (left, position)
        again.close()


def test_what_was_erased_is_on_no_disk_once_nobody_reads_it(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "events", young_seconds=3600)
    store.append(events(range(9)), 9)
    store.compact()  # the files that it has replaced are young
    with store.lease("acme") as old:
        swept = store.erase("acme", Owners(("u1",)), 9)
        assert (swept.files, swept.leased) == (1, 1)
        assert len(read(old.files)) == 9, "a question that has begun goes on"
    assert store.erase("acme", Owners(("u1",)), 9).deleted == 1
    left = list(tmp_path.rglob("*.parquet"))
    assert sorted(read([str(path) for path in left]).column("seq").to_pylist()) == stored(store)
    store.close()


def test_an_erasure_loses_no_append_and_no_compaction_undoes_it(store: EventStore) -> None:
    store.append(events(range(30)), 30)
    done = threading.Event()

    def append() -> None:
        for at in range(30, 42, 3):
            store.append(events(range(at, at + 3)), at + 3)
            store.compact()
        done.set()

    writer = threading.Thread(target=append)
    writer.start()
    while not done.is_set():
        store.erase("acme", Owners(("u1",)), 30)
    writer.join()
    store.erase("acme", Owners(("u1",)), 30)
    assert stored(store) == erased_from(events(range(42)), ["u1"], 30)
