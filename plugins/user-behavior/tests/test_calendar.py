"""Periods against the local date of each instant, one by one."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import TimeRange
from analytics_core.testing import MemoryReader, batch
from analytics_user_behavior.calendar import WEEKDAYS, Period, micros, moment, periods

HALF_HOUR = timedelta(minutes=30)
ZONES = (
    "UTC",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Pacific/Apia",
)
instants = st.integers(0, 24 * 365 * 48).map(lambda n: datetime(2006, 1, 1, tzinfo=UTC) + n * HALF_HOUR)


def begin(day: date, period: Period, week_start: str = "monday") -> date:
    """The date on which the period of a local date begins."""
    if period == "month":
        return day.replace(day=1)
    return day - timedelta(days=(day.weekday() - WEEKDAYS.index(week_start)) % 7 if period == "week" else 0)


@settings(max_examples=60)
@given(
    instants,
    st.integers(1, 4000),
    st.sampled_from(ZONES),
    st.sampled_from(["day", "week", "month"]),
    st.sampled_from(WEEKDAYS),
    st.integers(0, 3),
)
def test_an_instant_is_in_the_period_of_its_local_date(
    start: datetime, half_hours: int, zone: str, period: Period, week_start: str, before: int
) -> None:
    asked = TimeRange(start, start + half_hours * HALF_HOUR, zone)
    found = periods(asked, period, before=before, week_start=week_start)
    begins = found.begins().to_pylist()
    at = np.array([micros(start + n * HALF_HOUR) for n in range(0, half_hours, 1 + half_hours // 200)])
    at = np.append(at, micros(asked.end) - 1)
    for instant, place in zip(at.tolist(), found.of(at).tolist(), strict=True):
        assert begins[place] == begin(moment(instant).astimezone(ZoneInfo(zone)).date(), period, week_start)
        assert before <= place < len(found)
    assert begins == sorted(set(begins))
    assert found.start <= start < moment(int(found.edges[before + 1]))
    assert found.edges[-2] < micros(asked.end) <= found.edges[-1]


@pytest.mark.parametrize("zone", ZONES)
def test_edges_and_what_is_beside_them(zone: str) -> None:
    found = periods(TimeRange(datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), zone), "week")
    assert found.of(found.edges).tolist() == list(range(len(found) + 1))
    assert found.of(found.edges - 1).tolist() == list(range(-1, len(found)))
    assert found.of(np.array([0, 2**62])).tolist() == [-1, len(found)]


def test_days_of_a_clock_change_are_shorter_or_longer() -> None:
    april = TimeRange(datetime(2025, 4, 4, 13, tzinfo=UTC), datetime(2025, 4, 7, 13, tzinfo=UTC), "Australia/Lord_Howe")
    assert (np.diff(periods(april).edges) / 3.6e9).tolist() == [24, 24.5, 24]


def test_a_day_that_the_zone_skipped_is_none() -> None:
    samoa = TimeRange(datetime(2011, 12, 29, tzinfo=UTC), datetime(2012, 1, 1, tzinfo=UTC), "Pacific/Apia")
    assert [day.day for day in periods(samoa).begins().to_pylist()] == [28, 29, 31, 1]


def test_the_days_of_weeks_are_theirs() -> None:
    asked = TimeRange(datetime(2025, 3, 5, tzinfo=UTC), datetime(2025, 3, 12, tzinfo=UTC), "America/New_York")
    weeks = periods(asked, "week", week_start="sunday")
    assert weeks.begins().to_pylist() == [date(2025, 3, 2), date(2025, 3, 9)]
    assert weeks.of(weeks.daily().edges[:-1]).tolist() == [0] * 7 + [1] * 7


def test_a_period_is_complete_when_the_range_and_the_clock_are_beyond_it() -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    asked = TimeRange(start, start + timedelta(days=3))
    for hours, expected in ((47, [True, False, False]), (48, [True, True, False]), (900, [True, True, True])):
        rows = batch([{"event": "a", "timestamp": start}], watermark=start + timedelta(hours=hours))
        with MemoryReader([rows], asked) as events:
            assert periods(asked).complete(events).tolist() == expected
            assert periods(TimeRange(start, start + timedelta(hours=30))).complete(events).tolist()[0]
