"""Days, weeks and months of the question's time zone, and which of them an instant belongs to."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from analytics_core import EventReader, TimeRange
from analytics_user_behavior.columns import I64, Mask

Period = Literal["day", "week", "month"]

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""No event is stored from before that day: ``since`` of a question about all of history."""
_BLOCK: Final = 1 << 15
"""Instants at a time, so that what is made of them stays in the processor's cache: twice as fast as all at once."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = date(1970, 1, 1).toordinal()


def micros(at: datetime) -> int:
    """An aware datetime as microseconds since 1970 UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def moment(at: int) -> datetime:
    """Microseconds since 1970 as a UTC datetime."""
    return _EPOCH + timedelta(microseconds=at)


class Periods:
    """``n`` local days, weeks or months one after the other.

    ``edges``: int64 microseconds UTC, shape ``(n + 1,)``, strictly growing. ``days``: the local dates on which they
    begin, and the one after the last, as days since 1970, shape ``(n + 1,)``.
    """

    def __init__(self, days: I64, zone: ZoneInfo) -> None:
        """``days`` grow. A date that the zone has skipped (Samoa, 2011-12-30) is left out."""
        edges = np.array([_midnight(day, zone) for day in days.tolist()], np.int64)
        lasts = np.append(edges[1:] > edges[:-1], True)
        self.edges: I64 = edges[lasts]
        self.days: I64 = days[lasts]
        self.zone = zone
        self._cell = int(np.gcd.reduce(np.diff(self.edges)))
        inner = np.repeat(np.arange(len(self)), np.diff(self.edges) // self._cell)
        self._table: I64 = np.concatenate([[-1], inner, [len(self)]])
        self._origin = int(self.edges[0]) - self._cell

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def start(self) -> datetime:
        return moment(int(self.edges[0]))

    def of(self, at: I64) -> I64:
        """The period of each instant (microseconds), shape of ``at``; -1 before the first and ``n`` after the last.

        Every period is a whole number of cells: days where no clock changes, else an hour or half an hour. So one
        division gives the cell, and a small table the period: five nanoseconds each, whatever the clocks do.
        """
        found = np.empty(len(at), np.int64)
        cells = np.empty(min(_BLOCK, len(at)), np.int64)
        for low in range(0, len(at), _BLOCK):
            block = at[low : low + _BLOCK]
            cell = np.subtract(block, self._origin, out=cells[: len(block)])
            cell //= self._cell
            self._table.take(cell, mode="clip", out=found[low : low + _BLOCK])
        return found

    def begins(self) -> pa.Array:
        """The local date on which each period begins, shape ``(n,)``."""
        return dates(self.days[:-1])

    def daily(self) -> Periods:
        """The days of these periods."""
        return Periods(np.arange(self.days[0], self.days[-1] + 1), self.zone)

    def complete(self, events: EventReader) -> Mask:
        """Which periods are over, shape ``(n,)``: they end with the question's range or before it, and not after the
        log's clock. Late events may still change them."""
        now = events.watermark
        until = micros(events.range.end if now is None else min(now, events.range.end))
        over: Mask = self.edges[1:] <= until
        return over


def periods(asked: TimeRange, period: Period = "day", *, before: int = 0, week_start: str = "monday") -> Periods:
    """Every local period that the range touches, whole, and ``before`` more ahead of them.

    A day begins when its midnight first comes, or where the clocks skip that, when they do.
    """
    zone = ZoneInfo(asked.timezone)
    first = asked.start.astimezone(zone).date()
    last = (asked.end - timedelta(microseconds=1)).astimezone(zone).date()
    if period == "month":
        months = np.arange(_month(first) - before, _month(last) + 2)
        return Periods(np.array([_month_begins(month) for month in months.tolist()], np.int64), zone)
    length, shift = 1, 0
    if period == "week":
        length, shift = 7, date(1970, 1, 1).weekday() - WEEKDAYS.index(week_start)
    low = (first.toordinal() - _FIRST + shift) // length - before
    high = (last.toordinal() - _FIRST + shift) // length
    return Periods(np.arange(low, high + 2) * length - shift, zone)


def dates(days: I64) -> pa.Array:
    """Days since 1970 as dates."""
    return pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32())


def _midnight(day: int, zone: ZoneInfo) -> int:
    return micros(datetime.combine(date.fromordinal(day + _FIRST), time(), zone))


def _month(day: date) -> int:
    return day.year * 12 + day.month - 1


def _month_begins(month: int) -> int:
    return date(month // 12, month % 12 + 1, 1).toordinal() - _FIRST
