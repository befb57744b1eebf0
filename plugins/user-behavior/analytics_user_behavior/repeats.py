"""Rage repeats: one visitor does the same several times in a few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, UserOrder
from analytics_user_behavior.activity import filters_of
from analytics_user_behavior.columns import I64
from analytics_user_behavior.counts import NONE, Counted, added, counted, distinct, firsts, listed
from analytics_user_behavior.fields import valued
from analytics_user_behavior.intervals import wilson

TIMES: Final = 3
SECONDS: Final = 5
LIMIT: Final = 20
_BITS: Final = 63
_LEAST = 20
_LEAST_SHARE = 0.05


class _Repeats(NamedTuple):
    """Of a part. Codes are ``name * (words + 1) + value``, the last value is none. ``episodes`` weigh events;
    ``most`` (episodes,) are the events of each and ``of`` its code; ``having`` counts the persons with the code."""

    episodes: Counted
    users: Counted
    having: Counted
    of: I64
    most: I64
    names: Sequence[str]
    words: Sequence[str]


def repeats(events: EventReader, given: Mapping[str, Any]) -> Answer:
    """How often visitors do the same at least ``times`` times within ``seconds`` seconds.

    The same is an event of the same name, and with ``breakdown`` of the same value of that property or column; other
    events may come between. ``event`` says which events are looked at: a name or ``{"event", "where"}``, all without.
    Of the events of one visitor that are the same, ``times`` ones after the other are a burst when the last comes at
    most ``seconds`` after the first; bursts that share an event are one ``episode``. A visitor is a person or a session
    of nobody, and sessions do not matter.

    ``repeats`` are the events of the episodes and ``longest`` the most in one; ``users`` are the persons with an
    episode, ``share`` is of those with such an event at all, null without any. The ``limit`` rows with most episodes.
    Columns: event, [breakdown,] episodes, repeats, longest, users, share.
    """
    breakdown, limit = given.get("breakdown"), given.get("limit", LIMIT)
    values = [valued(breakdown, "breakdown")] if breakdown else []
    times, micros = given.get("times", TIMES), round(given.get("seconds", SECONDS) * 1e6)
    marks = {"event.where": filters_of(given["event"])} if given.get("event") else {}
    parts = events.in_user_order(
        lambda part: _repeats(part, times, micros, breakdown),
        marks=marks,
        values=values,
        marked_only=bool(marks),
        columns=["name"],
    )
    rows = _rows(parts, limit) if parts else []
    columns = {"event": str, **({"breakdown": str} if breakdown else {})}
    figures = {"episodes": int, "repeats": int, "longest": int, "users": int, "share": float}
    insights, advice = _findings(rows, times, given.get("seconds", SECONDS))
    chart = Chart(kind="bar", x="event", y=("episodes",), series="breakdown" if breakdown else "")
    return Answer(listed(rows, {**columns, **figures}), insights, advice, chart)


def _repeats(part: UserOrder, times: int, micros: int, breakdown: str | None) -> _Repeats:
    words = part.words[breakdown] if breakdown else ()
    width = len(words) + 1
    code = part.name.astype(np.int64) * width
    if breakdown:
        value = part.values[breakdown]
        code += np.where(value < 0, len(words), value)
    codes = len(part.names) * width
    key = part.user() * codes + code
    order = _stable(key)
    key, at = key[order], part.at[order]
    places = max(len(key) - times + 1, 0)  # where a burst could begin
    near = at[times - 1 :] - at[:places] <= micros
    begins = np.flatnonzero(near & (key[times - 1 :] == key[:places]))
    opens = np.append(np.ones(min(len(begins), 1), np.bool_), np.diff(begins) >= times)
    first = begins[opens]
    last = begins[np.append(opens[1:], np.ones(min(len(begins), 1), np.bool_))] + times - 1
    of, most = key[first] % codes, last - first + 1
    known = part.known[key[first] // codes]
    having = key[firsts(key)]
    return _Repeats(
        episodes=counted(of, codes, most),
        users=counted(distinct(key[first][known]) % codes, codes),
        having=counted(having[part.known[having // codes]] % codes, codes),
        of=of,
        most=most,
        names=part.names,
        words=words,
    )


def _stable(key: I64) -> I64:
    """The order of the keys, of equals as they are. A key and its place in one number sort alone where they fit."""
    bits = len(key).bit_length()
    if int(key.max()).bit_length() + bits > _BITS:
        return np.argsort(key, kind="stable")
    packed = (key << bits) | np.arange(len(key))
    packed.sort()
    return packed & ((1 << bits) - 1)


def _rows(parts: Sequence[_Repeats], limit: int) -> list[dict[str, Any]]:
    episodes = added([part.episodes for part in parts])
    users, having = added([part.users for part in parts]), added([part.having for part in parts])
    longest = np.zeros(len(episodes.code), np.int64)
    for part in parts:
        np.maximum.at(longest, np.searchsorted(episodes.code, part.of), part.most)
    names, words = parts[0].names, [*parts[0].words, NONE]
    acting = dict(zip(users.code.tolist(), users.times.tolist(), strict=True))
    able = dict(zip(having.code.tolist(), having.times.tolist(), strict=True))
    rows = []
    for at in np.lexsort((episodes.code, -episodes.times))[:limit].tolist():
        code = int(episodes.code[at])
        name, value = divmod(code, len(words))
        rows.append(
            {
                "event": names[name],
                "breakdown": words[value],
                "episodes": int(episodes.times[at]),
                "repeats": int(episodes.weight[at]),
                "longest": int(longest[at]),
                "users": acting.get(code, 0),
                "share": acting.get(code, 0) / able[code] if code in able else None,
            }
        )
    return rows


def _findings(
    rows: Sequence[Mapping[str, Any]], times: int, seconds: float
) -> tuple[list[Insight], list[Recommendation]]:
    """The event that most persons repeat so, where it is surely one in twenty of those who do it."""
    sure = []
    for row in rows:
        share = wilson(row["users"], round(row["users"] / row["share"])) if row["users"] else None
        if share is not None and row["users"] >= _LEAST and share.low >= _LEAST_SHARE:
            sure.append(row)
    if not sure:
        return [], []
    row = max(sure, key=lambda each: each["users"])
    named = row["event"] if row["breakdown"] == NONE else f"{row['event']} ({row['breakdown']})"
    insight = Insight(
        key="repeats",
        title=f"{named} is repeated in quick succession",
        description=f"{row['users']} users, {row['share']:.0%} of those who do it, did so at least {times} times "
        f"within {seconds:g} s, in {row['episodes']} episodes of up to {row['longest']}.",
        severity="low",
        data={**row, "size": row["share"]},
    )
    return [insight], [
        Recommendation(
            title=f"See whether {named} answers at once",
            description="Quick repeats can be a control that does nothing, or answers late; or one that is meant to be "
            "used so. Look at its latency and errors at the times of the episodes.",
            insight="repeats",
        )
    ]
