"""What `changes` counts: by day of two equally long times, events by name, visitors, sessions and conversions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from analytics_core import EventReader, TimeRange, UserOrder
from analytics_user_behavior.calendar import micros, moment
from analytics_user_behavior.columns import I32, I64, U64, Mask
from analytics_user_behavior.figures import integers
from analytics_user_behavior.session_order import by_session

_DAY = timedelta(days=1)
_WEEK = 7
_LEEWAY = timedelta(minutes=10)
_COUNTS = """
SELECT name, (epoch_us(timestamp) - $low) // $cell AS cell, count(*) AS n
FROM events WHERE epoch_us(timestamp) >= $low AND epoch_us(timestamp) < $high GROUP BY ALL
"""


class Days(NamedTuple):
    """An even number of days up to the range's end, by the wall clock, each from its time of day on.

    ``edges``: microseconds UTC, shape ``(days + 1,)``.
    """

    edges: I64
    timezone: str

    @property
    def half(self) -> int:
        return len(self) // 2

    def __len__(self) -> int:
        return len(self.edges) - 1

    def day(self, at: I64) -> I64:
        """The number of the day, from 0, of instants inside."""
        if self.cell != self.edges[1] - self.edges[0]:
            return np.searchsorted(self.edges, at, side="right") - 1
        day: I64 = (at - self.edges[0]) // self.cell
        return day

    @property
    def cell(self) -> int:
        """The longest time, in microseconds, of which every day is a multiple: a day unless the clocks change."""
        return int(np.gcd.reduce(np.diff(self.edges)))

    def begin(self, day: int) -> datetime:
        """In UTC."""
        return moment(int(self.edges[day]))

    def inside(self, at: I64) -> Mask:
        kept: Mask = (at >= self.edges[0]) & (at < self.edges[-1])
        return kept


def compared_days(asked: TimeRange, first: datetime, known: datetime) -> Days | None:
    """As many whole days before the end of the range as are in it, half of them in each half; whole weeks from two on,
    so that both have the same weekdays. None for fewer than two days.

    Days before the ``first`` event are not compared, nor is its own, unless that is the range's first. Days that are
    not over when it is ``known`` what happened (the log's clock) are not compared either; ten minutes are let pass.
    """
    zone = ZoneInfo(asked.timezone)
    end, stop = asked.end.astimezone(zone).replace(tzinfo=None), asked.end
    if asked.end - known > _LEEWAY:
        end -= -((known - asked.end) // _DAY) * _DAY
        stop = end.replace(tzinfo=zone).astimezone(UTC)
    start = first if first - asked.start >= _DAY else asked.start
    half = (end - start.astimezone(zone).replace(tzinfo=None)) // _DAY // 2
    half -= half % _WEEK if half >= _WEEK else 0
    if half < 1:
        return None
    walls = [end - days * _DAY for days in range(2 * half, 0, -1)]
    edges = [micros(at) for at in (*(wall.replace(tzinfo=zone) for wall in walls), stop)]
    return Days(np.array(edges, np.int64), asked.timezone)


def event_counts(events: EventReader, days: Days) -> dict[str, I64]:
    """Events by name and day, shape ``(days,)`` each; the most frequent first."""
    low, high, cell = int(days.edges[0]), int(days.edges[-1]), days.cell
    table = events.sql(_COUNTS, {"low": low, "high": high, "cell": cell})
    counts: dict[str, I64] = {}
    day = days.day(integers(table["cell"]) * cell + low)
    for name, at, n in zip(table["name"].to_pylist(), day.tolist(), table["n"].to_pylist(), strict=True):
        counts.setdefault(name, np.zeros(len(days), np.int64))[at] += n
    return dict(sorted(counts.items(), key=lambda entry: (-int(entry[1].sum()), entry[0])))


class Steps(NamedTuple):
    """The events of some visitors inside the days, in user order, shape ``(n,)`` each; ``inside``: which of the part.

    ``name`` and ``following`` are codes, -1 for none: that of the event, and that of the visitor's next one if it
    comes within the session gap.
    """

    inside: Mask
    user: I64
    day: I64
    name: I32
    following: I32


def steps(part: UserOrder, days: Days, names: Sequence[str], gap: int) -> Steps:
    """``gap`` is in microseconds."""
    inside = days.inside(part.at)
    chosen = slice(None) if inside.all() else np.flatnonzero(inside)
    user, at = part.user()[chosen], part.at[chosen]
    code = {name: number for number, name in enumerate(names)}
    name = np.array([code.get(word, -1) for word in part.names], np.int32).take(part.name[chosen])
    next_to = (user[1:] == user[:-1]) & (at[1:] - at[:-1] <= gap)
    following = np.append(np.where(next_to, name[1:], np.int32(-1)), np.full(min(len(name), 1), -1, np.int32))
    return Steps(inside, user, days.day(at), name, following)


def session_begins(part: UserOrder, gap: int) -> Mask:
    """Which events of a part are the first of their session, shape ``(n,)``; ``gap`` is in microseconds."""
    begins = np.zeros(len(part), np.bool_)
    begins[by_session(part, gap).first] = True
    return begins


class Visits(NamedTuple):
    """``visitors`` and ``sessions`` (those of `sessions`) by day, shape ``(days,)``; ``seen``: visitors in the first
    half, in the second and in both; ``pairs``: how often one name is followed by another, shape ``(names, names)``."""

    visitors: I64
    sessions: I64
    seen: I64
    pairs: I64


def visits(events: EventReader, days: Days, names: Sequence[str], gap: int) -> Visits:
    def tally(part: UserOrder) -> Visits:
        found = steps(part, days, names, gap)
        person = part.known[found.user]
        user, day = found.user[person], found.day[person]
        halves = distinct(user * 2 + (day >= days.half))
        both = int((np.diff(halves // 2) == 0).sum())
        after = int((halves % 2).sum())
        pair = (found.name >= 0) & (found.following >= 0) & (found.name != found.following)
        number = found.name[pair].astype(np.int64) * len(names) + found.following[pair]
        begins = session_begins(part, gap)[found.inside]
        return Visits(
            visitors=np.bincount(distinct(user * len(days) + day) % len(days), minlength=len(days)),
            sessions=np.bincount(found.day[begins], minlength=len(days)),
            seen=np.array([len(halves) - after, after, both]),
            pairs=np.bincount(number, minlength=len(names) ** 2).reshape(len(names), len(names)),
        )

    none = np.zeros(len(days), np.int64)
    total = Visits(none, none, np.zeros(3, np.int64), np.zeros((len(names), len(names)), np.int64))
    for each in events.in_user_order(tally, columns=["name", "session"]):
        total = Visits._make(so_far + more for so_far, more in zip(total, each, strict=True))
    return total


class Conversion(NamedTuple):
    """Visitors who had one event, and those of them who went on to another at once: by day, shape ``(days,)``, and by
    half, ``(2,)``. ``keys``: the latter by half."""

    tried: I64
    went_on: I64
    tried_in: I64
    went_on_in: I64
    keys: tuple[U64, U64]


def conversions(
    events: EventReader, days: Days, names: Sequence[str], pairs: Sequence[tuple[int, int]], gap: int
) -> list[Conversion]:
    """Of each pair of codes; a visitor counts once in each day and once in each half."""

    def tally(part: UserOrder) -> list[Conversion]:
        found = steps(part, days, names, gap)
        person = part.known[found.user]
        tried = {first: _tried(found, days, np.flatnonzero((found.name == first) & person)) for first, _ in pairs}
        return [_conversion(part.key, found, days, tried[first], second) for first, second in pairs]

    folded = events.in_user_order(tally, columns=["name"])
    return [_summed([each[number] for each in folded], len(days)) for number in range(len(pairs))]


class _Tried(NamedTuple):
    """Some ``events`` of persons, ascending: those who had one ``by_day``, shape ``(days,)``, and visitor times 2 plus
    the half ``by_half``, each once."""

    events: I64
    by_day: I64
    by_half: I64


def _tried(found: Steps, days: Days, events: I64) -> _Tried:
    user, day = found.user.take(events), found.day.take(events)
    by_day = distinct(user * len(days) + day) % len(days)
    return _Tried(events, np.bincount(by_day, minlength=len(days)), distinct(user * 2 + (day >= days.half)))


def _conversion(key: U64, found: Steps, days: Days, tried: _Tried, second: int) -> Conversion:
    """``key`` (users,): that of each visitor."""
    went_on = _tried(found, days, tried.events[found.following.take(tried.events) == second])
    keys, late = key[went_on.by_half // 2], went_on.by_half % 2 == 1
    tried_in, went_on_in = (np.bincount(each.by_half % 2, minlength=2) for each in (tried, went_on))
    return Conversion(tried.by_day, went_on.by_day, tried_in, went_on_in, (keys[~late], keys[late]))


def _summed(parts: Sequence[Conversion], days: int) -> Conversion:
    none, halves = np.zeros(days, np.int64), np.zeros(2, np.int64)
    return Conversion(
        tried=sum((part.tried for part in parts), none),
        went_on=sum((part.went_on for part in parts), none),
        tried_in=sum((part.tried_in for part in parts), halves),
        went_on_in=sum((part.went_on_in for part in parts), halves),
        keys=(_joined([part.keys[0] for part in parts]), _joined([part.keys[1] for part in parts])),
    )


def _joined(keys: Sequence[U64]) -> U64:
    """Parts come in the order of their keys, so the whole is in order."""
    return np.concatenate([np.zeros(0, np.uint64), *keys])


def distinct(ordered: I64) -> I64:
    """The values of an array that does not fall, each once."""
    kept: Mask = np.concatenate([np.ones(min(len(ordered), 1), np.bool_), np.diff(ordered) > 0])
    return ordered[kept]
