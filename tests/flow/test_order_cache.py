"""The user-order cache: what sorting everything anew would give, whatever happens to lake, log and files."""

from __future__ import annotations

import gc
import pickle
import random
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analytics_core import UserOrder
from analytics_core.errors import BuildingError, ParameterError, QueryError, StoppingError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA
from analytics_core.lake import RetentionPolicy, value_column
from analytics_core.lake.delta import DeltaStore
from analytics_core.lake.order_files import FORMAT, OrderFiles
from analytics_core.lake.user_order import EMPTY, Run, visitor_keys
from analytics_core.log.segments import SegmentLog
from analytics_core.queries import order_cache, pieces, tenant_order, user_order
from analytics_core.queries.history import ALL_TIME, History
from analytics_core.queries.identity.links import OPERATOR
from analytics_core.queries.reader import Reader
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.spec import Limits
from analytics_core.queries.visitors import Visitors
from analytics_core.testing import batch

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


class House:
    """A real log and lake, and what the store writer does, step by step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.begin()

    def begin(self) -> None:
        directory = self.directory
        self.log = SegmentLog(directory / "log" / "p0", segment_bytes=4096, disk_reserve_bytes=0)
        self.store = DeltaStore(directory / "lake")
        self.history = self.opened()

    def opened(self, limits: Limits = Limits()) -> History:  # noqa: B008  frozen
        return History(self.log, self.store, cache=self.directory / "cache", limits=limits)

    def reopen(self) -> None:
        self.history.close()
        self.history = self.opened()

    def post(self, rows: list[dict[str, Any]], tenant: str = "default") -> None:
        first = self.log.durable
        made = batch([{"event_id": f"e{first + i}", **row} for i, row in enumerate(rows)], tenant).record_batch
        self.log.append([pa.RecordBatch.from_arrays(made.columns[2:], schema=UNPLACED_SCHEMA)], NOW)

    def store_all(self) -> None:
        batches, at = [], self.store.position
        while at < self.log.durable:
            read, at = self.log.read(at)
            batches += [b.record_batch for b in read if len(b)]
        self.store.append(pa.Table.from_batches(batches, schema=SCHEMA), self.log.durable)

    def check(self, tenant: str = "default") -> int:
        """That the cache gives what is there; how many events that was."""
        with self.history.reader(tenant, ALL_TIME) as reader:
            cached = list(chain.from_iterable(reader.in_user_order(told, **ASKED)))
            reader.visitors = Visitors(reader.snapshot, user_order.view_of)
            assert cached == list(chain.from_iterable(reader.in_user_order(told, **ASKED)))
            people = reader.sql("SELECT seq, person FROM person_events WHERE person IS NOT NULL")
        keys = dict(
            zip(people["seq"].to_pylist(), visitor_keys(people["person"].combine_chunks()).tolist(), strict=True)
        )
        assert {event[3]: event[0] for event in cached if event[0] % 2} == keys
        return len(cached)

    @property
    def runs(self) -> list[Path]:
        return sorted((self.directory / "cache").glob("*/run-*"))

    def close(self) -> None:
        self.history.close()
        self.store.close()
        self.log.close()


PLANS = ["pro", "free", 'a "b"']
NUMBERS = [3, 5.0, 3.5, "3", True, None, [1], {"deep": 1}, -(2**40)]
ASKED: dict[str, Any] = {
    "marks": {
        "buys": {"event": "buy"},
        "pro buys": {"event": ["buy", "view"], "properties.plan": "pro"},
        "large": {"properties.n": {">": 3}},
        "texts": {"properties.n": ["3", 5, True, None]},
        "others": {"properties.plan": {"!=": "pro"}, "context.os.name": {"exists": True}},
    },
    "values": ["properties.plan", "properties.n", "context.os.name"],
}


def told(part: UserOrder) -> list[tuple[Any, ...]]:
    """Each event in full, without codes."""
    columns = [column.tolist() for column in part.marks.values()]
    for field, codes in part.values.items():
        assert len(set(part.words[field])) == len(part.words[field])
        columns.append([part.words[field][code] if code >= 0 else None for code in codes.tolist()])
    keys, first = part.key[part.user()].tolist(), part.first_at[part.user()].tolist()
    names = [part.names[code] for code in part.name.tolist()]
    return list(
        zip(keys, first, part.at.tolist(), part.seq.tolist(), names, part.session.tolist(), *columns, strict=True)
    )


def some(dice: random.Random, count: int, day: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "event": dice.choice(["view", "cart", "buy", "identify", f"rare{dice.randrange(50)}"]),
            "user_id": dice.choice([f"u{dice.randrange(20)}", None]),
            "anonymous_id": dice.choice([f"a{dice.randrange(5)}", None]),
            "session_id": dice.choice([f"s{dice.randrange(5)}", None]),
            "timestamp": NOW + timedelta(days=day, seconds=dice.randrange(60)),
            "properties": dice.choice(
                [{}, {"plan": dice.choice(["pro", "free", 'a "b"', 3, "3"])}, {"n": dice.choice(NUMBERS)}]
            ),
            "context": dice.choice([{}, {"os": {"name": "linux"}}, {"os": "linux"}]),
            "received_at": NOW + timedelta(days=day, seconds=60),
        }
        for _ in range(count)
    ]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """With limits so small that a few events are written to files, merged and cut into parts."""
    monkeypatch.setattr(tenant_order, "FLUSH", 40)
    for module in (pieces, tenant_order, order_cache):
        monkeypatch.setattr(module, "SMALL", 8)
    monkeypatch.setattr(tenant_order, "_BLOCK", 16)
    monkeypatch.setattr(tenant_order, "_READ", 10)
    monkeypatch.setattr(user_order, "PART", 30)
    made = House(tmp_path)
    yield made
    made.close()


DEEDS = ["post", "post", "many", "store", "compact", "retain", "reopen", "ask", "alias", "unmerge", "other"]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_cache_gives_what_is_there(house: House, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(25):
        match dice.choice(DEEDS):
            case "post":
                house.post(some(dice, dice.randrange(1, 9), dice.randrange(3)))
            case "many":
                house.post(some(dice, 60, dice.randrange(3)))
            case "store":
                house.store_all()
            case "compact":
                house.store.compact()
            case "retain":
                house.store.retain(RetentionPolicy(1), NOW + timedelta(days=dice.randrange(5)), confirmed=True)
            case "reopen":
                house.reopen()
            case "alias":
                former, into = dice.sample(
                    [f"a{dice.randrange(5)}", f"new{dice.randrange(9)}", f"u{dice.randrange(20)}"], 2
                )
                operator = {"source": OPERATOR, "properties": {"previousId": former, "force": True}}
                house.post([{"event": "alias", "user_id": into, **operator}])
            case "unmerge":
                for merge in house.history.identities.now("default").merges()[:1]:
                    undone = {"source": OPERATOR, "properties": {"mergeId": merge.id}}
                    house.post([{"event": "unmerge", "user_id": merge.into, **undone}])
            case "other":
                house.post(some(dice, 5), "another")
        if dice.random() < 0.7:  # else the next question finds several changes at once
            house.check()
    house.check()
    house.check("another")


def test_a_field_of_too_many_values_is_asked_of_sql(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_column, "MOST_WORDS", 2)
    house.post(some(random.Random(1), 60))
    assert house.check() > 0
    house.reopen()
    assert house.check() > 0


def test_an_earlier_snapshot_does_not_see_what_came_later(house: House) -> None:
    house.post([{"event": "a", "user_id": "u"}])
    with house.history.reader("default", ALL_TIME) as before:
        house.post([{"event": "b", "user_id": "u"}])
        assert house.check() == 2
        assert before.in_user_order(len) == [1]


def test_what_a_question_has_read_is_there_after_a_restart(house: House) -> None:
    house.post(some(random.Random(1), 200))
    house.store_all()
    events = house.check()
    house.reopen()
    kept = house.runs
    assert kept
    assert house.check() == events
    assert house.runs == kept


@pytest.mark.parametrize("harm", ["torn", "gone", "garbled", "format"])
def test_files_that_cannot_be_used_are_made_anew(house: House, harm: str) -> None:
    house.post(some(random.Random(1), 200))
    events = house.check()
    house.history.close()
    listing = house.directory / "cache" / "default" / "order.json"
    match harm:
        case "torn":
            (house.runs[0] / "at").write_bytes(b"half")
        case "gone":
            (house.runs[0] / "name").unlink()
        case "garbled":
            listing.write_text("{")
        case "format":
            listing.write_text(listing.read_text().replace(f'"format":{FORMAT}', '"format":0'))
    house.history = house.opened()
    assert house.check() == events


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(house: House) -> None:
    (house.directory / "cache").write_text("no folder")
    house.post(some(random.Random(1), 200))
    house.store_all()
    assert house.check() > 0
    house.post(some(random.Random(2), 100))
    assert house.check() > 0


def test_a_tenant_that_is_dropped_has_no_files_and_is_read_anew(house: House) -> None:
    house.post(some(random.Random(1), 200))
    events = house.check()
    house.reopen()
    assert house.runs
    house.history.forget("default")
    assert not house.runs
    assert house.check() == events


def test_a_question_does_not_wait_for_ever_for_what_is_being_made(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.post(some(random.Random(1), 100))
    house.store_all()
    house.history.close()
    house.history = house.opened(Limits(seconds=0.05))
    go_on = threading.Event()
    stream = Snapshot.stream

    def slow(self: Snapshot, *asked: Any) -> Iterator[pa.RecordBatch]:
        go_on.wait(30)
        yield from stream(self, *asked)

    monkeypatch.setattr(Snapshot, "stream", slow)
    with house.history.reader("default", ALL_TIME) as reader, pytest.raises(BuildingError, match="ask again"):
        reader.in_user_order(len)
    go_on.set()
    house.history.close()  # waits for what is under way
    house.history = house.opened()
    assert house.check() > 0


def test_a_question_waits_for_no_other_tenants_events(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.post(some(random.Random(1), 100))
    house.post(some(random.Random(2), 5), "another")
    house.store_all()
    held = Held(monkeypatch, "default")
    with house.history.reader("default") as reader:
        waiting = threading.Thread(target=lambda: reader.in_user_order(len))
        waiting.start()
        assert held.reached.wait(10)
        assert house.check("another") == 5
        assert waiting.is_alive()
        held.go_on.set()
        waiting.join()


def test_a_question_waits_for_no_other_field(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.post(some(random.Random(1), 100))
    house.check()
    held = Held(monkeypatch, "default")
    with house.history.reader("default") as one, house.history.reader("default") as other:
        waiting = threading.Thread(target=lambda: one.in_user_order(len, values=["properties.later"]))
        waiting.start()
        assert held.reached.wait(10)
        assert other.in_user_order(len, values=["properties.plan"])
        assert waiting.is_alive()
        held.go_on.set()
        waiting.join()


class Held:
    """Holds whoever reads a tenant's events as a stream until ``go_on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tenant: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        stream = Snapshot.stream

        def slow(snapshot: Snapshot, *asked: Any) -> Iterator[pa.RecordBatch]:
            if snapshot.tenant == tenant:
                self.reached.set()
                assert self.go_on.wait(10)
            yield from stream(snapshot, *asked)

        monkeypatch.setattr(Snapshot, "stream", slow)


def test_columns_that_are_not_asked_for_are_left_out(house: House) -> None:
    house.post(some(random.Random(1), 200))
    house.store_all()
    house.check()
    house.post(some(random.Random(2), 50))  # another level, so that columns are merged

    def seen(*columns: str) -> list[tuple[list[Any], ...]]:
        def step(part: UserOrder) -> tuple[list[Any], ...]:
            return (part.at.tolist(), *(getattr(part, name).tolist() for name in columns))

        with house.history.reader("default", ALL_TIME) as reader:
            return reader.in_user_order(step, columns=columns)

    whole = seen("seq", "name", "session")
    assert [part[:1] for part in whole] == seen()
    for at, name in enumerate(("seq", "name", "session"), 1):
        assert [(part[0], part[at]) for part in whole] == seen(name)
    with house.history.reader("default", ALL_TIME) as reader:
        assert all(not len(part) for part in reader.in_user_order(lambda part: part.seq, columns=["name"]))
        with pytest.raises(ParameterError, match="did you mean 'session'"):
            reader.in_user_order(len, columns=["sesion"])


def test_what_a_question_held_is_freed_at_its_end(house: House) -> None:
    house.post(some(random.Random(1), 200))
    gc.disable()  # a closed reader holds megabytes, and the collector counts objects
    try:
        with house.history.reader("default", ALL_TIME) as reader:
            reader.sql("SELECT count(*) FROM events")
            reader.in_user_order(len, marks={"a": {"event": "a"}}, values=["properties.plan"])
            held = [weakref.ref(each) for each in (reader, reader.snapshot, reader.visitors)]
        del reader
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_closed_snapshot_is_not_taken_for_one_without_events(house: House) -> None:
    house.post(some(random.Random(1), 20))
    snapshot = house.history.snapshot("default")
    assert (snapshot.rows, len(snapshot.tail(0)), len(snapshot.everything())) == (20, 20, 20)
    snapshot.close()
    for asked in (lambda: snapshot.rows, lambda: snapshot.tail(0), lambda: snapshot.everything()):
        with pytest.raises(QueryError, match="closed"):
            asked()


def test_a_stream_that_is_cut_off_says_why(house: House) -> None:
    endless = "SELECT a.range * b.range AS n FROM range(1000000) a, range(1000000) b"
    for cut, why in ((Snapshot.close, QueryError), (Snapshot.interrupt, StoppingError)):
        snapshot = house.history.snapshot("default")
        rows = snapshot.stream(endless, {})
        next(rows)
        cutting = threading.Thread(target=cut, args=(snapshot,))
        cutting.start()
        with pytest.raises(why):
            list(rows)
        cutting.join()
        snapshot.close()
    with house.history.snapshot("default") as snapshot, pytest.raises(QueryError, match="nothing"):
        list(snapshot.stream("SELECT nothing FROM ever", {}))


def test_what_was_made_of_another_lake_is_made_anew(house: House) -> None:
    house.post(some(random.Random(1), 200))
    house.store_all()
    house.check()
    house.close()
    for kept in ("lake", "log"):
        shutil.rmtree(house.directory / kept)
    house.begin()
    house.post(some(random.Random(2), 200))
    house.store_all()
    house.check()


def test_an_end_is_not_held_up_by_what_can_be_made_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.post(some(random.Random(1), 100))
    house.check()
    house.reopen()
    kept = house.runs
    house.post(some(random.Random(2), 30))
    house.check()
    house.reopen()
    assert set(kept) < set(house.runs)  # what was in memory went to a file of its own

    reached = threading.Event()

    def endless(*_: Any) -> Iterator[Run]:
        while True:
            reached.set()
            yield EMPTY

    house.post(some(random.Random(3), 300))
    house.store_all()
    refused: list[BaseException] = []

    def ask() -> None:
        with house.history.reader("default") as reader:
            try:
                reader.in_user_order(len)
            except StoppingError as error:
                refused.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(tenant_order, "_blocks", endless)
        waiting = threading.Thread(target=ask)
        waiting.start()
        assert reached.wait(10)
        house.history.interrupt()
        waiting.join(10)
    assert refused


def test_of_tenants_that_nobody_asks_for_nothing_is_held(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_cache, "MOST_AWAKE", 2)
    tenants = [f"t{i}" for i in range(6)]
    for tenant in tenants:
        house.post(some(random.Random(1), 100), tenant)
    events = [house.check(tenant) for tenant in tenants]

    def mapped() -> int:
        maps = Path("/proc/self/maps").read_text()
        return sum(f"/cache/{tenant}/" in maps for tenant in tenants)

    until = time.monotonic() + 10
    while mapped() > 2 and time.monotonic() < until:
        house.check(tenants[-1])
    assert mapped() <= 2
    assert [house.check(tenant) for tenant in tenants] == events


def test_people_who_are_joined_while_files_are_written_stay_joined(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.post([{"event": "view", "anonymous_id": f"a{i % 7}", "user_id": None} for i in range(100)])
    write = OrderFiles.write

    def meanwhile(files: OrderFiles, *given: Any) -> Any:
        stored = write(files, *given)
        if threading.current_thread().name.startswith("user-order-cache") and not joined.is_set():
            joined.set()
            house.post([{"event": "identify", "user_id": "u", "anonymous_id": "a6"}])
            with house.history.reader("default") as reader:
                reader.in_user_order(len)
        return stored

    joined = threading.Event()
    house.check()
    house.post([{"event": "identify", "user_id": "u", "anonymous_id": "a5"}])
    monkeypatch.setattr(OrderFiles, "write", meanwhile)
    house.post(some(random.Random(1), 60))
    house.check()
    assert joined.wait(10)
    house.check()


def test_a_cache_that_somebody_deletes_is_made_anew(house: House) -> None:
    house.post(some(random.Random(1), 60))
    house.check()
    shutil.rmtree(house.directory / "cache")
    for seed in range(3):
        house.post(some(random.Random(seed), 60))
        house.check()
    house.reopen()
    house.check()


# --- another process -------------------------------------------------------------------------------------------------


def elsewhere(reader: Reader) -> list[tuple[Any, ...]]:
    with pickle.loads(pickle.dumps(reader.to_spec())).open() as there:
        return list(chain.from_iterable(there.in_user_order(told, **ASKED)))


def test_another_process_maps_the_files_and_reads_the_rest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.post(some(random.Random(1), 200))
    house.store_all()
    house.check()
    for store in (False, True):
        house.post(
            [*some(random.Random(2), 20), {"event": "alias", "user_id": "u1", "properties": {"previousId": "z"}}]
        )
        if store:
            house.store_all()
        with monkeypatch.context() as patch, house.history.reader("default") as reader:
            here = list(chain.from_iterable(reader.in_user_order(told, **ASKED)))
            patch.delattr(Snapshot, "everything")
            assert elsewhere(reader) == here
    house.reopen()
    with monkeypatch.context() as patch, house.history.reader("default") as reader:  # nothing was asked yet
        patch.delattr(Snapshot, "everything")
        assert elsewhere(reader) == here


@pytest.mark.parametrize("gone", ["files", "events"])
def test_another_process_reads_all_when_the_files_are_of_no_use(house: House, gone: str) -> None:
    house.post(some(random.Random(1), 200))
    house.store_all()
    house.check()
    if gone == "events":
        house.store.retain(RetentionPolicy(1), NOW + timedelta(days=9), confirmed=True)
    with house.history.reader("default") as reader:
        sent = pickle.dumps(reader.to_spec())
        if gone == "files":
            house.history.forget("default")
        with pickle.loads(sent).open() as there:
            found = list(chain.from_iterable(there.in_user_order(told, **ASKED)))
        assert found == list(chain.from_iterable(reader.in_user_order(told, **ASKED)))
