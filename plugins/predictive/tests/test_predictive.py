"""The forecast: figures by hand, honest refusals, and the published error of the naive method on M4 weekly."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analytics_core import Answer, Question, Series, TimeRange
from analytics_core.testing import MemoryReader, batch, check_plugin, started
from analytics_predictive.calendar import following
from analytics_predictive.forecast import forecast
from analytics_predictive.plugin import Predictive
from analytics_predictive.seasonal import backtest, interval, mase, seasonal_naive, smape

DAY0 = datetime(2025, 3, 3, tzinfo=UTC)
M4 = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "m4"


def ask(values: list[float], *, end: datetime | None = None, **parameters: Any) -> Answer:
    days = [DAY0 + timedelta(days=n) for n in range(len(values))]
    series = Series(
        metric="m",
        at=np.array([int(day.timestamp() * 1e6) for day in days], np.int64),
        values=np.array(values, np.float64),
        step_seconds=86_400,
    )
    asked = TimeRange(DAY0, end or DAY0 + timedelta(days=max(len(values), 1)))
    with MemoryReader([], asked, metrics={"m": series}) as events:
        return forecast(events, "m", **parameters)


def test_the_last_season_is_repeated() -> None:
    answer = ask([*range(14), *range(100, 107)], horizon=9)
    assert answer.table["forecast"].to_pylist() == [*range(100, 107), 100, 101]
    assert answer.table["timestamp"][0].as_py() == DAY0 + timedelta(days=21)


def test_the_interval_has_the_quantiles_of_the_past_differences() -> None:
    history = np.cumsum(np.arange(1.0, 12.0))
    low, high = interval(history, 2, 1, 0.8)
    one, two = np.diff(history), history[2:] - history[:-2]
    assert low.tolist() == pytest.approx([history[-1] + np.quantile(one, 0.1), history[-1] + np.quantile(two, 0.1)])
    assert high.tolist() == pytest.approx([history[-1] + np.quantile(one, 0.9), history[-1] + np.quantile(two, 0.9)])


def test_bounds_that_the_history_cannot_give_are_null() -> None:
    answer = ask([1.0, 2.0] * 9, season=2, horizon=14)
    known = [value is not None for value in answer.table["lower"].to_pylist()]
    assert known == [True] * 10 + [False] * 4


def test_the_backtest_is_in_the_answer() -> None:
    found = ask([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0] * 6, horizon=7).insights[0]
    assert found.key == "backtest"
    assert found.data["smape"] == 0
    assert found.data["coverage"] == 1
    assert "mase" not in found.data, "a history without seasonal change has no scale"


def test_backtest_origins_see_the_past_alone() -> None:
    history = np.array([1.0, 2, 1, 2, 1, 2, 9, 9])
    tested = backtest(history, 2, 2, 0.8)
    assert tested is not None
    assert tested.origins == 1
    assert tested.smape == pytest.approx(smape(history[6:], np.array([1.0, 2.0])))


def test_a_short_history_is_said_to_be_short() -> None:
    answer = ask([1.0, 2.0])
    assert len(answer.table) == 0
    assert [i.key for i in answer.insights] == ["history-too-short"]
    assert answer.insights[0].data == {"values": 2, "needed": 3}
    assert [i.key for i in ask([1.0] * 10, season=10).insights] == ["history-too-short"]


def test_without_two_seasons_the_last_value_is_repeated_and_that_is_said() -> None:
    answer = ask([1.0, 2, 3, 4, 5, 6, 7, 8], horizon=3)
    assert answer.table["forecast"].to_pylist() == [8, 8, 8]
    assert "season" in {insight.key for insight in answer.insights}


def test_the_bucket_that_is_not_over_is_left_out() -> None:
    answer = ask([5.0] * 20 + [1.0], end=DAY0 + timedelta(days=20, hours=3), horizon=1)
    assert answer.table["forecast"].to_pylist() == [5.0]
    assert answer.table["timestamp"][0].as_py() == DAY0 + timedelta(days=20)


def test_history_begins_after_the_last_unknown_value() -> None:
    assert [i.key for i in ask([1.0] * 20 + [float("nan"), 2.0]).insights] == ["history-too-short"]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("hour", ["2025-03-29T00:00:00+00:00", "2025-03-29T01:00:00+00:00"]),
        ("day", ["2025-03-29T23:00:00+00:00", "2025-03-30T22:00:00+00:00"]),
        ("week", ["2025-04-04T22:00:00+00:00", "2025-04-11T22:00:00+00:00"]),
        ("month", ["2025-03-31T22:00:00+00:00", "2025-04-30T22:00:00+00:00"]),
    ],
)
def test_buckets_follow_the_calendar_across_the_change_of_clocks(interval: str, expected: list[str]) -> None:
    last = datetime(2025, 3, 28, 23, tzinfo=UTC)  # Saturday, 29 March, 00:00 in Berlin
    assert [at.isoformat() for at in following(last, interval, "Europe/Berlin", 2)] == expected


def test_the_hook_asks_the_reader_for_event_counts_by_name() -> None:
    rows = [
        {"event": "buy", "timestamp": DAY0 + timedelta(days=n, hours=5)} for n in range(9) for _ in range(n % 3 + 1)
    ]
    asked = TimeRange(DAY0, DAY0 + timedelta(days=9))
    question = Question(
        analysis="forecast",
        tenant="default",
        range=asked,
        parameters={"metric": "buy", "interval": "day", "season": 3, "horizon": 3, "level": 0.8},
    )
    with MemoryReader([batch(rows)], asked) as events:
        answer = started(Predictive).insight(question, events)
    assert answer.table["forecast"].to_pylist() == [1, 2, 3]


def test_the_contract_of_plugins_is_kept() -> None:
    checks = check_plugin(Predictive).checks
    assert checks["hooks"] == "passed"
    assert checks["splits"] == "skipped: it has no process"
    assert checks["insight"] == "skipped: forecast cannot be asked without parameters"


def test_smape_and_mase_by_hand() -> None:
    assert smape(np.array([0.0, 100.0]), np.array([0.0, 50.0])) == pytest.approx(200 * 50 / 150 / 2)
    assert mase(np.array([4.0]), np.array([1.0]), np.array([1.0, 2.0, 4.0]), 1) == pytest.approx(3 / 1.5)


@pytest.mark.shared
def test_the_naive_method_has_its_published_error_on_m4_weekly() -> None:
    if not M4.exists():
        pytest.skip(f"{M4} is absent: the M4 series are not part of the project")
    errors, scaled = [], []
    with (M4 / "Weekly-train.csv").open() as train, (M4 / "Weekly-test.csv").open() as test:
        for past, future in zip(list(csv.reader(train))[1:], list(csv.reader(test))[1:], strict=True):
            history = np.array([float(value) for value in past[1:] if value not in ("", "NA")])
            actual = np.array([float(value) for value in future[1:] if value not in ("", "NA")])
            point = seasonal_naive(history, 13, 1)
            errors.append(smape(actual, point))
            scaled.append(mase(actual, point, history, 1))
    assert len(errors) == 359
    assert np.mean(errors) == pytest.approx(9.161, abs=0.0005)
    assert np.mean(scaled) == pytest.approx(2.777, abs=0.0005)
