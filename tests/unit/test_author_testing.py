"""What plugin authors test with: it must find what it is there to find."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from analytics_core import EventBatch, Metric, PluginContext, ProcessResult, TimeRange, Window, hookimpl
from analytics_core.errors import HookFailedError, QueryError
from analytics_core.testing import START, MemoryReader, batch, check_deterministic, run, started

ROWS = [{"event": "click", "user_id": f"u{n}"} for n in range(9)]


class Counter:
    """Right: an absolute value, and all of its state is exported."""

    def __init__(self) -> None:
        self.seen = 0

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        self.seen += len(batch)
        return ProcessResult([Metric(name="clicks", value=self.seen, window=Window(START))])

    @hookimpl
    def export_state(self) -> int:
        return self.seen

    @hookimpl
    def import_state(self, state: int, version: int) -> None:
        assert version == 1
        self.seen = state


class CountsBatches(Counter):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        self.seen += 1
        return super().process(EventBatch.empty(batch.tenant, batch.watermark))


class Forgets(Counter):
    @hookimpl
    def export_state(self) -> int:
        return 0


class Awaits(Counter):
    @hookimpl
    async def process(self, batch: EventBatch) -> ProcessResult:
        return super().process(batch)


class Told:
    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.size = context.settings["size"]

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="size", value=self.size, window=Window(START))])


class Exits:
    @hookimpl
    def process(self, batch: EventBatch) -> None:
        raise SystemExit(3)


def test_a_right_fold_passes() -> None:
    check_deterministic(Counter, ROWS)
    check_deterministic(Awaits, ROWS)


class DropsLate(Counter):
    """Goes by the time of its batch, which depends on how many events are in it."""

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        late = batch.watermark - timedelta(seconds=3)
        return super().process(batch.filter(np.array([row.timestamp >= late for row in batch.rows()], bool)))


class Gauges(Counter):
    """The same for two tenants: each has a gauge of its own."""

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="clicks", value=len(batch), window=Window(START))])


@pytest.mark.parametrize("wrong", [CountsBatches, Forgets, DropsLate])
def test_a_fold_that_depends_on_batches_or_forgets_is_found(wrong: type) -> None:
    with pytest.raises(AssertionError, match="split at"):
        check_deterministic(wrong, ROWS)


def test_the_latest_of_equal_outputs_is_kept() -> None:
    result = run(Counter, [batch(ROWS), batch(ROWS, first_seq=9)])
    assert [(m.name, m.value) for m in result.metrics] == [("clicks", 18)]


def test_equal_outputs_of_two_tenants_are_two() -> None:
    result = run(Gauges, [batch(ROWS, "a"), batch(ROWS[:3], "b")])
    assert [m.value for m in result.metrics] == [9, 3]


def test_what_a_hook_raises_is_raised() -> None:
    with pytest.raises(KeyError, match="size") as raised:
        run(Told, [batch(ROWS)])
    assert raised.traceback[-1].name == "setup"
    with pytest.raises(KeyError, match="size"):
        started(Told)
    with pytest.raises(HookFailedError, match="'exits': hook 'process' failed: SystemExit: 3"):
        run(Exits, [batch(ROWS)])


def test_settings_reach_setup() -> None:
    assert run(Told, [batch(ROWS)], {"size": 3}).metrics[0].value == 3


def test_a_batch_of_plain_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"event": "a", "timestamp": "2025-02-01T00:00:00+01:00", "properties": {"n": 1}},
        {"event": "b", "received_at": datetime(2025, 2, 2, tzinfo=UTC), "properties": '{"n": 2}'},
        {"event": "c", "session_id": "s"},
    ]
    made = batch(rows, "acme", first_seq=5)
    assert made.tenant == "acme"
    assert made.column("seq").to_pylist() == [5, 6, 7]
    assert made.property("n", int).to_pylist() == [1, 2, None]
    assert [row.timestamp.isoformat() for row in made.rows()] == [
        "2025-01-31T23:00:00+00:00",
        "2025-02-02T00:00:00+00:00",
        "2025-01-01T00:00:02+00:00",
    ]
    assert made.watermark == datetime(2025, 2, 2, tzinfo=UTC)


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match="row 0: unknown key 'user'; did you mean 'user_id'"):
        batch([{"event": "a", "user": "u"}])


def test_the_reader_reads_its_range_tenant_and_metrics() -> None:
    rows = [{"event": "a", "timestamp": f"2025-01-0{day}T12:00:00Z"} for day in (1, 2, 2, 3)]
    asked = TimeRange(datetime(2025, 1, 2, tzinfo=UTC), datetime(2025, 1, 4, tzinfo=UTC))
    with MemoryReader([batch(rows)], asked) as events:
        assert events.sql("SELECT count(*) AS n FROM events").to_pylist() == [{"n": 3}]
        assert events.metric("a", "day").values.tolist() == [2, 1]
        assert len(events.table(["name", "timestamp"])) == 3
        with pytest.raises(QueryError, match="no metric and no event is named 'b'"):
            events.metric("b", "day")


def test_the_reader_takes_whole_days_of_its_zone() -> None:
    with MemoryReader([batch([{"event": "a", "timestamp": "2025-03-30T12:00:00Z"}])], timezone="Europe/Berlin") as it:
        assert (it.range.end - it.range.start).total_seconds() == 23 * 3600
