"""The analysis ``sessions``: how many, how long and how deep, per day."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, TimeRange
from analytics_user_behavior.columns import I64, MINUTE
from analytics_user_behavior.days import DAY, VISITOR, codes, dates, integers, local_days, quantiles, ratio, shown

_QUERY = f"""
SELECT {VISITOR} AS who, session_id, epoch_us(timestamp) AS at, {DAY} AS day
FROM events WHERE {VISITOR} IS NOT NULL OR session_id IS NOT NULL
"""


class Sessions(NamedTuple):
    """One entry per session, shape ``(sessions,)``. ``day`` is that of its first event; ``seconds`` its duration."""

    who: I64
    day: I64
    seconds: np.typing.NDArray[np.float64]
    events: I64


def sessions(events: EventReader, asked: TimeRange, gap_minutes: int) -> Answer:
    """One row per local day of the range, sessions counted on the day of their first event.

    A session is (visitor, client's session id) where the client gives one; otherwise the events of a visitor in which
    each follows another by ``gap_minutes`` at most. A visitor is the user id, or the anonymous id without one. Only
    events in the range are seen, so a session across its edge is cut there. Durations are seconds from the first to
    the last event; a bounce is a session of one event; quantiles are linear between neighbours.

    Columns: day, sessions, users, median_duration, mean_duration, p90_duration, events_per_session, bounce_rate;
    the last five are null on days without sessions.
    """
    found = _cluster(events, asked.timezone, gap_minutes * MINUTE)
    days = local_days(asked)
    n, day = len(days), found.day - days[0]
    counts = np.bincount(day, minlength=n)
    who_days = np.unique(np.stack([day, found.who]), axis=1)[0]
    table = pa.table(
        {
            "day": dates(days),
            "sessions": counts,
            "users": np.bincount(who_days, minlength=n),
            "median_duration": shown(quantiles(found.seconds, day, n, 0.5)),
            "mean_duration": shown(ratio(np.bincount(day, found.seconds, n), counts)),
            "p90_duration": shown(quantiles(found.seconds, day, n, 0.9)),
            "events_per_session": shown(ratio(np.bincount(day, found.events, n), counts)),
            "bounce_rate": shown(ratio(np.bincount(day, found.events == 1, n), counts)),
        }
    )
    insights, advice = _findings(found)
    return Answer(table, insights, advice, Chart(kind="line", x="day", y=("sessions", "users")))


def _cluster(events: EventReader, timezone: str, gap: int) -> Sessions:
    table = events.sql(_QUERY, {"timezone": timezone})
    who, session = codes(table["who"]), codes(table["session_id"])
    at, day = integers(table["at"]), integers(table["day"])
    key = (who + 1) * (session.max(initial=-1) + 2) + (session + 1)
    by = np.lexsort((at, key))
    key, at, client = key[by], at[by], session[by] >= 0
    apart = (np.diff(key) != 0) | ((np.diff(at) > gap) & ~client[1:])
    first = np.flatnonzero(np.concatenate([np.ones(min(len(at), 1), np.bool_), apart]))
    after = np.append(first[1:], len(at))
    if not len(first):
        after = first
    return Sessions(who[by][first], day[by][first], (at[after - 1] - at[first]) / 1e6, after - first)


def _findings(found: Sessions) -> tuple[list[Insight], list[Recommendation]]:
    total = len(found.events)
    if not total:
        return [], []
    bounces = int((found.events == 1).sum())
    rate = bounces / total
    summary = Insight(
        key="sessions",
        title=f"{total} sessions, half of them shorter than {np.median(found.seconds):.0f} s",
        description=f"{len(np.unique(found.who[found.who >= 0]))} visitors had {total} sessions with "
        f"{found.events.mean():.1f} events each; {bounces} of them ({rate:.0%}) had one event only.",
        data={"sessions": total, "bounces": bounces, "bounce_rate": rate, "events": int(found.events.sum())},
    )
    if rate <= 0.5:
        return [summary], []
    return [summary], [
        Recommendation(
            title="Look at where single-event sessions begin",
            description=f"{rate:.0%} of the sessions end after their first event; ask for their first events by "
            "source or campaign before changing anything.",
            insight="sessions",
        )
    ]
