"""What every backend's side areas keep true: a difference as of one moment, and a switch that is all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_core.errors import FencedError, StorageError
from analytics_core.records import Insight, Metric, Pattern, Window
from analytics_core.state import Checkpoint, Outputs, StateStore, sqlite_side
from analytics_core.state.side import SAMPLE, Counted, SideArea, SideAreas
from analytics_core.state.sqlite import SqliteState
from analytics_core.state.sqlite_side import SqliteSides

DAY = datetime(2025, 1, 31, tzinfo=UTC)
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
BACKENDS: dict[str, Callable[[Path], tuple[SqliteState, SideAreas]]] = {}


def sqlite(directory: Path) -> tuple[SqliteState, SideAreas]:
    state = SqliteState(directory / "state.db")
    return state, SqliteSides(state)


BACKENDS["sqlite"] = sqlite


class House:
    """A lane ``shop`` with a right to write, another one beside it, and an area to rebuild ``shop`` in."""

    def __init__(self, state: SqliteState, areas: SideAreas) -> None:
        self.state = state
        self.areas = areas
        self.area: SideArea = areas.open("shop", "1")
        self.held = state.claim("shop")
        self.other = state.claim("other")
        self.aside = self.area.store.claim(self.area.lane)

    def old(self, *found: Any, tenant: str = "a", position: int = 10) -> None:
        at = Checkpoint(lane="shop", epoch=self.held.epoch, position=position, state=b"old", events=7)
        self.state.commit(at, [outputs(tenant, *found)])

    def new(self, *found: Any, tenant: str = "a") -> None:
        at = Checkpoint(lane=self.area.lane, epoch=self.aside.epoch, position=10)
        self.area.store.commit(at, [outputs(tenant, *found)])

    def counts(self, since: datetime | None = None) -> list[Counted]:
        return self.area.look(10, since)().counts

    def switch(self, since: datetime | None = None, epoch: int | None = None) -> None:
        epoch = self.held.epoch if epoch is None else epoch
        at = Checkpoint(lane="shop", epoch=epoch, position=12, state=b"new" * 50_000, state_version=2, events=9)
        self.area.switch(at, since)

    def found(self, lane: str = "shop", tenant: str = "a") -> tuple[Any, ...]:
        return found(self.state, lane, tenant)


def outputs(tenant: str, *records: Any) -> Outputs:
    kinds = (Metric, Pattern, Insight)
    metrics, patterns, insights = ([record for record in records if isinstance(record, kind)] for kind in kinds)
    return Outputs(tenant=tenant, metrics=metrics, patterns=patterns, insights=insights)


def metric(value: float, name: str = "views", day: int = 0, **labels: str) -> Metric:
    return Metric(name=name, value=value, window=Window(DAY + timedelta(days=day), 86_400), labels=labels)


def insight(key: str, title: str = "t", day: int | None = None) -> Insight:
    window = None if day is None else Window(DAY + timedelta(days=day), 86_400)
    return Insight(key=key, title=title, description="d", window=window)


def pattern(key: str, count: int) -> Pattern:
    return Pattern(key=key, name="p", description="d", count=count)


def found(state: StateStore, lane: str, tenant: str = "a") -> tuple[Any, ...]:
    """All that a lane has found for a tenant, in an order of its own."""
    names = {name for by, name, _ in state.catalogue(tenant) if by == lane}
    points = [p for name in names for p in state.points(tenant, name, *EVER) if p.lane == lane]
    records = [
        {key: value for key, value in record.items() if key not in ("seq", "updated_at")}
        for kind in ("insight", "pattern")
        for record in state.records(tenant, kind, lane=lane, limit=1000)  # type: ignore[arg-type]
    ]
    kinds = sorted(entry for entry in state.catalogue(tenant) if entry[0] == lane)
    return sorted(map(str, points)), sorted(map(str, records)), kinds


@pytest.fixture(params=BACKENDS)
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    state, areas = BACKENDS[request.param](tmp_path)
    built = House(state, areas)
    yield built
    built.area.drop()
    state.close()


def test_equal_outputs_are_said_to_be_equal(house: House) -> None:
    both = (metric(3), metric(nan, "empty"), metric(0.1 + 0.2, "sums"), insight("i"), pattern("p", 2))
    house.old(*both)
    house.new(*both[:2], metric(0.3, "sums"), *both[3:])
    difference = house.area.look(10, None)()
    assert difference.equal
    assert difference.sample == []
    assert difference.position == 10
    assert [(each.what, each.name, each.equal) for each in difference.counts] == [
        ("metric", "empty", 1),
        ("metric", "sums", 1),
        ("metric", "views", 1),
        ("pattern", "", 1),
        ("insight", "", 1),
    ]


def test_a_difference_counts_what_changed_and_shows_the_largest(house: House) -> None:
    house.old(metric(1), metric(2, day=1), metric(9, day=2), metric(5, "gone"), insight("a"), insight("b"))
    house.new(metric(1), metric(4, day=1), metric(9, day=2, page="x"), metric(7, "come"), insight("a", "other"))
    difference = house.area.look(10, None)()
    assert not difference.equal
    assert difference.counts == [
        Counted(what="metric", name="come", only_new=1, largest=7),
        Counted(what="metric", name="gone", only_old=1, largest=5),
        Counted(what="metric", name="views", equal=1, changed=1, only_old=1, only_new=1, largest=9),
        Counted(what="insight", changed=1, only_old=1),
    ]
    shown = [(each.name, each.labels, each.old, each.new) for each in difference.sample]
    assert sorted(shown[:2], key=str) == [("views", {"page": "x"}, None, 9), ("views", {}, 9, None)]
    assert shown[2:] == [("come", {}, None, 7), ("gone", {}, 5, None), ("views", {}, 2, 4)]


def test_the_sample_is_short(house: House) -> None:
    house.old(*(metric(1, day=day) for day in range(3 * SAMPLE)))
    assert len(house.area.look(10, None)().sample) == SAMPLE


def test_a_metric_of_another_kind_or_sketch_has_changed(house: House) -> None:
    def shaped(**given: Any) -> Metric:
        return Metric(name="m", value=1.0, window=Window(DAY), **given)

    house.old(shaped())
    for other in (shaped(kind="max"), shaped(unit="ms"), shaped(sketch=b"s")):
        house.new(other)
        assert [each.changed for each in house.counts()] == [1]


def test_other_lanes_are_not_looked_at(house: House) -> None:
    theirs = Checkpoint(lane="other", epoch=house.other.epoch, position=3)
    house.state.commit(theirs, [outputs("a", metric(8), insight("theirs"))])
    house.old(metric(1))
    house.new(metric(1))
    assert house.area.look(10, None)().equal
    before = house.found("other")
    house.switch()
    assert house.found("other") == before


def test_what_is_looked_at_stays_as_it_was(house: House) -> None:
    house.old(metric(1))
    house.new(metric(1))
    compare = house.area.look(10, None)
    house.old(metric(2), position=11)
    house.new(metric(3))
    assert compare().equal


def test_since_leaves_alone_what_is_older(house: House) -> None:
    since = DAY + timedelta(days=1)
    house.old(metric(1), metric(2, day=1), insight("old", day=0), insight("gone", day=1), insight("open"))
    house.new(metric(100), metric(20, day=1), metric(30, day=2), insight("old", "rebuilt", day=0), insight("new"))
    counts = house.counts(since)
    assert counts == [
        Counted(what="metric", name="views", changed=1, only_new=1, largest=30),
        Counted(what="insight", only_old=2, only_new=1),
    ]
    house.switch(since)
    points = house.state.points("a", "views", *EVER)
    assert [point.value for point in points] == [1, 20, 30]
    records = house.state.records("a", "insight")
    assert [(record["key"], record["title"]) for record in records] == [("old", "t"), ("new", "t")]


def test_a_record_without_a_window_is_as_old_as_its_last_write(house: House) -> None:
    house.old(insight("open"))
    assert house.counts(datetime.now(UTC) + timedelta(days=1)) == []
    assert house.counts(datetime.now(UTC) - timedelta(days=1)) == [Counted(what="insight", only_old=1)]


def test_a_switch_brings_state_position_and_catalogue(house: House) -> None:
    house.old(metric(1, "gone"), Metric(name="m", value=1.0, window=Window(DAY)))
    house.new(Metric(name="m", value=1.0, window=Window(DAY), kind="max"))
    house.switch()
    assert house.state.catalogue("a") == [("shop", "m", "max")]
    claimed = house.state.claim("shop")
    assert (claimed.position, claimed.state, claimed.state_version, claimed.events) == (12, b"new" * 50_000, 2, 9)
    assert claimed.epoch == house.held.epoch + 1


def test_readers_that_page_on_see_what_a_switch_has_changed_and_nothing_else(house: House) -> None:
    house.old(insight("same"), insight("changed"), insight("gone"))
    (last,) = house.state.records("a", "insight", newest=True, limit=1)
    house.new(insight("same"), insight("changed", "other"), insight("come"))
    house.switch()
    fresh = house.state.records("a", "insight", after=last["seq"])
    assert [(record["key"], record["title"]) for record in fresh] == [("changed", "other"), ("come", "t")]
    assert [record["key"] for record in house.state.records("a", "insight")] == ["same", "changed", "come"]


def test_a_switch_pushes_nothing(house: House) -> None:
    house.new(metric(1))
    house.switch()
    assert house.state.outbox(0) == []


def test_a_fenced_switch_changes_nothing(house: House) -> None:
    house.old(metric(1), insight("a"))
    house.new(metric(2), insight("b"))
    before = house.found()
    house.state.claim("shop")
    with pytest.raises(FencedError):
        house.switch()
    assert house.found() == before
    assert house.state.claim("shop").state == b"old"


def test_a_switch_that_fails_half_way_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.old(metric(1), insight("a"))
    house.new(metric(2), insight("b"))
    before = house.found()
    broken = (*sqlite_side._CATALOGUE, "INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(sqlite_side, "_CATALOGUE", broken)
    with pytest.raises(StorageError, match="switching to rebuilt outputs"):
        house.switch()
    monkeypatch.undo()
    assert house.found() == before
    house.old(metric(5), position=11)  # the store goes on to work
    house.switch()
    assert [point.value for point in house.state.points("a", "views", *EVER)] == [2]


def test_a_switch_keeps_others_from_writing_only_for_what_it_changes(tmp_path: Path) -> None:
    state, areas = sqlite(tmp_path)
    house = House(state, areas)
    same = [metric(1, day=day) for day in range(300)]
    house.old(*same, metric(2, "wrong"), metric(3, "gone"))
    house.new(*same, metric(4, "wrong"), metric(5, "come"))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with state.transaction("counting", beside=tmp_path / "none.db") as writer:
        writer.set_progress_handler(step, 1)
    house.switch()
    assert steps < 900, "the 300 that are equal cost the writer nothing"
    assert [(entry[1], len(state.points("a", entry[1], *EVER))) for entry in state.catalogue("a")] == [
        ("come", 1),
        ("views", 300),
        ("wrong", 1),
    ]
    house.area.drop()
    state.close()


def test_areas_do_not_outlive_their_process(house: House) -> None:
    other = house.areas.open("shop", "2")
    other.drop()
    house.area.store.close()  # as a process that ends
    assert house.areas.clear() == 1
    assert house.areas.clear() == 0
    house.area = house.areas.open("shop", "1")
    assert found(house.area.store, house.area.lane) == ([], [], [])


def test_what_cannot_be_deleted_keeps_no_host_from_starting(tmp_path: Path) -> None:
    state, areas = sqlite(tmp_path)
    (tmp_path / "replays" / "stuck.db").mkdir(parents=True)
    assert areas.clear() == 1
    state.close()


records = st.one_of(
    st.builds(metric, st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from(["v", "w"]), st.integers(0, 3)),
    st.builds(insight, st.sampled_from("abc"), st.sampled_from("tu"), st.none() | st.integers(0, 3)),
    st.builds(pattern, st.sampled_from("abc"), st.integers(0, 2)),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records, max_size=12), st.lists(records, max_size=12))
def test_after_a_switch_all_is_as_if_it_had_been_rebuilt_in_place(
    tmp_path_factory: pytest.TempPathFactory, old: list[Any], new: list[Any]
) -> None:
    for make in BACKENDS.values():
        state, areas = make(tmp_path_factory.mktemp("switch"))
        house = House(state, areas)
        house.old(*old)
        house.new(*new)
        house.switch()
        fresh = state.claim("fresh")
        state.commit(Checkpoint(lane="fresh", epoch=fresh.epoch, position=1), [outputs("a", *new)])
        assert str(house.found("shop")) == str(house.found("fresh")).replace("'fresh'", "'shop'")
        assert house.area.look(10, None)().equal
        house.area.drop()
        state.close()
