"""Where a fold begins that is to meet everything received from some moment on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.errors import TrimmedError
from analytics_core.events import EventBatch, placed
from analytics_core.lanes.beginning import History, Received
from tests.flow.plugin_house import rows

T0 = datetime(2025, 1, 1, tzinfo=UTC)


class Kept:
    """A log of one event or one watermark at each position, of which the lake has those below ``first``.

    ``hours`` of receipt by position; None is a watermark. What is below ``dropped`` is nowhere any more.
    """

    def __init__(self, hours: list[float | None], first: int = 0, dropped: int = 0) -> None:
        self.hours = hours
        self.first = first
        self.dropped = dropped
        self.durable = len(hours)
        self.history = History(self, self.backlog)
        self.reads = 0

    def read(self, start: int, max_rows: int = 65_536, max_bytes: int = 0) -> tuple[list[EventBatch], int]:
        if start < self.first:
            raise TrimmedError(start, self.first)
        return self._read(start, min(start + max_rows, self.durable))

    def backlog(self, start: int, max_rows: int) -> tuple[list[EventBatch], int]:
        return self._read(start, min(start + max_rows, self.first))

    def _read(self, start: int, end: int) -> tuple[list[EventBatch], int]:
        self.reads += 1
        return [self._batch(at) for at in range(max(start, self.dropped), end)], max(start, end)

    def _batch(self, position: int) -> EventBatch:
        hours = self.hours[position]
        if hours is None:
            return EventBatch.empty("", T0)
        at = T0 + timedelta(hours=hours)
        return EventBatch(placed(rows("a", ["x"], at), position), "a", at)

    def wait(self, position: int, timeout: float) -> int:
        return self.durable


receipts = st.lists(st.none() | st.integers(0, 100).map(float), max_size=40).map(
    lambda hours: [None if h is None else next_ for h, next_ in zip(hours, ascending(hours), strict=True)]
)


def ascending(hours: list[float | None]) -> list[float]:
    there = sorted(h for h in hours if h is not None)
    return [there.pop(0) if h is not None else 0.0 for h in hours]


@given(receipts, st.data())
def test_it_begins_with_the_first_event_that_was_received_then_or_later(
    hours: list[float | None], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(hours)))
    kept = Kept(hours, first, data.draw(st.integers(0, first)))
    wanted = data.draw(st.integers(0, 101))
    found = kept.history.since(T0 + timedelta(hours=wanted))
    before = [at for at in range(kept.dropped, found) if (h := hours[at]) is not None and h >= wanted]
    after = [at for at in range(max(found, kept.dropped), len(hours)) if (h := hours[at]) is not None and h < wanted]
    assert not before, "an event would be missed"
    assert not after, "it begins too early"


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        (Kept([]), None),
        (Kept([None, None]), None),
        (Kept([None, 3.0]), Received(1, T0 + timedelta(hours=3))),
        (Kept([1.0, 2.0, None, 4.0], first=3, dropped=2), Received(3, T0 + timedelta(hours=4))),
    ],
    ids=["nothing", "watermarks", "event", "dropped"],
)
def test_the_oldest_event_that_is_kept(kept: Kept, found: Received | None) -> None:
    assert kept.history.next(0) == found


def test_a_long_history_takes_few_reads() -> None:
    kept = Kept([at / 100 for at in range(10_000)], first=9_000)
    assert kept.history.since(T0 + timedelta(hours=50)) == 5_000
    assert kept.reads < 20
