"""Rates and latencies: by hand, against numpy, and the same whatever the batches are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, HistogramSketch, ParameterError, ProcessResult, Question, TimeRange
from analytics_core.testing import MemoryReader, batch, check_deterministic, check_plugin, run, started
from analytics_performance.plugin import Performance

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def request(minutes: float, duration: Any, name: str = "GET /", **properties: Any) -> dict[str, Any]:
    when = NOON + timedelta(minutes=minutes)
    return {"event": name, "timestamp": when, "properties": {"duration": duration, **properties}}


def figures(result: ProcessResult, name: str) -> dict[tuple[str, float], float]:
    return {
        (m.labels["event"], (m.window.start - NOON) / timedelta(minutes=1)): m.value
        for m in result.metrics
        if m.name == name
    }


def ask(rows: list[dict[str, Any]], **parameters: Any) -> Answer:
    asked = TimeRange(NOON - timedelta(days=1), NOON + timedelta(days=1), "Europe/Berlin")
    question = Question(analysis="latency", tenant="default", range=asked, parameters=parameters)
    with MemoryReader([batch(rows)], asked) as events:
        return started(Performance).insight(question, events)


def test_requests_errors_and_durations_per_minute_and_name() -> None:
    rows = [
        request(0, 10),
        request(0.5, 30, error=True),
        request(0.5, 20.5, status=503),
        request(1, 5, status=404),
        request(0, 7, "GET /cart"),
    ]
    result = run(Performance, [batch(rows)])
    assert figures(result, "requests") == {("GET /", 0): 3, ("GET /", 1): 1, ("GET /cart", 0): 1}
    assert figures(result, "errors") == {("GET /", 0): 2, ("GET /", 1): 0, ("GET /cart", 0): 0}
    assert figures(result, "duration")["GET /", 0] == pytest.approx(20.5, rel=0.01)
    sketch = next(m.sketch for m in result.metrics if m.name == "duration" and m.window.start == NOON)
    assert HistogramSketch.from_bytes(sketch or b"").total == pytest.approx(60.5)


@pytest.mark.parametrize("duration", ["12", None, True, [1], -1])
def test_what_is_no_duration_is_no_request(duration: Any) -> None:
    rows = [request(0, duration)]
    assert run(Performance, [batch(rows)]).metrics == []
    assert len(ask(rows).table) == 0


def test_a_key_that_is_written_with_escapes_is_read() -> None:
    events = batch([{"event": "GET /", "timestamp": NOON, "properties": '{"\\u0064uration": 12}'}])
    assert figures(run(Performance, [events]), "requests") == {("GET /", 0): 1}


def test_names_beyond_the_limit_share_a_series() -> None:
    rows = [request(0, 1, f"n{n}") for n in range(4)]
    result = run(Performance, [batch(rows)], {"max_names": 2})
    assert figures(result, "requests") == {("n0", 0): 1, ("n1", 0): 1, ("(other)", 0): 2}


def test_history_stays_out_of_the_live_metrics() -> None:
    rows = [{**request(-1441, 1), "received_at": NOON}, request(0, 1)]
    assert figures(run(Performance, [batch(rows)]), "requests") == {("GET /", 0): 1}


def test_an_hour_that_is_far_slower_than_the_day_is_told() -> None:
    rows = [request(hour * 60 + n, 500 if hour == 5 else 100) for hour in range(6) for n in range(60)]
    result = run(Performance, [batch(rows), batch([], watermark=NOON + timedelta(hours=6, minutes=1))])
    (found,) = result.insights
    assert found.data["p95"] == pytest.approx(500, rel=0.01)
    assert found.data["usual_p95"] == pytest.approx(100, rel=0.01)
    assert (found.data["event"], found.data["requests"], found.data["hours"]) == ("GET /", 60, 5)


def test_an_hour_like_the_others_is_not_told() -> None:
    rows = [request(hour * 60 + n, 100 + hour) for hour in range(6) for n in range(60)]
    later = batch([], watermark=NOON + timedelta(hours=7))
    assert run(Performance, [batch(rows), later]).insights == []


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows, clock = [], 0.0
    for _ in range(draw(st.integers(1, 30))):
        clock += draw(st.sampled_from([0, 0, 0.2, 20, 61, 500]))
        behind = draw(st.sampled_from([0, 0, 3, 1439, 1441, -90]))
        row = request(clock - behind, draw(st.sampled_from([0, 0.1, 12, 1e6, "x"])), draw(st.sampled_from("abc")))
        rows.append({**row, "received_at": NOON + timedelta(minutes=clock)})
    return rows


@given(streams(), st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_batches_and_generations_change_nothing(rows: list[dict[str, Any]], seed: int) -> None:
    check_deterministic(Performance, rows, seed=seed)


def test_the_contract_of_plugins_is_kept() -> None:
    skipped = {name: how for name, how in check_plugin(Performance).checks.items() if how != "passed"}
    assert skipped == {"enrich": "skipped: it has no enrich"}
    slow = [request(hour * 60 + n, 300 if hour == 3 else 100) for hour in range(4) for n in range(50)]
    check_plugin(Performance, slow, {"max_names": 1}, seed=1)


def test_insights_do_not_depend_on_batches() -> None:
    rows = [request(hour * 60 + n, 300 if hour == 4 else 100) for hour in range(6) for n in range(50)]
    split = [batch(rows[n : n + 7], first_seq=n) for n in range(0, len(rows), 7)]
    assert run(Performance, split) == run(Performance, [batch(rows)])
    assert len(run(Performance, split).insights) == 1


def test_latency_equals_numpy() -> None:
    draw = np.random.default_rng(3)
    durations = draw.lognormal(4, 1, 500)
    rows = [
        request(n % 90, float(value), "slow" if n % 5 == 0 else "quick", status=500 if n % 10 == 0 else 200)
        for n, value in enumerate(durations)
    ]
    table = ask(rows).table.to_pylist()
    assert [(row["group"], row["count"], row["errors"]) for row in table] == [("quick", 400, 0), ("slow", 100, 50)]
    slow = durations[::5]
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert table[1][name] == pytest.approx(np.quantile(slow, q))
    assert table[1]["error_rate"] == 0.5


def test_latency_over_time_and_by_property() -> None:
    rows = [request(0, 1, page="a"), request(30, 3, page="a"), request(90, 5), request(90, 9, "other", page="b")]
    table = ask(rows, breakdown="properties.page", interval="hour", event="GET /").table.to_pylist()
    assert [(row["bucket"].hour, row["group"], row["count"], row["p50"]) for row in table] == [
        (13, "a", 2, 2.0),
        (14, "(none)", 1, 5.0),
    ]


def test_the_most_frequent_groups_are_given() -> None:
    rows = [request(0, 1, name) for name in ("a", "b", "b", "c", "c", "c")]
    assert ask(rows, limit=2).table["group"].to_pylist() == ["c", "b"]


def test_the_slowest_and_the_most_failing_are_told_with_figures() -> None:
    rows = [request(0, 100, "a", error=True), request(0, 900, "b"), request(0, 100, "a")]
    found = {insight.key: insight.data for insight in ask(rows).insights}
    assert found["slowest"]["group"] == "b"
    assert found["failing"] == {"group": "a", "count": 2, "errors": 1, "error_rate": 0.5}


@pytest.mark.parametrize("breakdown", ["plan", "properties.", "properties.a..b"])
def test_a_breakdown_that_is_none_is_refused(breakdown: str) -> None:
    with pytest.raises(
        ParameterError, match=rf"breakdown: '{breakdown}' is none; valid are: event, properties\.x, source"
    ):
        ask([request(0, 1)], breakdown=breakdown)
