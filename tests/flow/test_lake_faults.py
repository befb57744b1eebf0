"""What can go wrong under the lake: kills, torn files, full disks, fsyncs that fail, and other writers."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from analytics_core.errors import StorageError
from analytics_core.events import SCHEMA
from analytics_core.lake import RetentionPolicy
from analytics_core.lake.delta import DeltaStore

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK = RetentionPolicy(days=7)
STEP = 50


def events(first: int, last: int, at: Callable[[int], datetime] = lambda _: NOON, tenant: str = "acme") -> pa.Table:
    """Positions ``first`` to ``last``, received when they happen."""
    seqs = range(first, last)
    words = {"tenant": tenant, "name": "view", "source": "native", "properties": "{}", "context": "{}"}
    times = [at(seq) for seq in seqs]
    columns: dict[str, Any] = {
        "partition": np.zeros(len(seqs), np.int16),
        "seq": np.arange(first, last),
        "event_id": [f"{random.getrandbits(128):032x}" for _ in seqs],
        "user_id": [f"u{seq % 7}" for seq in seqs],
        "anonymous_id": [None] * len(seqs),
        "session_id": [None] * len(seqs),
        "timestamp": times,
        "received_at": times,
        **{name: [word] * len(seqs) for name, word in words.items()},
    }
    plain = {field.name: _plain(field.type) for field in SCHEMA}
    return pa.table({name: pa.array(columns[name], kind) for name, kind in plain.items()}).cast(SCHEMA)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind


def seqs(files: Sequence[str]) -> list[int]:
    if not files:
        return []
    sql = "SELECT seq FROM read_parquet($files) ORDER BY seq"
    return [seq for (seq,) in duckdb.connect().execute(sql, {"files": list(files)}).fetchall()]


def stored(store: DeltaStore, tenant: str = "acme") -> list[int]:
    with store.lease(tenant) as snapshot:
        return seqs(snapshot.files)


def parquet_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.parquet") if "_delta_log" not in path.parts)


def commits(root: Path) -> list[Path]:
    return sorted((root / "_delta_log").glob("*.json"))


# --- kill -9


def old_or_new(seq: int) -> datetime:
    """Even positions have expired at `NOON`, odd ones have not."""
    return NOON if seq % 2 else NOON - 30 * DAY


def churn(root: Path) -> None:
    """The child's part: append, compact and retain at once, until killed. Each append is reported when it is done."""
    store = DeltaStore(root, young_seconds=0)

    def maintain() -> None:
        while True:
            store.compact()
            store.retain(WEEK, NOON, confirmed=True)
            store.vacuum()

    threading.Thread(target=maintain, daemon=True).start()
    while True:
        first = store.position
        store.append(events(first, first + STEP, old_or_new), first + STEP)
        print(first + STEP, flush=True)


def run_and_kill(root: Path, appends: int, seconds: float) -> int:
    """Start `churn`, kill it a random moment after so many appends; the last position that it reported."""
    command = [sys.executable, __file__, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(appends)]
        time.sleep(seconds)  # the moment of the kill is the test's subject, nothing is awaited
        child.kill()
        lines += child.stdout.read().splitlines()
    return int([line for line in lines if line.strip()][-1])


@pytest.mark.server
def test_kill_during_append_compaction_and_retention_loses_and_doubles_nothing(tmp_path: Path) -> None:
    root, chance = tmp_path / "events", random.Random(7)
    for _ in range(3):
        reported = run_and_kill(root, chance.randint(1, 6), chance.uniform(0, 0.08))
        store = DeltaStore(root, young_seconds=0)
        assert store.position >= reported
        found = stored(store)
        assert len(found) == len(set(found))
        assert [seq for seq in found if seq % 2] == list(range(1, store.position, 2))
        again = max(0, store.position - 30)
        store.append(events(again, store.position + 10, old_or_new), store.position + 10)
        store.close()
    store = DeltaStore(root, young_seconds=0)
    store.retain(WEEK, NOON, confirmed=True)
    store.compact()
    store.vacuum()
    assert stored(store) == list(range(1, store.position, 2))
    with store.lease("acme") as snapshot:
        assert sorted(map(Path, snapshot.files)) == parquet_files(root), "vacuum leaves no orphan of a killed process"


# --- torn and orphaned files


def test_a_torn_commit_was_never_told_to_anybody_and_is_taken_back(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 30, 10):
        store.append(events(first, first + 10), first + 10)
    for torn in (b"", commits(tmp_path)[-1].read_bytes()[:-40]):
        commits(tmp_path)[-1].write_bytes(torn)
        again = DeltaStore(tmp_path)
        assert again.position == 20
        assert again.append(events(0, 30), 30) == 10
        assert stored(again) == list(range(30))


def test_a_torn_checkpoint_is_taken_back(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 60):
        store.append(events(first, first + 1), first + 1)
    (checkpoint,) = (tmp_path / "_delta_log").glob("*.checkpoint.parquet")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    again = DeltaStore(tmp_path)
    assert (again.position, stored(again)) == (60, list(range(60)))


def test_vacuum_deletes_old_orphans_and_spares_young_ones(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path, young_seconds=600)
    store.append(events(0, 10), 10)
    directory = tmp_path / "acme" / "2025-01-31"
    old, young = directory / "append-torn.parquet", directory / "append-being-written.parquet"
    for path in (old, young):
        path.write_bytes(b"PAR1 and no more")
    long_ago = time.time() - 3600
    os.utime(old, (long_ago, long_ago))
    assert stored(store) == list(range(10))
    assert store.vacuum() == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_vacuum_spares_what_was_replaced_a_moment_ago(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path, young_seconds=600)
    for first in range(0, 30, 10):
        store.append(events(first, first + 10), first + 10)
    for path in parquet_files(tmp_path):
        os.utime(path, (0, 0))
    store.compact()
    assert store.vacuum() == 0
    assert len(parquet_files(tmp_path)) == 4


# --- the disk


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """The kernel refuses every write that would make a file larger than ``free`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_the_append_and_leaves_nothing(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    store.append(events(0, 10), 10)
    before = parquet_files(tmp_path)
    with full_disk(4096), pytest.raises(StorageError, match="File too large"):
        store.append(events(0, 5000), 5000)
    assert parquet_files(tmp_path) == before
    assert (store.position, stored(store)) == (10, list(range(10)))
    assert store.append(events(0, 5000), 5000) == 4990
    assert stored(store) == list(range(5000))


@pytest.mark.parametrize("free", [0, 100])
def test_a_full_disk_during_the_commit_leaves_all_as_it_was(tmp_path: Path, free: int) -> None:
    store = DeltaStore(tmp_path)
    store.append(events(0, 10), 10)
    with full_disk(free), pytest.raises(StorageError, match=r"committing to .* failed: [ -~↳]*File too large[ -~]*$"):
        store.append(events(10, 10), 12)  # no file: the commit itself is what fails
    assert store.append(events(10, 20), 20) == 10
    assert stored(store) == list(range(20))
    assert stored(DeltaStore(tmp_path)) == list(range(20))


def test_a_full_disk_fails_compaction_and_leaves_the_table(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 6000, 1000):
        store.append(events(first, first + 1000), first + 1000)
    with full_disk(20_000), pytest.raises(StorageError, match=r"rewriting acme/2025-01-31 .* failed"):
        store.compact()
    assert len(parquet_files(tmp_path)) == 6
    assert store.compact() == 6
    assert stored(store) == list(range(6000))


def failing_fsync(monkeypatch: pytest.MonkeyPatch, suffix: str) -> list[str]:
    """Let fsync fail once for the next file whose name ends like this; the names that failed."""
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith(suffix) and not failed:
            failed.append(name)
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return failed


@pytest.mark.parametrize("suffix", [".parquet", ".json", "_delta_log"])
def test_a_failed_fsync_is_no_success_and_the_retry_stores_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    store = DeltaStore(tmp_path)
    store.append(events(0, 10), 10)
    failed = failing_fsync(monkeypatch, suffix)
    with pytest.raises(StorageError, match="Input/output error"):
        store.append(events(10, 20), 20)
    assert len(failed) == 1
    assert store.position == 10, "what is not on disk does not count, whatever the log says"
    store.append(events(10, 20), 20)
    assert store.position == 20
    assert stored(store) == list(range(20))
    assert stored(DeltaStore(tmp_path)) == list(range(20))


def test_a_commit_whose_fsync_failed_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DeltaStore(tmp_path)
    failing_fsync(monkeypatch, ".json")
    with pytest.raises(StorageError):
        store.append(events(0, 10), 10)
    doubtful = commits(tmp_path)[-1]
    inode, content = doubtful.stat().st_ino, doubtful.read_bytes()
    store.append(events(0, 10), 10)
    assert doubtful.read_bytes() == content
    assert doubtful.stat().st_ino != inode


# --- other views of the table


def test_another_writer_is_seen_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    one, other = DeltaStore(tmp_path), DeltaStore(tmp_path)
    assert one.append(events(0, 10), 10) == 10
    assert other.append(events(0, 15), 15) == 5
    assert one.append(events(5, 20), 20) == 5
    assert stored(one) == list(range(20))


def test_an_outdated_view_cannot_compact_a_second_time(tmp_path: Path) -> None:
    one = DeltaStore(tmp_path)
    for first in range(0, 30, 10):
        one.append(events(first, first + 10), first + 10)
    other = DeltaStore(tmp_path)
    assert one.compact() == 3
    assert other.compact() == 0
    assert stored(other) == stored(one) == list(range(30))


def test_parts_are_days_when_received_within_a_week_else_months(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    week = 7 * DAY
    received = NOON
    times = [NOON, NOON - week, NOON - week - timedelta(microseconds=1), NOON - 40 * DAY, NOON + DAY]
    rows = events(0, 5, lambda seq: times[seq])
    receipts = pa.array([received] * 5, SCHEMA.field("received_at").type)
    store.append(rows.set_column(SCHEMA.get_field_index("received_at"), SCHEMA.field("received_at"), receipts), 5)
    query = QueryBuilder().register("events", DeltaTable(tmp_path))
    found = pa.table(query.execute("SELECT part, seq, tenant FROM events ORDER BY seq").read_all())
    assert found.column("part").to_pylist() == ["2025-01-31", "2025-01-24", "2025-01", "2024-12", "2025-02-01"]
    assert found.column("tenant").to_pylist() == ["acme"] * 5


def test_files_are_found_by_their_statistics_after_a_checkpoint_too(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for day in range(55):
        store.append(events(day, day + 1, lambda day: NOON + day * DAY), day + 1)
    assert list((tmp_path / "_delta_log").glob("*.checkpoint.parquet"))
    for opened in (store, DeltaStore(tmp_path)):
        with opened.lease("acme", NOON + 10 * DAY, NOON + 13 * DAY) as snapshot:
            assert seqs(snapshot.files) == [10, 11, 12]


def test_history_reads_only_the_files_of_its_window(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 60, 10):
        store.append(events(first, first + 10), first + 10)
    store.append(events(60, 60), 60)
    for again in (store, DeltaStore(tmp_path)):
        with again.lease("acme") as snapshot:
            others = [Path(file) for file in snapshot.files if seqs([file])[0] not in (20, 30)]
        assert len(others) == 4
        for path in others:
            path.rename(path.with_suffix(".away"))  # a read that wanted one of them would fail
        (batch,), after = again.read(25, 10)
        assert (batch.column("seq").to_pylist(), after) == (list(range(25, 35)), 35)
        with pytest.raises(StorageError, match="cannot be read from position 35"):
            again.read(35, 10)
        for path in others:
            path.with_suffix(".away").rename(path)


def test_files_of_an_earlier_version_without_positions_are_read(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 30, 10):
        store.append(events(first, first + 10), first + 10)
    for path in commits(tmp_path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for add in (line["add"] for line in lines if "add" in line):
            stats = json.loads(add["stats"])
            del stats["minValues"]["seq"], stats["maxValues"]["seq"]
            add["stats"] = json.dumps(stats)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (batch,), after = DeltaStore(tmp_path).read(5, 10)
    assert (batch.column("seq").to_pylist(), after) == (list(range(5, 15)), 15)


@pytest.mark.parametrize("how", ["close", "stop"])
def test_a_merge_under_way_is_broken_off(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sort never ends by itself here: a query without an end takes its place."""
    store = DeltaStore(tmp_path)
    store.append(events(0, 10), 10)
    sorting, stop = threading.Event(), threading.Event()
    real = duckdb.connect

    class Endless:
        def __init__(self, **how: Any) -> None:
            self.real = real(**how)

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *_: object) -> None:
            self.real.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def sql(self, *_: object, **__: object) -> Any:
            sorting.set()
            return self.real.sql("SELECT max(a.range + b.range) FROM range(10_000_000_000) a, range(1_000_000) b")

    monkeypatch.setattr("analytics_core.lake.compact.duckdb.connect", Endless)
    removed: list[int] = []
    merging = threading.Thread(target=lambda: removed.append(store.compact(stop.is_set)))
    merging.start()
    assert sorting.wait(20)
    if how == "close":
        store.close()
    else:
        stop.set()
    merging.join(20)
    assert removed == [0]
    monkeypatch.undo()
    assert stored(DeltaStore(tmp_path)) == list(range(10))


def test_the_delta_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path)
    for first in range(0, 60):
        store.append(events(first, first + 1), first + 1)
    long_ago = time.time() - 7200
    for path in (tmp_path / "_delta_log").iterdir():
        os.utime(path, (long_ago, long_ago))
    store.vacuum()
    assert len(commits(tmp_path)) < 5
    again = DeltaStore(tmp_path)
    assert (again.position, stored(again)) == (60, list(range(60)))
    assert again.append(events(0, 61), 61) == 1


def test_a_tenant_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    store = DeltaStore(tmp_path / "events")
    with pytest.raises(StorageError, match=r"'\.\./up' cannot be stored"):
        store.append(events(0, 1, tenant="../up"), 1)
    assert store.position == 0
    assert not (tmp_path / "up").exists()


def test_a_directory_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file")
    with pytest.raises(StorageError, match="events cannot be opened"):
        DeltaStore(tmp_path / "events")


if __name__ == "__main__":
    churn(Path(sys.argv[1]))
