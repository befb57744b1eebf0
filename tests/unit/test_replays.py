"""Replays over a real log, lake, lanes and state store; the plugin is an object, and its host a few lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analytics_core import EventBatch, Insight, Metric, ProcessResult, Window, hookimpl
from analytics_core.config import Lanes as Pace
from analytics_core.errors import NotFoundError, PluginUnavailableError, ReplayError, StorageError
from analytics_core.events import UNPLACED_SCHEMA, micros
from analytics_core.events.columns import times_column, word
from analytics_core.host.code.dispatch import Instance
from analytics_core.host.life.attempt import Beats
from analytics_core.host.life.change import Handover, Outcome, ReloadReceipt
from analytics_core.host.replaying import meeting
from analytics_core.host.replaying import replay as replay_module
from analytics_core.host.replaying.meeting import NEAR_ROWS, FollowingFold
from analytics_core.host.replaying.rebuilding import Rebuilding
from analytics_core.host.replaying.replays import Replays
from analytics_core.host.replaying.view import ReplayView
from analytics_core.lanes.fold import Fold, HookFold, Pulse
from analytics_core.lanes.lane import Lane
from analytics_core.log.segments import SegmentLog
from analytics_core.state import Checkpoint
from analytics_core.state.sqlite import SqliteState
from analytics_core.state.sqlite_side import SqliteSides

T0 = datetime(2025, 1, 1, tzinfo=UTC)
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
EAGER = Pace(checkpoint_seconds=0.02)
FOLDING = frozenset({"process", "export_state", "import_state"})


class Counter:
    """Counts the events of each day and name; the first of each is an insight."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    weight = 1

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        if not len(batch):
            return None
        metrics, insights = {}, []
        for name, at in zip(batch.column("name").to_pylist(), batch.column("timestamp").to_pylist(), strict=True):
            day = at.replace(hour=0, minute=0, second=0, microsecond=0)
            key = f"{batch.tenant} {name} {day.isoformat()}"
            self.counts[key] = self.counts.get(key, 0) + self.weight
            metrics[key] = Metric(name=name, value=self.counts[key], window=Window(day, 86_400))
            insights.append(Insight(key=name, title=f"{self.counts[key]}", description="", window=Window(day, 86_400)))
        return ProcessResult(list(metrics.values()), insights=insights)

    @hookimpl
    def export_state(self) -> dict[str, int]:
        return self.counts

    @hookimpl
    def import_state(self, state: dict[str, int], version: int) -> None:
        self.counts = dict(state)


class Wrong(Counter):
    """Counts every event double."""

    weight = 2


class Broken(Counter):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        if any(name == "odd" for name in batch.column("name").to_pylist()):
            raise ValueError("an odd event")
        return super().process(batch)


class Hanging(Counter):
    go = threading.Event()

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        self.go.wait(20)
        return super().process(batch)


class Made:
    """A runtime whose plugin is an object of this process."""

    isolation = "thread"
    seconds = 0.5
    plugin = "shop"

    def __init__(self, shop: Shop, kind: type[Counter], generation: int) -> None:
        self.generation = generation
        self.closed = False
        self._shop = shop
        self._kind = kind

    def load(self) -> frozenset[str]:
        return FOLDING

    def start(self) -> None: ...

    def open_fold(self, beat: Callable[[str], None]) -> Fold:
        instance = Instance("shop", self._kind(), FOLDING)
        return HookFold("shop", instance, self._shop.log, backlog=self._shop.backlog, beat=beat)

    def watch(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Shop:
    """A plugin that runs, and whose code the test exchanges."""

    name = "shop"

    def __init__(self, directory: Path, kind: type[Counter] = Counter, pace: Pace = EAGER) -> None:
        self.log = SegmentLog(directory / "log", segment_bytes=1, disk_reserve_bytes=0)
        self.state = SqliteState(directory / "state.db")
        self.backlog: Any = None
        self.kind = kind
        self.pace = pace
        self.generation = 1
        self.twins: list[Made] = []
        self.at = T0
        self.fail: Exception | None = None
        self.replays = Replays(self.original, self.log, lambda *a: self.backlog(*a), SqliteSides(self.state), pace)
        self.lane: Lane | None = None
        self.run()

    def original(self, name: str) -> Shop:
        if name != self.name:
            raise NotFoundError("running plugin", name, [self.name])
        return self

    def run(self, kind: type[Counter] | None = None) -> None:
        """Go on from the checkpoint, with other code when it is given."""
        self.end()
        self.kind = kind or self.kind
        pulse = Pulse()
        fold = Made(self, self.kind, self.generation).open_fold
        self.lane = Lane(self.name, lambda: fold(pulse.beat), self.log, self.state, self.pace, pulse=pulse)
        self.lane.start()

    def end(self) -> None:
        if self.lane is not None:
            self.lane.stop()
            assert self.lane.join(10)

    def twin(self) -> Made:
        made = Made(self, self.kind, self.generation + 1 + len(self.twins))
        self.twins.append(made)
        return made

    def succeed(self, runtime: Any, handover: Handover) -> ReloadReceipt:
        assert self.lane is not None

        @contextmanager
        def coming_in(beats: Beats) -> Iterator[None]:
            if self.fail is not None:
                raise self.fail
            yield
            beats.pulse = self.lane.pulse  # type: ignore[union-attr]

        try:
            done = handover(self.lane, coming_in)
        except Exception as error:
            runtime.close()
            return self.receipt(runtime, "rolled_back", str(error))
        done.left.close()
        self.generation = runtime.generation
        return self.receipt(runtime, "active", position=done.position, pause=done.pause)

    def receipt(self, runtime: Made, outcome: Outcome, reason: str = "", **figures: Any) -> ReloadReceipt:
        return ReloadReceipt("shop", self.generation, runtime.generation, outcome, reason, T0, {}, **figures)

    def add(self, *names: str, after: timedelta = timedelta(seconds=1), tenant: str = "a") -> None:
        """One commit of events with these names."""
        self.at += after
        self.log.append([columns(tenant, names, self.at)] if names else [], self.at)

    def folded(self) -> Shop:
        until(lambda: self.lane and self.lane.position == self.log.durable, "all events folded")
        self.lane and self.lane.between(lambda fold: fold).result()
        until(lambda: self.committed() == self.log.durable or not self.pending(), "all committed")
        return self

    def committed(self) -> int:
        assert self.lane is not None
        return self.lane._checkpoint.position

    def pending(self) -> int:
        assert self.lane is not None
        return len(self.lane._pending)

    def values(self, name: str = "view", tenant: str = "a") -> dict[int, float]:
        """Value by day of January 2025."""
        points = self.state.points(tenant, name, *EVER)
        return {point.start.day: point.value for point in points if point.lane == self.name}

    def outputs(self) -> Any:
        tenants = ("a", "b")
        names = {(t, name) for t in tenants for lane, name, _ in self.state.catalogue(t) if lane == self.name}
        points = [str(p) for t, name in names for p in self.state.points(t, name, *EVER) if p.lane == self.name]
        found = [r for t in tenants for r in self.state.records(t, "insight", lane=self.name, limit=1000)]
        return sorted(points), sorted((r["key"], r["title"]) for r in found)

    def ready(self, since: datetime | None = None) -> ReplayView:
        return self.until_state(self.replays.begin("shop", since).id, "ready")

    def until_state(self, id_: str, state: str) -> ReplayView:
        until(lambda: self.replays.view("shop", id_).state not in ("replaying", "switching"), f"{state} {id_}")
        view = self.replays.view("shop", id_)
        assert view.state == state, view.reason
        return view

    def close(self) -> None:
        self.replays.close()
        self.end()
        self.state.close()
        self.log.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.002)
    return value


def columns(tenant: str, names: tuple[str, ...], at: datetime) -> pa.RecordBatch:
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


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    built = Shop(tmp_path)
    yield built
    built.close()


def corrected(shop: Shop) -> None:
    """Events counted wrongly, then more with the right code and the wrong state."""
    shop.run(Wrong)
    shop.add("view", "view", "buy")
    shop.add("view", after=timedelta(days=1))
    shop.folded().run(Counter)
    shop.add("view", tenant="b")
    shop.folded()


def test_a_replay_shows_what_would_change_and_changes_nothing(shop: Shop) -> None:
    corrected(shop)
    before = shop.outputs()
    view = shop.ready()
    assert view.difference is not None
    counts = {each.name or each.what: (each.equal, each.changed, each.only_old) for each in view.difference.counts}
    assert counts == {"buy": (0, 1, 0), "view": (1, 2, 0), "insight": (1, 2, 0)}
    assert [(each.name, each.old, each.new) for each in view.difference.sample] == [
        ("view", 4, 2),
        ("buy", 2, 1),
        ("view", 2, 1),
    ]
    assert (view.progress, view.events, view.kept_from, view.since) == (1.0, 5, T0 + timedelta(seconds=1), None)
    assert shop.outputs() == before
    shop.replays.discard("shop", view.id)
    assert shop.replays.view("shop", view.id).state == "discarded"
    assert shop.outputs() == before
    shop.add("view")
    assert shop.folded().values()[2] == 3


def test_equal_outputs_are_said_to_be_equal(shop: Shop) -> None:
    shop.add("view", "buy")
    shop.folded()
    view = shop.ready()
    assert view.difference is not None
    assert view.difference.equal
    assert view.difference.position == shop.log.durable
    assert shop.replays.discard("shop", view.id).reason == "equal to what is there; nothing to switch"


def test_after_a_switch_the_lane_goes_on_as_if_it_had_always_been_this_code(shop: Shop, tmp_path: Path) -> None:
    corrected(shop)
    shop.add("view")  # some that the lane may not have committed yet
    view = shop.replays.switch("shop", shop.ready().id)
    assert view.state == "switched"
    assert view.receipt is not None
    assert view.receipt.position is not None
    assert shop.values() == {1: 2, 2: 2}
    shop.add("view", "view", "buy")
    shop.folded()
    (tmp_path / "fresh").mkdir()
    fresh = Shop(tmp_path / "fresh")
    for names, after, tenant in (
        (("view", "view", "buy"), timedelta(seconds=1), "a"),
        (("view",), timedelta(days=1), "a"),
        (("view",), timedelta(seconds=1), "b"),
        (("view",), timedelta(seconds=1), "a"),
        (("view", "view", "buy"), timedelta(seconds=1), "a"),
    ):
        fresh.add(*names, after=after, tenant=tenant)
    assert shop.outputs() == fresh.folded().outputs()
    fresh.close()
    shop.run()  # from its checkpoint, as after a restart
    shop.add("view")
    assert shop.folded().values() == {1: 2, 2: 5}
    assert not shop.twins[0].closed
    assert not list((tmp_path / "replays").glob("*"))


def test_outputs_that_wait_for_a_commit_do_not_come_over_the_rebuilt_ones(tmp_path: Path) -> None:
    shop = Shop(tmp_path, Wrong, Pace(checkpoint_seconds=3600.0))
    shop.add("view")
    until(lambda: shop.lane and shop.lane.position == shop.log.durable, "folded, and not committed")
    shop.kind = Counter
    view = shop.ready()
    shop.add("view")
    until(lambda: shop.lane and shop.lane.position == shop.log.durable, "folded, and not committed")
    shop.replays.switch("shop", view.id)
    assert shop.values() == {1: 2}
    shop.end()
    assert shop.values() == {1: 2}
    shop.close()


def test_a_state_that_equals_the_one_before_the_switch_is_written_again(shop: Shop) -> None:
    shop.run(Wrong)
    shop.add("view")
    shop.folded().run(Counter)
    shop.replays.switch("shop", shop.ready().id)
    shop.add("view", after=timedelta())
    shop.folded().run()  # from its checkpoint, as after a restart
    shop.add("view")
    assert shop.folded().values() == {1: 3}


def test_a_switch_that_fails_changes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected(shop)
    before = shop.outputs()
    view = shop.ready()
    shop.fail = StorageError("the disk is full")
    with pytest.raises(ReplayError, match="nothing was switched: the disk is full"):
        shop.replays.switch("shop", view.id)
    assert shop.outputs() == before
    assert shop.replays.view("shop", view.id).state == "failed"
    shop.add("view")
    assert shop.folded().values()[2] == 3
    shop.fail = None
    shop.replays.switch("shop", shop.ready().id)
    assert shop.values() == {1: 2, 2: 2}


def test_a_switch_that_could_not_begin_leaves_the_replay_ready(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected(shop)
    before = shop.outputs()
    view = shop.ready()

    def busy(*_: Any) -> Any:
        raise PluginUnavailableError("shop", "is being changed just now")

    monkeypatch.setattr(shop, "succeed", busy)
    with pytest.raises(ReplayError, match=r"nothing was switched: .* is being changed just now"):
        shop.replays.switch("shop", view.id)
    assert shop.replays.view("shop", view.id).state == "ready"
    assert shop.outputs() == before
    monkeypatch.undo()
    shop.replays.switch("shop", view.id)
    assert shop.values() == {1: 2, 2: 1}


def test_code_that_comes_in_just_before_the_switch_is_not_undone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected(shop)
    before = shop.outputs()
    view = shop.ready()
    succeed = shop.succeed

    def late(*given: Any) -> ReloadReceipt:
        shop.generation = 7
        return succeed(*given)

    monkeypatch.setattr(shop, "succeed", late)
    with pytest.raises(ReplayError, match="generation 7 runs now"):
        shop.replays.switch("shop", view.id)
    assert (shop.generation, shop.outputs()) == (7, before)


def test_code_that_comes_in_while_its_twin_is_made_makes_the_replay_stale(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected(shop)
    twin = shop.twin

    def outdated() -> Made:
        made = twin()
        shop.generation = 7
        return made

    monkeypatch.setattr(shop, "twin", outdated)
    assert "generation 7 runs now" in shop.until_state(shop.replays.begin("shop").id, "stale").reason


def test_trouble_that_is_seen_while_it_is_switched_to_does_not_end_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected(shop)
    view = shop.ready()
    looking, go, seen, succeed = threading.Event(), threading.Event(), threading.Event(), shop.succeed

    def watch() -> None:
        looking.set()
        go.wait(20)
        raise ReplayError("shop", "its process has ended")

    def switching(*given: Any) -> ReloadReceipt:
        go.set()
        until(lambda: seen.is_set() or shop.replays.view("shop", view.id).state == "failed", "it was seen")
        return succeed(*given)

    monkeypatch.setattr(shop.twins[0], "watch", watch)
    assert looking.wait(20)
    monkeypatch.setattr(Rebuilding, "overdue", lambda _: seen.set())
    monkeypatch.setattr(shop, "succeed", switching)
    assert shop.replays.switch("shop", view.id).state == "switched"
    assert shop.values() == {1: 2, 2: 1}


def test_events_that_flow_meanwhile_are_counted_once(shop: Shop) -> None:
    shop.run(Wrong)
    sent = 0
    for _ in range(50):
        shop.add("view", after=timedelta(milliseconds=10))
        sent += 1
    shop.folded().run(Counter)
    stopping = threading.Event()

    def feed() -> None:
        nonlocal sent
        while not stopping.is_set():
            shop.add(*["view"] * 7, after=timedelta(milliseconds=1))
            sent += 7

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        shop.replays.switch("shop", shop.ready().id)
    finally:
        stopping.set()
        feeding.join()
    assert shop.folded().values() == {1: sent}


def test_since_rebuilds_whole_days_and_leaves_the_others(shop: Shop) -> None:
    shop.run(Wrong)
    for _ in range(6):
        shop.add("view", after=timedelta(days=1))
    shop.folded().run(Counter)
    view = shop.ready(T0 + timedelta(days=4, hours=7))
    assert view.since == T0 + timedelta(days=4)
    assert view.events == 4, "it begins a day earlier"
    shop.replays.switch("shop", view.id)
    assert shop.values() == {2: 2, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1}
    shop.add("view")
    assert shop.folded().values()[7] == 2


def test_since_before_the_first_event_is_all_there_is(shop: Shop) -> None:
    corrected(shop)
    view = shop.ready(T0 - timedelta(days=30))
    assert view.since is None
    assert view.note == (
        "asked for since 2024-12-02; history begins later, at 2025-01-01 00:00 UTC, so all of it is rebuilt"
    )


@pytest.mark.parametrize("since", [None, T0])
def test_what_history_no_longer_has_stays_as_it_is(shop: Shop, since: datetime | None) -> None:
    shop.run(Wrong)
    for _ in range(4):
        shop.add("view", after=timedelta(days=1))
    shop.folded().run(Counter)
    assert shop.log.trim(2) == 2
    shop.backlog = lambda start, rows: ([], 2)  # retention has dropped the first two
    view = shop.ready(since)
    assert view.kept_from == T0 + timedelta(days=3)
    assert view.since == T0 + timedelta(days=4), "the first day that is whole"
    assert view.note == "history begins at 2025-01-04 00:00 UTC; windows before 2025-01-05 stay"
    shop.replays.switch("shop", view.id)
    assert shop.values() == {2: 2, 3: 2, 4: 2, 5: 1}


def test_a_plugin_that_raises_in_its_replay_fails_it(shop: Shop) -> None:
    shop.add("odd")
    shop.folded().run(Broken)
    before = shop.outputs()
    id_ = shop.replays.begin("shop").id
    view = shop.until_state(id_, "failed")
    assert "an odd event" in view.reason
    with pytest.raises(ReplayError, match=r"is failed: .*an odd event"):
        shop.replays.switch("shop", id_)
    assert shop.outputs() == before
    until(lambda: shop.twins[0].closed, "its runtime is closed")
    shop.add("view")
    assert shop.folded().values() == {1: 1}


def test_a_plugin_that_hangs_in_its_replay_fails_it(shop: Shop) -> None:
    shop.add("view")
    shop.folded()
    shop.kind = Hanging
    Hanging.go.clear()
    view = shop.until_state(shop.replays.begin("shop").id, "failed")
    assert "hook 'process' failed: no answer within 0.5 s" in view.reason
    shop.add("view")
    assert shop.folded().values() == {1: 2}
    Hanging.go.set()


def test_a_replay_that_hangs_while_it_is_switched_to_changes_nothing(shop: Shop) -> None:
    shop.add("view")
    shop.folded()
    shop.kind = Hanging
    Hanging.go.set()
    view = shop.ready()
    Hanging.go.clear()
    shop.add("view")
    shop.folded()  # what the replay has to fold before it can be switched to
    with pytest.raises(ReplayError):
        shop.replays.switch("shop", view.id)
    shop.add("view")
    assert shop.folded().values() == {1: 3}
    assert shop.replays.view("shop", view.id).state == "failed"
    Hanging.go.set()


def test_a_full_disk_ends_a_replay_and_nothing_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = SqliteState.commit

    def full(state: SqliteState, checkpoint: Checkpoint, *given: Any) -> int:
        if given and checkpoint.lane == "shop~replay":
            raise StorageError("database or disk is full")
        return commit(state, checkpoint, *given)

    shop.add("view")
    shop.folded()
    monkeypatch.setattr(SqliteState, "commit", full)
    view = shop.until_state(shop.replays.begin("shop").id, "failed")
    assert "database or disk is full" in view.reason
    until(lambda: not list((tmp_path / "replays").glob("*")), "what it has rebuilt makes room")
    shop.add("view")
    assert shop.folded().values() == {1: 2}


def test_a_replay_that_waits_for_the_plugin_says_so(shop: Shop) -> None:
    shop.add("view")
    lane, shop.lane = shop.folded().lane, None  # as between two attempts
    id_ = shop.replays.begin("shop").id
    assert shop.replays.view("shop", id_).reason.startswith("the plugin does not run just now")
    shop.lane = lane
    assert shop.until_state(id_, "ready").reason == ""


def test_without_any_history_there_is_no_difference(shop: Shop) -> None:
    view = shop.ready()
    assert view.difference is not None
    assert (view.difference.equal, view.events, view.since, view.kept_from) == (True, 0, None, None)
    shop.add("view")
    assert shop.folded().replays.switch("shop", view.id).state == "switched"
    shop.add("view")
    assert shop.folded().values() == {1: 2}


def test_a_plugin_that_was_removed_makes_its_replay_stale(shop: Shop) -> None:
    shop.add("view")
    id_ = shop.folded().ready().id
    shop.generation = 0
    until(lambda: shop.replays.view("shop", id_).state == "stale", "stale")
    assert shop.replays.view("shop", id_).reason == "this is the code of generation 1; none runs now"


def test_other_code_makes_a_replay_stale(shop: Shop) -> None:
    corrected(shop)
    before = shop.outputs()
    view = shop.ready()
    shop.generation = 7
    assert "generation 7 runs now" in until(lambda: shop.replays.view("shop", view.id).reason, "stale")
    with pytest.raises(ReplayError, match="is stale"):
        shop.replays.switch("shop", view.id)
    assert shop.outputs() == before


def test_far_behind_it_rests_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    stopping = SimpleNamespace(wait=rests.append)
    clock = iter([0.0, 7.0, 7.0])
    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    fold: Any = FollowingFold(SimpleNamespace(advance=lambda *_: None), lambda: 3 * NEAR_ROWS, stopping)  # type: ignore[arg-type]
    fold.advance(0, NEAR_ROWS)
    fold.advance(2 * NEAR_ROWS, NEAR_ROWS)
    assert rests == [7.0], "and near by it does not rest"


def test_one_replay_of_a_plugin_at_a_time(shop: Shop) -> None:
    shop.add("view")
    view = shop.folded().ready()
    with pytest.raises(ReplayError, match=f"replay {view.id} is ready"):
        shop.replays.begin("shop")
    shop.replays.discard("shop", view.id)
    again = shop.ready()
    assert [each.id for each in shop.replays.of("shop")] == [again.id]
    with pytest.raises(NotFoundError, match="no replay of 'shop' is named"):
        shop.replays.view("shop", view.id)
    with pytest.raises(NotFoundError):
        shop.replays.begin("shp")


def test_a_replay_that_nobody_decides_on_is_discarded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "DECISION_SECONDS", 0.0)
    shop.add("view")
    id_ = shop.folded().replays.begin("shop").id
    until(lambda: shop.replays.view("shop", id_).state == "discarded", "discarded")
    assert "nobody has decided" in shop.replays.view("shop", id_).reason


def test_all_can_be_discarded_at_once_and_others_begun_after_it(shop: Shop) -> None:
    shop.add("view")
    view = shop.folded().ready()
    shop.replays.discard_all("users were erased meanwhile")
    assert shop.replays.view("shop", view.id).reason == "users were erased meanwhile"
    assert shop.ready().state == "ready"


def test_a_replay_follows_the_lane_and_never_leads_it(shop: Shop) -> None:
    corrected(shop)
    view = shop.ready()
    shop.end()  # the plugin's lane is between two attempts
    shop.add("view")
    with pytest.raises(ReplayError, match="nothing was switched"):
        shop.replays.switch("shop", view.id)
    shop.run()
    assert shop.folded().values()[2] == 3


def test_what_an_earlier_process_left_is_dropped_at_the_start(shop: Shop) -> None:
    SqliteSides(shop.state).open("shop", "gone").store.close()
    shop.replays.start()
    assert not list((shop.state.path.parent / "replays").glob("*"))


def test_the_end_of_the_host_discards_what_is_under_way(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    corrected(shop)
    view = shop.ready()
    shop.close()
    assert shop.replays.view("shop", view.id).reason == "its host is stopping"
    assert shop.twins[0].closed
    with pytest.raises(ReplayError, match="its host is stopping"):
        shop.replays.begin("shop")
