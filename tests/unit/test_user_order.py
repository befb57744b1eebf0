"""Events in user order: the columns, what is meant of them, and the same answer whatever the parts."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import UserOrder
from analytics_core.errors import ParameterError
from analytics_core.events import micros
from analytics_core.lake.user_order import Run, cuts, joined, merged, ordered
from analytics_core.queries import user_order
from analytics_core.records import TimeRange
from analytics_core.testing import MemoryReader, batch

NOW = datetime(2025, 1, 1, tzinfo=UTC)
WHOLE = TimeRange(NOW, NOW + timedelta(days=1))

rows = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(["view", "cart", "buy"]),
            "user_id": st.sampled_from(["u1", "u2", None]),
            "anonymous_id": st.sampled_from(["a1", None]),
            "session_id": st.sampled_from(["s1", "s2", None]),
            "timestamp": st.integers(0, 6).map(lambda minute: NOW + timedelta(minutes=minute)),
            "properties": st.sampled_from([{}, {"plan": "pro"}, {"plan": "free", "n": 3}]),
        }
    ),
    max_size=30,
)


def read(reader: MemoryReader, **asked: Any) -> list[tuple[Any, ...]]:
    """Every event as ``(visitor, at, seq, name, marks, values)``."""
    found = []

    def step(part: UserOrder) -> list[tuple[Any, ...]]:
        marks = {mark: column.tolist() for mark, column in part.marks.items()}
        texts = {
            name: [part.words[name][code] if code >= 0 else None for code in codes]
            for name, codes in part.values.items()
        }
        return [
            (
                part.key[user],
                int(part.at[i]),
                int(part.seq[i]),
                part.names[part.name[i]],
                {mark for mark in marks if marks[mark][i]},
                {name: texts[name][i] for name in texts},
            )
            for i, user in enumerate(part.user().tolist())
        ]

    for some in reader.in_user_order(step, **asked):
        found += some
    return found


def who(row: dict[str, Any]) -> Any:
    return row["user_id"] or row["anonymous_id"] or (row["session_id"] and f"session {row['session_id']}")


@settings(max_examples=20)
@given(rows, st.integers(1, 8))
def test_each_visitor_has_its_events_in_order_whatever_the_parts(given_rows: list[dict[str, Any]], part: int) -> None:
    with pytest.MonkeyPatch.context() as patch, MemoryReader([batch(given_rows)], WHOLE) as reader:
        patch.setattr(user_order, "PART", part)
        found = read(
            reader, marks={"pro": {"properties.plan": "pro"}, "buys": {"event": "buy"}}, values=["properties.plan"]
        )
    mine: dict[Any, list[Any]] = {}
    for seq, row in enumerate(given_rows):
        if who(row):
            holds = {"pro": row["properties"].get("plan") == "pro", "buys": row["event"] == "buy"}
            marks = {mark for mark, held in holds.items() if held}
            values = {"properties.plan": row["properties"].get("plan")}
            mine.setdefault(who(row), []).append((micros(row["timestamp"]), seq, row["event"], marks, values))
    theirs: dict[Any, list[Any]] = {}
    for key, *event in found:
        theirs.setdefault(key, []).append(tuple(event))
    assert sorted(map(str, theirs.values())) == sorted(str(sorted(v, key=lambda e: e[:2])) for v in mine.values())


@settings(max_examples=15)
@given(rows)
def test_marked_only_and_filters_leave_the_events_that_sql_counts(given_rows: list[dict[str, Any]]) -> None:
    with MemoryReader([batch(given_rows)], WHOLE) as reader:
        for marks in ({"m": {"event": ["buy", "cart"]}}, {"m": {"event": "buy", "properties.plan": "pro"}}):
            kept = read(reader, marks=marks, marked_only=True)
            assert all(event[4] == {"m"} for event in kept)
            assert {e[2] for e in kept} == {e[2] for e in read(reader, marks=marks) if e[4]}


def test_the_first_event_of_a_visitor_is_known_whatever_is_asked() -> None:
    events = [
        {"event": "view", "user_id": "u", "timestamp": NOW - timedelta(days=3)},
        {"event": "view", "user_id": "u", "timestamp": NOW},
        {"event": "buy", "user_id": "u", "timestamp": NOW + timedelta(hours=1)},
    ]
    with MemoryReader([batch(events)], WHOLE) as reader:
        (first,) = reader.in_user_order(
            lambda part: part.first_at.tolist(), marks={"m": {"event": "buy"}}, marked_only=True
        )
        assert first == [micros(NOW - timedelta(days=3))]
        assert len(read(reader)) == 2
        assert len(read(reader, since=NOW - timedelta(days=7))) == 3


def test_a_session_of_nobody_is_a_visitor_that_is_not_known() -> None:
    events = [{"event": "view", "session_id": "s"}, {"event": "view", "user_id": "s"}, {"event": "view"}]
    with MemoryReader([batch(events)]) as reader:
        (known,) = reader.in_user_order(lambda part: part.known.tolist())
    assert sorted(known) == [False, True]


def test_there_is_nothing_to_fold_without_events() -> None:
    with MemoryReader([]) as reader:
        assert reader.in_user_order(len) == []


def test_a_step_that_never_returns_keeps_no_process_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_order, "PART", 1)
    daemons: list[bool] = []
    with MemoryReader([batch([{"event": "a", "user_id": f"u{i}"} for i in range(9)])], WHOLE) as reader:
        caller = threading.current_thread()
        both = threading.Barrier(2)

        def step(part: UserOrder) -> None:
            if len(daemons) < 2:
                daemons.append(threading.current_thread().daemon or threading.current_thread() is caller)
                both.wait(10)

        reader.in_user_order(step)
    assert daemons == [True, True]


def test_a_step_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_order, "PART", 1)
    with (
        MemoryReader([batch([{"event": "a", "user_id": f"u{i}"} for i in range(9)])], WHOLE) as reader,
        pytest.raises(IndexError, match="mine"),
    ):
        reader.in_user_order(lambda _: (_ for _ in ()).throw(IndexError("mine")))


def test_a_mark_that_is_none_says_which() -> None:
    with (
        MemoryReader([batch([{"event": "a", "user_id": "u"}])]) as reader,
        pytest.raises(ParameterError, match="step1"),
    ):
        reader.in_user_order(len, marks={"step1": {"plan": "pro"}})


events = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), max_size=40)


def run(pairs: Sequence[tuple[int, int]], first: int) -> Run:
    key = np.array([k for k, _ in pairs], np.uint64)
    at = np.array([t for _, t in pairs], np.int64)
    place = np.arange(first, first + len(pairs))
    return ordered(key, at, place, place.astype(np.int32), place.astype(np.uint64), place.astype(np.uint8))


def plain(run: Run) -> list[tuple[int, ...]]:
    return list(zip(run.key[run.user()].tolist(), run.at.tolist(), run.place.tolist(), strict=True))


@given(st.lists(events, max_size=4), st.sampled_from([1, 2**40]))
def test_runs_become_one_in_the_order_of_visitor_time_and_log(pieces: list[list[tuple[int, int]]], scale: int) -> None:
    runs, flat, first = [], [], 0
    for piece in pieces:
        scaled = [(k * scale, t * scale) for k, t in piece]
        runs.append(run(scaled, first))
        flat += [(k, t, first + i) for i, (k, t) in enumerate(scaled)]
        first += len(piece)
    whole = joined(runs)
    assert plain(whole) == sorted(flat)
    assert all((whole.name == whole.place).tolist())


@given(events, st.integers(1, 9))
def test_cuts_cover_every_visitor_once(pairs: list[tuple[int, int]], size: int) -> None:
    whole = run(pairs, 0)
    edges = cuts([whole, run(pairs[:3], 99)], size)
    pieces = [whole.span(low, high) for low, high in pairwise(edges)]
    assert [event for piece in pieces for event in plain(piece)] == plain(whole)
    assert edges == sorted(set(edges))


@given(events, st.data())
def test_what_is_kept_of_a_run_is_a_run(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    whole = run(pairs, 0)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))), np.bool_)
    assert plain(whole.where(kept)) == [event for event, keep in zip(plain(whole), kept, strict=True) if keep]
    users = whole.key % np.uint64(2) == 0
    assert plain(whole.visitors(users)) == [event for event in plain(whole) if event[0] % 2 == 0]
    assert list(map(operator.itemgetter(0), plain(merged(whole.where(kept), whole.where(~kept))))) == [
        k for k, *_ in plain(whole)
    ]
