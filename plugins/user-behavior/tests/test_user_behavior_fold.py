"""The live fold: sessions by hand, and the same figures whatever the batches are."""

from __future__ import annotations

import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analytics_core import EventBatch, HistogramSketch, ProcessResult, UniqueSketch
from analytics_core.testing import batch, check_deterministic, check_plugin, run, started
from analytics_user_behavior.clusters import ROW
from analytics_user_behavior.plugin import UserBehavior

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def event(user: str, minutes: float, name: str = "view", **more: Any) -> dict[str, Any]:
    return {"event": name, "user_id": user, "timestamp": at(minutes), **more}


def quiet(minutes: float) -> EventBatch:
    return batch([], watermark=at(minutes))


def values(result: ProcessResult, name: str) -> dict[float, float]:
    """The metric by minutes after noon."""
    return {(m.window.start - NOON) / timedelta(minutes=1): m.value for m in result.metrics if m.name == name}


def test_sessions_of_one_user_end_after_the_gap() -> None:
    rows = [event("u", 0), event("u", 10), event("u", 40), event("u", 71, "buy")]
    result = run(UserBehavior, [batch(rows), quiet(71 + 31)])
    assert values(result, "events") == {0: 1, 10: 1, 40: 1, 71: 1}
    assert {minute: n for minute, n in values(result, "sessions").items() if n} == {0: 1, 71: 1}
    assert values(result, "sessions_ended") == {40: 1, 71: 1}
    assert values(result, "bounces") == {40: 0, 71: 1}
    assert values(result, "bounce_rate") == {40: 0.0, 71: 1.0}
    assert values(result, "session_duration")[40] == pytest.approx(2400, rel=0.01)
    assert values(result, "events_per_session") == pytest.approx({40: 3, 71: 1}, rel=0.01)


def test_a_session_is_open_until_the_clock_is_beyond_the_gap() -> None:
    plugin = started(UserBehavior)
    plugin.process(batch([event("u", 0)]))
    assert plugin.process(quiet(30)) is None
    assert plugin.process(quiet(30.9)) is None, "the clock is looked at in whole minutes"
    assert values(plugin.process(quiet(31)), "sessions_ended") == {0: 1}
    assert plugin.process(quiet(500)) is None


def test_an_event_in_between_joins_two_sessions_and_corrects_the_count() -> None:
    plugin = started(UserBehavior)
    plugin.process(batch([event("u", 0, received_at=at(55)), event("u", 50, received_at=at(55))]))
    corrected = plugin.process(batch([event("u", 25, received_at=at(56))], first_seq=2))
    assert values(corrected, "sessions") == {25: 0, 50: 0}
    ended = plugin.process(quiet(120))
    assert values(ended, "sessions_ended") == {50: 1}
    assert values(ended, "session_duration")[50] == pytest.approx(3000, rel=0.01)


def test_the_receipt_keeps_a_session_open_for_events_that_come_late() -> None:
    plugin = started(UserBehavior)
    plugin.process(batch([event("u", 0, received_at=at(100))]))
    assert plugin.process(quiet(130)) is None
    assert values(plugin.process(quiet(131)), "sessions_ended") == {0: 1}


def test_the_clients_session_id_beats_the_gap_and_is_the_visitors_own() -> None:
    rows = [
        event("u", 0, session_id="s", received_at=at(300)),
        event("u", 200, session_id="s", received_at=at(300)),
        event("v", 10, session_id="s", received_at=at(300)),
        event("u", 11, received_at=at(300)),
    ]
    result = run(UserBehavior, [batch(rows), quiet(400)])
    assert {minute: n for minute, n in values(result, "sessions").items() if n} == {0: 1, 10: 1, 11: 1}
    assert values(result, "sessions_ended") == {200: 1, 10: 1, 11: 1}


def test_events_of_nobody_are_counted_and_open_no_session() -> None:
    result = run(UserBehavior, [batch([{"event": "ping", "timestamp": NOON}]), quiet(100)])
    assert values(result, "events") == {0: 1}
    assert values(result, "sessions") == values(result, "active_users") == {0: 0}
    assert values(result, "sessions_ended") == {}


def test_the_anonymous_id_stands_in_for_the_user_id() -> None:
    rows = [{"event": "a", "anonymous_id": "x", "timestamp": at(m)} for m in (0, 0.5)]
    result = run(UserBehavior, [batch([*rows, event("y", 0)])])
    assert values(result, "active_users") == {0: 2}
    assert values(result, "sessions") == {0: 2}


def test_history_stays_out_of_the_live_metrics_and_is_counted() -> None:
    rows = [event("u", -1441, received_at=NOON), event("u", -1440, received_at=NOON), event("u", 0)]
    result = run(UserBehavior, [batch(rows)])
    assert values(result, "late_events") == {0: 1}
    assert values(result, "events") == {-1440: 1, 0: 1}


def test_lateness_and_gap_are_settings() -> None:
    rows = [event("u", -61, received_at=NOON), event("u", 0), event("u", 6)]
    result = run(UserBehavior, [batch(rows)], {"lateness_hours": 1, "session_gap_minutes": 5})
    assert values(result, "late_events") == {0: 1}
    assert values(result, "sessions") == {0: 1, 6: 1}


def test_only_what_changed_is_given() -> None:
    plugin = started(UserBehavior)
    plugin.process(batch([event("u", 0), event("u", 5)]))
    second = plugin.process(batch([event("v", 5)], first_seq=2))
    assert {m.window.start for m in second.metrics} == {at(5)}
    assert values(second, "active_users") == {5: 2}


def test_tenants_are_apart() -> None:
    plugin = started(UserBehavior)
    plugin.process(batch([event("u", 0)], tenant="a"))
    assert values(plugin.process(batch([event("u", 0)], tenant="b")), "events") == {0: 1}
    assert plugin.process(batch([], tenant="c", watermark=at(90))) is None
    assert values(plugin.process(batch([], tenant="a", watermark=at(90))), "sessions_ended") == {0: 1}


def test_submitted_sessions_give_patterns_and_insights_when_they_are_closed() -> None:
    rows = [event(f"u{n}", n, name) for n in range(4) for name in ("view", "cart")]
    rows += [event(f"bounce{n}", 5) for n in range(6)]
    result = run(UserBehavior, [batch(rows), quiet(600)])
    assert [(p.key, p.count) for p in result.patterns] == [("transition:view>cart", 4)]
    found = {insight.key: insight.data for insight in result.insights}
    assert found["bounces"] == {"sessions": 10, "bounces": 6, "bounce_rate": 0.6}
    assert found["drop-off"] == {"event": "view", "sessions": 10, "exits": 6, "share": 0.6}


def test_nothing_is_claimed_of_an_even_split() -> None:
    rows = [event("a", 0), event("b", 0, "cart"), event("b", 1, "buy")]
    assert run(UserBehavior, [batch(rows), quiet(600)]).insights == []


def test_a_rise_of_the_bounce_rate_is_told_with_its_figures() -> None:
    day = [event(f"d{n}", -20 * 60 + n, name) for n in range(900) for name in ("view", "buy")]
    hour = [event(f"h{n}", 60 + n * 0.5) for n in range(60)]
    result = run(UserBehavior, [batch(day), batch(hour, first_seq=1800), quiet(300)])
    rise = next(i for i in result.insights if i.key == "bounce-rise:2025-03-01T13")
    assert rise.data == {"bounce_rate": 1.0, "sessions": 60, "usual_rate": 0.0, "usual_sessions": 900}
    assert rise.confidence > 0.999


def test_a_pattern_that_lost_its_rank_is_corrected_once() -> None:
    plugin = started(UserBehavior)
    first = [event("u", n * 0.01, f"a{n}") for n in range(3)]
    plugin.process(batch(first))
    given = plugin.process(batch([event("u", 1, "b0")], first_seq=3)).patterns
    assert {p.key for p in given} == {"transition:a0>a1", "transition:a1>a2"}
    many = [event("w", 1 + n * 0.001, f"b{n % 12}") for n in range(300)]
    plugin.process(batch(many, first_seq=4))
    later = {p.key: p.count for p in plugin.process(quiet(3)).patterns}
    assert later["transition:a0>a1"] == 1
    assert len(later) == 12


# --- whatever the batches are ----------------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Events of few users in log order; some happened long before they arrived, some ahead of their time."""
    rows = []
    clock = 0.0
    for _ in range(draw(st.integers(1, 40))):
        clock += draw(st.sampled_from([0, 0, 0.01, 0.3, 1, 7, 29, 31, 70, 400]))
        behind = draw(st.sampled_from([0, 0, 0, 0.2, 5, 29, 30, 31, 90, 1439, 1441, -3, -100]))
        rows.append(
            event(
                draw(st.sampled_from("uvw")),
                clock - behind,
                draw(st.sampled_from(["view", "cart", "buy"])),
                received_at=at(clock - draw(st.sampled_from([0, 0, 0, 0.5]))),
                session_id=draw(st.sampled_from([None, None, "s1"])),
            )
        )
    return rows


@given(streams(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=8)
def test_batches_and_generations_change_nothing(rows: list[dict[str, Any]], seed: int) -> None:
    check_deterministic(UserBehavior, rows, seed=seed)


def test_the_contract_of_plugins_is_kept() -> None:
    skipped = {name: how for name, how in check_plugin(UserBehavior).checks.items() if how != "passed"}
    assert skipped == {"enrich": "skipped: it has no enrich"}
    rows = [
        event(f"u{n % 7}", n * 11, ("view", "cart", "buy")[n % 3], received_at=at(n * 11 + n % 2)) for n in range(40)
    ]
    check_plugin(UserBehavior, rows, {"session_gap_minutes": 60, "lateness_hours": 1}, seed=1)


@given(streams())
@settings(deadline=None, max_examples=40)
@example([event("u", 0, received_at=at(0)), event("u", 0, received_at=at(0))])
def test_ended_sessions_are_those_of_a_plain_simulation(rows: list[dict[str, Any]]) -> None:
    result = run(UserBehavior, [batch(rows), quiet(10_000)])
    expected = simulate(rows)
    ended = defaultdict(list)
    for start, end, count in expected:
        ended[float(end // 60_000_000)].append((start, end, count))
    assert values(result, "sessions_ended") == {minute: len(found) for minute, found in ended.items()}
    assert values(result, "bounces") == {m: sum(n == 1 for _, _, n in found) for m, found in ended.items()}
    lengths = {m: sum(n for _, _, n in found) for m, found in ended.items()}
    for metric in result.metrics:
        if metric.name == "events_per_session":
            sketch = HistogramSketch.from_bytes(metric.sketch or b"")
            assert sketch.total == lengths[(metric.window.start - NOON) / timedelta(minutes=1)]


def simulate(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """(start, end, events) of every session in microseconds after noon, event by event from the definition."""

    def micros(when: datetime) -> int:
        return (when - NOON) // timedelta(microseconds=1)

    minute, gap = 60_000_000, 30 * 60_000_000
    clock = None
    sessions: list[dict[str, Any]] = []
    over = []
    for row in [*rows, {"received_at": at(10_000)}]:
        now = micros(row["received_at"]) // minute
        if clock is None or now > clock:
            clock = now
            closed = [s for s in sessions if max(*s["at"], s["received"]) + gap < clock * minute]
            over += closed
            sessions = [s for s in sessions if s not in closed]
        when = micros(row["timestamp"]) if "timestamp" in row else None
        if when is None or when < (clock - 1440) * minute:
            continue
        key = (row["user_id"], row.get("session_id"))
        near = [
            s for s in sessions if s["key"] == key and (key[1] or any(abs(when - other) <= gap for other in s["at"]))
        ]
        merged = {"key": key, "at": [when], "received": micros(row["received_at"])}
        for s in near:
            merged["at"] += s["at"]
            merged["received"] = max(merged["received"], s["received"])
        sessions = [s for s in sessions if s not in near] + [merged]
    return [(min(s["at"]), max(s["at"]), len(s["at"])) for s in over]


def test_many_users_in_few_batches_equal_many_batches() -> None:
    draw = np.random.default_rng(5)
    rows = [
        event(f"u{user}", minute, f"e{name}", received_at=at(minute))
        for user, minute, name in zip(
            draw.integers(0, 400, 3000), np.sort(draw.random(3000)) * 300, draw.integers(0, 300, 3000), strict=True
        )
    ]
    settings_ = {"session_gap_minutes": 10}
    whole = run(UserBehavior, [batch(rows), quiet(1000)], settings_)
    parts = [batch(rows[n : n + 70], first_seq=n) for n in range(0, 3000, 70)]
    split = run(UserBehavior, [*parts, quiet(1000)], settings_)
    assert whole == split
    assert sum(values(whole, "events").values()) == 3000
    assert sum(values(whole, "sessions").values()) == sum(values(whole, "sessions_ended").values())
    active = UniqueSketch()
    for metric in whole.metrics:
        if metric.name == "active_users":
            active.merge(UniqueSketch.from_bytes(metric.sketch or b""))
    assert active.estimate() == len({row["user_id"] for row in rows})


def test_spans_of_minutes_give_what_minutes_one_by_one_give() -> None:
    """A batch for each event, against all in one: visitors who come again, late, early and out of turn."""
    draw = np.random.default_rng(9)
    for step in (0.4, 6, 45):
        clock = np.cumsum(draw.exponential(step, 80))
        behind = draw.choice([0, 0, 0, 0, 0, 0, 0.5, 29, 40, 1441, -20], 80)
        rows = [
            event(f"u{user}", minute - late, f"e{name}", received_at=at(minute), session_id=[None, None, "s"][session])
            for minute, late, user, name, session in zip(
                clock,
                behind,
                draw.integers(0, 9, 80),
                draw.integers(0, 15, 80),
                draw.integers(0, 3, 80),
                strict=True,
            )
        ]
        whole, single = started(UserBehavior), started(UserBehavior)
        given = [whole.process(batch(rows)), whole.process(quiet(10_000))]
        parts = [single.process(batch([row], first_seq=n)) for n, row in enumerate(rows)]
        assert latest(given) == latest([*parts, single.process(quiet(10_000))])
        assert whole.export_state() == single.export_state()


def latest(results: list[ProcessResult | None]) -> dict[Any, Any]:
    """What is left of outputs that replace each other."""
    found = [result for result in results if result is not None]
    metrics = {(m.name, m.window): m for result in found for m in result.metrics}
    return metrics | {each.key: each for result in found for each in (*result.patterns, *result.insights)}


# --- how much work it is ---------------------------------------------------------------------------------------------


def calls(plugin: UserBehavior, given: EventBatch) -> int:
    """How many calls, of Python and of C functions, one `process` makes."""
    made = 0

    def count(_: FrameType, kind: str, __: object) -> None:
        nonlocal made
        made += kind in ("call", "c_call")

    sys.setprofile(count)
    try:
        plugin.process(given)
    finally:
        sys.setprofile(None)
    return made


def history(events: int, apart: float, first: float = 0) -> list[dict[str, Any]]:
    """Events ``apart`` minutes from each other, each seventh visitor's, of 200 names: 40 000 possible steps."""
    return [event(f"u{n // 7}", first + n * apart, f"e{n * n % 200}") for n in range(events)]


def test_sparse_history_costs_little_more_than_the_same_events_at_once() -> None:
    """10 000 events a day make a minute of seven; the work of a minute is what it gives, not what is known."""
    dense = calls(started(UserBehavior), batch(history(1500, 0.001)))
    sparse = calls(started(UserBehavior), batch(history(1500, 0.14)))
    assert dense < 20 * 1500
    assert sparse < 60 * 1500


def test_a_day_of_history_before_makes_no_event_dearer() -> None:
    plugin = started(UserBehavior)
    first = calls(plugin, batch(history(300, 0.14)))
    plugin.process(batch(history(6000, 0.2, first=50), first_seq=300))
    assert calls(plugin, batch(history(300, 0.14, first=1260), first_seq=6300)) < 2 * first


def test_time_in_which_nothing_happens_costs_nothing() -> None:
    def idle(minutes: float) -> int:
        plugin = started(UserBehavior)
        plugin.process(batch(history(50, 1)))
        return calls(plugin, quiet(minutes))

    assert idle(60 * 24 * 365 * 10) <= idle(60 * 24) + 50


def test_a_foreign_state_is_refused() -> None:
    plugin = started(UserBehavior)
    with pytest.raises(ValueError, match="no Arrow stream"):
        plugin.import_state(b"something else", 1)
    with pytest.raises(ValueError, match="version 9 is not known; valid are: 1, 2"):
        plugin.import_state(plugin.export_state(), 9)


def test_a_state_of_version_1_is_taken_over() -> None:
    """It had a column for each field of an open session."""
    plugin = started(UserBehavior)
    plugin.process(batch([event(f"u{n}", n, f"e{n % 7}") for n in range(20)]))
    now = plugin.export_state()
    table = pa.ipc.open_stream(now).read_all()
    rows = table["open"][0].values.to_numpy().view(ROW)
    table = table.drop_columns("open")
    for field in ROW.names or ():
        column = np.ascontiguousarray(rows[field])
        column = column.view(np.uint8) if column.dtype == np.bool_ else column
        table = table.append_column(f"open.{field}", pa.LargeListArray.from_arrays([0, len(rows)], column))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    later = started(UserBehavior)
    later.import_state(sink.getvalue().to_pybytes(), 1)
    assert later.export_state() == now


@pytest.mark.parametrize(
    ("erased", "ended"),
    [((), {1: 1, 2: 1, 3: 1}), (("x",), {1: 1, 2: 1, 3: 1}), (("u", "w"), {1: 1}), (("v",), {2: 1, 3: 1})],
)
def test_open_sessions_of_erased_visitors_are_forgotten_and_no_others(
    erased: tuple[str, ...], ended: dict[float, float]
) -> None:
    plugin = started(UserBehavior)
    visitor = {**event("w", 3), "user_id": None, "anonymous_id": "w"}
    plugin.process(batch([event("u", 0), event("v", 1), event("u", 2), visitor]))
    plugin.erase("another", ["u", "v", "w"])
    plugin.erase("default", erased)
    moved = started(UserBehavior)
    moved.import_state(plugin.export_state(), 2)
    for kept in (plugin, moved):
        assert values(kept.process(quiet(60)), "sessions_ended") == ended
