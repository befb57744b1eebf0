"""History: every acknowledged event in the next query exactly once, sealed readers, filters and pages."""

from __future__ import annotations

import base64
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from analytics_core.errors import ParameterError, QueryError, StoppingError, TrimmedError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA
from analytics_core.lake.delta import DeltaStore
from analytics_core.queries import tail
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.history import ALL_TIME, History
from analytics_core.queries.spec import Limits
from analytics_core.records import TimeRange
from analytics_core.testing import batch
from tests.flow.history_house import NOW, House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def test_an_event_is_in_the_next_query_once_before_during_and_after_a_commit(house: House) -> None:
    assert house.ids() == []
    house.post({"event": "a"}, {"event": "b"})
    assert house.ids() == ["e0", "e1"]  # the log alone

    during = house.history.reader("default")  # opened before the commit, read after it
    house.store_all()
    assert during.sql("SELECT count(*) AS n FROM events")["n"].to_pylist() == [2]
    during.close()

    assert house.ids() == ["e0", "e1"]  # the lake alone
    house.post({"event": "c"})
    assert house.ids() == ["e0", "e1", "e2"]  # both
    house.store_all(upto=house.log.durable)
    house.log.trim(house.store.position)
    assert house.ids() == ["e0", "e1", "e2"]


def test_the_tail_is_decoded_once_however_often_it_is_asked_for(house: House) -> None:
    asked: list[int] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(house.log, name)

        def read(self, start: int, max_rows: int = 65_536) -> Any:
            asked.append(start)
            return house.log.read(start, max_rows)

    history = History(Watched(), house.store)

    def ids(tenant: str = "default") -> list[str]:
        with history.reader(tenant) as reader:
            return reader.sql("SELECT event_id FROM events ORDER BY seq")["event_id"].to_pylist()

    house.post({"event": "a"})
    house.post({"event": "a"}, tenant="acme")
    assert ids() == ["e0"]
    assert ids("acme") == ["e1"]
    house.post({"event": "a"})
    assert ids() == ["e0", "e2"]
    assert asked == [0, 2]  # the second question read nothing, the third only what was new
    house.store_all(upto=2)
    house.post({"event": "a"}, tenant="acme")
    assert (ids(), ids("acme")) == (["e0", "e2"], ["e1", "e3"])
    assert asked == [0, 2, 3]
    house.store_all()
    house.log.trim(house.store.position)
    house.post({"event": "a"})
    assert (ids(), ids("acme")) == (["e0", "e2", "e4"], ["e1", "e3"])


def test_a_tail_that_is_too_long_is_mapped_and_never_copied(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []

    def watched(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        copied.append(sum(batch.num_rows for batch in batches))
        return original(batches)

    original = tail._copied
    monkeypatch.setattr(tail, "_copied", watched)
    house.post({"event": "a", "properties": {"filling": "x" * 4000}})
    assert house.ids() == ["e0"]
    assert copied == [1]
    monkeypatch.setattr(tail, "MAX_BYTES", 6_000)
    house.post({"event": "a", "properties": {"filling": "x" * 4000}}, tenant="acme")
    house.post({"event": "a"})
    for _ in range(2):
        assert (house.ids(), house.ids("acme")) == (["e0", "e2"], ["e1"])
    assert copied == [1]
    house.store_all()
    house.post({"event": "a"})
    assert house.ids() == ["e0", "e2", "e3"]
    assert copied == [1, 1]  # short again


def test_no_row_of_another_tenant_is_ever_seen(house: House) -> None:
    house.post({"event": "a"}, tenant="acme")
    house.store_all()
    house.post({"event": "b"}, tenant="acme")
    house.post({"event": "c"}, tenant="globex")
    assert house.ids("acme") == ["e0", "e1"]
    assert house.ids("globex") == ["e2"]
    assert house.ids("nobody") == []
    with house.history.reader("globex") as reader:
        everything = reader.sql("SELECT DISTINCT tenant FROM log_tail UNION SELECT DISTINCT tenant FROM events")
        assert everything["tenant"].to_pylist() == ["globex"]
    assert [row["messageId"] for row in house.history.page("globex")["rows"]] == ["e2"]


def test_a_snapshot_never_changes_and_two_queries_agree(house: House) -> None:
    house.post({"event": "a"})
    with house.history.reader("default") as reader:
        before = reader.table(["event_id"])
        house.post({"event": "b"})
        house.store_all()
        house.store.compact()
        assert reader.table(["event_id"]) == before
    assert house.ids() == ["e0", "e1"]


def test_a_trim_between_lease_and_read_is_met_with_a_newer_lease(tmp_path: Path) -> None:
    house = House(tmp_path)

    class TrimmedMeanwhile(DeltaStore):
        leases = 0

        @contextmanager
        def lease(self, *asked: Any) -> Iterator[Any]:
            self.leases += 1
            with super().lease(*asked) as snapshot:
                if self.leases == 1:  # the store writer commits and trims just now
                    house.store_all()
                    for _ in range(40):
                        house.post({"event": "later", "properties": {"filling": "x" * 400}})
                    house.store_all()
                    assert house.log.trim(house.store.position) > snapshot.position
                yield snapshot

    house.store.close()
    house.store = TrimmedMeanwhile(tmp_path / "lake")
    house.history = History(house.log, house.store)
    house.post({"event": "a"})
    assert house.ids() == [f"e{i}" for i in range(41)]
    assert house.store.leases == 2
    house.close()


def test_a_log_that_is_always_trimmed_first_ends_in_words(house: House) -> None:
    class Trimmed:
        first, durable = 100, 200

        def read(self, start: int, max_rows: int = 1) -> Any:
            raise TrimmedError(start, 100)

    with pytest.raises(QueryError, match="no snapshot after 5 attempts"):
        History(Trimmed(), house.store).reader("default")


def test_range_and_filters_bind_every_view_of_the_reader(house: House) -> None:
    house.post(
        {"event": "buy", "user_id": "u1", "properties": {"plan": "pro", "amount": 5, "vip": True}},
        {"event": "buy", "user_id": "u2", "properties": {"plan": "free", "amount": 20.5, "cart": {"items": 3}}},
        {"event": "view", "user_id": None, "properties": {"plan": "5"}, "context": {"page": "/home"}},
        {"event": "view", "user_id": "u'1", "properties": {"a/b": {"c~d": "deep"}}},
    )
    house.store_all(upto=2)
    at = NOW + timedelta(seconds=1)
    assert house.ids(range=TimeRange(at, at + timedelta(seconds=1))) == ["e1"]

    def found(given: Any) -> list[str]:
        return house.ids(filters=parse_filters(given))

    assert found({"properties.plan": "pro"}) == ["e0"]
    assert found({"properties.plan": ["pro", "free"]}) == ["e0", "e1"]
    assert found({"properties.plan": 5}) == []  # "5" is a text
    assert found({"properties.amount": {">=": 5, "<": 20.5}}) == ["e0"]
    assert found({"properties.cart.items": 3}) == ["e1"]
    assert found({"properties.vip": True}) == ["e0"]
    assert found({"properties.a/b.c~d": "deep"}) == ["e3"]
    assert found({"userId": "u'1"}) == ["e3"]
    assert found({"event": "view", "context.page": {"contains": "ho"}}) == ["e2"]
    assert found([{"field": "properties.plan", "op": "!=", "value": "pro"}]) == ["e1", "e2", "e3"]
    assert found([{"field": "user_id", "op": "exists", "value": False}]) == ["e2"]
    assert found([{"field": "properties.vip", "op": "exists"}]) == ["e0"]
    assert found([{"field": "timestamp", "op": ">", "value": at.isoformat()}]) == ["e2", "e3"]
    assert found({"event": []}) == []


@pytest.mark.parametrize(
    ("given", "parameter", "text"),
    [
        ({"plan": "pro"}, "filters.plan.field", "did you mean 'properties.plan'?"),
        ([{"field": "evnt", "value": "a"}], "filters[0].field", "did you mean"),
        ([{"field": "event", "op": "like", "value": "a"}], "filters[0].op", "valid are: =, !=, in,"),
        ([{"field": "event", "oper": "="}], "filters[0]", "unknown key 'oper'"),
        ([{"field": "event", "op": "in", "value": "a"}], "filters[0].value", "takes a list"),
        ([{"field": "timestamp", "op": ">", "value": "noon"}], "filters[0].value", "is no time"),
        ([{"field": "properties.", "value": 1}], "filters[0].field", "is no field"),
        ({"properties.x": {"a": {"b": 1}}}, "filters.properties.x.op", "is no operator"),
        ({"properties.x": 2**80}, "filters.properties.x.value", "64 bits"),
        ("event = 'a'", "filters", "must be a list"),
    ],
)
def test_a_wrong_filter_names_what_is_valid(given: Any, parameter: str, text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_filters(given)
    assert caught.value.parameter == parameter
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "COPY events TO '/tmp/out.csv'",
        "SET threads = 8",
        "SET VARIABLE v1 = 'globex'",
        "INSTALL httpfs",
        "ATTACH '/tmp/x.db'",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW events",
        "SELECT 1; SELECT 2",
        "PRAGMA database_list",
        "SELEC 1",
        "SELECT * FROM house",  # no Python variable is a table
        "SELECT * FROM nowhere",
    ],
)
def test_sql_is_one_select_over_nothing_but_the_events(house: House, query: str) -> None:
    house.post({"event": "a"})
    house.store_all()
    with house.history.reader("default") as reader:
        with pytest.raises(QueryError):
            reader.sql(query)
        assert len(reader.sql("SELECT * FROM events")) == 1  # and the reader still works


def test_the_leased_files_of_another_tenant_cannot_be_named(house: House, tmp_path: Path) -> None:
    house.post({"event": "a"}, tenant="acme")
    house.post({"event": "b"}, tenant="globex")
    house.store_all()
    with house.history.reader("acme") as mine, house.history.reader("globex") as theirs:
        (file,) = theirs.snapshot.spec.files
        assert len(theirs.sql(f"SELECT * FROM '{file}'")) == 1
        with pytest.raises(QueryError, match="Cannot access file"):
            mine.sql(f"SELECT * FROM '{file}'")


def test_columns_parameters_and_zone(house: House) -> None:
    house.post({"event": "a", "timestamp": "2025-03-01T23:30:00Z", "properties": {"n": 1, "s": "x"}})
    with house.history.reader("default", TimeRange(ALL_TIME.start, ALL_TIME.end, "Europe/Berlin")) as reader:
        assert reader.sql("SELECT * FROM events").schema.names == SCHEMA.names
        table = reader.table(["timestamp", "name", "properties.s", "properties.n", "properties.none"])
        assert table.to_pylist() == [
            {
                "timestamp": datetime(2025, 3, 1, 23, 30, tzinfo=UTC),
                "name": "a",
                "properties.s": "x",
                "properties.n": "1",
                "properties.none": None,
            }
        ]
        day = reader.sql("SELECT date_trunc('day', timestamp) AS d FROM events WHERE name = $n", {"n": "a"})
        assert day["d"].to_pylist() == [datetime(2025, 3, 1, 23, tzinfo=UTC)]  # midnight of March 2 in Berlin
        with pytest.raises(QueryError, match="is no field"):
            reader.table(["colour"])
        with pytest.raises(QueryError):
            reader.sql("SELECT $missing")


def test_a_document_that_another_json_reader_refuses_fails_no_query(house: House) -> None:
    made = batch([{"event": "a", "event_id": "bad"}, {"event": "a", "event_id": "good", "properties": {"n": 2}}])
    texts = pa.array(['{"n": "\\ud800"}', '{"n": 2}'])
    columns = [texts if name == "properties" else made.column(name) for name in UNPLACED_SCHEMA.names]
    house.log.append([pa.RecordBatch.from_arrays(columns, schema=UNPLACED_SCHEMA)], NOW)
    assert house.ids(filters=parse_filters({"properties.n": 2})) == ["good"]
    assert house.ids(filters=parse_filters([{"field": "properties.n", "op": "!=", "value": 2}])) == ["bad"]


def test_a_query_over_its_time_ends_and_says_how_to_narrow(house: House) -> None:
    house.post({"event": "a"})
    history = History(house.log, house.store, limits=Limits(seconds=0.05))
    with history.reader("default") as reader:
        with pytest.raises(QueryError, match="narrow the time range"):
            reader.sql("SELECT sum(a.range * b.range % 7) FROM range(1000000) a, range(1000000) b")
        assert len(reader.sql("SELECT 1 AS one")) == 1


def test_closing_ends_a_query_that_another_thread_runs(house: House) -> None:
    reader = house.history.reader("default")
    running, ended = threading.Event(), threading.Event()
    problems: list[str] = []

    def run() -> None:
        running.set()
        try:
            while True:  # a closed reader refuses, whether it was closed during a query or between two
                reader.sql("SELECT sum(a.range * b.range % 7) FROM range(100000) a, range(1000000) b")
        except QueryError as error:
            problems.append(str(error))
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert running.wait(10)
    reader.close()
    reader.close()
    assert ended.wait(10)
    assert problems


def test_when_the_host_stops_every_query_ends_and_none_begins(house: House) -> None:
    running = threading.Barrier(3)
    problems: list[Exception] = []

    def run() -> None:
        with house.history.reader("default") as reader:
            running.wait(10)
            try:
                reader.sql("SELECT sum(a.range * b.range % 7) FROM range(10000000) a, range(10000000) b")
            except QueryError as error:
                problems.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    idle = house.history.reader("default")
    running.wait(10)
    house.history.interrupt()  # whether the queries have begun already or not
    house.history.interrupt()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert [type(problem) for problem in problems] == [StoppingError, StoppingError]
    assert house.history.stopping
    for ask in (lambda: idle.sql("SELECT 1 AS one"), lambda: house.history.reader("default")):
        with pytest.raises(StoppingError, match="the host is stopping"):
            ask()
    idle.close()


def test_a_spec_opens_the_same_snapshot_elsewhere(house: House) -> None:
    house.post({"event": "a"}, {"event": "b"})
    house.store_all(upto=2)
    house.post({"event": "c"}, {"event": "a"})
    with house.history.reader("default", filters=parse_filters({"event": ["a", "c"]})) as reader:
        sent = pickle.dumps(reader.to_spec())
        house.post({"event": "a"})  # is not in the snapshot
        with pickle.loads(sent).open() as there:
            assert there.table(["event_id"]) == reader.table(["event_id"])
            assert there.table(["event_id"])["event_id"].to_pylist() == ["e0", "e2", "e3"]
            assert there.watermark == reader.watermark


def test_pages_go_from_new_to_old_and_stay_right_while_events_arrive(house: House) -> None:
    same = NOW + timedelta(hours=1)
    house.post(*({"event": "a", "timestamp": same} for _ in range(5)))  # one instant: seq decides
    house.store_all()
    house.post(*({"event": "b"} for _ in range(5)))
    first = house.history.page("default", limit=4)
    house.post({"event": "newest", "timestamp": same + timedelta(hours=1)})
    house.store_all()
    second = house.history.page("default", limit=4, cursor=first["next_cursor"])
    third = house.history.page("default", limit=4, cursor=second["next_cursor"])
    seen = [row["messageId"] for page in (first, second, third) for row in page["rows"]]
    assert seen == ["e4", "e3", "e2", "e1", "e0", "e9", "e8", "e7", "e6", "e5"]
    assert third["next_cursor"] is None
    assert house.history.page("default", limit=1)["rows"][0]["event"] == "newest"
    assert msgspec.json.encode(first["rows"][0]["properties"]) == b"{}"
    assert first["watermark"] == NOW.isoformat()


def test_a_cursor_belongs_to_its_query(house: House) -> None:
    house.post(*({"event": "a"} for _ in range(3)))
    cursor = house.history.page("default", limit=1, names=["a"])["next_cursor"]
    assert len(house.history.page("default", limit=2, names=["a"], cursor=cursor)["rows"]) == 2
    for other in (
        {"names": ["b"]},
        {"names": ["a"], "start": NOW},
        {"names": ["a"], "filters": parse_filters({"userId": "u"})},
    ):
        with pytest.raises(ParameterError, match="belongs to another query"):
            house.history.page("default", limit=1, cursor=cursor, **other)
    with pytest.raises(ParameterError, match="belongs to another query"):
        house.history.page("acme", limit=1, names=["a"], cursor=cursor)
    for broken in ("x", "AAAA", cursor[:-3], "é"):
        with pytest.raises(ParameterError, match="cursor"):
            house.history.page("default", limit=1, names=["a"], cursor=broken)
    tie, *key = msgspec.msgpack.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    for at in range(len(key)):
        for beyond in (2**63, -(2**63)):
            edited = msgspec.msgpack.encode([tie, *key[:at], beyond, *key[at + 1 :]])
            with pytest.raises(ParameterError, match="cursor"):
                house.history.page(
                    "default", limit=1, names=["a"], cursor=base64.urlsafe_b64encode(edited).decode().rstrip("=")
                )
    for limit in (0, 1001):
        with pytest.raises(ParameterError, match=r"outside 1\.\.1000"):
            house.history.page("default", limit=limit)


def test_a_relative_range_keeps_its_first_meaning_from_page_to_page(house: House) -> None:
    house.post(*({"event": "a"} for _ in range(3)))
    first = house.history.page("default", start=NOW, end=NOW + timedelta(seconds=3), limit=1, asked="7d")
    later = house.history.page(
        "default",
        start=NOW + timedelta(days=1),
        end=NOW + timedelta(days=2),
        limit=5,
        asked="7d",
        cursor=first["next_cursor"],
    )
    assert [row["messageId"] for row in later["rows"]] == ["e1", "e0"]


def test_readers_and_a_writer_at_once_see_every_event_once(house: House) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            house.post({"event": "a"}, {"event": "a"})
            house.store_all()
            house.log.trim(house.store.position)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            ids = house.ids()
            assert ids == [f"e{i}" for i in range(len(ids))]
            assert len(ids) % 2 == 0
    finally:
        stop.set()
        writer.join()
