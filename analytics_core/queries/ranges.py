"""The time range of a question, as it is written in a request."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from analytics_core.errors import ParameterError, near
from analytics_core.events import moment
from analytics_core.events.times import EARLIEST
from analytics_core.metrics.buckets import instant, zone_named
from analytics_core.records import TimeRange

ALL_TIME: Final = TimeRange(datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
_SPAN: Final = re.compile(r"([1-9]\d{0,4})\s*([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EARLIEST: Final = moment(EARLIEST)
_KEYS: Final = ("start", "end")


def time_range(given: Any, timezone: str, now: datetime, parameter: str = "timeRange") -> TimeRange:
    """``{"start", "end"}`` (dates in the zone, or ISO 8601; ``end`` exclusive, now when absent), or the last "7d",
    "24h", "30m", "4w" up to ``now``.

    :raises ParameterError: for anything else, and for a range that is empty.
    """
    zone_named(timezone)
    if isinstance(given, str):
        return TimeRange(now - min(span(given, parameter), now - _EARLIEST), now, timezone)
    if not isinstance(given, dict) or not isinstance(given.get("start"), str):
        raise ParameterError(parameter, 'must be a span such as "7d" or an object {"start", "end"} of times')
    for key in given:
        if key not in _KEYS:
            raise ParameterError(f"{parameter}.{key}", f"the key is not known{near(key, _KEYS)}")
    start = moment(instant(given["start"], timezone, f"{parameter}.start"))
    end = given.get("end")
    if end is not None and not isinstance(end, str):
        raise ParameterError(f"{parameter}.end", "must be a date or an ISO 8601 time")
    stop = moment(instant(end, timezone, f"{parameter}.end")) if end is not None else now
    if stop <= start:
        raise ParameterError(f"{parameter}.end", f"{stop.isoformat()} is not after {start.isoformat()}")
    return TimeRange(start, stop, timezone)


def whole_minute(now: datetime) -> datetime:
    """The end of the minute, so that a span such as "7d" is one range for that long."""
    minute = timedelta(minutes=1)
    return now + (datetime.min.replace(tzinfo=UTC) - now) % minute


def span(given: str, parameter: str) -> timedelta:
    """How long "7d", "24h", "30m" or "4w" is. :raises ParameterError: for anything else."""
    found = _SPAN.fullmatch(given.strip())
    if not found:
        raise ParameterError(parameter, f"{given[:64]!r} is no span; valid are such as '7d', '24h', '30m', '4w'")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
