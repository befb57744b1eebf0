"""Counted once: the hashes, the filter, the runs, and the whole against a plain dictionary."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from analytics_core.errors import LogWriteError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.events.owners import Owners
from analytics_core.log.dedup import Admission, Deduplicator, Pending
from analytics_core.log.ids import IdHasher, IdRun
from analytics_core.log.seen import SeenFilter
from analytics_core.log.segments import SegmentLog

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
SEGMENT_BYTES = 8_000


def events(ids: list[str], tenant: str = "acme") -> pa.RecordBatch:
    count = len(ids)
    columns: dict[str, list[Any]] = {name: [None] * count for name in UNPLACED_SCHEMA.names}
    columns |= {"tenant": [tenant] * count, "event_id": ids, "name": ["e"] * count, "source": ["native"] * count}
    columns |= {"timestamp": [NOW] * count, "received_at": [NOW] * count}
    columns |= {"properties": ["{}"] * count, "context": ["{}"] * count}
    return pa.RecordBatch.from_pydict(columns, schema=UNPLACED_SCHEMA)


class House:
    """A log with its deduplication, as intake drives them."""

    def __init__(self, directory: Path, window: int = 1000, log_max_bytes: int | None = None) -> None:
        self.directory = directory
        self.window = window
        self.limit = log_max_bytes
        self.open()

    def open(self) -> None:
        self.log = SegmentLog(
            self.directory, segment_bytes=SEGMENT_BYTES, log_max_bytes=self.limit, disk_reserve_bytes=0
        )
        self.dedup = Deduplicator(self.log, self.window)

    def close(self) -> None:
        self.dedup.close()
        self.log.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def admit(self, *ids: str, tenant: str = "acme") -> Admission:
        return self.dedup.admit(self.dedup.hashes(tenant, pa.array(ids, pa.string())))

    def store(self, *ids: str, tenant: str = "acme") -> list[bool]:
        """Admit, append and commit; which ids were new."""
        admission = self.admit(*ids, tenant=tenant)
        if admission.pending is not None:
            kept = [i for i, new in zip(ids, admission.new.tolist(), strict=True) if new]
            self.dedup.commit(admission.pending, self.log.append([events(kept, tenant)], NOW)[0])
        return admission.new.tolist()

    def known(self, *ids: str) -> list[bool]:
        """Which ids are duplicates, leaving all as it was."""
        admission = self.admit(*ids)
        if admission.pending is not None:
            self.dedup.fail(admission.pending, LogWriteError("x", OSError()))
        return (~admission.new).tolist()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "p0")
    yield made
    made.close()


# --- hashes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=70), min_size=1, max_size=40))
def test_an_id_hashes_the_same_alone_and_among_others(ids: list[str]) -> None:
    hasher = IdHasher(b"k" * 32)
    together = hasher("acme", pa.array(ids, pa.string()))
    assert together.shape == (2, len(ids))
    for at, text in enumerate(ids):
        assert hasher("acme", pa.array([text], pa.string()))[:, 0].tolist() == together[:, at].tolist()
    assert len(set(ids)) == len(set(zip(*together.tolist(), strict=True)))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 255, 256, 257, 5000])
def test_every_length_hashes_the_same_alone_among_others_and_in_a_slice(length: int) -> None:
    hasher = IdHasher(b"k" * 32)
    ids = pa.array([*(f"{i}" for i in range(9)), "x" * length, "y" * 300])
    together = hasher("acme", ids)
    assert hasher("acme", ids.slice(9, 1)).tolist() == together[:, 9:10].tolist()
    assert hasher("acme", ids.slice(5)).tolist() == together[:, 5:].tolist()


def test_more_ids_than_a_block_hash_the_same() -> None:
    hasher = IdHasher(b"k" * 32)
    ids = pa.array([f"event-{i}" for i in range(20_000)])
    together = hasher("acme", ids)
    assert hasher("acme", ids.slice(19_000)).tolist() == together[:, 19_000:].tolist()
    assert len(np.unique(together[0])) == len(np.unique(together[1])) == 20_000


def test_tenant_length_and_secret_tell_hashes_apart() -> None:
    hasher = IdHasher(b"k" * 32)
    ids = pa.array(["", "\0", "\0\0", "a", "a\0", "a" + 7 * "\0", "a" + 8 * "\0", "b" * 300, "b" * 301])
    found = [hasher("acme", ids), hasher("other", ids), IdHasher(b"l" * 32)("acme", ids)]
    halves = np.concatenate(found, axis=1)
    assert len(np.unique(halves[0])) == len(np.unique(halves[1])) == 27


def test_a_run_tells_ids_with_equal_high_halves_apart() -> None:
    hashes = np.array([[5, 5, 5, 9, 2**64 - 1], [1, 2, 3, 4, 5]], np.uint64)
    run = IdRun.of(hashes)
    asked = np.array([[5, 5, 5, 9, 9, 1, 2**64 - 1, 2**64 - 1], [3, 4, 1, 4, 5, 1, 5, 6]], np.uint64)
    assert run.contains(asked).tolist() == [True, False, True, True, False, False, True, False]


# --- the filter


def random_hashes(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, (2, count), np.uint64, endpoint=False)


def test_the_filter_forgets_nothing_of_the_last_window_and_all_of_two_windows_ago() -> None:
    seen = SeenFilter(20_000)
    blocks = [random_hashes(5_000, seed) for seed in range(20)]
    for at, block in enumerate(blocks):
        seen.add(seen.spots(block))
        seen.count(5_000)
        for recent in blocks[max(0, at - 3) : at + 1]:
            assert seen.may_hold(seen.spots(recent)).all()
    assert seen.may_hold(seen.spots(blocks[0])).mean() < 0.01


def test_the_filter_errs_rarely_when_it_is_fullest() -> None:
    seen = SeenFilter(40_000)
    seen.add(seen.spots(random_hashes(40_000, 1)))
    seen.count(40_000)
    seen.add(seen.spots(random_hashes(39_999, 2)))
    assert seen.may_hold(seen.spots(random_hashes(100_000, 3))).mean() < 0.01


def test_many_ids_in_one_word_are_all_held() -> None:
    seen = SeenFilter(1000)
    hashes = random_hashes(500, 1)
    hashes[0] = 7
    seen.add(seen.spots(hashes))
    assert seen.may_hold(seen.spots(hashes)).all()


# --- rules, one by one


def test_the_first_of_equal_ids_in_a_batch_wins(house: House) -> None:
    assert house.store("a", "b", "a", "c", "b") == [True, True, False, True, False]
    assert house.store("c", "d", "a") == [False, True, False]


def test_tenants_share_no_ids(house: House) -> None:
    assert house.store("a") == [True]
    assert house.store("a", tenant="other") == [True]


def test_a_batch_of_nothing_admits_nothing(house: House) -> None:
    assert house.admit()[1:] == (None, [])


@pytest.mark.parametrize("count", [1, 100])
def test_a_duplicate_of_a_pending_id_waits_for_its_outcome(house: House, count: int) -> None:
    ids = [f"id-{i}" for i in range(count)]
    first = house.admit(*ids)
    again = house.admit(*ids, "new")
    assert first.pending is not None
    assert again.new.tolist() == [False] * count + [True]
    assert again.waits == [first.pending]
    assert not first.pending.future.done()
    house.dedup.commit(first.pending, 41)
    assert first.pending.future.result(0) == 41
    assert house.admit(*ids)[1:] == (None, [])


@pytest.mark.parametrize("count", [1, 100])
def test_a_failed_write_makes_its_ids_new_again(house: House, count: int) -> None:
    ids = [f"id-{i}" for i in range(count)]
    first = house.admit(*ids)
    waiting = house.admit(*ids)
    assert first.pending is not None
    error = LogWriteError("x", OSError("no"))
    house.dedup.fail(first.pending, error)
    assert waiting.waits[0].future.exception(0) is error
    assert house.store(*ids) == [True] * count


def test_one_who_gives_up_waiting_ends_nobody_elses_wait(house: House) -> None:
    pending = house.admit("a").pending
    assert pending is not None
    assert not pending.future.cancel()
    house.dedup.commit(pending, 0)
    assert pending.future.result(0) == 0


def test_waits_name_each_pending_batch_once(house: House) -> None:
    one, two = house.admit("a"), house.admit(*(f"b{i}" for i in range(20)))
    found = house.admit("a", "b1", "b2", "a")
    assert not found.new.any()
    assert {id(p) for p in found.waits} == {id(one.pending), id(two.pending)}
    assert len(found.waits) == 2


def test_of_many_threads_with_the_same_ids_one_gets_each(house: House) -> None:
    ids = [f"id-{i}" for i in range(300)]
    taken: list[np.ndarray[Any, Any]] = []
    gate = threading.Barrier(4)

    def work(shift: int) -> None:
        gate.wait()
        for at in range(0, 300, 10):
            part = [ids[(at + shift + k) % 300] for k in range(10)]
            admission = house.admit(*part)
            if admission.pending is not None:
                taken.append(admission.pending.hashes)
                house.dedup.commit(admission.pending, 0)

    threads = [threading.Thread(target=work, args=(50 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    every = np.concatenate(taken, axis=1)
    assert every.shape[1] == len(np.unique(every[0])) == 300


def test_ids_that_never_came_about_do_not_blind_the_filter(house: House) -> None:
    house.store("kept")
    pending = house.admit("waiting").pending
    for at in range(25):
        assert not any(house.known(*(f"lost-{at}-{i}" for i in range(100))))
    assert house.known("kept", "waiting", "lost-0-0") == [True, True, False]
    assert pending is not None


OUTCOMES = st.sampled_from(["stored", "failed", "waits"])
BATCHES = st.lists(st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=12), OUTCOMES), max_size=25)


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_ids_are_admitted_one_by_one_as_they_are_in_arrays(batches: list[tuple[list[int], str]]) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
        limits, houses = (0, 1000), []
        for limit in limits:
            home = Path(directory) / str(limit)
            home.mkdir()
            (home / "dedup.key").write_bytes(b"k" * 32)
            houses.append(House(home, window=20))
        left: list[tuple[Pending | None, Pending | None]] = []
        for seq, (ids, outcome) in enumerate(batches):
            found = []
            for limit, house in zip(limits, houses, strict=True):
                patched.setattr("analytics_core.log.dedup._FEW", limit)
                found.append(house.admit(*map(str, ids)))
            arrays, one_by_one = found
            assert arrays.new.tolist() == one_by_one.new.tolist()
            assert {(waited, other) for waited, other in left if waited in arrays.waits} == {
                (waited, other) for waited, other in left if other in one_by_one.waits
            }
            assert len(arrays.waits) == len(one_by_one.waits)
            for house, admission in zip(houses, found, strict=True):
                if admission.pending is not None and outcome == "stored":
                    house.dedup.commit(admission.pending, seq)
                elif admission.pending is not None and outcome == "failed":
                    house.dedup.fail(admission.pending, LogWriteError("x", OSError()))
            if outcome == "waits":
                left.append((arrays.pending, one_by_one.pending))
            if arrays.pending is None or one_by_one.pending is None:
                assert arrays.pending is one_by_one.pending
            else:
                assert arrays.pending.hashes.tolist() == one_by_one.pending.hashes.tolist()
            arrays_hold, one_by_one_holds = (house.dedup._filter for house in houses)
            assert (arrays_hold._current == one_by_one_holds._current).all()
        for house in houses:
            house.close()


# --- across segments and starts


def fill(house: House, batches: int, size: int = 20, name: str = "e") -> list[str]:
    ids = [f"{name}-{i}" for i in range(batches * size)]
    for at in range(0, len(ids), size):
        assert all(house.store(*ids[at : at + size]))
    return ids


def sidecars(house: House) -> list[Path]:
    return sorted(house.directory.glob("*.ids"))


def wait_for_files(house: House) -> None:
    """Until the ids of all sealed segments are in their files."""
    deadline = time.monotonic() + 20
    while house.dedup.floor < house.log.segments[-1]:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_ids_survive_a_restart_from_files_and_from_the_last_segment(house: House) -> None:
    ids = fill(house, 30)
    assert len(house.log.segments) > 3
    house.restart()
    assert len(sidecars(house)) == len(house.log.segments) - 1
    assert house.dedup.reached == 600
    assert house.store(*ids, "new") == [False] * 600 + [True]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty", "foreign"])
def test_a_damaged_file_of_ids_is_made_again_from_its_segment(house: House, damage: str) -> None:
    ids = fill(house, 30)
    house.close()
    path = sidecars(house)[1]
    whole = path.read_bytes()
    if damage == "flip":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "cut":
        path.write_bytes(whole[:-16])
    elif damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(sidecars(house)[2].read_bytes())
    house.open()
    assert all(house.known(*ids))
    assert path.read_bytes() == whole


def test_another_secret_makes_all_files_again(house: House) -> None:
    ids = fill(house, 30)
    house.close()
    (house.directory / "dedup.key").unlink()
    before = [path.read_bytes() for path in sidecars(house)]
    house.open()
    assert all(house.known(*ids))
    assert all(old != path.read_bytes() for old, path in zip(before, sidecars(house), strict=True))


def test_a_file_that_cannot_be_written_costs_memory_and_nothing_else(house: House) -> None:
    first_sealed = house.directory / f"{0:020d}.ids.tmp"
    first_sealed.mkdir()
    ids = fill(house, 30)
    house.dedup.close()
    assert all(house.known(*ids))
    assert not first_sealed.with_suffix("").exists()
    assert house.dedup.floor == 0
    first_sealed.rmdir()


def test_a_file_that_could_not_be_written_is_written_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = house.directory / f"{0:020d}.ids.tmp"
    blocked.mkdir()
    monkeypatch.setattr("analytics_core.log.id_index._RETRY_SECONDS", 0.0)
    ids = fill(house, 30)
    assert house.dedup.floor == 0
    blocked.rmdir()
    wait_for_files(house)
    assert house.log.trim(house.dedup.floor) > 0
    house.restart()
    assert all(house.known(*ids))


def test_a_batch_reported_after_its_segment_was_left_is_in_that_segments_file(house: House) -> None:
    late = house.admit("late")
    assert late.pending is not None
    seq = house.log.append([events(["late"])], NOW)[0]
    fill(house, 12)
    house.dedup.close()
    house.log.close()  # as after kill -9: nobody has reported it
    house.open()
    assert seq == 0
    assert len(sidecars(house)) > 1
    assert house.known("late") == [True]


def test_a_late_report_is_known_at_once(house: House) -> None:
    late = house.admit("late")
    assert late.pending is not None
    seq = house.log.append([events(["late"])], NOW)[0]
    fill(house, 12)
    house.dedup.commit(late.pending, seq)
    assert house.known("late") == [True]
    house.restart()
    assert house.known("late") == [True]


@pytest.mark.parametrize("files_first", [False, True])
def test_batches_reported_out_of_order_are_all_covered(house: House, files_first: bool) -> None:
    names = [f"late-{i}" for i in range(9)]
    late = house.admit(*names)
    assert late.pending is not None
    seq = house.log.append([events(names)], NOW)[0]
    fill(house, 12)
    assert house.dedup.reached >= 240
    if files_first:
        wait_for_files(house)
    house.dedup.commit(late.pending, seq)
    assert house.dedup.reached == 249
    assert all(house.known(*names))
    wait_for_files(house)
    assert house.dedup.reached == 249
    house.restart()
    assert house.dedup.reached == 249


def test_a_durable_id_is_waited_for_until_it_is_reported(house: House) -> None:
    late = house.admit("late")
    house.log.append([events(["late"])], NOW)
    fill(house, 12)
    wait_for_files(house)
    assert house.admit("late").waits == [late.pending]


def test_late_reports_of_older_events_push_no_newer_one_out(tmp_path: Path) -> None:
    house = House(tmp_path / "p0", window=20)
    late = []
    for batch in range(4):
        names = [f"late-{batch}-{i}" for i in range(10)]
        pending = house.admit(*names).pending
        assert pending is not None
        late.append((pending, house.log.append([events(names)], NOW)[0]))
    house.store("newest")
    for pending, seq in late:
        house.dedup.commit(pending, seq)
    assert house.known("newest") == [True]
    house.close()


def test_segments_beyond_the_window_are_let_go(tmp_path: Path) -> None:
    house = House(tmp_path / "p0", window=100)
    ids = fill(house, 40)
    assert house.dedup.reached == 100
    assert 100 <= house.dedup._index.reached < 300
    house.restart()
    assert all(house.known(*ids[-100:]))
    assert not any(house.known(*ids[:100]))
    held = house.log.segments
    assert len(sidecars(house)) < len(held) - 1
    assert [int(path.stem) for path in sidecars(house)] == list(held[-1 - len(sidecars(house)) : -1])
    house.close()


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_window_outlives_the_segments_that_are_trimmed(house: House, restarts: int) -> None:
    ids = fill(house, 30)
    house.dedup.close()  # all files are written
    newest = house.log.segments[-1]
    assert house.dedup.floor == newest
    assert house.log.trim(house.dedup.floor) == newest
    for _ in range(restarts):
        house.restart()
    assert house.dedup.reached == 600
    assert house.store(*ids, "new") == [False] * 600 + [True]


def test_a_trimmed_segment_whose_ids_are_damaged_is_told_and_ends_the_window(house: House) -> None:
    ids = fill(house, 30)
    house.dedup.close()
    firsts = house.log.segments
    house.log.trim(house.dedup.floor)
    house.close()
    damaged = house.directory / f"{firsts[-3]:020d}.ids"
    damaged.write_bytes(damaged.read_bytes()[:-16])
    with structlog.testing.capture_logs() as lines:
        house.open()
    assert [line["file"] for line in lines if line["log_level"] == "error"] == [str(damaged)]
    assert house.dedup.reached == house.log.durable - firsts[-2]
    assert all(house.known(*ids[firsts[-2] :]))
    assert [int(path.stem) for path in sidecars(house)] == [firsts[-2]]


def test_a_log_below_the_window_never_stops_taking_events(tmp_path: Path) -> None:
    """The log holds far less than the window: whatever is stored and whose ids are in files makes room."""
    house = House(tmp_path / "p0", window=100_000, log_max_bytes=4 * SEGMENT_BYTES)
    for i in range(100):
        if not i % 4:
            wait_for_files(house)
            house.log.trim(house.dedup.floor)
        house.store(f"alone-{i}")
    assert house.log.first > 0
    assert all(house.known(*(f"alone-{i}" for i in range(100))))
    house.restart()
    assert all(house.known(*(f"alone-{i}" for i in range(100))))
    house.close()


def test_files_that_the_window_has_passed_are_deleted(tmp_path: Path) -> None:
    house = House(tmp_path / "p0", window=100)
    fill(house, 10)
    stale = house.directory / f"{0:020d}.ids"
    fill(house, 30, name="later")
    house.dedup.close()
    assert not stale.exists()
    foreign = house.directory / f"{77_000:020d}.ids"
    foreign.write_bytes(b"x")
    house.restart()
    assert not foreign.exists()
    house.close()


def test_a_pending_id_outlives_any_number_of_windows(tmp_path: Path) -> None:
    house = House(tmp_path / "p0", window=50)
    slow = [f"slow-{i}" for i in range(20)]
    alone, together = house.admit("slow"), house.admit(*slow)
    fill(house, 20)
    found = house.admit("slow", *slow)
    assert not found.new.any()
    assert {id(p) for p in found.waits} == {id(alone.pending), id(together.pending)}
    house.close()


def test_a_segment_that_was_written_across_a_restart_has_each_id_once_in_its_file(house: House) -> None:
    ids = fill(house, 2)
    house.restart()
    ids += fill(house, 8, name="more")
    bounds = [*house.log.segments, house.log.durable]
    house.dedup.close()
    sizes = [path.stat().st_size for path in sidecars(house)]
    assert len(sizes) == len(bounds) - 2 > 0
    empty = sizes[0] - 16 * bounds[1]
    assert sizes == [empty + 16 * (end - first) for first, end in pairwise(bounds[:-1])]
    assert empty == 40


def test_runs_of_a_long_segment_are_merged_and_hold_all(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0)
    dedup = Deduplicator(log, 1_000_000)
    parts = [dedup.hashes("t", pa.array([f"{k}-{i}" for i in range(6_000)])) for k in range(20)]
    for at, part in enumerate(parts):
        pending = dedup.admit(part).pending
        assert pending is not None
        dedup.commit(pending, at)
    for part in parts:
        assert not dedup.admit(part).new.any()
    dedup.close()
    log.close()


# --- against a dictionary


class Counted(RuleBasedStateMachine):
    """Batches, commits, late reports, failures, restarts, trimming and lost files, in any order."""

    WINDOW = 25

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # where there is one: it is the rules that are tried here, not the disk
        self.directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.house = House(self.directory / "p0", self.WINDOW)
        self.waiting: list[tuple[Pending, list[str], str]] = []
        self.appended: list[tuple[Pending, list[str], str, int]] = []
        self.logged: list[tuple[str, str]] = []
        self.reported: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self.house.close()
        shutil.rmtree(self.directory)

    @rule(ids=st.lists(st.integers(0, 60), min_size=1, max_size=14), tenant=st.sampled_from(["acme", "other"]))
    def admit(self, ids: list[int], tenant: str) -> None:
        texts = [f"id-{i}" for i in ids]
        reached = self.house.dedup.reached
        found = self.house.admit(*texts, tenant=tenant)
        on_the_way = {
            (owner, text): pending for pending, kept, owner, *_ in (*self.waiting, *self.appended) for text in kept
        }
        recent = set(self.logged[len(self.logged) - reached :])
        expected_waits = set()
        for at, text in enumerate(texts):
            key, new = (tenant, text), bool(found.new[at])
            if text in texts[:at]:
                assert not new
            elif key in on_the_way:
                assert not new
                expected_waits.add(id(on_the_way[key]))
            elif key in recent:
                assert not new
            elif key not in self.logged:
                assert new
        assert {id(pending) for pending in found.waits} == expected_waits
        kept = [text for text, new in zip(texts, found.new.tolist(), strict=True) if new]
        assert (found.pending is None) == (not kept)
        if found.pending is not None:
            self.waiting.append((found.pending, kept, tenant))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        pending, kept, tenant = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        seq = self.house.log.append([events(kept, tenant)], NOW)[0]
        self.logged += [(tenant, text) for text in kept]
        self.appended.append((pending, kept, tenant, seq))

    @precondition(lambda self: self.appended)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        pending, kept, tenant, seq = self.appended.pop(data.draw(st.integers(0, len(self.appended) - 1)))
        self.house.dedup.commit(pending, seq)
        self.reported += [(tenant, text) for text in kept]
        assert pending.future.result(0) == seq

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        pending, _, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.house.dedup.fail(pending, LogWriteError("x", OSError()))

    @rule()
    def idle(self) -> None:
        self.house.log.append([], NOW)

    @rule(lose=st.sampled_from(["nothing", "one", "all"]))
    def restart(self, lose: str) -> None:
        self.house.close()
        again = [path for path in sidecars(self.house) if path.with_suffix(".seg").exists()]
        for path in again[: {"nothing": 0, "one": 1, "all": None}[lose]]:
            path.unlink()
        self.house.open()
        self.waiting, self.appended, self.reported = [], [], list(self.logged)

    @rule()
    def trim(self) -> None:
        self.house.log.trim(self.house.dedup.floor)

    @invariant()
    def covered(self) -> None:
        assert self.house.dedup.reached >= min(self.WINDOW, len(self.reported))


Counted.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
test_deduplication_agrees_with_a_dictionary = pytest.mark.timeout(400)(
    Counted.TestCase
)  # every step waits for the disk


def test_an_erased_event_is_not_taken_a_second_time(house: House) -> None:
    house.store("a", "b")
    columns = events(["c", "d"]).set_column(3, "user_id", pa.array(["ada", "bob"]))
    pending = house.admit("c", "d").pending
    assert pending is not None
    house.dedup.commit(pending, house.log.append([columns], NOW)[0])
    house.log.erase("acme", Owners(("ada",)), "k")
    assert house.known("a", "c", "d", "e") == [True, True, True, False]
    house.restart()
    assert house.known("a", "c", "d", "e") == [True, True, True, False]


def test_segments_before_a_tombstone_are_needed_no_longer_though_no_event_comes(house: House) -> None:
    house.store("a", "b")
    position = house.log.erase("acme", Owners(("ada",)), "k")
    house.log.append([], NOW)
    deadline = time.monotonic() + 20
    while house.dedup.floor <= position:
        assert time.monotonic() < deadline, f"the floor is {house.dedup.floor}"
        time.sleep(0.002)
    assert house.log.trim(house.dedup.floor) == position + 1
    house.restart()
    assert house.known("a", "b", "c") == [True, True, False]
