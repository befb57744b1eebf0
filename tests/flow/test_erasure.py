"""One user erased while the host runs: gone for every reader at once, and in the end from every place."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yarl
from click.testing import CliRunner, Result

from analytics_core.cli import main
from analytics_core.config import Plugins, Storage
from analytics_core.erasure.erasing import Places
from analytics_core.erasure.erasures import Erasures, IdsOf, only
from analytics_core.erasure.export import UserExports
from analytics_core.erasure.receipts import ErasureReceipt, Receipts
from analytics_core.errors import NotFoundError, ParameterError, PluginRunsError, StorageError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.events.owners import Owners
from analytics_core.host.plugins import PluginHost
from analytics_core.host.views import PluginView
from analytics_core.lake.delta import DeltaStore
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.log.dedup import Deduplicator
from analytics_core.log.reading import SegmentReader
from analytics_core.log.tombstones import woven
from analytics_core.queries.history import History
from analytics_core.state.sqlite_erasing import SqliteErasing
from tests.flow import api_house, plugin_house, server_house
from tests.flow.plugin_house import until, until_state

ADA = "ada-of-the-first-program"
REMEMBERING = """
def __init__(self):
    self.seen = {}

@hookimpl
def process(self, batch):
    if not len(batch):
        return None
    for row in batch.rows():
        self.seen[row.user_id or row.anonymous_id] = self.seen.get(row.user_id or row.anonymous_id, 0) + 1
    found = [Insight(key=f"of:{who}", title="seen", description="", data={"n": n}) for who, n in self.seen.items()]
    count = [Metric(name="seen", value=n, window=Window(DAY, 86400), labels={"who": who})
             for who, n in self.seen.items()]
    return ProcessResult(metrics=count, insights=found)

@hookimpl
def export_state(self):
    return self.seen

@hookimpl
def import_state(self, state, version):
    self.seen = state
"""
ERASE = """
@hookimpl
def erase(self, tenant, ids):
    for id in ids:
        self.seen.pop(id, None)
"""
FOLDING = ("process", "export_state", "import_state")


def rows(*users: str | tuple[str | None, str | None], tenant: str = "a", name: str = "e") -> pa.RecordBatch:
    """One event each: of a user, or of (user, anonymous id)."""
    both = [user if isinstance(user, tuple) else (user, None) for user in users]
    at = datetime.now(UTC)
    columns: dict[str, list[Any]] = {field: [None] * len(users) for field in UNPLACED_SCHEMA.names}
    columns |= {"tenant": [tenant] * len(users), "name": [name] * len(users), "source": ["native"] * len(users)}
    columns |= {"event_id": [f"{name}-{at.isoformat()}-{i}" for i in range(len(users))]}
    columns |= {"user_id": [user for user, _ in both], "anonymous_id": [visitor for _, visitor in both]}
    columns |= dict.fromkeys(("timestamp", "received_at"), [at] * len(users))
    columns |= dict.fromkeys(("properties", "context"), ["{}"] * len(users))
    return pa.RecordBatch.from_pydict(columns, schema=UNPLACED_SCHEMA)


class House(plugin_house.House):
    """All storage over one directory, with its store writer; `plugins` runs a host in it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.dedup = Deduplicator(self.log, 1000)
        self.lake = DeltaStore(self.data / "lake")
        self.writer = StoreWriter(
            self.log, self.lake, Storage(store_commit_seconds=3600.0), dedup_floor=lambda: self.dedup.floor
        )
        self.writer.start()
        self.history = History(self.log, self.lake, erased=self.log.tombstones.current)
        self.views: Callable[[], Sequence[PluginView]] = lambda: ()
        self.dropped: list[str] = []
        self.places = Places(
            log=self.log,
            lake=self.lake,
            state=SqliteErasing(self.state),
            plugins=lambda: self.views(),
            lanes=lambda: (),
            flush=lambda: self.writer.flush(5.0),
            drop_caches=self.dropped.append,
            earlier=self.history.earlier,
            drop_replays=lambda _: None,
        )
        self.ticking = threading.Event()
        self.ticks = threading.Thread(target=self._tick)
        self.ticks.start()

    def _tick(self) -> None:
        """What the committer does on a quiet host, only faster."""
        while not self.ticking.wait(0.03):
            self.log.append([], datetime.now(UTC))

    def take(self, *users: str | tuple[str | None, str | None], **options: str) -> None:
        batch = rows(*users, **options)
        pending = self.dedup.admit(self.dedup.hashes(batch.column("tenant")[0].as_py(), batch.column("event_id")))
        assert pending.pending is not None
        self.dedup.commit(pending.pending, self.log.append([batch], datetime.now(UTC))[0])

    def erasures(self, ids_of: IdsOf = only) -> Erasures:
        return Erasures(self.places, Receipts(self.state, b"s" * 32), self.history, ids_of=ids_of)

    @contextmanager
    def erasing(self, ids_of: IdsOf = only) -> Iterator[Erasures]:
        erasures = self.erasures(ids_of)
        erasures.start()
        try:
            yield erasures
        finally:
            erasures.close()

    @asynccontextmanager
    async def plugins(self, *enabled: str) -> AsyncIterator[PluginHost]:
        self.backlog = woven(self.lake.read, self.log.tombstones.current)
        async with self.host(plugins=Plugins(enabled=enabled) if enabled else None) as host:
            self.views = host.views
            try:
                yield host
            finally:
                self.views = lambda: ()

    def users(self, tenant: str = "a") -> list[str | None]:
        return sorted(row["userId"] or row["anonymousId"] for row in self.history.page(tenant, limit=1000)["rows"])

    def stored(self) -> list[str | None]:
        """Users of all rows in all files, of whatever version."""
        files = list((self.data / "lake").rglob("*.parquet"))
        return [user for file in files for user in pq.ParquetFile(file).read().column("user_id").to_pylist()]

    def close(self) -> None:
        self.ticking.set()
        self.ticks.join()
        self.history.close()
        self.writer.stop()
        self.lake.close()
        self.dedup.close()
        super().close()


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.erasure.erasures._LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("analytics_core.lanes.store_writer._PACE_SECONDS", 0.03)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def over(erasures: Erasures, receipt: ErasureReceipt, tenant: str = "a", state: str = "done") -> ErasureReceipt:
    deadline = time.monotonic() + 30
    while (seen := erasures.view(tenant, receipt.id)).state != state:
        assert time.monotonic() < deadline, msgspec.json.format(msgspec.json.encode(seen)).decode()
        time.sleep(0.01)
    return seen


def forgotten(house: House) -> None:
    deadline = time.monotonic() + 30
    while house.log.tombstones.current():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_from_the_answer_on_nobody_sees_them_and_a_new_life_is_kept(house: House) -> None:
    house.take(ADA, "bob", (None, ADA), (ADA, "x"))
    house.writer.flush()
    house.take(ADA, "eve", name="in the log only")
    house.take(ADA, tenant="b")
    assert house.users() == [ADA] * 4 + ["bob", "eve"]
    erasures = house.erasures()  # nothing is carried out yet
    receipt = erasures.begin("a", [ADA], "an operator")
    assert (receipt.state, receipt.events, house.dropped) == ("running", 4, ["a"])
    assert house.users() == ["bob", "eve"]
    with SegmentReader(house.log.directory) as other:
        batches, _ = other.read(other.first)
        assert ADA not in [user for b in batches if b.tenant == "a" for user in b.column("user_id").to_pylist()]
    with house.history.reader("a") as reader:
        spec = reader.to_spec()
        with spec.open() as elsewhere:
            assert elsewhere.sql("SELECT count(*) AS n FROM events").column("n").to_pylist() == [2]
    assert house.users("b") == [ADA]
    house.take(ADA, name="a new life")
    assert house.users() == [ADA, "bob", "eve"]
    erasures.start()
    seen = over(erasures, receipt)
    assert house.users() == [ADA, "bob", "eve"]
    assert seen.at("lake").counts == {"events": 3, "files_rewritten": 1, "files_deleted": 1}
    forgotten(house)
    assert house.users() == [ADA, "bob", "eve"]
    assert house.log.first > receipt.position
    erasures.close()


def test_every_place_and_every_plugin_is_in_the_receipt(house: House) -> None:
    house.install("near", REMEMBERING + ERASE, (*FOLDING, "erase"), isolation="thread")
    house.install("apart", REMEMBERING + ERASE, (*FOLDING, "erase"), isolation="process")
    house.install("keeps", REMEMBERING, FOLDING, isolation="thread")
    house.install("rests", REMEMBERING.partition("\n@hookimpl\ndef export_state")[0], ("process",), isolation="thread")
    house.install("asks", "@hookimpl\ndef alert(self, signals):\n    return []\n", ("alert",), isolation="thread")

    async def scenario() -> ErasureReceipt:
        house.take(ADA, "bob")
        async with house.plugins() as host:
            for name in ("near", "apart", "keeps", "rests"):
                await until_state(host, name, "active")
            await until(lambda: len(house.state.records("a", "insight")) == 8, "insights of both, of four plugins")
            with house.erasing() as erasures:
                receipt = erasures.begin("a", [ADA], "x")
                seen = await asyncio.to_thread(over, erasures, receipt)
            house.take("bob")
            await until(lambda: _seen(house, "apart") == {"bob": 2}, "the fold after it")
            return seen

    seen = asyncio.run(scenario())
    assert {entry.place: entry.status for entry in seen.places} == {
        **dict.fromkeys(("tombstone", "queries", "lake", "caches", "segments", "state"), "done"),
        "plugin:near": "done",
        "plugin:apart": "done",
        "plugin:asks": "done",
        "plugin:keeps": "rebuild",
        "plugin:rests": "done",
    }
    assert seen.at("plugin:near").detail.startswith("erased")
    assert "'analytics plugins replay keeps' rebuilds it" in seen.at("plugin:keeps").detail
    assert seen.at("plugin:rests").detail.startswith("stateless")
    assert seen.at("plugin:asks").detail == "folds no events"
    counts = seen.at("state").counts
    assert (counts["insights"], counts["points"]) == (4, 4)
    assert ADA not in msgspec.json.encode(seen).decode()
    assert {point.labels["who"] for point in _points(house)} >= {"bob"}
    assert not any(f"of:{ADA}" == record["key"] for record in house.state.records("a", "insight", lane="near"))
    forgotten(house)


def _points(house: House) -> list[Any]:
    return house.state.points("a", "seen", datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))


def _seen(house: House, lane: str) -> dict[str, float]:
    return {point.labels["who"]: point.value for point in _points(house) if point.lane == lane}


def test_in_the_end_the_id_is_in_no_file(house: House) -> None:
    house.install("near", REMEMBERING + ERASE, (*FOLDING, "erase"), isolation="thread")

    async def scenario() -> None:
        async with house.plugins() as host:
            await until_state(host, "near", "active")
            house.take(ADA, "bob")
            house.writer.flush()
            await until(lambda: len(house.state.records("a", "insight")) == 2, "the insights")
            house.take(ADA)
            with house.erasing() as erasures:
                await asyncio.to_thread(over, erasures, erasures.begin("a", [ADA], "x"))

    asyncio.run(scenario())
    forgotten(house)
    assert set(house.stored()) == {"bob"}
    assert not [p for p in house.data.rglob("*") if p.is_file() and ADA.encode() in p.read_bytes()]


def test_a_plugin_that_does_not_run_is_told_when_it_does(house: House) -> None:
    house.install("near", REMEMBERING + ERASE, (*FOLDING, "erase"), isolation="thread")

    async def scenario() -> None:
        house.take(ADA, "bob")
        async with house.plugins():
            await until(lambda: _seen(house, "near") == {ADA: 1, "bob": 1}, "both are seen")
        with house.erasing() as erasures:
            async with house.plugins("none"):
                house.take(ADA)
                receipt = erasures.begin("a", [ADA], "x")
                seen = await asyncio.to_thread(over, erasures, receipt)
                assert seen.at("plugin:near").status == "deferred"
                assert "is disabled; it is told before its next event" in seen.at("plugin:near").detail
                assert house.log.tombstones.current(), "it has to be told"
                assert house.log.first > receipt.position, "the log has not"
                house.take("bob")
            async with house.plugins():
                await until(lambda: _seen(house, "near").get("bob") == 2, "it goes on")
                told = lambda: erasures.view("a", receipt.id).at("plugin:near").status == "done"  # noqa: E731
                await until(told, "the receipt says so")
                await asyncio.to_thread(forgotten, house)
                assert erasures.view("a", receipt.id).at("state").status == "done"
        assert _seen(house, "near") == {"bob": 2}

    asyncio.run(scenario())


def test_the_operator_drops_the_state_of_a_plugin_that_is_not_to_come_back(house: House) -> None:
    house.install("near", REMEMBERING + ERASE, (*FOLDING, "erase"), isolation="thread")

    async def scenario() -> None:
        house.take(ADA, "bob")
        async with house.plugins() as host:
            await until_state(host, "near", "active")
            await until(lambda: _seen(house, "near") == {ADA: 1, "bob": 1}, "both are seen")
        with house.erasing() as erasures:  # it is as if it were uninstalled
            receipt = await asyncio.to_thread(over, erasures, erasures.begin("a", [ADA], "x"))
            assert (receipt.at("plugin:near").status, receipt.at("plugin:near").detail[:16]) == (
                "deferred",
                "is not installed",
            )
            with pytest.raises(NotFoundError, match="that this erasure waits for is named 'nea'; did you"):
                erasures.drop_state("a", receipt.id, "nea", "x")
            house.views = lambda: [_view("near", "quarantined")]
            with pytest.raises(PluginRunsError, match="is quarantined, so it might be told yet; disable it first"):
                erasures.drop_state("a", receipt.id, "near", "x")
            house.views = lambda: ()
            assert house.places.state.positions() != {"near": 0}
            erasures.drop_state("a", receipt.id, "near", "x")
            await asyncio.to_thread(forgotten, house)
            seen = erasures.view("a", receipt.id)
            assert {entry.status for entry in seen.places} == {"done"}
            assert "its state was dropped" in seen.at("plugin:near").detail
            async with house.plugins():
                house.take("bob")
                await until(lambda: _seen(house, "near") == {"bob": 2}, "it begins anew")

    asyncio.run(scenario())


def _view(name: str, state: str) -> Any:
    return SimpleNamespace(name=name, state=state, reason="", hooks=(*FOLDING, "erase"))


def test_of_a_plugin_that_is_gone_nothing_is_said_that_nobody_knows(house: House) -> None:
    house.take(ADA)
    state = house.state
    with house.erasing() as erasures:
        state.commit(msgspec.structs.replace(state.claim("gone"), position=1_000_000, state=b"ada?"))
        state.commit(msgspec.structs.replace(state.claim("kept"), position=1_000_000, state=b"ada!"))
        house.views = lambda: [SimpleNamespace(**vars(_view("kept", "active")) | {"hooks": FOLDING})]
        receipt = erasures.begin("a", [ADA], "x")
        until_said(erasures, receipt, "plugin:kept", "rebuild", "has no erase hook")
        house.views = lambda: ()  # it is uninstalled
        seen = over(erasures, receipt)
    assert (seen.at("plugin:gone").status, seen.at("plugin:kept").status) == ("rebuild", "rebuild")
    assert "nobody can tell" in seen.at("plugin:gone").detail
    assert "has no erase hook" in seen.at("plugin:kept").detail


def until_said(erasures: Erasures, receipt: ErasureReceipt, place: str, status: str, detail: str) -> None:
    deadline = time.monotonic() + 30
    while (entry := erasures.view("a", receipt.id).at(place)).status != status or detail not in entry.detail:
        assert time.monotonic() < deadline, entry
        time.sleep(0.005)


def test_a_plugin_whose_hook_fails_fails_the_erasure_which_stays_open(house: House) -> None:
    broken = "@hookimpl\ndef erase(self, tenant, ids):\n    raise RuntimeError('no')\n"
    house.install("near", REMEMBERING + broken, (*FOLDING, "erase"), isolation="thread")

    async def scenario() -> None:
        house.take(ADA, "bob")
        async with house.plugins() as host:
            await until(lambda: len(_seen(house, "near")) == 2, "both are seen")
            with house.erasing() as erasures:
                receipt = erasures.begin("a", [ADA], "x")
                await until_state(host, "near", "quarantined")
                seen = await asyncio.to_thread(over, erasures, receipt, "a", "failed")
        assert seen.at("plugin:near").status == "failed"
        assert "hook 'erase' failed: RuntimeError: no" in seen.at("plugin:near").detail
        assert seen.at("lake").status == "done"
        assert [tombstone.key for tombstone in house.log.tombstones.current()] == [receipt.id]

    asyncio.run(scenario())


# --- broken off


@pytest.mark.parametrize("written", [True, False])
def test_an_erasure_that_was_broken_off_goes_on_after_the_next_start(tmp_path: Path, written: bool) -> None:
    house = House(tmp_path)
    house.take(ADA, "bob")
    house.writer.flush()
    if written:
        key = house.erasures().begin("a", [ADA], "x").id
    else:  # it ended before the receipt was there
        key = "k"
        house.log.erase("a", Owners((ADA,)), key)
    house.close()
    again = House(tmp_path)
    assert again.users() == ["bob"]
    with again.erasing() as erasures:
        deadline = time.monotonic() + 30
        while not erasures.all("a") or erasures.all("a")[0].state != "done":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [receipt.id for receipt in erasures.all("a")] == [key]
        forgotten(again)
    assert (again.users(), set(again.stored())) == (["bob"], {"bob"})
    again.close()


def test_what_fails_is_said_and_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.take(ADA, "bob")
    house.writer.flush()
    real, tries = house.lake.erase, []

    def failing(*given: Any) -> Any:
        tries.append(given)
        if len(tries) < 3:
            raise StorageError("the disk is full")
        return real(*given)

    monkeypatch.setattr(house.lake, "erase", failing)
    with house.erasing() as erasures:
        receipt = erasures.begin("a", [ADA], "x")
        details = set()
        while erasures.view("a", receipt.id).state == "running":
            details.add(erasures.view("a", receipt.id).at("lake").detail)
            time.sleep(0.002)
        assert "the disk is full" in details
    assert set(house.stored()) == {"bob"}


def test_a_state_store_that_cannot_be_read_for_a_while_holds_nothing_up_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.take(ADA, "bob")
    real, tries = house.places.state.positions, []

    def failing() -> Any:
        tries.append(0)
        if len(tries) < 3:
            raise StorageError("the state is locked")
        return real()

    monkeypatch.setattr(house.places.state, "positions", failing)
    with house.erasing() as erasures:
        seen = over(erasures, erasures.begin("a", [ADA], "x"))
    assert len(tries) >= 3
    assert {entry.status for entry in seen.places} == {"done"}


def test_files_that_a_question_reads_are_waited_for(house: House) -> None:
    house.take(ADA, "bob")
    house.writer.flush()
    with house.erasing() as erasures:
        with house.history.reader("a") as reader:
            receipt = erasures.begin("a", [ADA], "x")
            while "still read by questions" not in erasures.view("a", receipt.id).at("lake").detail:
                time.sleep(0.005)
            assert reader.sql("SELECT count(*) AS n FROM events").column("n").to_pylist() == [2], "it has begun before"
            assert house.users() == ["bob"]
        over(erasures, receipt)


def test_caches_are_dropped_once_more_when_no_question_is_left_that_might_fill_them(house: House) -> None:
    house.take(ADA, "bob")  # in the log only: no file of the lake has to be waited for
    with house.erasing() as erasures:
        with house.history.reader("a"):
            receipt = erasures.begin("a", [ADA], "x")
            until_said(erasures, receipt, "caches", "waiting", "until 1 questions have ended that began earlier")
            with house.history.reader("a"):  # a later one knows nothing of them
                assert house.history.earlier("a", receipt.position) == 1
            assert house.history.earlier("b", receipt.position) == 0
            assert house.dropped == ["a"]
        over(erasures, receipt)
    assert house.dropped == ["a", "a"]


# --- who, and what of them


def test_all_linked_ids_go_and_receipts_name_nobody(house: House) -> None:
    house.take(ADA, (None, "phone-1234"), (None, "laptop-5"), "bob")
    linked = {ADA: ["phone-1234", "laptop-5"]}
    with house.erasing(lambda tenant, id_: linked.get(id_, ())) as erasures:
        house.state.document("a", "analysis", "1", msgspec.json.encode({"of": "phone-1234"}))
        found = erasures.look("a", [ADA])
        assert list(found.ids) == [ADA, "phone-1234", "laptop-5"]
        assert (found.events, {what: n for what, n in found.outputs.items() if n}) == (3, {"documents": 1})
        receipt = over(erasures, erasures.begin("a", [ADA], "x"))
        again = over(erasures, erasures.begin("a", [ADA], "x"))
        other = over(erasures, erasures.begin("b", [ADA], "x"), "b")
        assert [entry.id for entry in erasures.all("a")] == [again.id, receipt.id]
    assert house.users() == ["bob"]
    assert (len(receipt.ids), receipt.events, again.events) == (3, 3, 0)
    assert receipt.ids == again.ids
    assert other.ids[0] not in receipt.ids
    assert "no event of these ids was found" in again.note
    with pytest.raises(NotFoundError, match=f"no erasure is named '{receipt.id}'"):
        house.erasures().view("b", receipt.id)


def test_what_another_user_did_on_a_linked_device_stays_unless_the_device_is_named(house: House) -> None:
    house.take((ADA, "tablet"), (None, "tablet"), ("bob", "tablet"), ("bob", None))
    house.writer.flush()
    house.take((None, "tablet"), ("bob", "tablet"))
    with house.erasing(lambda _, id_: (ADA, "tablet")) as erasures:
        receipt = erasures.begin("a", [ADA], "x")
        assert (receipt.events, house.users()) == (3, ["bob"] * 3)
        over(erasures, receipt)
        assert house.users() == ["bob"] * 3
    with house.erasing() as erasures:
        over(erasures, erasures.begin("a", ["tablet"], "x"))
    assert house.users() == ["bob"]
    assert house.stored() == ["bob"]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ([], "userId: is missing; give userId, anonymousId, or ids"),
        ([""], "ids: '' is no id; valid are 1 to 512 bytes"),
        (["ä" * 300], "is no id"),
        ([str(n) for n in range(101)], "ids: has 101 entries; at most 100"),
    ],
)
def test_what_can_be_no_user_is_refused_and_erases_nothing(house: House, ids: list[str], problem: str) -> None:
    with pytest.raises(ParameterError, match=problem):
        house.erasures().begin("a", ids, "x")
    assert not house.log.tombstones.current()


def test_an_export_has_everything_once_in_order_of_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.erasure.export._ROWS", 2)
    house.take(*[ADA, "bob"] * 3)
    house.writer.flush()
    house.take(ADA, (None, "phone-1"))
    house.state.document("a", "analysis", "1", msgspec.json.encode({"by_user": {ADA: 3}}))
    exports = UserExports(house.history, SqliteErasing(house.state), lambda: (), ids_of=lambda _, __: ["phone-1"])
    first, *events = [msgspec.json.decode(line) for line in b"".join(exports.lines("a", ADA)).splitlines()]
    assert (first["user"], first["ids"], first["events"]) == (ADA, [ADA, "phone-1"], 5)
    assert first["outputs"]["documents"] == 1
    assert [row["seq"] for row in events] == sorted(row["seq"] for row in events)
    assert [row["userId"] or row["anonymousId"] for row in events] == [ADA, ADA, ADA, ADA, "phone-1"]
    nobody = UserExports(house.history, SqliteErasing(house.state), lambda: ())
    with pytest.raises(NotFoundError, match="no user is named 'nobody'"):
        next(nobody.lines("a", "nobody"))


# --- over HTTP


def test_erasures_and_exports_over_http() -> None:
    async def scenario() -> None:
        async with api_house.opened(api_house.Settings(auth=api_house.AUTH)) as house:
            path, key = "/api/v1/users", "acme-operator"
            asked = {"userId": 7, "anonymousId": "x", "ids": ["y"]}
            answer = await house.ask("POST", f"{path}/erase", key, json=asked)
            assert (answer.status, answer.body["id"]) == (202, "acme-1")
            assert house.behind.asked[0][:3] == ("erase", "acme", ["7", "x", "y"])
            assert (await house.ask("POST", f"{path}/erase", key, json={"userId": "nobody"})).status == 200
            dry = await house.ask("POST", f"{path}/erase", key, json={"userId": "ada", "dryRun": True})
            assert (dry.status, dry.body["events"], house.behind.asked[-1][0]) == (200, 3, "look")
            unknown = await house.ask("POST", f"{path}/erase", key, json={"user": "ada"})
            assert (unknown.status, unknown.body["parameter"]) == (422, "user")
            assert (await house.ask("POST", f"{path}/erase", "acme-writer", json=asked)).status == 403
            assert (await house.ask("GET", f"{path}/erasures/acme-1", key)).body["places"][0]["status"] == "waiting"
            assert (await house.ask("GET", f"{path}/erasures/acme-1", "other-operator")).status == 404
            assert (await house.ask("GET", f"{path}/erasures", "other-operator")).body == {"erasures": []}
            told = f"{path}/erasures/acme-1/plugins/shop"
            assert (await house.ask("DELETE", told, "acme-writer")).status == 403
            assert (await house.ask("DELETE", told, key)).status == 202
            assert house.behind.asked[-1][:4] == ("drop state", "acme", "acme-1", "shop")
            house.behind.fail = PluginRunsError("shop", "is active")
            refused = await house.ask("DELETE", told, key)
            assert (refused.status, refused.body["title"]) == (409, "Plugin runs")
            house.behind.fail = None
            url, key_header = f"{house.url}{path}/a%2Fb/export", {"X-API-Key": "acme-reader"}
            async with house.http.get(yarl.URL(url, encoded=True), headers=key_header) as export:
                assert export.headers["Content-Type"] == "application/x-ndjson"
                assert await export.read() == b'{"user":"a/b"}\n{"event":"a"}\n{"event":"b"}\n'
            refused = await house.ask("GET", f"{path}/nobody/export", "acme-reader")
            assert (refused.status, refused.headers["Content-Type"]) == (404, "application/problem+json")

    asyncio.run(scenario())


# --- a real server


@pytest.mark.server
def test_an_erasure_outlives_kill_9_and_the_command_line_shows_it(tmp_path: Path) -> None:
    def command(*words: str, answer: str = "") -> Result:
        return CliRunner().invoke(main, ["users", *words, "--url", server.url], answer)

    quick = {"lanes": {"checkpoint_seconds": 0.1}, "storage": {"store_commit_seconds": 0.3}}
    with server_house.house(tmp_path, host=quick) as server:
        server.start()
        server.post([{"event": "first", "userId": who, "properties": {"duration": 3}} for who in (ADA, "bob")])
        server_house.until(lambda: list(server.data.rglob("lake/**/*.parquet")), "a first commit to the lake")
        server.post([{"event": "second", "userId": ADA}, {"event": "second", "userId": "bob"}])
        begun = server.ask("POST", "/api/v1/users/erase", {"userId": ADA})
        server.kill()
        assert (begun.status, begun.body["events"]) == (202, 2)
        server.start()
        assert {row["userId"] for row in server.history()} == {"bob"}
        path = f"/api/v1/users/erasures/{begun.body['id']}"
        server_house.equals(lambda: server.get(path)["state"], "done", "the erasure")
        statuses = {entry["place"]: entry["status"] for entry in server.get(path)["places"]}
        assert set(statuses.values()) == {"done"}
        assert {"plugin:user-behavior", "plugin:performance"} <= set(statuses)

        exported = command("export", "bob", "-o", str(tmp_path / "bob.ndjson"))
        assert exported.exit_code == 0, exported.output
        assert len((tmp_path / "bob.ndjson").read_text().splitlines()) == 3
        assert command("export", "bob").output.count("\n") == 3
        assert "exists; name a new file" in command("export", "bob", "-o", str(tmp_path / "bob.ndjson")).output
        assert (command("export", ADA).exit_code, command("erase", "").exit_code) == (2, 2)
        asked = command("erase", "bob", answer="n\n")
        assert (asked.exit_code, "2 events, from" in asked.output) == (1, True)
        assert len(server.history()) == 2
        done = command("erase", "bob", answer="y\n")
        assert done.exit_code == 0, done.output
        assert "lake: rewritten without them" in done.output
        assert "plugin:performance: erased" in done.output
        assert (server.history(), json.loads(command("erase", "bob", "--yes", "--json").stdout)["events"]) == ([], 0)
