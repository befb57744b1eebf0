"""Replays in a real host: code that counted wrongly is mended, and history is counted anew while events flow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from analytics_core.config import Lanes
from analytics_core.errors import NotFoundError, ReplayError
from analytics_core.host.plugins import PluginHost
from analytics_core.host.replaying.replays import Replays
from analytics_core.host.replaying.view import ReplayView
from analytics_core.lake.delta import DeltaStore
from analytics_core.state.sqlite_side import SqliteSides
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, QUICK, T0, House, until, until_state, view
from tests.flow.test_reload import receipt, refreshed, rewrite

ISOLATIONS = pytest.mark.parametrize("isolation", ["thread", "process"])

RIGHT = """
def __init__(self):
    self.names = {}

@hookimpl
def process(self, batch):
    found = []
    for name in batch.column("name").to_pylist():
        key = batch.tenant + "/" + name
        self.names[key] = self.names.get(key, 0) + 1
        metric = Metric(name="events", value=self.names[key], window=Window(DAY, 86400), labels={"name": name})
        found.append(metric)
    seen = " ".join(sorted(key for key in self.names if key.startswith(batch.tenant)))
    insights = [Insight(key="seen", title=seen, description="")]
    return ProcessResult(found, insights=insights) if found else None

@hookimpl
def export_state(self):
    return self.names

@hookimpl
def import_state(self, state, version):
    self.names = state
"""
WRONG = RIGHT.replace("+ 1\n", "+ (2 if name == 'x' else 1)\n").replace('batch.tenant + "/" + name', '"a/" + name')


@asynccontextmanager
async def replaying(house: House, **given: Any) -> AsyncIterator[tuple[PluginHost, Replays]]:
    async with house.host(**given) as host:
        backlog = house.store.read if house.store is not None else None
        replays = Replays(host.original, house.log, backlog, SqliteSides(house.state), Lanes(checkpoint_seconds=0.02))
        try:
            yield host, replays
        finally:
            await asyncio.to_thread(replays.close)


async def until_replay(replays: Replays, name: str, state: str) -> ReplayView:
    (begun,) = replays.of(name)
    await until(lambda: replays.of(name)[0].state not in ("replaying", "switching"), f"a {state} replay: {begun}")
    (found,) = replays.of(name)
    assert found.state == state, found.reason
    return found


async def ready(replays: Replays, name: str) -> ReplayView:
    await asyncio.to_thread(replays.begin, name)
    return await until_replay(replays, name, "ready")


async def switched(replays: Replays, found: ReplayView) -> ReplayView:
    return await asyncio.to_thread(replays.switch, found.plugin, found.id)


def outputs(house: House, name: str) -> Any:
    """All that is stored for a plugin, without what says when it was written."""
    tenants = ("a", "b")
    points = [p for tenant in tenants for p in house.state.points(tenant, "events", T0, T0.replace(year=2026))]
    stored = sorted((str(p.labels), p.value, p.start) for p in points if p.lane == name)
    records = [r for tenant in tenants for r in house.state.records(tenant, "insight", lane=name)]
    return stored, sorted((r["key"], r["title"]) for r in records), sorted(map(house.state.catalogue, tenants))


def add(house: House, count: int, after: float = 0.001) -> None:
    """Events of both tenants under several names."""
    for number in range(count):
        house.add(1 + number % 3, tenant="ab"[number % 2], name="xyz"[number % 3], after=after)


@ISOLATIONS
def test_after_a_switch_all_outputs_are_those_of_the_mended_code_from_the_start(
    house: House, tmp_path: Path, isolation: str
) -> None:
    house.install("counting", WRONG, COUNTING_HOOKS, isolation=isolation)
    flowing = True

    async def flow() -> None:
        while flowing:
            add(house, 6)
            await asyncio.sleep(0.002)

    async def mended() -> None:
        nonlocal flowing
        async with replaying(house) as (host, replays):
            add(house, 60)
            await until(lambda: outputs(house, "counting")[0], "the first outputs")
            flows = asyncio.create_task(flow())
            rewrite(house, "counting", RIGHT)
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "active"
            found = await ready(replays, "counting")
            assert found.difference is not None
            assert not found.difference.equal
            done = await switched(replays, found)
            assert (done.state, view(host, "counting").generation) == ("switched", 3)
            assert view(host, "counting").state == "active"
            assert host.receipts("counting")[-1] == done.receipt
            flowing = False
            await flows
            await until(lambda: view(host, "counting").lag == 0, "all folded")
            again = await ready(replays, "counting")
            assert again.difference is not None
            assert again.difference.equal, again.difference

    async def fresh(beside: House) -> None:
        async with beside.host() as host:
            batches, position = house.log.read(0)
            while position < house.log.durable:
                more, position = house.log.read(position)
                batches += more
            for batch in batches:
                columns = batch.record_batch.drop_columns(["partition", "seq"])
                beside.log.append([columns] if len(batch) else [], batch.watermark)
            await until(lambda: view(host, "counting").lag == 0, "all folded")

    asyncio.run(mended())
    (tmp_path / "fresh").mkdir()
    beside = House(tmp_path / "fresh")
    beside.install("counting", RIGHT, COUNTING_HOOKS, isolation=isolation)
    asyncio.run(fresh(beside))
    assert outputs(house, "counting") == outputs(beside, "counting")
    beside.close()

    async def restarted() -> None:
        async with house.host() as host:
            before = view(host, "counting").events_processed
            house.add(1, name="x")
            await until(lambda: view(host, "counting").events_processed == before + 1, "it goes on from its checkpoint")

    asyncio.run(restarted())


DAILY = """
def __init__(self):
    self.days = {}

@hookimpl
def process(self, batch):
    days = [at.day for at in batch.column("timestamp").to_pylist()]
    for day in days:
        self.days[day] = self.days.get(day, 0) + FACTOR
    windows = {day: Window(DAY.replace(day=day), 86400) for day in days}
    return ProcessResult([Metric(name="events", value=self.days[day], window=windows[day]) for day in windows])

@hookimpl
def export_state(self):
    return {str(day): count for day, count in self.days.items()}

@hookimpl
def import_state(self, state, version):
    self.days = {int(day): count for day, count in state.items()}
"""


@ISOLATIONS
def test_what_the_log_has_trimmed_is_read_from_the_lake(tmp_path: Path, isolation: str) -> None:
    house = House(tmp_path, segment_bytes=1)
    house.store = lake = DeltaStore(tmp_path / "lake")
    house.install("daily", DAILY.replace("FACTOR", "2"), isolation=isolation)

    def values() -> dict[int, float]:
        points = house.state.points("a", "events", T0, T0.replace(month=2))
        return {point.start.day: point.value for point in points if point.lane == "daily"}

    async def main() -> None:
        async with replaying(house) as (host, replays):
            for count in range(1, 7):
                house.add(count, after=86_400)
            await until(lambda: values().get(7) == 12, "six days")
            batches, _ = house.log.read(0)
            table = pa.Table.from_batches([batch.record_batch for batch in batches[:4]]).unify_dictionaries()
            lake.append(table, 10)
            assert house.log.trim(10) == 10
            house.add(7, after=86_400)
            await until(lambda: values().get(8) == 14, "all days")
            rewrite(house, "daily", DAILY.replace("FACTOR", "1"))
            await refreshed(host)
            await receipt(host, "daily")
            await asyncio.to_thread(replays.begin, "daily", T0 + timedelta(days=3, hours=5))
            found = await until_replay(replays, "daily", "ready")
            assert (found.since, found.events) == (T0 + timedelta(days=3), 27), "a day earlier than the outputs"
            await switched(replays, found)
            assert values() == {2: 2, 3: 4, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7}

    asyncio.run(main())
    house.close()
    lake.close()


def test_a_reload_makes_a_replay_stale(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with replaying(house) as (host, replays):
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            found = await ready(replays, "counting")
            assert found.difference is not None
            assert found.difference.equal
            await asyncio.to_thread(host.reload, "counting")
            stale = await until(
                lambda: replays.of("counting")[0].state == "stale" and replays.of("counting")[0], "stale"
            )
            assert "generation 3 runs now" in stale.reason
            with pytest.raises(ReplayError, match="is stale"):
                await switched(replays, found)
            house.add(1)
            await until(lambda: house.value("counting") == 4, "it goes on")

    asyncio.run(main())


def test_a_switch_that_comes_into_a_reload_does_not_undo_it(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    setup = f"@hookimpl\ndef setup(self, context):\n    while not Path({str(gate)!r}).exists(): time.sleep(0.01)"
    house.install("counting", f"{COUNTING}\n{setup}", (*COUNTING_HOOKS, "setup"), isolation="thread")

    async def main() -> None:
        async with replaying(house) as (host, replays):
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            found = await ready(replays, "counting")
            gate.unlink()
            rewrite(house, "counting", f"{COUNTING}\n{setup}".replace("value=self.n", "value=100 * self.n"))
            await refreshed(host)
            await until_state(host, "counting", "reloading")
            with pytest.raises(ReplayError, match="is being changed just now"):
                await switched(replays, found)
            gate.touch()
            assert (await receipt(host, "counting")).outcome == "active"
            await until(lambda: replays.of("counting")[0].state == "stale", "stale")
            house.add(1)
            await until(lambda: house.value("counting") == 400, "the new code goes on")

    asyncio.run(main())


def test_a_plugin_that_rests_keeps_its_replay_ready(house: House, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    body = COUNTING.replace("self.n += len(batch)", f"self.n += len(batch)\n    assert not Path({str(bad)!r}).exists()")
    house.install("counting", body, isolation="thread")

    async def main() -> None:
        async with replaying(house, restarts=msgspec.structs.replace(QUICK, failures=1)) as (host, replays):
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            found = await ready(replays, "counting")
            bad.touch()
            house.add(1)
            await until_state(host, "counting", "quarantined")
            with pytest.raises(ReplayError, match="does not run just now"):
                await switched(replays, found)
            with pytest.raises(ReplayError, match="only a plugin that runs is replayed; just now it is quarantined: "):
                replays.begin("counting")
            assert replays.of("counting")[0].state == "ready"

    asyncio.run(main())


@ISOLATIONS
def test_a_plugin_that_ends_or_raises_in_its_replay_goes_on(house: House, isolation: str) -> None:
    grumpy = COUNTING.replace(
        "self.n += len(batch)",
        "self.n += len(batch)\n    if self.n > 3 and not self.calm: raise ValueError('too many at once')",
    )
    grumpy = grumpy.replace("self.n = 0", "self.n, self.calm = 0, False")
    grumpy = grumpy.replace('self.n = state["n"]', 'self.n, self.calm = state["n"], True')
    house.install("counting", grumpy, isolation=isolation)

    async def main() -> None:
        async with replaying(house) as (host, replays):
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            await asyncio.to_thread(host.reload, "counting")
            house.add(3)
            await until(lambda: house.value("counting") == 6, "with the state of the one before")
            await asyncio.to_thread(replays.begin, "counting")
            failed = await until_replay(replays, "counting", "failed")
            assert "too many at once" in failed.reason
            house.add(1)
            await until(lambda: house.value("counting") == 7, "it goes on")
            assert view(host, "counting").state == "active"

    asyncio.run(main())


def test_what_cannot_be_replayed_says_why(house: House) -> None:
    house.install("asked", "@hookimpl\ndef enrich(self, batch): ...", ("enrich",), isolation="thread")
    house.install("alone", isolation="thread", reload={"strategy": "restart"})
    house.install("broken", "def process(self, batch:", isolation="thread")

    async def main() -> None:
        async with replaying(house) as (host, replays):
            await until_state(host, "broken", "load_error")
            with pytest.raises(ReplayError, match="has no 'process'"):
                replays.begin("asked")
            with pytest.raises(ReplayError, match=r"its reload\.strategy is restart"):
                replays.begin("alone")
            with pytest.raises(ReplayError, match="just now it is load_error: "):
                replays.begin("broken")
            with pytest.raises(NotFoundError, match="did you mean 'asked'"):
                replays.begin("askd")

    asyncio.run(main())


def test_a_stateless_plugin_is_replayed_too(house: House) -> None:
    body = COUNTING.partition("@hookimpl\ndef export_state")[0]
    house.install("counting", body, ("process",), isolation="thread")

    async def main() -> None:
        async with replaying(house) as (host, replays):
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
        async with replaying(house) as (host, replays):
            house.add(1)
            await until(lambda: house.value("counting") == 1, "it begins anew, without a state")
            found = await ready(replays, "counting")
            await switched(replays, found)
            assert house.value("counting") == 4
            house.add(1)
            await until(lambda: house.value("counting") == 5, "on from there")
            assert view(host, "counting").generation == 2

    asyncio.run(main())
