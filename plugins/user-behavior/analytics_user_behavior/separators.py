"""What those did who came to a goal, before they did, and the others did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, UserOrder
from analytics_user_behavior.activity import filters_of, told
from analytics_user_behavior.columns import I64
from analytics_user_behavior.counts import listed, once
from analytics_user_behavior.intervals import newcombe, risk_ratio
from analytics_user_behavior.path_findings import missing
from analytics_user_behavior.session_order import spans
from analytics_user_behavior.shifts import adjusted
from analytics_user_behavior.walks import marked_places

LIMIT: Final = 20
LEAST: Final = 10
_LEAST_GROUP = 30
_RATE = 0.05


class _Groups(NamedTuple):
    """How many converters and how many others did each event, shape ``(names,)``, and how many there are."""

    hits: I64
    other_hits: I64
    converters: int
    others: int
    names: Sequence[str]


def separators(events: EventReader, given: Mapping[str, Any]) -> Answer:
    """Which events those did who came to ``goal`` (a name or ``{"event", "where"}``), and the others not, or less.

    A converter is a person with a goal event in the range; of it only what is strictly before the first of them counts,
    in the order (timestamp, partition, seq). The others are the persons without; of them all in the range counts. The
    events that at least ``least`` persons did are compared, each by how many persons did it at least once:
    ``converters`` and ``converter_share``, ``others`` and ``other_share``. ``lift`` is the ratio of the shares with its
    95 % interval (Katz 1978, on the logarithm); lift is null where no other did it, the interval also where no
    converter did. ``p_value`` is that of the pooled z-test, ``q_value`` is adjusted for all events that are compared
    (Benjamini and Hochberg 1995). Rows are in the order of how far the interval of the difference of the shares
    (Newcombe 1998) is from zero; without converters or without others there are none.

    This tells groups apart and is no claim of cause: who wants to buy does more of everything. And the history of the
    others is the longer one, as it is not cut at a goal, which makes lifts smaller rather than larger.

    The ``limit`` events that separate most.
    Columns: event, converters, converter_share, others, other_share, lift, lift_low, lift_high, p_value, q_value.
    """
    goal, limit, least = given["goal"], given.get("limit", LIMIT), given.get("least", LEAST)
    parts = events.in_user_order(_groups, marks={"goal.where": filters_of(goal)}, columns=["name"])
    found = _added(parts) if parts else None
    rows = _rows(found, least) if found is not None else []
    columns = {"event": str, "converters": int, "converter_share": float, "others": int, "other_share": float}
    figures = {"lift": float, "lift_low": float, "lift_high": float, "p_value": float, "q_value": float}
    insights, advice = _findings(rows, found, goal) if found is not None else ([], [])
    if found is not None and not found.converters:
        insights = missing({"goal": goal}, found.names)
    chart = Chart(kind="bar", x="event", y=("converter_share", "other_share"))
    return Answer(listed(rows[:limit], {**columns, **figures}), insights, advice, chart)


def _groups(part: UserOrder) -> _Groups:
    names, start = len(part.names), part.start()
    goal = marked_places(part.end, part.marks["goal.where"])
    converted = goal >= 0
    lengths = np.where(part.known, np.where(converted, goal, part.end) - start, 0)
    key = np.repeat(np.arange(len(start)), lengths) * names + part.name[spans(start, lengths)]
    did = once(key, len(start) * names)
    hits = converted[did // names]
    return _Groups(
        hits=np.bincount(did[hits] % names, minlength=names),
        other_hits=np.bincount(did[~hits] % names, minlength=names),
        converters=int((converted & part.known).sum()),
        others=int((~converted & part.known).sum()),
        names=part.names,
    )


def _added(parts: Sequence[_Groups]) -> _Groups:
    hits, other_hits = (np.sum([np.asarray(part[column]) for part in parts], axis=0) for column in (0, 1))
    converters, others = sum(part.converters for part in parts), sum(part.others for part in parts)
    return _Groups(hits, other_hits, converters, others, parts[0].names)


def _rows(found: _Groups, least: int) -> list[dict[str, Any]]:
    """By how far apart the groups surely are."""
    rows = []
    for code in np.flatnonzero(found.hits + found.other_hits >= least).tolist():
        counts = int(found.hits[code]), found.converters, int(found.other_hits[code]), found.others
        gap = newcombe(*counts)
        if gap is None:
            return []  # one of the groups is of nobody
        share, other_share = counts[0] / counts[1], counts[2] / counts[3]
        lift = risk_ratio(*counts)
        low, high = (None, None) if lift is None else lift.interval
        rows.append(
            {
                "event": found.names[code],
                "converters": counts[0],
                "converter_share": share,
                "others": counts[2],
                "other_share": other_share,
                "lift": share / other_share if counts[2] else None,
                "lift_low": low,
                "lift_high": high,
                "p_value": gap.p_value,
                "apart": max(gap.interval.low, -gap.interval.high),
            }
        )
    for row, q in zip(rows, adjusted(np.array([row["p_value"] for row in rows])).tolist(), strict=True):
        row["q_value"] = q
    return sorted(rows, key=lambda row: (-row["apart"], row["p_value"], row["event"]))


def _findings(
    rows: Sequence[Mapping[str, Any]], found: _Groups, goal: Any
) -> tuple[list[Insight], list[Recommendation]]:
    """The event that those who converted did more often, most surely, where both groups are large enough."""
    if min(found.converters, found.others) < _LEAST_GROUP:
        return [], []
    more = [row for row in rows if row["q_value"] < _RATE and row["lift_low"] is not None and row["lift_low"] > 1]
    if not more:
        return [], []
    row = more[0]
    insight = Insight(
        key="separator",
        title=f"Those who came to {told(goal)} did {row['event']} more often",
        description=f"{row['converters']} of {found.converters} of them ({row['converter_share']:.0%}) did it before, "
        f"of the {found.others} others {row['others']} ({row['other_share']:.0%}): {row['lift']:.2f} times as many "
        f"(95 % interval {row['lift_low']:.2f} to {row['lift_high']:.2f}). That tells them apart; it does not say why.",
        confidence=1 - row["q_value"],
        data={
            **row,
            "goal": told(goal),
            "of_converters": found.converters,
            "of_others": found.others,
            "size": row["lift"],
        },
    )
    return [insight], [
        Recommendation(
            title=f"Test whether {row['event']} leads to {told(goal)}",
            description=f"It goes with {told(goal)}, which may be the wish behind both. An experiment that makes "
            f"{row['event']} easier for some of the users can tell.",
            insight="separator",
        )
    ]
