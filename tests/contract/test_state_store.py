"""What every `StateStore` keeps true, and what SQLite alone has to prove. Each backend is one entry of `BACKENDS`."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from math import inf, isnan, nan
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_core.errors import FencedError, StorageError
from analytics_core.records import Insight, Metric, Pattern, Window
from analytics_core.state import Checkpoint, Message, Outputs, StateStore
from analytics_core.state.chunks import LEAST, MOST, cut
from analytics_core.state.sqlite import SqliteState
from analytics_core.state.tables import OUTBOX_MESSAGES

HOUR = datetime(2025, 1, 31, 12, tzinfo=UTC)
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


class Opened(StateStore, Protocol):
    """A backend as its opener has it."""

    def close(self) -> None: ...


Open = Callable[[], Opened]

BACKENDS: dict[str, Callable[[Path], Opened]] = {"sqlite": lambda directory: SqliteState(directory / "state.db")}


@pytest.fixture(params=BACKENDS)
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return lambda: BACKENDS[request.param](tmp_path)


@pytest.fixture
def store(reopen: Open) -> Iterator[Opened]:
    store = reopen()
    yield store
    store.close()


def at(held: Checkpoint, position: int, state: bytes | None = None, events: int = 0) -> Checkpoint:
    return Checkpoint(lane=held.lane, epoch=held.epoch, position=position, state=state, events=events)


def metric(value: float, name: str = "views", minute: int = 0, **labels: str) -> Metric:
    return Metric(name=name, value=value, window=Window(HOUR + timedelta(minutes=minute)), labels=labels)


def insight(key: str, title: str = "t") -> Insight:
    return Insight(key=key, title=title, description="d", window=Window(HOUR), data={"n": 1})


def message(id_: str, body: bytes = b"{}", tenant: str = "acme") -> Message:
    return Message(id=id_, topic="metric", tenant=tenant, body=body)


def outputs(*metrics: Metric, tenant: str = "acme", **more: Sequence[Any]) -> list[Outputs]:
    return [Outputs(tenant=tenant, metrics=metrics, **more)]


def values(store: StateStore, name: str = "views", tenant: str = "acme", **labels: str) -> list[float]:
    return [point.value for point in store.points(tenant, name, *EVER, labels or None)]


# --- checkpoints and fencing


def test_a_lane_goes_on_where_it_committed(store: StateStore, reopen: Open) -> None:
    held = store.claim("a")
    assert (held.position, held.state, held.events) == (0, None, 0)
    store.commit(Checkpoint(lane="a", epoch=held.epoch, position=7, state=b"seven", state_version=3, events=5))
    store.close()
    again = reopen().claim("a")
    assert (again.position, again.state, again.state_version, again.events) == (7, b"seven", 3, 5)
    assert again.epoch > held.epoch


def test_a_commit_without_state_leaves_the_stored_one(store: StateStore) -> None:
    held = store.claim("a")
    store.commit(at(held, 1, b"kept"))
    store.commit(at(held, 2))
    again = store.claim("a")
    assert (again.position, again.state) == (2, b"kept")


def test_an_empty_state_is_a_state(store: StateStore) -> None:
    store.commit(at(store.claim("a"), 1, b""))
    assert store.claim("a").state == b""


def test_only_the_newest_epoch_writes(store: StateStore) -> None:
    old, other = store.claim("a"), store.claim("b")
    new = store.claim("a")
    with pytest.raises(FencedError, match=f"lane 'a': epoch {old.epoch} is over, the current one is {new.epoch}"):
        store.commit(at(old, 9, b"old"), outputs(metric(1)), [message("m")])
    with pytest.raises(FencedError):
        store.commit(Checkpoint(lane="never-claimed", epoch=1, position=1))
    assert (values(store), store.outbox(0), store.claim("a").state) == ([], [], None)
    store.commit(at(other, 1))


def test_of_many_claims_one_wins(store: StateStore) -> None:
    claims: list[Checkpoint] = []
    threads = [threading.Thread(target=lambda: claims.append(store.claim("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claim.epoch for claim in claims}) == 8
    written = []
    for claim in claims:
        try:
            store.commit(at(claim, 1))
        except FencedError:
            continue
        written.append(claim.epoch)
    assert written == [max(claim.epoch for claim in claims)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    states=st.lists(st.tuples(st.integers(0, 3 * MOST + 1), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4)
)
def test_state_of_any_size_comes_back_as_it_was(store: StateStore, states: list[tuple[int, bytes]]) -> None:
    held = store.claim("sized")
    for size, pattern in states:
        state = (pattern * size)[:size]
        store.commit(at(held, 1, state))
        held = store.claim("sized")
        assert held.state == state


# --- outputs


def test_metric_points_are_upserts_of_absolute_values(store: StateStore) -> None:
    held = store.claim("a")
    for position in (1, 1, 2):
        store.commit(at(held, position), outputs(metric(10), metric(3, minute=1), metric(4, page="/x")))
    store.commit(at(held, 3), outputs(metric(12)))
    assert sorted(values(store)) == [3, 4, 12]
    store.commit(at(store.claim("b"), 1), outputs(metric(99)))
    assert sorted(values(store)) == [3, 4, 12, 99], "each lane has its own points"


def test_points_are_found_by_window_start_and_labels(store: StateStore) -> None:
    found = [metric(m, minute=m) for m in range(3)] + [metric(7, minute=1, page="/x", lang="de")]
    store.commit(at(store.claim("a"), 1), outputs(*found))
    minute = timedelta(minutes=1)
    points = store.points("acme", "views", HOUR + minute, HOUR + 2 * minute)
    assert [point.value for point in points] == [7, 1]
    assert points[0].labels == {"page": "/x", "lang": "de"}
    assert (points[0].start, points[0].seconds, points[0].lane) == (HOUR + minute, 60, "a")
    assert values(store, lang="de") == [7]
    assert values(store, lang="en") == []


def test_labels_in_another_order_are_the_same_point(store: StateStore) -> None:
    held = store.claim("a")
    store.commit(at(held, 1), outputs(metric(1, a="1", b="2")))
    store.commit(at(held, 2), outputs(metric(2, b="2", a="1")))
    assert values(store) == [2]


def test_sketches_units_and_odd_numbers_come_back(store: StateStore) -> None:
    window = Window(HOUR, 3600)
    sketch = Metric(name="users", value=5, window=window, kind="unique", sketch=b"\x00\xff", unit="users")
    odd = [Metric(name="odd", value=value, window=Window(HOUR, n)) for n, value in ((1, inf), (2, nan), (3, -0.5))]
    store.commit(at(store.claim("a"), 1), outputs(sketch, *odd))
    (point,) = store.points("acme", "users", *EVER)
    assert (point.kind, point.sketch, point.unit, point.seconds) == ("unique", b"\x00\xff", "users", 3600)
    first, second, third = values(store, "odd")
    assert (first, isnan(second), third) == (inf, True, -0.5)
    assert store.catalogue("acme") == [("a", "odd", "sum"), ("a", "users", "unique")]


def test_records_are_upserts_and_a_change_takes_a_new_place(store: StateStore) -> None:
    held = store.claim("a")
    store.commit(at(held, 1), outputs(insights=[insight("one"), insight("two")]))
    before = store.records("acme", "insight")
    assert [(row["key"], row["lane"]) for row in before] == [("one", "a"), ("two", "a")]
    assert before[0]["data"] == {"n": 1}
    assert datetime.fromisoformat(before[0]["updated_at"]).tzinfo is not None
    store.commit(at(held, 1), outputs(insights=[insight("one"), insight("two")]))
    assert store.records("acme", "insight") == before, "a replay changes nothing"
    store.commit(at(held, 2), outputs(insights=[insight("one", "new")]))
    news = store.records("acme", "insight", after=before[-1]["seq"])
    assert [(row["key"], row["title"]) for row in news] == [("one", "new")]
    assert len(store.records("acme", "insight")) == 2


def test_records_are_paged_both_ways_and_by_lane(store: StateStore) -> None:
    patterns = [Pattern(key=str(n), name="n", description="d", count=n) for n in range(5)]
    store.commit(at(store.claim("a"), 1), outputs(patterns=patterns))
    store.commit(at(store.claim("b"), 1), outputs(patterns=patterns[:1]))

    def pages(**how: Any) -> list[list[tuple[str, str]]]:
        found, after = [], 0
        while rows := store.records("acme", "pattern", after=after, limit=2, **how):
            found.append([(row["lane"], row["key"]) for row in rows])
            after = rows[-1]["seq"]
        return found

    forward = [[("a", "0"), ("a", "1")], [("a", "2"), ("a", "3")], [("a", "4"), ("b", "0")]]
    assert pages() == forward
    assert pages(newest=True) == [page[::-1] for page in forward[::-1]]
    assert pages(lane="b") == [[("b", "0")]]
    assert store.records("acme", "insight") == []


def test_nothing_crosses_tenants(store: StateStore) -> None:
    held = store.claim("a")
    store.commit(at(held, 1), outputs(metric(1), insights=[insight("one")]), [message("m")])
    store.commit(at(held, 2), outputs(metric(2), tenant="globex", insights=[insight("one", "theirs")]))
    store.commit(at(held, 3), (), [message("m", tenant="globex")])
    assert (values(store), values(store, tenant="globex"), values(store, tenant="x")) == ([1], [2], [])
    assert [row["title"] for row in store.records("acme", "insight")] == ["t"]
    assert store.catalogue("x") == []
    assert [m.tenant for m in store.outbox(0)] == ["acme", "globex"], "one id of two tenants is two messages"
    store.document("acme", "result", "1", b"ours")
    assert store.document("globex", "result", "1") is None


# --- outbox


def test_the_outbox_keeps_order_and_positions(store: StateStore, reopen: Open) -> None:
    held = store.claim("a")
    assert store.commit(at(held, 1)) == 0
    last = store.commit(at(held, 2), (), [message(str(n), b"%d" % n) for n in range(5)])
    found = store.outbox(0)
    assert [m.body for m in found] == [b"0", b"1", b"2", b"3", b"4"]
    assert found[-1].seq == last
    assert [m.id for m in store.outbox(found[1].seq, limit=2)] == ["2", "3"]
    store.close()
    again = reopen()
    assert again.outbox(last) == []
    assert again.commit(at(again.claim("a"), 3), (), [message("5")]) > last


def test_a_replayed_message_is_not_pushed_anew_unless_it_changed(store: StateStore) -> None:
    held = store.claim("a")
    last = store.commit(at(held, 1), (), [message("x", b"1"), message("y", b"1")])
    assert store.commit(at(held, 1), (), [message("x", b"1"), message("y", b"1")]) == last
    assert store.outbox(last) == []
    store.commit(at(held, 2), (), [message("x", b"2")])
    assert [(m.id, m.body) for m in store.outbox(last)] == [("x", b"2")]
    assert [m.id for m in store.outbox(0)] == ["y", "x"]


def test_of_one_id_in_a_commit_the_last_body_holds(store: StateStore) -> None:
    store.commit(at(store.claim("a"), 1), (), [message("x", b"1"), message("x", b"2")])
    assert [m.body for m in store.outbox(0)] == [b"2"]


def test_the_outbox_forgets_the_oldest(store: StateStore) -> None:
    held = store.claim("a")
    store.commit(at(held, 1), (), [message(f"a{n}") for n in range(OUTBOX_MESSAGES)])
    last = store.commit(at(held, 2), (), [message(f"b{n}") for n in range(10)])
    assert store.outbox(0, limit=1)[0].id == "a10"
    assert len(store.outbox(0, limit=2 * OUTBOX_MESSAGES)) == OUTBOX_MESSAGES
    assert store.outbox(last - 1)[0].id == "b9"


# --- documents


def test_a_document_is_what_was_written_last(store: StateStore, reopen: Open) -> None:
    assert store.document("acme", "result", "1") is None
    assert store.document("acme", "result", "1", b"one") == b"one"
    assert store.document("acme", "result", "1", b"") == b""
    store.document("acme", "other", "1", b"x")
    store.close()
    assert reopen().document("acme", "result", "1") == b""


# --- forgetting


def test_what_is_past_its_tenants_moment_is_forgotten(store: StateStore) -> None:
    held = store.claim("a")
    for tenant in ("acme", "globex", "kept"):
        found = outputs(
            metric(1, minute=-60 * 48),
            metric(2),
            metric(3, "gone", minute=-60 * 48),
            tenant=tenant,
            insights=[insight("i")],
            patterns=[Pattern(key="p", name="n", description="d", window=Window(HOUR), count=1)],
        )
        store.commit(at(held, 1, b"state"), found)
        store.document(tenant, "analysis", "k", b"{}")
    store.document("", "plugin", "p", b"{}")
    store.document("_system", "outbox", "cursor", b"7")
    written = datetime.now(UTC)
    # written after the moment, so all of it stays, however old its window is
    assert store.forget(written - timedelta(days=1)) == 0
    later = written + timedelta(days=1)
    store.commit(at(held, 2), outputs(metric(2, minute=60 * 24 * 365 * 50), tenant="acme"))
    assert store.forget(later, {"globex": HOUR, "kept": None}) == 6
    assert values(store) == [2]
    assert store.catalogue("acme") == [("a", "views", "sum")]
    assert not store.records("acme", "insight")
    assert not store.records("acme", "pattern")
    assert store.document("acme", "analysis", "k") is None
    for tenant in ("globex", "kept"):
        assert values(store, tenant=tenant) == [1, 2]
        assert [name for _, name, _ in store.catalogue(tenant)] == ["gone", "views"]
        assert store.records(tenant, "insight")
        assert store.document(tenant, "analysis", "k") == b"{}"
    assert store.document("", "plugin", "p") == b"{}"
    assert store.document("_system", "outbox", "cursor") == b"7"
    assert store.claim("a").state == b"state"
    assert store.forget(None) == 0


# --- one transaction


@pytest.mark.parametrize(
    "poison",
    [
        {"outputs": [*outputs(metric(2)), *outputs(metric(1, name="\ud800"))]},
        {"outputs": outputs(metric(2), insights=[insight("new"), insight("\ud800")])},
        {"messages": [message("new"), message("\ud800")]},
    ],
    ids=["metric", "insight", "message"],
)
def test_a_commit_that_fails_half_way_has_written_nothing(store: StateStore, poison: dict[str, Any]) -> None:
    held = store.claim("a")
    store.commit(at(held, 1, b"before"), outputs(metric(1)))
    with pytest.raises(ValueError, match="surrogates"):
        store.commit(at(held, 2, b"after"), **poison)
    assert (values(store), store.records("acme", "insight"), store.outbox(0)) == ([1], [], [])
    again = store.claim("a")
    assert (again.position, again.state) == (1, b"before")
    store.commit(at(again, 2, b"after"), outputs(metric(2)))
    assert values(store) == [2]


def test_readers_see_whole_commits_only(store: StateStore) -> None:
    held = store.claim("a")
    done = threading.Event()
    torn: list[list[float]] = []

    def watch() -> None:
        while not done.is_set():
            if len(set(found := values(store))) > 1:
                torn.append(found)

    readers = [threading.Thread(target=watch) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(100):
        store.commit(at(held, n), outputs(*(metric(n, minute=minute) for minute in range(20))))
    done.set()
    for reader in readers:
        reader.join()
    assert torn == []


# --- SQLite's own


def churn(path: Path) -> None:
    """The child's part: commit n with n everywhere, until killed. Each commit is reported when it is done."""
    store = SqliteState(path)
    held = store.claim("a")
    n = held.position
    while True:
        n += 1
        state = b"%d " % n * 100_000
        found = outputs(*(metric(n, minute=minute) for minute in range(50)), insights=[insight("one", str(n))])
        store.commit(at(held, n, state, events=n), found, [message("m", b"%d" % n)])
        print(n, flush=True)


@pytest.mark.server
def test_kill_during_a_commit_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    path, chance = tmp_path / "state.db", random.Random(11)
    for _ in range(5):
        with subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(chance.randint(1, 10))]
            child.kill()
            lines += child.stdout.read().splitlines()
        reported = int([line for line in lines if line.strip()][-1])
        store = SqliteState(path)
        held = store.claim("a")
        n = held.position
        assert n >= reported
        assert held.state == b"%d " % n * 100_000
        assert set(values(store)) == {n}
        assert [row["title"] for row in store.records("acme", "insight")] == [str(n)]
        assert [m.body for m in store.outbox(0)] == [b"%d" % n]
        store.close()


def test_a_small_change_of_a_large_state_writes_little(tmp_path: Path) -> None:
    store = SqliteState(tmp_path / "state.db")
    held = store.claim("a")
    state = bytearray(random.Random(1).randbytes(17 << 20))
    store.commit(at(held, 1, bytes(state)))
    store.close()  # the write-ahead log is folded in and starts anew
    store = SqliteState(tmp_path / "state.db")
    held = store.claim("a")
    state[10 << 20] ^= 1
    state[5 << 20 : 5 << 20] = b"inserted"
    del state[:100]
    store.commit(at(held, 2, bytes(state)))
    assert (tmp_path / "state.db-wal").stat().st_size < 4 * MOST
    held = store.claim("a")
    assert held.state == bytes(state)
    store.commit(at(held, 3, bytes(state[: 1 << 20])))
    with sqlite3.connect(tmp_path / "state.db") as other:
        (kept,) = other.execute("SELECT sum(length(body)) FROM state").fetchone()
    other.close()
    assert kept == 1 << 20
    store.close()


@given(st.lists(st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=9)), max_size=5), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pieces_of_a_state_are_the_state(parts: list[tuple[int, bytes]], noisy: bool) -> None:
    state = b"".join(part * (count // len(part)) for count, part in parts)
    if noisy:
        state += random.Random(len(state)).randbytes(len(state))
    pieces = cut(state)
    assert b"".join(pieces) == state
    assert all(LEAST <= len(piece) <= MOST for piece in pieces[:-1])
    assert not pieces or 0 < len(pieces[-1]) <= MOST


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    body = random.Random(2).randbytes(600 << 10)
    SqliteState(tmp_path / "state.db").close()
    with sqlite3.connect(tmp_path / "state.db") as old:
        old.executescript(
            "ALTER TABLE cursors DROP COLUMN chunk_order; ALTER TABLE points DROP COLUMN updated_at;"
            "INSERT INTO cursors VALUES ('a', 3, 70, 60, 1, 3); PRAGMA user_version = 1;"
        )
        pieces = [(i, bytes([i]) * 16, body[i * (256 << 10) : (i + 1) * (256 << 10)]) for i in range(3)]
        old.executemany("INSERT INTO state VALUES ('a', ?, ?, ?)", pieces)
        old.execute("INSERT INTO points VALUES ('acme', 'views', 1, 'a', 60, '{}', 'sum', 7, NULL, '')")
    old.close()
    store = SqliteState(tmp_path / "state.db")
    held = store.claim("a")
    assert (held.epoch, held.position, held.state) == (4, 70, body)
    store.commit(at(held, 71, body + b"more"), outputs(metric(1)))
    assert store.claim("a").state == body + b"more"
    assert sorted(values(store)) == [1]
    store.close()


def test_old_messages_go_with_the_next_ones(tmp_path: Path) -> None:
    store = SqliteState(tmp_path / "state.db")
    held = store.claim("a")
    last = store.commit(at(held, 1), (), [message("old")])
    with sqlite3.connect(tmp_path / "state.db") as other:
        other.execute("UPDATE outbox SET created_at = created_at - 3601 * 1000000")
    other.close()
    assert store.commit(at(held, 2), (), [message("new")]) > last
    assert [m.id for m in store.outbox(0)] == ["new"]
    store.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    SqliteState(tmp_path / "state.db").close()
    with sqlite3.connect(tmp_path / "state.db") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StorageError, match=r"state\.db has state schema 99, this version knows up to 2"):
        SqliteState(tmp_path / "state.db")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(StorageError, match=r"opening in .*state\.db failed: file is not a database"):
        SqliteState(tmp_path / "state.db")


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteState(tmp_path / "state.db")
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.outbox(0)
    with pytest.raises(StorageError, match="closed"):
        store.claim("a")


if __name__ == "__main__":
    churn(Path(sys.argv[1]))
