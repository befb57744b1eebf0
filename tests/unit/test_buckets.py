"""Buckets: edges partition the range, each is a boundary of the local calendar, and the clock changes are right."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import ParameterError
from analytics_core.events import micros, moment
from analytics_core.metrics.buckets import MAX_BUCKETS, buckets, instant

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",  # changed its clocks at midnight: days without a 00:00
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "America/Havana",  # midnight comes twice
    "Pacific/Apia",  # skipped 2011-12-30
    "Africa/Casablanca",
    "America/St_Johns",
]
HOUR = 3_600_000_000


def hours(spans: object) -> list[float]:
    return (np.diff(spans.edges) / HOUR).tolist()


def is_boundary(at: int, interval: str, zone: ZoneInfo) -> bool:
    """By a second way: the label of the local calendar differs from that of the microsecond before, or begins anew."""
    now, before = (moment(t).astimezone(zone) for t in (at, at - 1))
    label = {
        "minute": lambda t: t.replace(second=0, microsecond=0, tzinfo=None, fold=0),
        "hour": lambda t: t.replace(minute=0, second=0, microsecond=0, tzinfo=None, fold=0),
        "day": lambda t: t.date(),
        "week": lambda t: t.date().isocalendar()[:2],
        "month": lambda t: (t.year, t.month),
    }[interval]
    begins_anew = interval == "hour" and (now.minute, now.second, now.microsecond) == (0, 0, 0)
    return label(now) != label(before) or begins_anew


@settings(deadline=None, max_examples=60)
@given(
    zone=st.sampled_from(ZONES),
    interval=st.sampled_from(["minute", "hour", "day", "week", "month"]),
    start=st.integers(1_104_537_600_000_000, 2_051_222_400_000_000),  # 2005 to 2035
    share=st.floats(0.001, 1),
)
def test_edges_partition_the_range_at_local_boundaries(zone: str, interval: str, start: int, share: float) -> None:
    longest = {"minute": 300, "hour": 24 * 90, "day": 24 * 400, "week": 24 * 2000, "month": 24 * 3000}[interval]
    begin = moment(start)
    end = begin + timedelta(hours=max(1 / 60, longest * share / (60 if interval == "minute" else 1)))
    spans = buckets(begin, end, interval, zone)

    assert (np.diff(spans.edges) > 0).all()
    assert spans.edges[0] <= micros(begin) < spans.edges[1]
    assert spans.edges[-2] < micros(end) <= spans.edges[-1]
    here = ZoneInfo(zone)
    assert all(is_boundary(at, interval, here) for at in spans.edges.tolist())
    inside = np.linspace(micros(begin), micros(end) - 1, 500).astype(np.int64)
    at = spans.assign(inside)
    assert (spans.edges[at] <= inside).all()
    assert (inside < spans.edges[at + 1]).all()
    assert np.array_equal(spans.cells()[(inside - spans.edges[0]) // spans.cell], at)


@settings(deadline=None)
@given(zone=st.sampled_from(ZONES), day=st.dates(date(2005, 1, 1), date(2035, 1, 1)))
def test_no_hour_holds_two_local_hours(zone: str, day: date) -> None:
    spans = buckets(day, day + timedelta(days=2), "hour", zone)
    here = ZoneInfo(zone)
    for low, high in zip(spans.edges[:-1].tolist(), spans.edges[1:].tolist(), strict=True):
        labels = {moment(at).astimezone(here).hour for at in range(low, high, HOUR // 12)}
        assert len(labels) == 1


def test_the_day_of_spring_has_23_hours_and_that_of_autumn_25() -> None:
    assert hours(buckets("2025-03-29", "2025-04-01", "day", "Europe/Berlin")) == [24, 23, 24]
    assert hours(buckets("2025-10-25", "2025-10-28", "day", "Europe/Berlin")) == [24, 25, 24]


def test_the_hour_that_comes_twice_is_two_buckets() -> None:
    spans = buckets("2025-10-26", "2025-10-27", "hour", "Europe/Berlin")
    starts = spans.starts()
    assert len(spans) == 25
    assert len(set(starts)) == 25
    assert starts[2:4] == ["2025-10-26T02:00:00+02:00", "2025-10-26T02:00:00+01:00"]
    assert len(buckets("2025-03-30", "2025-03-31", "hour", "Europe/Berlin")) == 23


def test_half_hour_zones_have_their_own_hours() -> None:
    spans = buckets("2025-01-01", "2025-01-02", "hour", "Asia/Kolkata")
    assert len(spans) == 24
    assert moment(int(spans.edges[0])) == datetime(2024, 12, 31, 18, 30, tzinfo=UTC)
    assert spans.starts()[0] == "2025-01-01T00:00:00+05:30"


def test_a_change_by_half_an_hour_lengthens_one_hour_and_shortens_another() -> None:
    autumn = hours(buckets("2025-04-06", "2025-04-07", "hour", "Australia/Lord_Howe"))
    spring = hours(buckets("2025-10-05", "2025-10-06", "hour", "Australia/Lord_Howe"))
    assert (len(autumn), sum(autumn), max(autumn)) == (24, 24.5, 1.5)
    assert (len(spring), sum(spring), min(spring)) == (24, 23.5, 0.5)


def test_midnights_that_are_missing_or_come_twice() -> None:
    assert hours(buckets("2018-11-03", "2018-11-06", "day", "America/Sao_Paulo")) == [24, 23, 24]
    assert hours(buckets("2025-11-01", "2025-11-04", "day", "America/Havana")) == [24, 25, 24]
    samoa = buckets("2011-12-29", "2012-01-01", "day", "Pacific/Apia")
    assert [s[:10] for s in samoa.starts()] == ["2011-12-29", "2011-12-31"]


def test_weeks_start_on_monday_or_as_told_and_months_on_the_first() -> None:
    monday = buckets("2025-01-01", "2025-01-15", "week", "UTC")
    assert [s[:10] for s in monday.starts()] == ["2024-12-30", "2025-01-06", "2025-01-13"]
    sunday = buckets("2025-01-01", "2025-01-12", "week", "UTC", week_starts=6)
    assert [s[:10] for s in sunday.starts()] == ["2024-12-29", "2025-01-05"]
    months = buckets("2024-01-15", "2024-04-01", "month", "Europe/Berlin")
    assert [s[:10] for s in months.starts()] == ["2024-01-01", "2024-02-01", "2024-03-01"]


def test_dates_are_local_midnights_and_the_end_is_exclusive() -> None:
    spans = buckets("2025-01-01", "2025-01-02", "hour", "Europe/Berlin")
    assert (moment(spans.start), moment(spans.end)) == (
        datetime(2024, 12, 31, 23, tzinfo=UTC),
        datetime(2025, 1, 1, 23, tzinfo=UTC),
    )
    assert len(spans) == 24
    assert spans.assign(np.array([spans.start - 1, spans.start, spans.end - 1, spans.end])).tolist() == [-1, 0, 23, 24]
    assert instant("2025-01-01T12:00:00", "Europe/Berlin", "x") == micros(datetime(2025, 1, 1, 11, tzinfo=UTC))
    assert instant("2025-01-01T12:00:00Z", "Europe/Berlin", "x") == micros(datetime(2025, 1, 1, 12, tzinfo=UTC))


@pytest.mark.parametrize(
    ("change", "parameter", "text"),
    [
        ({"interval": "hours"}, "interval", "did you mean 'hour'?"),
        ({"timezone": "Europe/Berln"}, "timezone", "did you mean 'Europe/Berlin'?"),
        ({"timezone": "../../etc/passwd"}, "timezone", "valid are IANA names"),
        ({"timezone": "Europe"}, "timezone", "is no time zone"),
        ({"end": "2025-01-01"}, "endDate", "endDate is exclusive"),
        ({"start": "yesterday"}, "startDate", "2025-01-31T12:00:00Z"),
        ({"start": "1970-01-01"}, "startDate", "outside 2000-01-01 to 2100-01-01"),
        ({"end": "9999-12-31"}, "endDate", "outside 2000-01-01 to 2100-01-01"),
        ({"end": "2099-01-01", "interval": "minute"}, "interval", f"more than {MAX_BUCKETS}; narrow the range or use"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str], parameter: str, text: str) -> None:
    good = {"start": "2025-01-01", "end": "2025-01-02", "interval": "hour", "timezone": "UTC"}
    assert len(buckets(**good)) == 24
    with pytest.raises(ParameterError) as caught:
        buckets(**{**good, **change})
    assert caught.value.parameter == parameter
    assert text in str(caught.value)


@pytest.mark.parametrize("interval", ["minute", "hour", "day"])
@pytest.mark.parametrize("start", ["2025-03-29T22:10", "2025-10-25", "2011-12-29T23:30"])
def test_starts_are_written_with_the_offset_of_their_moment(start: str, interval: str) -> None:
    end = (datetime.fromisoformat(start) + timedelta(hours=40)).isoformat()
    for zone in ZONES:
        spans = buckets(start, end, interval, zone)
        assert spans.starts() == [moment(at).astimezone(ZoneInfo(zone)).isoformat() for at in spans.edges[:-1].tolist()]
