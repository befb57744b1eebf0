"""The duplicates ledger: every count once, in its hour, whatever is stored already and whenever the host ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from analytics_core.errors import StorageError
from analytics_core.events import micros
from analytics_core.intake.duplicates import DuplicateLedger
from analytics_core.queries.ranges import ALL_TIME
from analytics_core.records import TimeRange
from analytics_core.state.sqlite import SqliteState

NOW = datetime(2025, 3, 1, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Documents:
    """The small documents of a state store, in memory; they outlive a ledger."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str], bytes] = {}
        self.failing = False
        self.reads = 0
        self.written = threading.Event()

    def document(self, tenant: str, kind: str, key: str, body: bytes | None = None) -> bytes | None:
        if self.failing:
            raise StorageError("the disk is full")
        self.reads += body is None
        if body is not None:
            self.held[tenant, kind, key] = body
            self.written.set()
        return self.held.get((tenant, kind, key))


def ledger(state: Any, seconds: float = 3600.0) -> DuplicateLedger:
    return DuplicateLedger(state, seconds, clock=lambda: NOW)


def since(hours: float, until: float = 0) -> TimeRange:
    return TimeRange(NOW - hours * HOUR, NOW - until * HOUR)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    made = SqliteState(tmp_path / "state.db")
    yield made
    made.close()


def test_counts_are_there_at_once_and_after_each_end(state: SqliteState) -> None:
    for n in (1, 2, 3):
        held = ledger(state)
        held.start()
        assert held.count("acme", since(1)) == (n - 1) * 5
        held.add("acme", micros(NOW), 4)
        held.add("acme", micros(NOW), 1)
        held.add("other", micros(NOW), 7)
        assert held.count("acme", since(1)) == n * 5
        held.close()
    assert state.document("acme", "duplicates", "2025-03") == b"[0,0,0,0,0,0,0,0,0,0,0,0,15]"


def test_what_was_flushed_survives_an_end_without_warning() -> None:
    documents = Documents()
    killed = ledger(documents, seconds=0.001)
    killed.start()
    killed.add("acme", micros(NOW), 4)
    assert documents.written.wait(10)
    again = ledger(documents)
    again.add("acme", micros(NOW), 1)  # before anything was read
    again.flush()
    assert ledger(documents).count("acme", since(1)) == 5
    killed.close()


def test_hours_that_overlap_the_range_count_whole() -> None:
    held = ledger(Documents())
    for hours in range(4):
        held.add("acme", micros(NOW - hours * HOUR), 10**hours)
    for _ in range(2):
        assert held.count("acme", since(0.1)) == 1  # 12:24 to 12:30
        assert held.count("acme", since(1)) == 11
        assert held.count("acme", since(2.75, 0.5)) == 1110  # 9:45 to 12:00
        held.flush()


def test_a_month_is_read_once_and_all_of_history_takes_few_reads() -> None:
    documents = Documents()
    held = ledger(documents)
    for _ in range(2):
        assert held.count("acme", ALL_TIME) == 0
    assert documents.reads == 25 * 12 + 3


def test_what_cannot_be_stored_waits_and_is_counted_meanwhile() -> None:
    documents = Documents()
    held = ledger(documents)
    assert held.count("acme", since(1)) == 0
    documents.failing = True
    with capture_logs() as logs:
        for n in (1, 2):
            held.add("acme", micros(NOW), 1)
            held.flush()
            assert held.count("acme", since(1)) == n
    assert [line["event"] for line in logs] == ["duplicates_not_stored"]
    documents.failing = False
    held.flush()
    assert ledger(documents).count("acme", since(1)) == 2


def test_a_document_that_is_none_holds_up_no_other() -> None:
    documents = Documents()
    documents.held["acme", "duplicates", "2025-03"] = b"?"
    held = ledger(documents)
    for tenant in ("acme", "other"):
        held.add(tenant, micros(NOW), 1)
    held.flush()
    assert ledger(documents).count("other", since(1)) == 1
    with pytest.raises(StorageError, match="duplicates of acme in 2025-03"):
        held.count("acme", since(1))


def test_counts_that_come_while_others_are_stored_are_all_counted_once() -> None:
    held = ledger(Documents(), seconds=0.0)
    held.start()
    writers = [
        threading.Thread(target=lambda: [held.add("acme", micros(NOW), 1) for _ in range(2_000)]) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    counts = []
    while any(writer.is_alive() for writer in writers):
        counts.append(held.count("acme", since(1)))
    for writer in writers:
        writer.join()
    assert counts == sorted(counts)
    assert held.count("acme", since(1)) == 4_000
    held.close()
    assert held.count("acme", since(1)) == 4_000


hours = st.integers(0, 24 * 70)
steps = st.one_of(
    st.tuples(st.sampled_from(["a", "b"]), hours, st.integers(1, 9)), st.sampled_from(["flush", "restart"])
)


@settings(max_examples=50)
@given(st.lists(steps, max_size=12), hours, hours)
def test_any_range_counts_what_came_in_it(done: list[Any], one: int, other: int) -> None:
    """Whatever was flushed before, and over restarts."""
    documents = Documents()
    held, came = ledger(documents), []
    for step in done:
        if step == "flush":
            held.flush()
        elif step == "restart":
            held.close()
            held = ledger(documents)
        else:
            tenant, ago, count = step
            held.add(tenant, micros(NOW - ago * HOUR), count)
            came.append(step)
    low, high = max(one, other) + 0.5, min(one, other) - 0.5  # whole hours: it is half past now
    for tenant in ("a", "b"):
        expected = sum(count for whose, ago, count in came if whose == tenant and high < ago < low)
        assert held.count(tenant, since(low, high)) == expected
