"""Time buckets in a zone: which instants a minute, hour, day, week or month begins at, across daylight saving.

Edges are microseconds since 1970 UTC, so that events are assigned by one binary search and nothing else knows zones.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.errors import ParameterError, near
from analytics_core.events import DAY, MINUTE, micros, moment
from analytics_core.events.times import EARLIEST

Interval = Literal["minute", "hour", "day", "week", "month"]
I64 = npt.NDArray[np.int64]

INTERVALS: Final[tuple[str, ...]] = get_args(Interval)
MAX_BUCKETS: Final = 50_000
"""A month of minutes fits, and one JSON answer stays below a few megabytes."""

HOUR: Final = 60 * MINUTE
_LENGTH: Final = {"minute": MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 30 * DAY}
_LOCAL: Final = len("2025-01-31T00:00:00")
_LATEST: Final = micros(datetime(2100, 1, 1, tzinfo=UTC))


class Buckets(Struct, frozen=True):
    """``n`` consecutive buckets. ``edges``: int64 microseconds UTC, shape ``(n + 1,)``, strictly growing.

    ``[start, end)`` is the asked range, in microseconds; the first edge may lie before it and the last one after it,
    since every edge is a boundary of the local calendar.
    """

    edges: I64
    start: int
    end: int
    interval: str
    timezone: str

    def __len__(self) -> int:
        return len(self.edges) - 1

    def assign(self, at: I64) -> I64:
        """The bucket of each instant (microseconds), shape ``(n,)``; -1 before the first and ``len`` after the last."""
        return np.searchsorted(self.edges, at, side="right") - 1

    @property
    def cell(self) -> int:
        """The longest step, in microseconds, of which every bucket is a whole multiple."""
        return int(np.gcd.reduce(np.diff(self.edges)))

    def cells(self) -> I64:
        """The bucket of each cell from the first edge on, shape ``((last - first) / cell,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.edges) // self.cell)

    def starts(self) -> list[str]:
        """When each bucket begins: ISO 8601 with the zone's offset, length ``n``."""
        zone = ZoneInfo(self.timezone)
        if self.interval not in ("minute", "hour"):
            return [moment(at).astimezone(zone).isoformat() for at in self.edges[:-1].tolist()]
        first, last = int(self.edges[0]), int(self.edges[-2])
        changes = _changes(first, last, zone) if last > first else []
        ends = np.searchsorted(self.edges[:-1], [at for at, _ in changes])
        shifts = [_offset(first, zone), *(shift for _, shift in changes)]
        texts: list[str] = []
        for edges, shift in zip(np.split(self.edges[:-1], ends), shifts, strict=True):
            mark = moment(int(edges[0])).astimezone(zone).isoformat()[_LOCAL:] if len(edges) else ""
            local = pa.array((edges + shift) // 1_000_000, pa.timestamp("s")).cast(pa.string())  # as no loop is so fast
            texts += pc.binary_join_element_wise(pc.replace_substring(local, " ", "T"), mark, "").to_pylist()
        return texts


def zone_named(timezone: str) -> ZoneInfo:
    """:raises ParameterError: for a name that the IANA database does not have."""
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
        hint = near(timezone, known)
        hint = hint if "did you mean" in hint else "; valid are IANA names such as 'Europe/Berlin'"
        raise ParameterError("timezone", f"{timezone[:64]!r} is no time zone{hint}") from None


def instant(value: str | date | datetime, timezone: str, parameter: str) -> int:
    """A date (its first moment in the zone), or a datetime (local when it has no offset), as microseconds UTC.

    :raises ParameterError: for anything else, and outside the years 2000 to 2099.
    """
    zone = zone_named(timezone)
    read = _read(value, parameter) if isinstance(value, str) else value
    if not isinstance(read, datetime):
        read = datetime.combine(read, time())
    try:
        at = micros((read if read.tzinfo else read.replace(tzinfo=zone)).astimezone(UTC))
    except OverflowError:
        at = _LATEST + 1
    if not EARLIEST - DAY <= at <= _LATEST:
        raise ParameterError(parameter, f"{str(value)[:64]!r} is outside 2000-01-01 to 2100-01-01")
    return at


def _read(value: str, parameter: str) -> date | datetime:
    try:
        return date.fromisoformat(value) if len(value) == 10 else datetime.fromisoformat(value)
    except ValueError:
        raise ParameterError(
            parameter, f"{value[:64]!r} is no time; valid are dates (2025-01-31) and ISO 8601 (2025-01-31T12:00:00Z)"
        ) from None


def buckets(
    start: str | date | datetime,
    end: str | date | datetime,
    interval: str,
    timezone: str = "UTC",
    *,
    week_starts: int = 0,
) -> Buckets:
    """The buckets that cover ``[start, end)``. ``week_starts``: 0 for Monday to 6 for Sunday.

    A day has 23 or 25 hours when the clocks change, and the hours of that night are as many distinct buckets; zones
    at a half hour have their hours at their own full hour.

    :raises ParameterError: for an unknown interval or zone, an empty range, or more than `MAX_BUCKETS` buckets.
    """
    if interval not in INTERVALS:
        raise ParameterError("interval", f"{interval[:64]!r} is no interval{near(interval, INTERVALS)}")
    zone = zone_named(timezone)
    first, last = instant(start, timezone, "startDate"), instant(end, timezone, "endDate")
    if last <= first:
        raise ParameterError("endDate", f"{end} is not after startDate {start}; endDate is exclusive")
    _check_number(first, last, interval)
    if interval in ("minute", "hour"):
        edges = _even_edges(first, last, _LENGTH[interval], zone)
    else:
        edges = _calendar_edges(first, last, interval, zone, week_starts)
    low = int(np.searchsorted(edges, first, side="right")) - 1
    high = int(np.searchsorted(edges, last, side="left"))
    return Buckets(edges[low : high + 1], first, last, interval, timezone)


def _check_number(first: int, last: int, interval: str) -> None:
    number = (last - first) // _LENGTH[interval]
    if number <= MAX_BUCKETS:
        return
    fitting = [name for name in INTERVALS if (last - first) // _LENGTH[name] <= MAX_BUCKETS]
    raise ParameterError(
        "interval",
        f"{number} buckets of a {interval} are more than {MAX_BUCKETS}; narrow the range"
        + (f" or use interval={fitting[0]}" if fitting else ""),
    )


def _even_edges(first: int, last: int, length: int, zone: ZoneInfo) -> I64:
    """Minutes or hours: even inside one offset; a change of offset begins a bucket when it changes the local label."""
    low, high = first - 2 * HOUR, last + 2 * HOUR
    pieces: list[I64] = []
    begin, shift = low, _offset(low, zone)
    for change, after in [*_changes(low, high, zone), (high + 1, 0)]:
        aligned = begin + (-(begin + shift)) % length
        pieces.append(np.arange(aligned, change, length, dtype=np.int64))
        if change <= high and (change + after) // length != (change - 1 + shift) // length:
            pieces.append(np.array([change], np.int64))
        begin, shift = change, after
    edges = np.concatenate(pieces)
    return edges[np.diff(edges, prepend=edges[0] - 1) > 0]  # a change may be a whole minute or hour as well


def _offset(at: int, zone: ZoneInfo) -> int:
    return _whole(moment(at).astimezone(zone).utcoffset() or timedelta())


def _whole(delta: timedelta) -> int:
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _changes(low: int, high: int, zone: ZoneInfo) -> list[tuple[int, int]]:
    """Where the zone's offset changes: (instant, offset from then on), found by halving each day whose ends differ."""
    found = []
    at, shift = low, _offset(low, zone)
    while at < high:
        ahead = min(at + DAY, high)
        if (after := _offset(ahead, zone)) != shift:
            before, change = at // 1_000_000, ahead // 1_000_000
            while change - before > 1:
                middle = (before + change) // 2
                if _offset(middle * 1_000_000, zone) == shift:
                    before = middle
                else:
                    change = middle
            found.append((change * 1_000_000, after))
            shift = after
        at = ahead
    return found


def _calendar_edges(first: int, last: int, interval: str, zone: ZoneInfo, week_starts: int) -> I64:
    day = moment(first).astimezone(zone).date()
    if interval == "week":
        day -= timedelta(days=(day.weekday() - week_starts) % 7)
    elif interval == "month":
        day = day.replace(day=1)
    edges: list[int] = []
    while not edges or edges[-1] < last:
        edges.append(micros(datetime.combine(day, time(), zone).astimezone(UTC)))
        day = _next(day, interval)
    # A date that a zone skipped (Samoa, 2011-12-30) has the edge of the next one.
    return np.unique(np.array(edges, np.int64))


def _next(day: date, interval: str) -> date:
    if interval == "month":
        return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return day + timedelta(days=7 if interval == "week" else 1)
