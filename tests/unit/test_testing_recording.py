"""Recordings: what a hook was given and gave, in a file that outlives the process, and the same calls again."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analytics_core import Enrichment, EventBatch, Metric, ProcessResult, Window, hookimpl
from analytics_core.hookspecs import PROJECT
from analytics_core.testing import (
    START,
    Failed,
    RecordingError,
    batch,
    differences,
    mixed_rows,
    record,
    replay,
    started,
)
from analytics_core.testing.tape import MAGIC, Called, frame, read


class Sums:
    """Sums up a property; raises for one that is negative."""

    def __init__(self) -> None:
        self.total = 0.0

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        values = batch.property("n", float).fill_null(0).to_numpy()
        if (values < 0).any():
            raise ValueError(f"{values.min()} is negative")
        self.total += float(values.sum())
        return self.found() if len(batch) else None

    def found(self) -> ProcessResult:
        return ProcessResult([Metric(name="total", value=self.total, window=Window(START))])

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return {"total": self.total}

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.total = state["total"]


class Doubles(Sums):
    def found(self) -> ProcessResult:
        return ProcessResult([Metric(name="total", value=self.total * 2, window=Window(START))])


class Mended(Sums):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        return super().process(batch.filter(np.array(batch.property("n", float).to_numpy() >= 0)))


class Texts(Sums):
    def found(self) -> Any:
        return "total"


class Awaits(Sums):
    @hookimpl
    async def process(self, batch: EventBatch) -> ProcessResult | None:
        return super().process(batch)

    @hookimpl
    async def export_state(self) -> dict[str, Any]:
        return super().export_state()


class Marks:
    @hookimpl
    def enrich(self, batch: EventBatch) -> Enrichment:
        return Enrichment(drop=np.arange(len(batch)) % 2 == 0, reason="every other")


class Both(Sums, Marks):
    pass


class Static:
    @staticmethod
    @hookimpl
    def process(batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="n", value=len(batch), window=Window(START))])


class AwaitsItsState(Sums):
    @hookimpl
    async def export_state(self) -> dict[str, Any]:
        return super().export_state()


def rows(*values: float) -> EventBatch:
    return batch([{"event": "e", "properties": {"n": n}} for n in values])


def test_what_was_recorded_is_replayed(tmp_path: Path) -> None:
    plugin = record(started(Sums), tmp_path / "r")
    plugin.process(rows(1, 2))
    plugin.process(batch([], "other"))
    assert plugin.process(rows(3)).metrics[0].value == 6
    calls = list(replay(tmp_path / "r", Sums))
    assert [(call.number, len(call.batch), call.batch.tenant) for call in calls] == [
        (1, 2, "default"),
        (2, 0, "other"),
        (3, 1, "default"),
    ]
    assert all(call.recorded == call.now for call in calls)
    assert calls[2].recorded.metrics == Sums.found(plugin).metrics
    assert differences(tmp_path / "r", Sums) == []


def test_a_recording_begins_with_the_state_that_there_was(tmp_path: Path) -> None:
    plugin = started(Sums)
    plugin.process(rows(40))
    record(plugin, tmp_path / "r").process(rows(2))
    assert [call.now.metrics[0].value for call in replay(tmp_path / "r", Sums)] == [42]


def test_every_difference_is_told(tmp_path: Path) -> None:
    plugin = record(started(Sums), tmp_path / "r")
    plugin.process(rows(1))
    plugin.process(rows(0, 2))
    found = differences(tmp_path / "r", Doubles)
    assert [text.partition(": ")[0] for text in found] == ["call 1 of 1 events", "call 2 of 2 events"]
    assert "value=6.0" in found[1]
    assert "where the recording gives Metric(name='total', value=3.0" in found[1]


def test_a_fault_of_the_production_becomes_a_test(tmp_path: Path) -> None:
    plugin = started(record(Sums, tmp_path / "r"))
    plugin.process(rows(1))
    with pytest.raises(ValueError, match="negative"):
        plugin.process(rows(-1))
    wrong = started(record(Texts, tmp_path / "wrong"))
    wrong.process(rows(1))
    (_, again) = replay(tmp_path / "r", Sums)
    assert again.recorded == again.now == Failed("ValueError: -1.0 is negative")
    (said,) = differences(tmp_path / "r", Mended)
    assert said.endswith("where the recording has failed (ValueError: -1.0 is negative)")
    (text,) = replay(tmp_path / "wrong", Texts)
    assert text.recorded == text.now == Failed("WrongAnswerError: returned str; valid is ProcessResult or None")


def test_a_class_records_all_its_instances_into_one_file(tmp_path: Path) -> None:
    recording = record(Sums, tmp_path / "r")
    assert (recording.__name__, recording.__module__) == ("Sums", __name__)
    assert hasattr(recording.process, f"{PROJECT}_impl")
    one, other = started(recording), started(recording)
    one.process(rows(1))
    other.process(rows(10))
    one.process(rows(2))
    later = record(started(Sums), tmp_path / "r")  # another process, later
    later.process(rows(100))
    totals = [(call.number, call.now.metrics[0].value) for call in replay(tmp_path / "r", Sums)]
    assert totals == [(1, 1), (2, 10), (3, 3), (4, 100)]
    assert differences(tmp_path / "r", Sums) == []


def test_two_recorders_of_one_instance_do_not_know_of_each_other(tmp_path: Path) -> None:
    plugin = record(record(started(Sums), tmp_path / "a"), tmp_path / "b")
    plugin.process(rows(1))
    record(plugin, tmp_path / "c")
    assert plugin.process(rows(2)).metrics[0].value == 3
    for name, values in (("a", [1, 3]), ("b", [1, 3]), ("c", [3])):
        assert [call.now.metrics[0].value for call in replay(tmp_path / name, Sums)] == values
        assert differences(tmp_path / name, Sums) == []


def test_two_recorders_of_one_class_do_not_know_of_each_other(tmp_path: Path) -> None:
    plugin = started(record(record(Both, tmp_path / "p"), tmp_path / "e", "enrich"))
    record(plugin, tmp_path / "again")
    assert plugin.process(rows(1)).metrics[0].value == 1
    assert len(plugin.enrich(rows(1, 2)).drop) == 2
    assert plugin.process(rows(2)).metrics[0].value == 3
    for name, calls in (("p", 2), ("e", 1), ("again", 2)):
        assert [call.number for call in replay(tmp_path / name, Both)] == list(range(1, calls + 1))
        assert differences(tmp_path / name, Both) == []


def test_two_recorders_into_one_file_number_their_calls_together(tmp_path: Path) -> None:
    one = record(started(Sums), tmp_path / "r")
    other = record(started(Sums), tmp_path / "r")
    totals = [plugin.process(rows(n)).metrics[0].value for plugin, n in ((one, 1), (other, 10), (one, 2), (other, 20))]
    assert totals == [1, 10, 3, 30]
    calls = list(replay(tmp_path / "r", Sums))
    assert [(call.number, call.now.metrics[0].value) for call in calls] == [(1, 1), (2, 10), (3, 3), (4, 30)]
    assert differences(tmp_path / "r", Sums) == []


def test_what_is_recorded_into_a_file_already_stays_as_it_is(tmp_path: Path) -> None:
    recording = record(Sums, tmp_path / "r")
    assert record(recording, tmp_path / "r") is recording
    plugin = started(recording)
    for _ in range(2):
        record(plugin, tmp_path / "r")
    plugin.process(rows(1))
    assert [call.number for call in replay(tmp_path / "r", Sums)] == [1]


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    record(started(Sums), tmp_path / "r").process(rows(1))
    gc.collect()
    before = (tmp_path / "r").read_bytes()
    with (tmp_path / "r").open("ab") as theirs:
        fcntl.flock(
            theirs, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # the locks of two openings are as far apart as those of two processes
        with pytest.raises(RecordingError, match="is being written by another process; give another file"):
            record(started(Sums), tmp_path / "r")
    assert (tmp_path / "r").read_bytes() == before
    record(started(Sums), tmp_path / "r").process(rows(2))
    assert [call.number for call in replay(tmp_path / "r", Sums)] == [1, 2]


def test_a_hook_that_is_a_static_method_is_recorded_too(tmp_path: Path) -> None:
    for plugin in (started(record(Static, tmp_path / "r")), record(started(Static), tmp_path / "r")):
        assert plugin.process(rows(1, 2)).metrics[0].value == 2
    assert [call.now.metrics[0].value for call in replay(tmp_path / "r", Static)] == [2, 2]


def test_a_state_that_is_awaited_is_recorded_from_within_a_loop(tmp_path: Path) -> None:
    async def inside() -> None:
        record(started(AwaitsItsState), tmp_path / "r").process(rows(5))

    asyncio.run(inside())
    assert [call.now.metrics[0].value for call in replay(tmp_path / "r", AwaitsItsState)] == [5]


def test_hooks_that_await_are_recorded_too(tmp_path: Path) -> None:
    plugin = started(record(Awaits, tmp_path / "r"))
    assert asyncio.run(plugin.process(rows(5))).metrics[0].value == 5
    assert [call.now.metrics for call in replay(tmp_path / "r", Awaits)] == [Sums.found(plugin).metrics]


def test_enrichments_are_recorded_too(tmp_path: Path) -> None:
    plugin = record(started(Marks), tmp_path / "r", "enrich")
    plugin.enrich(rows(1, 2, 3))
    (call,) = replay(tmp_path / "r", Marks)
    assert call.recorded.drop.tolist() == call.now.drop.tolist() == [True, False, True]
    assert differences(tmp_path / "r", Marks) == []


def test_only_hooks_with_a_batch_can_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hook 'insight' cannot be recorded; valid are: process"):
        record(Sums, tmp_path / "r", "insight")
    with pytest.raises(ValueError, match="Marks: hook 'process' cannot be recorded; valid are: enrich"):
        record(Marks, tmp_path / "r")
    assert not (tmp_path / "r").exists()


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    plugin = record(started(Sums), tmp_path / "r")
    for n in range(3):
        plugin.process(rows(n))
    del plugin
    gc.collect()  # as if the process had ended
    return tmp_path / "r"


def test_a_batch_is_replayed_as_it_was(tmp_path: Path) -> None:
    made = batch(mixed_rows(), "acme")
    record(started(Sums), tmp_path / "r").process(made)
    ((_, _, _, again),) = replay(tmp_path / "r", Sums)
    assert (again.tenant, again.watermark) == ("acme", made.watermark)
    assert again.record_batch.equals(made.record_batch)
    assert again.record_batch.schema.equals(made.record_batch.schema, check_metadata=True)


def frame_ends(data: bytes) -> list[int]:
    """Where each whole part of a recording ends."""
    ends = [len(MAGIC)]
    while ends[-1] < len(data):
        (length,) = struct.unpack_from("<I", data, ends[-1])
        ends.append(ends[-1] + 8 + length)
    return ends


def test_of_a_torn_file_the_whole_calls_are_replayed_and_that_is_said(recorded: Path) -> None:
    whole = recorded.read_bytes()
    ends = frame_ends(whole)
    assert len(ends) == 9  # the magic, whose calls they are, one instance, three calls and their answers
    for size in sorted({size for end in ends for size in (end - 1, end, end + 1, end + 9)} & set(range(len(whole)))):
        recorded.write_bytes(whole[:size])
        content = read(recorded)
        whole_frames = [end for end in ends if end <= size]
        assert content.size == max(whole_frames, default=0)
        assert len(content.frames) == max(0, len(whole_frames) - 2)
        torn = f"{recorded}: torn at byte {content.size} of {size}; what comes before it is whole"
        assert content.note == ("" if size in (0, *ends) else torn)
    recorded.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match="torn at byte .*; what comes before it is whole"):
        calls = list(replay(recorded, Sums))
    assert [call.recorded == call.now for call in calls] == [True, True, False]
    assert calls[2].recorded == Failed("it never came back: the recording ends in this call")


def test_a_recording_goes_on_behind_a_torn_end(recorded: Path) -> None:
    recorded.write_bytes(recorded.read_bytes()[:-1])
    record(started(Sums), recorded).process(rows(7))
    calls = list(replay(recorded, Sums))
    assert [call.number for call in calls] == [1, 2, 3, 4]
    assert isinstance(calls[2].recorded, Failed)
    assert calls[3].recorded == calls[3].now


def test_files_that_cannot_be_read_say_why(recorded: Path, tmp_path: Path) -> None:
    whole = recorded.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(whole[:3] + b"\x01" + whole[4:])
    with pytest.raises(RecordingError, match="is a recording of version 1; this version reads 2"):
        differences(other, Sums)
    other.write_bytes(b"PK\x03\x04")
    with pytest.raises(RecordingError, match="so it is no recording"):
        differences(other, Sums)
    (length,) = struct.unpack_from("<I", whole, 4)
    other.write_bytes(whole[:12] + bytes(length) + whole[12 + length :])
    with pytest.raises(RecordingError, match="is damaged at byte 4: the checksum fails and more frames follow"):
        differences(other, Sums)
    other.write_bytes(whole[:4] + frame(Called(1, 1, b"")))
    with pytest.raises(RecordingError, match="does not say whose calls it holds"):
        differences(other, Sums)
    other.write_bytes(whole[:4])
    with pytest.raises(RecordingError, match="holds no call"):
        differences(other, Sums)
    with pytest.raises(RecordingError, match=r"is a recording of Sums\.process, not of Marks\.enrich"):
        record(Marks, recorded, "enrich")
