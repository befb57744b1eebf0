"""The analyses against references that follow the definitions visitor by visitor."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from analytics_core import Answer, Question, TimeRange
from analytics_core.testing import MemoryReader, batch, started
from analytics_user_behavior.plugin import UserBehavior

START = datetime(2025, 3, 28, 23, tzinfo=UTC)  # 29 March, 00:00 in Berlin; clocks change on the 30th
RANGE = TimeRange(START, datetime(2025, 4, 1, 22, tzinfo=UTC), "Europe/Berlin")


def ask(rows: list[dict[str, Any]], analysis: str, asked: TimeRange = RANGE, **parameters: Any) -> Answer:
    question = Question(analysis=analysis, tenant="default", range=asked, parameters=parameters)
    with MemoryReader([batch(rows)], asked) as events:
        return started(UserBehavior).insight(question, events)


def event(user: str | None, hours: float, name: str = "view", **more: Any) -> dict[str, Any]:
    return {"event": name, "user_id": user, "timestamp": START + timedelta(hours=hours), **more}


# --- sessions --------------------------------------------------------------------------------------------------------


def test_sessions_by_hand() -> None:
    rows = [
        event("a", 23.8),
        event("a", 24.1),  # across local midnight: the session of its first event's day
        event("a", 24.7),
        event("b", 30, session_id="s"),
        event("b", 36, session_id="s"),
        event("c", 30, session_id="s"),
        event(None, 30),
        event("a", -0.1),  # before the range
    ]
    table = ask(rows, "sessions").table.to_pylist()
    assert [row["day"] for row in table] == [date(2025, 3, 29) + timedelta(days=n) for n in range(4)]
    assert [row["sessions"] for row in table] == [1, 3, 0, 0]
    assert [row["users"] for row in table] == [1, 3, 0, 0]
    assert table[0]["median_duration"] == pytest.approx(0.3 * 3600)
    assert table[1]["mean_duration"] == pytest.approx(6 * 3600 / 3)
    assert table[1]["p90_duration"] == pytest.approx(0.8 * 6 * 3600)
    assert table[1]["events_per_session"] == pytest.approx(4 / 3)
    assert table[1]["bounce_rate"] == pytest.approx(2 / 3)
    assert table[2]["bounce_rate"] is None


def test_sessions_of_nothing() -> None:
    answer = ask([], "sessions")
    assert answer.table["sessions"].to_pylist() == [0, 0, 0, 0]
    assert answer.insights == []


def test_the_sessions_insight_has_the_totals() -> None:
    answer = ask([event("a", 1), event("a", 9), event("b", 1), event("b", 1.1)], "sessions")
    assert answer.insights[0].data == {"sessions": 3, "bounces": 2, "bounce_rate": 2 / 3, "events": 4}
    assert answer.recommendations == [], "two of three bounces may be chance"


def test_an_unknown_analysis_is_refused() -> None:
    with pytest.raises(ValueError, match="analysis 'pathos' is not provided; valid are: sessions"):
        ask([], "pathos")
