"""The analysis ``compare``: two periods or two segments, figure by figure, and what may be chance.

One row per figure: of the range against a range before it, or of one segment against another.

Without ``segments``, the range is compared with the equally long one before it by the wall clock of its time zone,
or with the one that begins at ``against.start`` and ends before the range begins. With ``segments`` (two of
``{"name", "where"}``), the events in the range that hold the filters of the one are compared with those that hold
the other's; a visitor may be of both. Events of nobody (no user, anonymous or session id) are not seen.

- ``events``; ``visitors``: persons with an event; ``events_per_visitor``: events of persons by persons;
  ``sessions`` with an event of that side (`session_order`; a session across an edge counts on both sides).
- ``conversion`` (when asked for): the share of the persons with an event ``from`` that had an event ``to`` after it
  (in the order timestamp, partition, seq), on the same side and within its ``window`` if there is one.
- ``mean`` (when asked for): the mean of a property over the events that have a number there (one that was sent as
  text is none), of all events or those of ``event`` and ``where``.

**Intervals and tests** are of 95 % and two-sided. Proportions: Newcombe's interval of the difference, the
logarithmic one of the ratio, and the pooled z-test (`intervals`), which take the sides as independent. All others
are sums over visitors, or ratios of two such sums, and a visitor is the unit: what one visitor does, on either
side, is one draw, and how many visitors there are is Poisson. So the variance of a statistic s is the sum over
visitors of (gradient of s by the sums, times the visitor's figures)², the linearisation of D. A. Binder, "On the
variances of asymptotically normal estimators from complex surveys", International Statistical Review 51 (1983); as
"delta method" for such metrics in A. Deng, U. Knoblich and J. Lu, "Applying the delta method in metric analytics",
KDD 2018. It allows for visitors that have many events (overdispersion) and for those that are on both sides. The
difference is taken as normal, the ratio on the logarithm; the p-value is that of the difference.

Columns: metric, of, against (what is compared), value, other, difference (value - other), difference_low,
difference_high, ratio (value / other), ratio_low, ratio_high, p_value. Null where it is not determined: a ratio to
0, an interval with fewer than 10 visitors or when nothing varies. Nothing is said in words of fewer than 30 persons
on a side, nor of periods that are not known whole: when what is stored begins later, or the watermark is not yet
there (a twentieth of the range is let pass).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from analytics_core import Answer, EventReader, ParameterError, TimeRange, UserOrder
from analytics_user_behavior.activity import filters_of
from analytics_user_behavior.calendar import EARLIEST, micros
from analytics_user_behavior.chains import Runs, in_order
from analytics_user_behavior.columns import MINUTE, Mask
from analytics_user_behavior.compare_figures import (
    BEGAN,
    CONVERTED,
    EVENTS,
    FIGURES,
    PERSONS,
    PERSONS_EVENTS,
    SESSIONS,
    SUM,
    VALUES,
    Sums,
    answer,
    rows_of,
)
from analytics_user_behavior.fields import numeric
from analytics_user_behavior.figures import F64
from analytics_user_behavior.funnel import window_seconds
from analytics_user_behavior.session_order import by_session

_LATEST_YEAR = 2100
_WEEK = timedelta(days=7)
_EVER = 1 << 57
"""Microseconds: longer than there is."""

_NUMBER, _MEANT = "mean.property", "mean.where"

Sides = Callable[[UserOrder], Sequence[Mask]]


class Plan(NamedTuple):
    """What each visitor is asked: ``sides`` gives which events are of the one and of the other side."""

    sides: Sides
    titles: Sequence[str]
    gap: int
    window: int | None
    """Of the conversion, in microseconds; None without one."""
    mean: str | None
    """The property. Its marks are `_NUMBER`, and `_MEANT` where not all events are meant."""


def compare(events: EventReader, asked: TimeRange, given: Mapping[str, Any], gap_minutes: int) -> Answer:
    """The answer as it is defined above. :raises ParameterError: naming the parameter and what would be valid."""
    plan, marks, since = _plan(asked, given, gap_minutes)
    parts = events.in_user_order(
        partial(_sums, plan=plan),
        marks=marks,
        values=[plan.mean] if plan.mean else [],
        since=since,
        columns=["first_at", "session"],
    )
    whole = Sums.of(np.zeros((2 * FIGURES, 0)), _EVER)
    for part in parts:
        whole = whole.plus(part)
    rows = rows_of(whole, conversion=plan.window is not None, mean=plan.mean is not None)
    covered = since is None or _covered(events, since, whole.first)
    return answer(rows, plan.titles, whole, covered=covered, like=since is None or _same_weekdays(asked.start - since))


def _covered(events: EventReader, since: datetime, first: int) -> bool:
    """Whether events are known from the begin of the earlier range to the end of the later one, within a twentieth."""
    leeway = (events.range.end - events.range.start) / 20
    known = events.watermark or events.range.start
    return first <= micros(since + leeway) and known >= events.range.end - leeway


def _same_weekdays(apart: timedelta) -> bool:
    """Whether it is whole weeks, but for an hour that the clocks have changed by."""
    return abs(apart - round(apart / _WEEK) * _WEEK) <= timedelta(hours=1)


def _plan(asked: TimeRange, given: Mapping[str, Any], gap_minutes: int) -> tuple[Plan, dict[str, Any], datetime | None]:
    """What is asked, the marks that it needs, and since when events are needed."""
    segments, conversion, mean = given.get("segments"), given.get("conversion"), given.get("mean")
    marks: dict[str, Any] = {}
    since = None
    if segments is None:
        before = _before(asked, given.get("against"))
        since, titles = before.start, [_title(asked), _title(before)]
        sides: Sides = partial(_of_times, [_bounds(asked), _bounds(before)])
    elif given.get("against") is not None:
        raise ParameterError("against", "segments are compared within one range; leave out one of the two")
    else:
        titles = [str(segment["name"]) for segment in segments]
        marks = {f"segments[{i}].where": segment["where"] for i, segment in enumerate(segments)}
        sides = partial(_of_marks, list(marks))
    if conversion is not None:
        marks |= {f"conversion.{end}.where": filters_of(conversion[end]) for end in ("from", "to")}
    window = _window(conversion) if conversion is not None else None
    plan = Plan(sides, titles, gap_minutes * MINUTE, window, mean and numeric(mean["property"], _NUMBER))
    return plan, marks | (_marks_of_mean(mean) if mean is not None else {}), since


def _marks_of_mean(mean: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison with a number holds for numbers alone, which the text of a value does not tell."""
    number = [{"field": mean["property"], "op": ">=", "value": -sys.float_info.max}]
    meant = filters_of(mean)
    return {_NUMBER: number, **({_MEANT: meant} if meant else {})}


def _window(conversion: Mapping[str, Any]) -> int:
    if "window" not in conversion:
        return _EVER
    return window_seconds(conversion["window"], "conversion.window") * 1_000_000


def _before(asked: TimeRange, against: Mapping[str, Any] | None) -> TimeRange:
    """An equally long range, by the wall clock. :raises ParameterError: for one that is not before the asked one."""
    zone = ZoneInfo(asked.timezone)
    first, last = (at.astimezone(zone).replace(tzinfo=None) for at in (asked.start, asked.end))
    start = first - (last - first)
    if against is not None:
        start = _begin(against["start"], zone)
    ends = [at.replace(tzinfo=zone).astimezone(UTC) for at in (start, start + (last - first))]
    if ends[1] > asked.start:
        raise ParameterError(
            "against.start",
            f"a range as long as the asked one, from {start.isoformat()} on, ends after that begins; "
            f"valid is {(first - (last - first)).isoformat()} or earlier",
        )
    return TimeRange(ends[0], ends[1], asked.timezone)


def _begin(given: str, zone: ZoneInfo) -> datetime:
    """By the wall clock. :raises ParameterError: for what is no time, or none of which there could be events."""
    try:
        read = datetime.fromisoformat(given)
    except ValueError:
        problem = f"{given[:64]!r} is no time; valid are such as 2025-01-31 or 2025-01-31T08:00:00Z"
        raise ParameterError("against.start", problem) from None
    if not EARLIEST.year <= read.year < _LATEST_YEAR:
        raise ParameterError("against.start", f"{given[:64]!r} is outside 2000-01-01 to 2100-01-01")
    return read if read.tzinfo is None else read.astimezone(zone).replace(tzinfo=None)


def _title(span: TimeRange) -> str:
    zone = ZoneInfo(span.timezone)
    return "/".join(f"{at.astimezone(zone):%Y-%m-%dT%H:%M}" for at in (span.start, span.end))


def _bounds(span: TimeRange) -> tuple[int, int]:
    return micros(span.start), micros(span.end)


def _of_times(bounds: Sequence[tuple[int, int]], part: UserOrder) -> list[Mask]:
    return [(part.at >= low) & (part.at < high) for low, high in bounds]


def _of_marks(marks: Sequence[str], part: UserOrder) -> list[Mask]:
    return [part.marks[mark] for mark in marks]


# --- one part --------------------------------------------------------------------------------------------------------


def _sums(part: UserOrder, plan: Plan) -> Sums:
    users, user, known = len(part.end), part.user(), part.known
    sessions = by_session(part, plan.gap)
    session_of = sessions.events.user()
    numbers = _numbers(part, plan)
    figures = np.zeros((2 * FIGURES, users))
    for side, (mask, apart) in enumerate(zip(plan.sides(part), plan.sides(sessions.events), strict=True)):
        own = figures[side * FIGURES : (side + 1) * FIGURES]
        own[EVENTS] = np.bincount(user[mask], minlength=users)
        own[PERSONS_EVENTS] = own[EVENTS] * known
        own[PERSONS] = own[PERSONS_EVENTS] > 0
        touched = np.zeros(len(sessions.user), np.bool_)
        touched[session_of[apart]] = True
        own[SESSIONS] = np.bincount(sessions.user[touched], minlength=users)
        if plan.window is not None:
            ends = [part.marks[f"conversion.{end}.where"] & mask for end in ("from", "to")]
            found = in_order(Runs(part.at, part.end, ends, [np.zeros(0, np.int64)]), plan.window, _EVER)
            for figure, reached in zip((BEGAN, CONVERTED), found.reached, strict=True):
                own[figure, reached.group] = known[reached.group]
        if numbers is not None:
            some = mask & np.isfinite(numbers)
            own[SUM] = np.bincount(user[some], numbers[some], minlength=users)
            own[VALUES] = np.bincount(user[some], minlength=users)
    return Sums.of(figures, int(part.first_at.min()))


def _numbers(part: UserOrder, plan: Plan) -> F64 | None:
    """The property of each event, shape ``(n,)``, NaN where it is no number or the event is not meant."""
    if plan.mean is None:
        return None
    codes, words = part.values[plan.mean], part.words[plan.mean]
    meant = part.marks[_NUMBER] & part.marks[_MEANT] if _MEANT in part.marks else part.marks[_NUMBER]
    codes = np.where(meant, codes, -1)
    found, place = np.unique(codes, return_inverse=True)
    numbers = np.array([float(words[code]) if code >= 0 else math.nan for code in found.tolist()], np.float64)
    return numbers.take(place)
