"""When the buckets after the last one begin."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


def following(last: datetime, interval: str, timezone: str, count: int) -> list[datetime]:
    """The beginnings (UTC) of the ``count`` buckets after the one that begins at ``last``.

    Minutes and hours are even; days, weeks and months begin at local midnight, whatever the clocks do.
    """
    if interval in STEPS:
        return [last + STEPS[interval] * n for n in range(1, count + 1)]
    zone = ZoneInfo(timezone)
    day = last.astimezone(zone).date()
    return [_midnight(_later(day, interval, n), zone) for n in range(1, count + 1)]


def _later(day: date, interval: str, n: int) -> date:
    if interval == "month":
        months = day.year * 12 + day.month - 1 + n
        return date(months // 12, months % 12 + 1, 1)
    return day + timedelta(days=n * (7 if interval == "week" else 1))


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone).astimezone(UTC)
