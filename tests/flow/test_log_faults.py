"""The log under damage: torn and flipped bytes, failing disks, full disks, and kill -9."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analytics_core.errors import LogCorruptionError, LogFullError, LogLockedError, LogWriteError, StorageError
from analytics_core.events import UNPLACED_SCHEMA, EventBatch
from analytics_core.events.owners import Owners
from analytics_core.log import LogReader
from analytics_core.log.frames import HEADER_BYTES, Disk
from analytics_core.log.segments import SegmentLog, SegmentReader

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
FULL = OSError(errno.ENOSPC, "no space left on device")
BROKEN = OSError(errno.EIO, "input/output error")


def events(*ids: str) -> pa.RecordBatch:
    count = len(ids)
    columns: dict[str, list[Any]] = {name: [None] * count for name in UNPLACED_SCHEMA.names}
    columns |= {"tenant": ["acme"] * count, "event_id": list(ids), "name": ["e"] * count, "source": ["native"] * count}
    columns |= {"timestamp": [NOW] * count, "received_at": [NOW] * count}
    columns |= {"properties": ["{}"] * count, "context": ["{}"] * count}
    return pa.RecordBatch.from_pydict(columns, schema=UNPLACED_SCHEMA)


class FaultyDisk(Disk):
    """A disk that does as each list says, call by call, and then works. ``free`` None asks the real one."""

    def __init__(self) -> None:
        self.writes: list[int | OSError] = []
        self.syncs: list[OSError] = []
        self.cuts: list[OSError] = []
        self.creates: list[OSError] = []
        self.free: int | None = None
        self.before_sync: Callable[[], None] = lambda: None
        self.written: list[tuple[int, int]] = []
        """The file of each write: its inode, and how many files had been made by then (inodes are used again)."""
        self.made = 0

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.written.append((os.fstat(descriptor).st_ino, self.made))
        fault = self.writes.pop(0) if self.writes else len(data)
        if isinstance(fault, OSError):
            raise fault
        return super().write(descriptor, data[:fault], offset) if fault else 0

    def sync(self, descriptor: int) -> None:
        self.before_sync()
        if self.syncs:
            raise self.syncs.pop(0)
        super().sync(descriptor)

    def cut(self, descriptor: int, size: int) -> None:
        if self.cuts:
            raise self.cuts.pop(0)
        super().cut(descriptor, size)

    def create(self, path: Path) -> int:
        if self.creates:
            raise self.creates.pop(0)
        self.made += 1
        return super().create(path)

    def space(self, directory: Path) -> tuple[int, int]:
        free, size = super().space(directory)
        return (free if self.free is None else self.free), size


class Setting:
    """One log directory, opened and damaged by turns."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = FaultyDisk()

    def open(self, **limits: Any) -> SegmentLog:
        self.log = SegmentLog(self.directory, disk=self.disk, **({"disk_reserve_bytes": 0} | limits))
        return self.log

    def filled(self, appends: int, **limits: Any) -> list[int]:
        """Open, append events ``e0``, ``e1``, ... one at a time, close; where in the last segment each begins."""
        log = self.open(**limits)
        starts = []
        for at in range(appends):
            starts.append(self.path().stat().st_size)
            log.append([events(f"e{at}")], NOW)
        log.close()
        return starts

    def path(self, which: int = -1) -> Path:
        return sorted(self.directory.glob("*.seg"))[which]

    def unacknowledge(self, position: int) -> None:
        """As if the host had died before it published what lies at ``position`` and beyond."""
        (self.directory / "durable").write_bytes(struct.pack("<q", position))

    def ids(self, log: LogReader | None = None) -> list[str]:
        position, found = 0, []
        while True:
            batches, position = (log or self.log).read(position)
            if not batches:
                return found
            found += ids_of(batches)

    def flip(self, offset: int, which: int = -1) -> None:
        with self.path(which).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))


def ids_of(batches: list[EventBatch]) -> list[str]:
    return [text for batch in batches for text in batch.column("event_id").to_pylist()]


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    made = Setting(tmp_path / "p0")
    yield made
    made.log.close()


# --- the end of the last segment


@pytest.mark.parametrize("kept", [1, 3, 4, 8, 20, 43, 44, 47, 48, 49, 56, 300, -9, -8, -1])
def test_a_torn_last_frame_is_cut_before_anybody_reads(setting: Setting, kept: int) -> None:
    last = setting.filled(5)[-1]
    size = setting.path().stat().st_size
    os.truncate(setting.path(), last + kept if kept > 0 else size + kept)
    setting.unacknowledge(4)
    log = setting.open()
    assert (log.durable, setting.path().stat().st_size) == (4, last)
    assert log.append([events("after")], NOW) == [4]
    assert setting.ids() == ["e0", "e1", "e2", "e3", "after"]


@pytest.mark.parametrize("zeroed", [8, 48, 500, None])
def test_a_zeroed_tail_is_cut(setting: Setting, zeroed: int | None) -> None:
    last = setting.filled(5)[-1]
    size = setting.path().stat().st_size
    begin = last if zeroed is None else size - zeroed
    with setting.path().open("r+b") as file:
        file.seek(begin)
        file.write(bytes(size - begin + 8192))
    setting.unacknowledge(4)
    setting.open()
    assert setting.ids() == ["e0", "e1", "e2", "e3"]
    assert setting.path().stat().st_size == last


@pytest.mark.parametrize("where", [*range(HEADER_BYTES), 48, 200, 1000, -1])
def test_a_flipped_bit_anywhere_in_the_last_frame_is_found_and_cut(setting: Setting, where: int) -> None:
    last = setting.filled(3)[-1]
    setting.flip(last + where if where >= 0 else setting.path().stat().st_size + where)
    setting.unacknowledge(2)
    setting.open()
    assert setting.ids() == ["e0", "e1"]


def test_zeros_behind_a_whole_log_are_cut(setting: Setting) -> None:
    setting.filled(3)
    size = setting.path().stat().st_size
    with setting.path().open("ab") as file:
        file.write(bytes(10_000))
    assert setting.open().durable == 3
    assert setting.path().stat().st_size == size


def test_positions_of_acknowledged_events_that_are_lost_are_never_given_out_again(setting: Setting) -> None:
    setting.filled(5)
    setting.flip(setting.path().stat().st_size - 1)
    log = setting.open()
    assert log.durable == 5
    assert log.append([events("after")], NOW) == [5]
    log.close()
    assert setting.open().durable == 6
    assert setting.ids() == ["e0", "e1", "e2", "e3", "after"]
    batches, position = setting.log.read(4)
    assert ([len(b) for b in batches], position) == ([0, 1], 6)


def test_whole_frames_that_were_not_published_are_kept(setting: Setting) -> None:
    setting.filled(5)
    setting.unacknowledge(3)
    assert setting.open().durable == 5
    assert setting.ids() == ["e0", "e1", "e2", "e3", "e4"]


def test_one_append_that_reached_the_disk_out_of_order_is_cut_whole(setting: Setting) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    size = setting.path().stat().st_size
    log.append([events("e1"), events("e2"), events("e3")], NOW)
    log.close()
    setting.flip(size + 100)
    setting.unacknowledge(1)
    log = setting.open()
    assert (log.durable, setting.path().stat().st_size) == (1, size)
    assert setting.ids() == ["e0"]


def test_the_same_damage_in_an_acknowledged_append_stops_the_host(setting: Setting) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    size = setting.path().stat().st_size
    log.append([events("e1"), events("e2")], NOW)
    log.close()
    setting.flip(size + 100)
    with pytest.raises(LogCorruptionError, match=f"bad frame at byte {size}: .* a valid frame follows"):
        setting.open()


@pytest.mark.parametrize("durable", [b"", b"\0" * 3, struct.pack("<q", 0), struct.pack("<q", -5), None])
def test_a_lost_position_file_is_made_again(setting: Setting, durable: bytes | None) -> None:
    setting.filled(5)
    path = setting.directory / "durable"
    path.unlink() if durable is None else path.write_bytes(durable)
    assert setting.open().durable == 5
    with SegmentReader(setting.directory) as reader:
        assert reader.durable == 5


def test_a_position_file_that_cannot_be_true_stops_the_host(setting: Setting) -> None:
    setting.filled(5)
    setting.unacknowledge(2**60)
    with pytest.raises(LogCorruptionError, match=r"durable: bad frame at byte 0: it records 1152921504606846976"):
        setting.open()


def test_a_log_without_segments_goes_on_where_it_was(setting: Setting) -> None:
    setting.filled(5)
    setting.path().unlink()
    log = setting.open()
    assert (log.first, log.durable) == (5, 5)
    assert log.append([events("after")], NOW) == [5]


# --- anywhere else


@pytest.mark.parametrize("where", [*range(HEADER_BYTES), 48, 200, 1000])
def test_a_flipped_bit_in_the_middle_of_the_last_segment_stops_the_host(setting: Setting, where: int) -> None:
    starts = setting.filled(5)
    setting.flip(starts[2] + where)
    with pytest.raises(LogCorruptionError) as caught:
        setting.open()
    assert (caught.value.path, caught.value.offset) == (setting.path(), starts[2])
    assert str(setting.path()) in str(caught.value)


def test_a_hole_of_zeros_in_the_last_segment_stops_the_host(setting: Setting) -> None:
    starts = setting.filled(5)
    with setting.path().open("r+b") as file:
        file.seek(starts[1])
        file.write(bytes(starts[2] - starts[1]))
    with pytest.raises(LogCorruptionError, match=f"byte {starts[1]}: starts with"):
        setting.open()


@pytest.mark.parametrize("other_process", [False, True])
def test_a_flipped_bit_in_a_sealed_segment_stops_whoever_reads_it(setting: Setting, other_process: bool) -> None:
    setting.filled(20, segment_bytes=10_000)
    assert len(list(setting.directory.glob("*.seg"))) > 2
    setting.flip(3000, which=1)
    log = setting.open()
    reader = SegmentReader(setting.directory) if other_process else log
    second = log.segments[1]
    assert ids_of(reader.read(0, second)[0]) == [f"e{i}" for i in range(second)]
    with pytest.raises(LogCorruptionError) as caught:
        setting.ids(reader)
    assert caught.value.path == setting.path(1)
    assert 0 < caught.value.offset <= 3000


def test_a_sealed_segment_that_begins_wrong_stops_the_host_at_once(setting: Setting) -> None:
    setting.filled(20, segment_bytes=10_000)
    setting.flip(9, which=1)
    with pytest.raises(LogCorruptionError, match="bad frame at byte 0: its header fails the checksum"):
        setting.open()


def test_a_sealed_segment_that_is_cut_short_is_told_from_its_end(setting: Setting) -> None:
    starts = setting.filled(20, segment_bytes=10_000)
    os.truncate(setting.path(0), starts[2])
    setting.open()
    with pytest.raises(LogCorruptionError, match=f"byte {starts[2]}: it ends at position 2, where no other segment"):
        setting.ids()


@pytest.mark.parametrize("sealed", [False, True])
def test_frames_in_the_wrong_order_stop_the_host(setting: Setting, sealed: bool) -> None:
    starts = setting.filled(3)
    whole = setting.path().read_bytes()
    one, two = whole[starts[1] : starts[2]], whole[starts[2] :]
    if sealed:
        setting.open(segment_bytes=1).append([events("e3")], NOW)
        setting.log.close()
    setting.path(0).write_bytes(whole[: starts[1]] + two + one)
    with pytest.raises(LogCorruptionError, match=f"byte {starts[1]}: it holds position 2, not 1"):
        setting.ids(setting.open())


def test_a_missing_segment_is_told_from_the_end_of_the_log(setting: Setting) -> None:
    setting.filled(20, segment_bytes=10_000)
    setting.path(1).unlink()
    setting.open()
    with pytest.raises(LogCorruptionError, match="where no other segment starts"):
        setting.ids()


# --- a disk that fails


def test_short_writes_are_carried_on(setting: Setting) -> None:
    log = setting.open()
    setting.disk.writes = [1, 7, 40, 100]
    log.append([events("e0")], NOW)
    log.close()
    setting.open()
    assert setting.ids() == ["e0"]


@pytest.mark.parametrize("writes", [[BROKEN], [10, BROKEN], [60, BROKEN], [100, 0], [FULL], [500, FULL]])
def test_a_failed_write_is_cut_back_and_the_log_goes_on(setting: Setting, writes: list[int | OSError]) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    size = setting.path().stat().st_size
    setting.disk.writes = list(writes)
    with pytest.raises(LogFullError if FULL in writes else LogWriteError):
        log.append([events("lost", "lost too")], NOW)
    assert (log.durable, setting.path().stat().st_size) == (1, size)
    assert log.append([events("e1")], NOW) == [1]
    assert setting.ids() == ["e0", "e1"]
    log.close()
    setting.open()
    assert setting.ids() == ["e0", "e1"]


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("failures", [1, 2])
def test_after_a_failed_fdatasync_that_file_is_never_written_again(
    setting: Setting, before: int, failures: int
) -> None:
    log = setting.open()
    for at in range(before):
        log.append([events(f"e{at}")], NOW)
    setting.disk.syncs = [BROKEN] * failures
    poisoned = set()
    for _ in range(failures):
        with pytest.raises(LogWriteError, match="input/output error"):
            log.append([events("lost")], NOW)
        poisoned.add(setting.disk.written[-1])
        assert log.durable == before
        assert setting.ids() == [f"e{i}" for i in range(before)]
    setting.disk.written.clear()
    assert log.append([events("after")], NOW) == [before]
    log.append([events("more")], NOW)
    assert len(poisoned) == failures
    assert not poisoned & set(setting.disk.written)
    expected = [*(f"e{i}" for i in range(before)), "after", "more"]
    assert setting.ids() == expected
    log.close()
    setting.open()
    assert setting.ids() == expected


@pytest.mark.parametrize("stage", ["writes", "syncs"])
def test_nothing_is_written_until_what_failed_is_cut_back(setting: Setting, stage: str) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    setattr(setting.disk, stage, [BROKEN])
    setting.disk.cuts = [BROKEN, BROKEN]
    for _ in range(2):
        with pytest.raises(LogWriteError):
            log.append([events("lost")], NOW)
    assert len(setting.disk.written) == 2
    assert setting.ids() == ["e0"]
    assert log.append([events("e1")], NOW) == [1]
    log.close()
    setting.open()
    assert setting.ids() == ["e0", "e1"]


@pytest.mark.parametrize("fault", [FULL, BROKEN])
def test_a_segment_that_cannot_be_made_is_tried_again(setting: Setting, fault: OSError) -> None:
    log = setting.open(segment_bytes=1)
    log.append([events("e0")], NOW)
    setting.disk.creates = [fault]
    with pytest.raises(LogFullError if fault is FULL else LogWriteError):
        log.append([events("lost")], NOW)
    assert log.append([events("e1")], NOW) == [1]
    assert len(log.segments) == 2
    assert setting.ids() == ["e0", "e1"]


def test_a_disk_that_is_full_at_fdatasync_is_told_so(setting: Setting) -> None:
    log = setting.open()
    setting.disk.syncs = [FULL]
    with pytest.raises(LogFullError, match="is full; nothing was stored, retry after 10 s"):
        log.append([events("lost")], NOW)
    log.append([events("e0")], NOW)
    assert setting.ids() == ["e0"]


def test_the_clock_of_a_log_whose_new_segment_is_still_empty_does_not_go_back(setting: Setting) -> None:
    log = setting.open(segment_bytes=1)
    log.append([events("e0")], NOW)
    setting.disk.writes = [BROKEN]
    with pytest.raises(LogWriteError):
        log.append([events("lost")], NOW)
    log.close()
    assert setting.path().stat().st_size == 0
    log = setting.open()
    log.append([events("e1")], NOW - timedelta(days=1))
    assert [batch.watermark for batch in log.read(0)[0]] == [NOW, NOW]


def test_after_enospc_the_free_space_is_looked_up_again(setting: Setting) -> None:
    setting.disk.free = 2_000_000
    log = setting.open(disk_reserve_bytes=1_000_000)
    setting.disk.writes = [FULL]
    with pytest.raises(LogFullError, match="the disk of"):
        log.append([events("lost")], NOW)
    setting.disk.free = 0
    with pytest.raises(LogFullError, match="stay in reserve"):
        log.append([events("lost")], NOW)


# --- limits


def test_the_disk_reserve_refuses_before_anything_is_written_and_opens_again(setting: Setting) -> None:
    setting.disk.free = 1_000_100
    log = setting.open(disk_reserve_bytes=1_000_000)
    for _ in range(2):
        with pytest.raises(LogFullError, match=r"1000100 bytes are free under .*, 1000000 stay in reserve"):
            log.append([events("lost")], NOW)
    assert setting.disk.written == []
    log.append([], NOW)  # time goes on
    assert log.durable == 1
    setting.disk.free = 2_000_000
    assert log.append([events("e0")], NOW) == [1]
    assert setting.ids() == ["e0"]


def test_the_logs_own_limit_refuses_until_it_is_trimmed(setting: Setting) -> None:
    log = setting.open(log_max_bytes=30_000, segment_bytes=10_000)
    with pytest.raises(LogFullError, match="bytes of at most 30000"):
        append_until_refused(log)
    held = sum(path.stat().st_size for path in setting.directory.glob("*.seg"))
    assert 25_000 < held <= 30_000
    log.trim(log.durable)
    log.append([events("e")], NOW)
    log.close()
    log = setting.open(log_max_bytes=held // 2)
    with pytest.raises(LogFullError):
        append_until_refused(log)


def test_a_log_smaller_than_a_segment_can_be_trimmed(setting: Setting) -> None:
    log = setting.open(log_max_bytes=30_000, segment_bytes=64 << 20)
    for _ in range(3):
        with pytest.raises(LogFullError):
            append_until_refused(log)
        log.trim(log.durable)
        log.append([events("e")], NOW)


def append_until_refused(log: SegmentLog) -> None:
    for _ in range(100):
        log.append([events("e")], NOW)


# --- owners and other processes


def test_a_log_has_one_owner_and_names_it(setting: Setting) -> None:
    log = setting.open()
    with pytest.raises(LogLockedError, match=f"is in use by process {os.getpid()}; one process owns a log"):
        SegmentLog(setting.directory)
    log.close()
    log.close()
    setting.open()
    assert setting.log.durable == 0


def test_a_closed_log_takes_nothing(setting: Setting) -> None:
    log = setting.open()
    log.close()
    with pytest.raises(LogWriteError, match="the log is closed"):
        log.append([events("e")], NOW)


def test_another_reader_sees_only_what_is_durable(setting: Setting) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    seen: list[tuple[int, list[str], int]] = []
    with SegmentReader(setting.directory) as reader:

        def look() -> None:
            """Between write and fdatasync: the bytes are in the file."""
            seen.append((reader.durable, setting.ids(reader), setting.path().stat().st_size))

        size = setting.path().stat().st_size
        setting.disk.before_sync = look
        log.append([events("e1")], NOW)
        assert reader.wait(1, 60) == 2
        assert setting.ids(reader) == ["e0", "e1"]
    assert [(durable, ids) for durable, ids, _ in seen] == [(1, ["e0"])]
    assert seen[0][2] > size


def test_leftovers_of_an_interrupted_seal_are_removed(setting: Setting) -> None:
    setting.filled(5)
    unfinished = setting.directory / f"{0:020d}.ids.tmp"
    unfinished.write_bytes(b"x")
    setting.open()
    assert not unfinished.exists()


@pytest.mark.parametrize("kills", [4])
def test_kill_9_loses_and_doubles_nothing(setting: Setting, kills: int) -> None:
    acknowledged: dict[int, str] = {}
    for run in range(kills):
        child = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("log_appender.py"), setting.directory, f"run{run}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(40 + 50 * run)]
        with SegmentReader(setting.directory) as reader:
            followed = setting.ids(reader)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        for line in lines:
            if line.endswith("\n"):
                seq, made, count = map(int, line.split())
                acknowledged.update({seq + i: f"run{run}-{made + i}" for i in range(count)})
        log = setting.open()
        stored = stored_events(log)
        assert {seq: stored.get(seq) for seq in acknowledged} == acknowledged
        assert len(set(stored.values())) == len(stored)
        assert list(stored.values())[: len(followed)] == followed
        log.append([events(f"between-{run}")], NOW)
        log.close()
    assert len(log.segments) > 3
    setting.open()


def stored_events(log: SegmentLog) -> dict[int, str]:
    position, found = 0, {}
    while position < log.durable:
        batches, position = log.read(position)
        for batch in batches:
            found.update(zip(batch.column("seq").to_pylist(), batch.column("event_id").to_pylist(), strict=True))
    return found


# --- tombstones


def erased(log: SegmentLog) -> list[tuple[int, tuple[str, ...]]]:
    return [(tombstone.position, tombstone.owners.ids) for tombstone in log.tombstones.current()]


def test_a_tombstone_whose_writer_died_before_it_was_in_the_file_is_found_again(setting: Setting) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    before = (log.directory / "erased").read_bytes() if (log.directory / "erased").exists() else None
    log.erase("acme", Owners(("u",)), "k")
    log.close()
    assert before is None
    (log.directory / "erased").unlink()
    setting.unacknowledge(1)
    log = setting.open()
    assert (erased(log), log.durable) == ([(1, ("u",))], 2)
    assert log.append([events("e1")], NOW) == [2]
    assert log.segments == (0, 1, 2), "it keeps a segment of its own"


def test_a_torn_tombstone_never_was(setting: Setting) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    log.erase("acme", Owners(("u",)), "k")
    log.close()
    (log.directory / "erased").unlink()
    setting.unacknowledge(1)
    with setting.path().open("r+b") as file:
        file.truncate(60)
    log = setting.open()
    assert (erased(log), log.durable) == ([], 1)
    assert log.append([events("e1")], NOW) == [1]
    assert setting.ids() == ["e0", "e1"]


@pytest.mark.parametrize("fails", ["write", "sync", "file"])
def test_a_tombstone_that_cannot_be_made_durable_erases_nothing(
    setting: Setting, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = setting.open()
    log.append([events("e0")], NOW)
    if fails == "write":
        setting.disk.writes = [BROKEN]
    elif fails == "sync":
        setting.disk.syncs = [BROKEN]
    else:
        monkeypatch.setattr(log.tombstones, "add", lambda _: (_ for _ in ()).throw(BROKEN))
    with pytest.raises(LogWriteError, match="input/output error"):
        log.erase("acme", Owners(("u",)), "k")
    monkeypatch.undo()
    assert (erased(log), log.durable) == ([], 1)
    assert log.append([events("e1")], NOW) == [1]
    assert log.erase("acme", Owners(("u",)), "k") == 2
    log.close()
    log = setting.open()
    assert (erased(log), setting.ids()) == ([(2, ("u",))], ["e0", "e1"])


def test_a_damaged_file_of_tombstones_stops_the_host(setting: Setting) -> None:
    log = setting.open()
    log.erase("acme", Owners(("u",)), "k")
    log.close()
    (log.directory / "erased").write_bytes(b"[{")
    with pytest.raises(StorageError, match=r"erased cannot be read: .*; restore it from a backup"):
        setting.open()
    (log.directory / "erased").unlink()
