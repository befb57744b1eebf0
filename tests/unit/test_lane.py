"""Lanes over the real log and the real state store: exactly once, whatever stops them and wherever they go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from analytics_core import EventBatch, Metric, ProcessResult, Window, hookimpl
from analytics_core.config import Lanes as Pace
from analytics_core.errors import FencedError, HookFailedError, StorageError, TrimmedError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA, micros, placed
from analytics_core.events.columns import times_column, word
from analytics_core.events.owners import Owners
from analytics_core.host.code.dispatch import Instance
from analytics_core.lanes import lane as lane_module
from analytics_core.lanes.checkpoint import Tenants, unpack
from analytics_core.lanes.fold import HookFold, Pulse, fold_once
from analytics_core.lanes.lane import Lane
from analytics_core.log.segments import SegmentLog
from analytics_core.log.tombstones import Tombstone, woven
from analytics_core.records import Insight, Pattern, PluginContext
from analytics_core.state.sqlite import SqliteState

T0 = datetime(2025, 1, 1, tzinfo=UTC)
DAY = Window(T0, 86_400)
EAGER = Pace(checkpoint_seconds=0.02)
FOLDING = ("process", "export_state", "import_state")
NEVER = Pace(checkpoint_seconds=3600.0)


def eventually(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.002)
    return value


def columns(tenant: str, names: list[str], at: datetime) -> pa.RecordBatch:
    n = len(names)
    return pa.RecordBatch.from_arrays(
        [
            word(tenant, n),
            pa.array([f"{tenant}-{micros(at)}-{i}" for i in range(n)]),
            pa.array(names).dictionary_encode(),
            *[pa.nulls(n, pa.string())] * 3,
            *[times_column(np.full(n, micros(at), np.int64))] * 2,
            word("native", n),
            *[pa.array(["{}"] * n)] * 2,
        ],
        schema=UNPLACED_SCHEMA,
    )


class Counter:
    """Counts events per name; tells the totals of the day, and remembers each batch it saw."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.seen: list[tuple[str, int, datetime]] = []
        self.before: Callable[[EventBatch], None] = lambda _: None

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        self.before(batch)
        self.seen.append((batch.tenant, len(batch), batch.watermark))
        if not len(batch):
            return None
        key = batch.tenant
        self.totals[key] = self.totals.get(key, 0) + len(batch)
        return ProcessResult([Metric(name="events", value=self.totals[key], window=DAY)])

    @hookimpl
    def export_state(self) -> dict[str, int]:
        return self.totals

    @hookimpl
    def import_state(self, state: dict[str, int], version: int) -> None:
        self.totals = dict(state)


class House:
    def __init__(self, directory: Path) -> None:
        self.log = SegmentLog(directory / "log", disk_reserve_bytes=0)
        self.state = SqliteState(directory / "state.db")
        self.at = T0

    def add(self, *batches: tuple[str, list[str]], after: float = 0.0) -> None:
        """One commit; the watermark moves on by ``after`` seconds first."""
        self.at += timedelta(seconds=after)
        self.log.append([columns(tenant, names, self.at) for tenant, names in batches], self.at)

    def fold(self, plugin: object, hooks: Sequence[str] = FOLDING, **options: Any) -> HookFold:
        return HookFold("counter", Instance("counter", plugin, frozenset(hooks)), self.log, **options)

    def lane(self, plugin: object, pace: Pace = EAGER, **options: Any) -> Lane:
        pulse = Pulse()
        opened = partial(self.fold, plugin, beat=pulse.beat)
        return Lane("counter", opened, self.log, self.state, pace, pulse=pulse, **options)

    def total(self, tenant: str = "a") -> float | None:
        points = self.state.points(tenant, "events", T0, T0 + timedelta(days=1))
        return points[-1].value if points else None

    def close(self) -> None:
        self.log.close()
        self.state.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def run_until(lane: Lane, condition: Callable[[], Any], what: str) -> None:
    lane.start()
    eventually(condition, what)
    lane.stop()
    assert lane.join(20)


def test_state_position_outputs_and_pushes_are_one_commit(house: House) -> None:
    house.add(("a", ["x", "y"]), ("b", ["x"]))
    run_until(house.lane(Counter()), lambda: house.total("b"), "the total of b")
    assert (house.total("a"), house.total("b")) == (2, 1)
    kept = house.state.claim("counter")
    assert (kept.position, kept.events) == (3, 3)
    envelope = unpack(kept.state or b"")
    assert msgspec.json.decode(envelope.data) == {"a": 2, "b": 1}
    assert set(envelope.tenants) == {"a", "b"}
    pushed = [(m.tenant, m.topic, msgspec.json.decode(m.body)) for m in house.state.outbox(0)]
    assert [(tenant, topic, body["value"]) for tenant, topic, body in pushed] == [
        ("a", "metric", 2),
        ("b", "metric", 1),
    ]
    assert pushed[0][2] == {
        "metric": "counter.events",
        "value": 2,
        "window": {"start": "2025-01-01T00:00:00Z", "end": "2025-01-02T00:00:00Z"},
        "labels": {},
        "plugin": "counter",
        "kind": "sum",
        "unit": "",
    }


def test_a_crash_between_process_and_commit_counts_nothing_twice(house: House) -> None:
    house.add(("a", ["x"] * 5))
    run_until(house.lane(Counter()), lambda: house.total() == 5, "the first total")
    house.add(("a", ["x"] * 7))
    crashed = Counter()
    lost = house.fold(crashed)
    kept = house.state.claim("counter")
    lost.restore(kept)
    step = lost.advance(kept.position, 1000)
    assert step.results[0][1].metrics[0].value == 12  # folded, and gone with the process
    again = Counter()
    run_until(house.lane(again), lambda: house.total() == 12, "the total after the crash")
    assert again.totals == {"a": 12}
    assert house.state.claim("counter").events == 12


def test_any_window_sizes_give_the_same_outputs_as_a_replay(house: House) -> None:
    live = Counter()
    lane = house.lane(live)
    lane.start()
    for size in (1, 2, 3, 5, 8):
        house.add(("a", ["x"] * size), ("b", ["y"]), after=0.5)
        eventually(lambda: lane.position == house.log.durable, "the lane at the end")
    lane.stop()
    assert lane.join(20)
    replayed = Counter()
    fold = house.fold(replayed)
    for rows in (1, 4, 1000):
        position = 0
        replayed.totals = {}
        while position < house.log.durable:
            position = fold.advance(position, rows).position
        assert replayed.totals == live.totals == {"a": 19, "b": 5}


def test_a_window_is_one_batch_per_tenant_in_order_at_its_last_watermark(house: House) -> None:
    house.add(("b", ["1"]), ("a", ["2"]))
    house.add(("b", ["3"]), after=2)
    house.add(after=3)
    seen: list[tuple[str, list[str], datetime]] = []
    plugin = Counter()
    plugin.before = lambda batch: seen.append((batch.tenant, batch.column("name").to_pylist(), batch.watermark))
    house.fold(plugin).advance(0, 1000)
    assert seen == [("b", ["1", "3"], house.at), ("a", ["2"], house.at)]


def test_time_passes_for_quiet_tenants_once_a_second_and_for_a_day(house: House) -> None:
    plugin = Counter()
    fold = house.fold(plugin)
    house.add(("a", ["x"]), ("b", ["x"]))
    position = fold.advance(0, 1000).position

    def told(*batches: tuple[str, list[str]], after: float) -> list[tuple[str, int]]:
        nonlocal position
        plugin.seen.clear()
        house.add(*batches, after=after)
        position = fold.advance(position, 1000).position
        return [(tenant, size) for tenant, size, _ in plugin.seen]

    assert told(after=0.4) == []
    assert told(("b", ["x"]), after=0.4) == [("b", 1)]
    assert told(after=0.2) == [("a", 0)]  # a second since its last batch; for b it is 0.2 s
    assert told(after=1.0) == [("a", 0), ("b", 0)]
    assert told(("b", ["x"]), after=23 * 3600.0) == [("b", 1), ("a", 0)]
    assert told(after=3600.0) == [("b", 0)]  # a was quiet for over 24 hours
    assert plugin.seen[0][2] == house.at


def test_known_tenants_survive_a_restart(house: House) -> None:
    house.add(("a", ["x"]))
    run_until(house.lane(Counter()), lambda: house.total() == 1, "the total")
    plugin = Counter()
    house.add(after=5)
    run_until(house.lane(plugin), lambda: plugin.seen, "an empty batch")
    assert plugin.seen == [("a", 0, house.at)]


def test_a_replaced_lane_ends_silently_and_writes_nothing_more(house: House) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(_: EventBatch) -> None:
        entered.set()
        leave.wait(20)

    stuck = Counter()
    stuck.before = block
    old = house.lane(stuck)
    old.start()
    house.add(("a", ["x", "x"]))
    assert entered.wait(20)
    fresh = Counter()
    new = house.lane(fresh)
    new.start()
    eventually(lambda: house.total() == 2, "the new lane's total")
    stuck.totals = {"a": 100}
    leave.set()
    house.add(("a", ["x"]))
    assert old.join(20)
    assert old.state == "fenced"
    eventually(lambda: house.total() == 3, "the new lane goes on")
    new.stop()
    assert new.join(20)
    assert house.state.claim("counter").events == 3


def test_an_abandoned_lane_does_not_even_try_to_commit(house: House) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(_: EventBatch) -> None:
        entered.set()
        leave.wait(20)

    stuck = Counter()
    stuck.before = block
    lane = house.lane(stuck)
    lane.start()
    house.add(("a", ["x"]))
    assert entered.wait(20)
    assert lane.pulse.doing == "process"
    lane.abandon()
    leave.set()
    assert lane.join(20)
    assert house.total() is None
    assert house.state.claim("counter").position == 0


def test_a_failure_ends_the_lane_at_its_last_commit(house: House) -> None:
    def fail(batch: EventBatch) -> None:
        if "bad" in batch.column("name").to_pylist():
            raise ValueError("no such name")

    plugin = Counter()
    plugin.before = fail
    house.add(("a", ["x"]))
    run_until(house.lane(plugin), lambda: house.total() == 1, "the total")
    house.add(("a", ["bad"]))
    lane = house.lane(plugin)
    with pytest.raises(HookFailedError, match="Plugin 'counter': hook 'process' failed: ValueError: no such name"):
        lane.run()
    view = lane.view()
    assert (view.state, view.position, view.lag) == ("failed", 1, 1)
    assert "no such name" in view.reason
    assert house.state.claim("counter").position == 1


def test_an_unchanged_value_is_pushed_once_and_a_changed_one_again(house: House) -> None:
    class Level:
        @hookimpl
        def process(self, batch: EventBatch) -> ProcessResult:
            level = Metric(name="level", value=len(set(batch.column("name").to_pylist())), window=DAY, kind="last")
            found = Insight(key="k", title="t", description="d", data={"n": len(batch)})
            return ProcessResult([level], [Pattern(key="p", name="n", description="d", count=1)], [found])

    commits = [0]
    opened = partial(house.fold, Level(), ("process",))
    lane = Lane("level", opened, house.log, house.state, EAGER, on_commit=commits.append)
    lane.start()
    for names in (["x"], ["y"], ["x", "y"]):
        house.add(("a", names))
        eventually(lambda: commits[-1] == house.log.durable, "a commit")
    lane.stop()
    assert lane.join(20)
    messages = house.state.outbox(0)
    bodies = [msgspec.json.decode(m.body) for m in messages if m.topic == "metric"]
    assert bodies[-1]["value"] == 2
    assert len({m.id for m in messages}) == 3  # one name per record, whatever its value
    insight = next(msgspec.json.decode(m.body) for m in messages if m.topic == "insight")
    assert (insight["plugin"], insight["key"], insight["title"], insight["data"]) == ("level", "k", "t", {"n": 2})


def test_idle_time_writes_no_state_and_moves_the_cursor_seldom(house: House) -> None:
    house.add(("a", ["x"]))
    commits: list[int] = []
    lane = house.lane(Counter(), Pace(checkpoint_seconds=0.02), on_commit=commits.append)
    lane.start()
    eventually(lambda: commits, "the first commit")
    for _ in range(30):
        house.add(after=1)
        eventually(lambda: lane.position == house.log.durable, "the lane at the end")
    lane.stop()
    assert lane.join(20)
    assert len(commits) < 30
    assert house.state.claim("counter").position == house.log.durable


def test_checkpoint_events_commit_before_the_time_is_up(house: House) -> None:
    commits: list[int] = []
    pace = Pace(checkpoint_seconds=3600.0, checkpoint_events=10)
    lane = house.lane(Counter(), pace, on_commit=commits.append)
    house.add(("a", ["x"] * 12))
    run_until(lane, lambda: commits, "a commit by number")
    assert commits == [12]


def test_stopping_commits_what_was_folded(house: House) -> None:
    plugin = Counter()
    lane = house.lane(plugin, NEVER)
    house.add(("a", ["x"] * 3))
    run_until(lane, lambda: lane.position == 3, "the fold")
    assert house.total() == 3


def test_a_store_that_fails_delays_the_commit_and_loses_nothing(house: House) -> None:
    class Refusing:
        def __init__(self, store: SqliteState) -> None:
            self.store = store
            self.refuse = True
            self.refused = 0
            self.claim = store.claim

        def commit(self, *arguments: Any) -> int:
            if self.refuse:
                self.refused += 1
                raise StorageError("the disk is full")
            return self.store.commit(*arguments)

    store = Refusing(house.state)
    plugin = Counter()
    lane = Lane("counter", lambda: house.fold(plugin), house.log, store, EAGER)  # type: ignore[arg-type]
    house.add(("a", ["x"] * 4))
    lane.start()
    eventually(lambda: store.refused >= 2, "two refusals")
    assert "the disk is full" in lane.view().reason
    store.refuse = False
    eventually(lambda: house.total() == 4, "the commit")
    eventually(lambda: lane.view().reason == "", "the reason gone")
    lane.stop()
    assert lane.join(20)
    assert [size for _, size, _ in plugin.seen if size] == [4]


def test_a_lane_whose_commits_are_refused_reads_no_further_than_its_bound(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "PENDING_MOST", 5)

    class Many(Counter):
        @hookimpl
        def process(self, batch: EventBatch) -> ProcessResult:
            self.seen.append((batch.tenant, len(batch), batch.watermark))
            return ProcessResult(
                [Metric(name=f"m{name}", value=1, window=DAY) for name in batch.column("name").to_pylist()]
            )

    class Refusing:
        refused = 0
        refuse = True
        claim = house.state.claim

        def commit(self, *arguments: Any) -> int:
            if self.refuse:
                self.refused += 1
                raise StorageError("the disk is full")
            return house.state.commit(*arguments)

    store, plugin = Refusing(), Many()
    lane = Lane("counter", lambda: house.fold(plugin), house.log, store, EAGER)  # type: ignore[arg-type]
    house.add(("a", [str(n) for n in range(6)]))
    lane.start()
    eventually(lambda: "6 outputs wait, so it reads no further" in lane.view().reason, "the reason")
    house.add(("a", ["more"]))
    refused = store.refused
    eventually(lambda: store.refused >= refused + 3, "further refusals")
    assert (lane.position, lane.view().lag) == (6, 1)
    store.refuse = False
    eventually(lambda: house.state.points("a", "mmore", T0, T0 + timedelta(days=1)), "the commit")
    eventually(lambda: lane.view().reason == "", "the reason gone")
    lane.stop()
    assert lane.join(20)
    assert sum(size for _, size, _ in plugin.seen) == 7


def test_a_lane_behind_the_log_goes_on_from_the_backlog(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "log", segment_bytes=1, disk_reserve_bytes=0)
    held: list[EventBatch] = []
    for i in range(4):
        log.append([columns("a", ["x"] * 2, T0 + timedelta(seconds=i))], T0 + timedelta(seconds=i))
    held, _ = log.read(0)
    assert log.trim(4) == 4
    asked: list[int] = []

    def backlog(start: int, max_rows: int) -> tuple[list[EventBatch], int]:
        asked.append(start)
        return [held[start // 2]], start + 2

    plugin = Counter()
    instance = Instance("counter", plugin, frozenset({"process"}))
    fold = HookFold("counter", instance, log, backlog=backlog)
    position = 0
    while position < log.durable:
        position = fold.advance(position, 1000).position
    assert asked == [0, 2]
    assert plugin.totals == {"a": 8}
    with pytest.raises(TrimmedError):
        HookFold("counter", instance, log).advance(0, 10)
    with pytest.raises(StorageError, match="neither the log nor the lake has position 0"):
        HookFold("counter", instance, log, backlog=lambda start, _: ([], start)).advance(0, 10)
    log.close()


def test_state_may_be_bytes_or_json_and_nothing_else(house: House) -> None:
    class Keeper:
        state: Any = b"\x00\xff"
        taken: Any = None

        @hookimpl
        def process(self, batch: EventBatch) -> None: ...

        @hookimpl
        def export_state(self) -> Any:
            return self.state

        @hookimpl
        def import_state(self, state: Any, version: int) -> None:
            self.taken = (state, version)

    for state, back in ((b"\x00\xff", b"\x00\xff"), ({"a": [1, (2, None)]}, {"a": [1, [2, None]]}), (None, None)):
        keeper = Keeper()
        keeper.state = state
        exported = house.fold(keeper).export()
        kept = msgspec.structs.replace(house.state.claim("k"), state=exported, state_version=3)
        house.fold(keeper).restore(kept)
        assert keeper.taken == (back, 3)
    keeper.state = object()
    with pytest.raises(HookFailedError, match="'export_state' failed"):
        house.fold(keeper).export()


def test_fold_once_sees_exactly_its_batches_and_the_end_of_time() -> None:
    class Closing:
        calls: list[tuple[int, datetime]] = []

        @hookimpl
        def setup(self, context: PluginContext) -> None:
            self.calls = []

        @hookimpl
        def process(self, batch: EventBatch) -> ProcessResult:
            Closing.calls = [*self.calls, (len(batch), batch.watermark)]
            self.calls = Closing.calls
            return ProcessResult([Metric(name="n", value=len(self.calls), window=DAY)])

    late = T0 + timedelta(days=3)
    batches = [EventBatch(placed(columns("a", ["x"], at), 0), "a", T0) for at in (late, T0)]
    instance = Instance("closing", Closing(), frozenset({"setup", "process"}))
    context = PluginContext(name="closing", settings={}, logger=None)
    result = fold_once("closing", instance, batches, context)
    assert [metric.value for metric in result.metrics] == [3]
    assert [size for size, _ in Closing.calls] == [1, 1, 0]
    assert Closing.calls[-1][1] > late + timedelta(days=365)


def test_tenants_regroup_nothing_out_of_nothing() -> None:
    assert Tenants().regroup([]) == []


def test_claiming_ends_earlier_epochs(house: House) -> None:
    first = house.state.claim("counter")
    house.state.claim("counter")
    with pytest.raises(FencedError):
        house.state.commit(first)


class Forgetful(Counter):
    """Remembers the order of what it is told, and keeps nothing of a tenant whose users are erased."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.before = lambda batch: self.told.append((batch.tenant, len(batch), batch.erased))

    @hookimpl
    def erase(self, tenant: str, ids: Sequence[str]) -> None:
        self.told.append(("erase", tenant, tuple(ids)))
        self.totals.pop(tenant, None)


ERASING = (*FOLDING, "erase")


def test_a_fold_meets_a_tombstone_in_log_order(house: House) -> None:
    house.add(("a", ["x", "y"]), ("b", ["x"]))
    house.log.erase(
        "a",
        Owners(
            (
                "ada",
                "bob",
            )
        ),
        "k",
    )
    house.add(("a", ["x"]))
    plugin = Forgetful()
    fold, at, steps = house.fold(plugin, ERASING), 0, []
    while at < house.log.durable:
        steps.append(fold.advance(at, 100))
        at = steps[-1].position
    events_ = [told for told in plugin.told if told[0] == "erase" or told[1] or told[2]]
    both = ("ada", "bob")
    assert events_ == [("a", 2, ()), ("b", 1, ()), ("erase", "a", both), ("a", 0, both), ("a", 1, ())]
    assert (sum(s.events for s in steps), sum(s.erased for s in steps)) == (4, 1)
    assert plugin.totals == {"a": 1, "b": 1}
    assert house.fold(Counter()).advance(3, 100).erased == 1, "without the hook only the batch says so"


def test_a_state_that_forgot_is_committed_though_no_event_came(house: House) -> None:
    house.add(("a", ["x"]))
    plugin = Forgetful()
    made = Lane("counter", lambda: house.fold(plugin, ERASING), house.log, house.state, EAGER)
    made.start()
    eventually(lambda: made.committed == 1, "the first commit")
    position = house.log.erase("a", Owners(("ada",)), "k")
    eventually(lambda: (made.committed or 0) > position, "a commit past the tombstone", 3.0)
    made.stop()
    assert made.join(20)
    assert msgspec.json.decode(unpack(house.state.claim("counter").state or b"").data) == {}


def test_history_from_the_lake_has_the_tombstones_in_their_place_and_nothing_erased() -> None:
    def rows(seqs: Sequence[int]) -> EventBatch:
        batch = placed(columns("a", ["x"] * len(seqs), T0), 0)
        batch = batch.set_column(1, SCHEMA.field("seq"), pa.array(seqs, pa.int64()))
        users = pa.array(["ada" if seq % 2 else "bob" for seq in seqs])
        return EventBatch(batch.set_column(5, SCHEMA.field("user_id"), users), "a", T0)

    def lake(start: int, max_rows: int) -> tuple[list[EventBatch], int]:
        end = min(start + max_rows, 20)
        seqs = [seq for seq in range(start, end) if seq not in (9, 15)]
        return ([rows(seqs)] if seqs else []), max(end, start)

    ends = [
        Tombstone(9, "a", Owners(("ada",)), "k", micros(T0)),
        Tombstone(15, "b", Owners(("ada",)), "k2", micros(T0)),
    ]
    for step in (1, 4, 100):
        read, at, found = woven(lake, lambda: ends), 0, list[Any]()
        while at < 20:
            batches, after = read(at, step)
            assert after > at
            at = after
            for batch in batches:
                found += [(batch.tenant, batch.erased)] if batch.erased else batch.column("seq").to_pylist()
        assert found == [0, 2, 4, 6, 8, ("a", ("ada",)), *range(10, 15), ("b", ("ada",)), *range(16, 20)], step
