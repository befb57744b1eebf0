"""The analysis ``funnel``: how many visitors go through a sequence of steps in time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation
from analytics_user_behavior.columns import I64, Mask
from analytics_user_behavior.conditions import Conditions
from analytics_user_behavior.days import F64, VISITOR, codes, integers, ratio, shown

LEAST_STEPS, MOST_STEPS = 2, 20
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Reached(NamedTuple):
    """For one step: how many visitors reached it, and for each of them the seconds since their chain's first step."""

    visitors: int
    seconds: F64


def funnel(events: EventReader, steps: Sequence[Mapping[str, Any]], window: str) -> Answer:
    """One row per step of ``{"event", "where"}``, where ``where`` maps ``properties.x`` or a column to value(s).

    A visitor reaches step k when there are k events in the order (timestamp, partition, seq), the i-th of which fits
    step i, the last at most ``window`` after the first: the longest chain, as `windowFunnel` of ClickHouse counts by
    default. One event never stands for two steps of a chain, other events may come between. ``window`` is a number
    and one of s, m, h, d, w.

    Columns: step (from 1), event, users, conversion_from_start, conversion_from_previous, median_seconds (from the
    chain's first event to the visitor's first event that completes this step; the chain is the latest begun).
    Conversions are null when nobody was there to convert.

    :raises ValueError: for fewer than 2 or more than 20 steps, or a window that is none.
    """
    if not LEAST_STEPS <= len(steps) <= MOST_STEPS:
        raise ValueError(f"steps: {len(steps)} given; valid are {LEAST_STEPS} to {MOST_STEPS}")
    seconds = window_seconds(window)
    conditions = Conditions()
    fits = [conditions.all_of({"name": step["event"], **step.get("where", {})}) for step in steps]
    columns = ", ".join(f"coalesce({fit}, false) AS step{k}" for k, fit in enumerate(fits))
    any_step = " OR ".join(f"({fit})" for fit in fits)
    table = events.sql(
        f"SELECT {VISITOR} AS who, epoch_us(timestamp) AS at, partition, seq, {columns} FROM events "
        f"WHERE {VISITOR} IS NOT NULL AND ({any_step})",
        conditions.parameters,
    )
    who, at = codes(table["who"]), integers(table["at"])
    by = np.lexsort((integers(table["seq"]), integers(table["partition"]), at, who))
    matches = [table[f"step{k}"].to_numpy().astype(np.bool_)[by] for k in range(len(steps))]
    reached = chains(who[by], at[by], matches, seconds * 1_000_000)
    return _answer([str(step["event"]) for step in steps], reached, window)


def window_seconds(window: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,5})([smhdw])", window)
    if not found:
        raise ValueError(f"window {window!r} is no duration; valid are such as 30m, 1d, 2w")
    return int(found[1]) * _UNITS[found[2]]


def chains(who: I64, at: I64, matches: Sequence[Mask], window: int) -> list[Reached]:
    """How far visitors get. ``who``, ``at`` (microseconds) and each of ``matches`` have shape ``(n,)``, in user order.

    Dynamic programming over steps: the best chain that ends with step k at an event is the one that began latest,
    and that is the latest-begun chain of k - 1 steps before it. Beginnings are kept as positions, which grow over the
    whole array, so one running maximum serves all visitors and a position before the visitor's first event is none.
    """
    n = len(who)
    position = np.arange(n)
    first_of = np.concatenate([np.ones(min(n, 1), np.bool_), who[1:] != who[:-1]])
    visitor_start = np.maximum.accumulate(np.where(first_of, position, 0)) if n else position
    begun = np.where(matches[0], position, -1)
    reached = []
    for k in range(len(matches)):
        if k:
            before = np.concatenate([[-1], np.maximum.accumulate(begun)[:-1]]) if n else begun
            good = matches[k] & (before >= visitor_start)
            good[good] &= at[good] - at[before[good]] <= window
            begun = np.where(good, before, -1)
        done = np.flatnonzero(begun >= 0)
        _, first = np.unique(who[done], return_index=True)
        earliest = done[first]
        reached.append(Reached(len(earliest), (at[earliest] - at[begun[earliest]]) / 1e6))
    return reached


def _answer(names: Sequence[str], reached: Sequence[Reached], window: str) -> Answer:
    users = np.array([step.visitors for step in reached], np.int64)
    previous = ratio(users[1:], users[:-1])
    medians = [float(np.median(step.seconds)) if k and step.visitors else np.nan for k, step in enumerate(reached)]
    table = pa.table(
        {
            "step": np.arange(1, len(names) + 1),
            "event": pa.array(names, pa.string()),
            "users": users,
            "conversion_from_start": shown(ratio(users, np.full(len(users), users[0]))),
            "conversion_from_previous": shown(np.concatenate([ratio(users[:1], users[:1]), previous])),
            "median_seconds": shown(np.array(medians)),
        }
    )
    insights, advice = _findings(names, users, window)
    return Answer(table, insights, advice, Chart(kind="funnel", x="event", y=("users",)))


def _findings(names: Sequence[str], users: I64, window: str) -> tuple[list[Insight], list[Recommendation]]:
    lost = users[:-1] - users[1:]
    if not users[0] or not lost.any():
        return [], []
    worst = int(np.argmax(lost))
    here, there, share = names[worst], names[worst + 1], lost[worst] / users[worst]
    biggest = Insight(
        key="drop-off",
        title=f"Most visitors are lost between {here} and {there}",
        description=f"{lost[worst]} of the {users[worst]} visitors who reached step {worst + 1} ({here}) did not reach "
        f"step {worst + 2} ({there}) within {window} ({share:.0%}); {users[-1]} of {users[0]} came to the end.",
        data={"from": here, "to": there, "lost": int(lost[worst]), "reached": int(users[worst]), "share": float(share)},
    )
    advice = Recommendation(
        title=f"Look at the step from {here} to {there} first",
        description=f"It loses {lost[worst]} visitors, more than any other step. Compare those who went on with those "
        "who did not, by platform, source and error events.",
        insight="drop-off",
        priority="high" if share > 0.5 else "medium",
    )
    return [biggest], [advice]
