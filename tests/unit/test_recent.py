"""The newest batches in memory: the same answers as the files give, and no more than the limit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import LogWriteError
from analytics_core.events import UNPLACED_SCHEMA, EventBatch, moment
from analytics_core.log.frames import Disk, frame_size, prepare
from analytics_core.log.recent import Recent
from analytics_core.log.segments import SegmentLog, SegmentReader
from analytics_core.testing import batch

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def unplaced(rows: int, name: str = "view") -> Any:
    return batch([{"event": name}] * rows, "shop").record_batch.select(UNPLACED_SCHEMA.names)


def shown(read: tuple[list[EventBatch], int]) -> tuple[list[tuple[object, str, datetime]], int]:
    batches, position = read
    return [(each.record_batch.to_pylist(), each.tenant, each.watermark) for each in batches], position


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=8),
    st.integers(0, 40),
    st.integers(1, 12),
    st.sampled_from([1, 5_000, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_memory_and_files_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[int]], start: int, max_rows: int, max_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = SegmentLog(directory, segment_bytes=20_000)
    try:
        for number, sizes in enumerate(commits):
            log.append([unplaced(size, f"e{number}") for size in sizes], moment(1_740_000_000_000_000 + number))
        with SegmentReader(directory) as files:
            found = shown(log.read(start, max_rows, max_bytes))
            expected = shown(files.read(start, max_rows, max_bytes))
            if found[1] < expected[1]:  # memory ended early: the next read goes on where it ended
                assert found[0] == expected[0][: len(found[0])]
                assert found[0]
            else:
                assert found == expected
    finally:
        log.close()


def test_only_the_latest_bytes_are_held() -> None:
    body = prepare(unplaced(3))
    recent = Recent(limit=5 * (frame_size(body) + 8192) // 2)
    for first in (0, 3, 6):
        recent.add(first, 0, body)
    assert recent.read(0, 9, 100, 1 << 20) == ([], 0)
    batches, position = recent.read(3, 9, 100, 1 << 20)
    assert ([len(each) for each in batches], position) == ([3, 3], 9)
    assert recent.read(3, 6, 100, 1 << 20)[1] == 6, "what is not durable yet is not given"
    recent.clear()
    assert recent.read(3, 9, 100, 1 << 20) == ([], 3)


def test_no_reader_can_write_into_what_others_read() -> None:
    recent = Recent()
    recent.add(0, 0, prepare(unplaced(3)))
    ((batch,), _) = recent.read(0, 3, 100, 1 << 20)
    for name in UNPLACED_SCHEMA.names:
        for buffer in batch.column(name).buffers():
            assert buffer is None or not (buffer.size and buffer.is_mutable), name


def test_a_batch_that_was_not_written_is_not_given(tmp_path: Path) -> None:
    class Refusing(Disk):
        refuses = False

        def sync(self, descriptor: int) -> None:
            if self.refuses:
                raise OSError(5, "no")
            super().sync(descriptor)

    disk = Refusing()
    log = SegmentLog(tmp_path, disk=disk)
    log.append([unplaced(2)], NOW)
    disk.refuses = True
    with pytest.raises(LogWriteError):
        log.append([unplaced(3, "lost")], NOW)
    disk.refuses = False
    log.append([unplaced(1, "kept")], NOW)
    batches, position = log.read(0)
    assert ([row.name for each in batches for row in each.rows()], position) == (["view", "view", "kept"], 3)
    log.close()
