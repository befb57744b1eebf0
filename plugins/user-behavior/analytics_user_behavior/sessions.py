"""The analysis ``sessions``: how many, how long and how deep, per day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, TimeRange, UserOrder
from analytics_user_behavior.calendar import Periods, periods
from analytics_user_behavior.columns import I64, MINUTE
from analytics_user_behavior.counts import NONE, OTHER, distinct, quantile, quantiles, top
from analytics_user_behavior.fields import valued
from analytics_user_behavior.figures import ratio, shown
from analytics_user_behavior.intervals import newcombe, wilson
from analytics_user_behavior.session_order import by_session

TOP: Final = 5
_LEAST_SESSIONS = 30
_SECOND = 1e6


class _Sessions(NamedTuple):
    """One entry per session, shape ``(sessions,)``. ``group`` is the day (from 0) of its first event; ``value`` what
    that has of the breakdown (a code of ``words``, -1 for none); ``user`` is -1 for a session of nobody."""

    group: I64
    value: I64
    user: I64
    micros: I64
    events: I64
    words: Sequence[str]


class _Tally(NamedTuple):
    """The sessions of each group, shape ``(groups,)``. ``lengths`` and ``of`` (any,) are the durations above 0 in
    microseconds and the groups they are of; ``people``, how many persons have sessions at all."""

    sessions: I64
    users: I64
    bounces: I64
    events: I64
    micros: I64
    lengths: I64
    of: I64
    people: int


def sessions(events: EventReader, asked: TimeRange, gap_minutes: int, given: Mapping[str, Any] = {}) -> Answer:
    """One row per local day of the range, sessions counted on the day of their first event.

    A session is (visitor, client's session id) where the client gives one; otherwise the events of a visitor in which
    each follows another by ``gap_minutes`` at most. A visitor is the user id, the anonymous id without one, or, of
    events that have neither, the session id. Only events in the range are seen, so a session across its edge is cut
    there. Durations are seconds from the first to the last event; a bounce is a session of one event; quantiles are
    exact, linear between neighbours. ``users`` are the persons with a session that began on the day: sessions that have
    a session id only are nobody's.

    ``breakdown`` names a property or a column: there is one row per day and value at the session's first event, for the
    ``top`` values with most sessions, then ``(other)`` for the rest and ``(none)`` for sessions without one. A user
    counts under every value that one of the sessions has.

    Columns: day, [breakdown,] sessions, users, median_duration, mean_duration, p90_duration, events_per_session,
    bounce_rate; the last five are null where there are no sessions.
    """
    days, gap = periods(asked), gap_minutes * MINUTE
    n, breakdown = len(days), given.get("breakdown")
    if breakdown is None:
        parts = events.in_user_order(lambda part: _tallied(_read(part, days, gap, None), n), columns=["session"])
        return _answer({"day": days.begins()}, _added(parts, n), ())
    valued(breakdown, "breakdown")
    read = events.in_user_order(lambda part: _read(part, days, gap, breakdown), values=[breakdown], columns=["session"])
    found = _joined(read)
    named, value = _ranked(found, given.get("top", TOP))
    tally = _tallied(found._replace(group=found.group * len(named) + value), n * len(named))
    columns = {
        "day": days.begins().take(pa.array(np.repeat(np.arange(n), len(named)))),
        "breakdown": pa.array(named * n, pa.string()),
    }
    return _answer(columns, tally, named)


def _read(part: UserOrder, days: Periods, gap: int, breakdown: str | None) -> _Sessions:
    found = by_session(part, gap)
    began, value = part.at.take(found.first), np.full(len(found.user), -1)
    return _Sessions(
        group=days.of(began),
        value=part.values[breakdown].take(found.first).astype(np.int64) if breakdown else value,
        user=found.user if part.known.all() else np.where(part.known[found.user], found.user, -1),
        micros=part.at.take(found.last) - began,
        events=np.diff(found.end, prepend=0),
        words=part.words[breakdown] if breakdown else (),
    )


def _joined(parts: Sequence[_Sessions]) -> _Sessions:
    """Of all parts; users are numbered through."""
    if not parts:
        none = np.zeros(0, np.int64)
        return _Sessions(none, none, none, none, none, ())
    before = np.cumsum([0, *(int(part.user.max()) + 1 for part in parts[:-1])]).tolist()
    users = [np.where(part.user < 0, -1, part.user + more) for part, more in zip(parts, before, strict=True)]
    group, value, micros, events = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("group", "value", "micros", "events")
    )
    return _Sessions(group, value, np.concatenate(users), micros, events, parts[0].words)


def _ranked(found: _Sessions, limit: int) -> tuple[list[str], I64]:
    """The values that are shown, and which of them each session has."""
    known = found.value >= 0
    chosen = top(np.bincount(found.value[known], minlength=len(found.words)), found.words, limit)
    named = [found.words[code] for code in chosen.tolist()]
    place = np.full(len(found.words) + 1, len(named))  # the last is that of -1
    place[chosen] = np.arange(len(named))
    value = place[found.value]
    if (value[known] == len(named)).any():
        named.append(OTHER)
    value[~known] = len(named)
    if not known.all():
        named.append(NONE)
    return named, value


def _tallied(found: _Sessions, groups: int) -> _Tally:
    known, long = np.flatnonzero(found.user >= 0), np.flatnonzero(found.micros)
    user = found.user.take(known)
    users = distinct(user * groups + found.group.take(known))
    return _Tally(
        sessions=np.bincount(found.group, minlength=groups),
        users=np.bincount(users % groups, minlength=groups),
        bounces=np.bincount(found.group.take(np.flatnonzero(found.events == 1)), minlength=groups),
        events=np.bincount(found.group, found.events, groups).astype(np.int64),
        micros=np.bincount(found.group, found.micros, groups).astype(np.int64),
        lengths=found.micros.take(long),
        of=found.group.take(long),
        people=len(distinct(user)),
    )


def _added(parts: Sequence[_Tally], groups: int) -> _Tally:
    none = np.zeros(groups, np.int64)
    totals = [np.sum([none, *(np.asarray(tally[column]) for tally in parts)], axis=0) for column in range(5)]
    empty = np.zeros(0, np.int64)
    lengths, of = (np.concatenate([empty, *(tally[column] for tally in parts)]) for column in (5, 6))
    sessions, users, bounces, events, micros = totals
    return _Tally(sessions, users, bounces, events, micros, lengths, of, sum(tally.people for tally in parts))


def _answer(columns: dict[str, pa.Array], tally: _Tally, named: Sequence[str]) -> Answer:
    median, p90 = quantiles(tally.lengths, tally.of, tally.sessions, (0.5, 0.9)) / _SECOND
    table = pa.table(
        {
            **columns,
            "sessions": tally.sessions,
            "users": tally.users,
            "median_duration": shown(median),
            "mean_duration": shown(ratio(tally.micros, tally.sessions) / _SECOND),
            "p90_duration": shown(p90),
            "events_per_session": shown(ratio(tally.events, tally.sessions)),
            "bounce_rate": shown(ratio(tally.bounces, tally.sessions)),
        }
    )
    insights, advice = _findings(tally, named)
    y = ("sessions",) if named else ("sessions", "users")
    return Answer(table, insights, advice, Chart(kind="line", x="day", y=y, series="breakdown" if named else ""))


def _findings(tally: _Tally, named: Sequence[str]) -> tuple[list[Insight], list[Recommendation]]:
    """The whole in figures; advice where it is sure that more than half of the sessions bounce."""
    total, bounces, events = (int(column.sum()) for column in (tally.sessions, tally.bounces, tally.events))
    if not total:
        return [], []
    rate = bounces / total
    median = quantile(tally.lengths, total, 0.5) / _SECOND
    summary = Insight(
        key="sessions",
        title=f"{total} sessions, half of them not longer than {median:.0f} s",
        description=f"{tally.people} users had sessions; with those of nobody there were {total}, of "
        f"{events / total:.1f} events each; {bounces} of them ({rate:.0%}) had one event only.",
        data={"sessions": total, "bounces": bounces, "bounce_rate": rate, "events": events},
    )
    found = [summary, *_apart(tally, named)]
    sure = wilson(bounces, total)
    if total < _LEAST_SESSIONS or sure is None or sure.low <= 0.5:
        return found, []
    return found, [
        Recommendation(
            title="Look at where single-event sessions begin",
            description=f"{rate:.0%} of the sessions end after their first event; ask for their first events by "
            "source or campaign (breakdown) before changing anything.",
            insight="sessions",
        )
    ]


def _apart(tally: _Tally, named: Sequence[str]) -> list[Insight]:
    """The value whose sessions bounce most differently from the others', where that is no chance.

    The interval of the difference (Newcombe) has the level 0.95 for all values together (Bonferroni).
    """
    total, bounces = int(tally.sessions.sum()), int(tally.bounces.sum())
    differing = []
    for place, value in enumerate(named):
        mine, hits = (int(column[place :: len(named)].sum()) for column in (tally.sessions, tally.bounces))
        if value == OTHER or min(mine, total - mine) < _LEAST_SESSIONS:
            continue
        gap = newcombe(hits, mine, bounces - hits, total - mine, 1 - 0.05 / len(named))
        if gap is not None and gap.interval.excludes(0):
            differing.append((gap, value, mine, hits))
    if not differing:
        return []
    gap, value, mine, hits = max(differing, key=lambda each: abs(each[0].estimate))
    rest = (bounces - hits) / (total - mine)
    return [
        Insight(
            key="bounce-segment",
            title=f"Sessions of {value} bounce {'more' if gap.estimate > 0 else 'less'} often",
            description=f"{hits} of the {mine} sessions that began with {value} had one event only "
            f"({hits / mine:.0%}), of the others {rest:.0%}.",
            severity="low",
            confidence=1 - min(1.0, gap.p_value * len(named)),
            data={
                "value": value,
                "sessions": mine,
                "bounce_rate": hits / mine,
                "others_rate": rest,
                "low": gap.interval.low,
                "high": gap.interval.high,
                "size": gap.estimate,
            },
        )
    ]
