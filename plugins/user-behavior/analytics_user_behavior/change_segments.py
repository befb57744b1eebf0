"""Which segment of a change explains the most of it: the values of the properties that have few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analytics_core import EventReader, UserOrder
from analytics_user_behavior.change_figures import Figure
from analytics_user_behavior.change_tallies import Days, Steps, session_begins, steps
from analytics_user_behavior.columns import I32, I64, U64, Mask
from analytics_user_behavior.counts import once
from analytics_user_behavior.intervals import normal_p
from analytics_user_behavior.shifts import share_shift

MOST_EVENTS = 20_000_000
"""Beyond so many events no segments are looked for: each figure counts them anew by each property."""
_FIELDS, _VALUES, _LEAST_PART = 8, 20, 0.1
_WINDOWS, _SAMPLE, _SPARSEST = 8, 2_500, 64
"""Days of which so many events each are looked at, every so-many-th one at most."""
_LEAST_SHARE, _LEAST_EXCESS, _LEVEL = 0.5, 0.2, 0.01
_WINDOW = """
  (SELECT properties, context FROM events
   WHERE timestamp >= $from{day} AND timestamp < $to{day} AND ($all OR list_contains($names, name))
     AND hash(partition, seq) % $every = 0 LIMIT {most})
"""
_CANDIDATES = """
WITH sampled AS (
  SELECT * FROM ({windows}) WHERE json_valid(properties) AND json_valid(context)
), found AS (
  SELECT 'properties.' || each.key AS field, each.type, CAST(each.value AS VARCHAR) AS value
  FROM sampled, json_each(sampled.properties) AS each
  UNION ALL
  SELECT 'context.' || each.key, each.type, CAST(each.value AS VARCHAR)
  FROM sampled, json_each(sampled.context) AS each
)
SELECT field FROM found
WHERE type IN ('VARCHAR', 'BOOLEAN') AND regexp_full_match(field, '[a-z]+\\.[^.]+')
GROUP BY field
HAVING count(DISTINCT value) BETWEEN 2 AND {values} AND count(*) >= {part} * (SELECT count(*) FROM sampled)
ORDER BY count(*) DESC, field LIMIT {fields}
"""


class Segment(NamedTuple):
    """Events with ``value`` in ``field``, and which part of the change is theirs."""

    field: str
    value: str
    share: float

    def __str__(self) -> str:
        return f"{self.field} = {self.value}"


def explain(
    events: EventReader, days: Days, figures: Sequence[Figure], counts: Mapping[str, int], gap: int
) -> list[Segment | None]:
    """The segment of each figure that explains the most of its change; None where no segment stands out.

    It has to explain half of the change or more, more than it had of the whole by a fifth of all, and to have changed
    unlike the others (at 1 % over all segments that were looked at). Of a count its share is its own change by the
    whole one; of a conversion it is the change of its rate times its part of the visitors, by the whole change.
    """
    alone = sorted({name for figure in figures for name in figure.names[:1]})
    whole = any(not figure.names for figure in figures)
    n = sum(count for name, count in counts.items() if whole or name in alone)
    fields = _candidates(events, days, alone, n, whole=whole) if 0 < n <= MOST_EVENTS else []
    if not fields:
        return [None] * len(figures)

    def tally(part: UserOrder) -> list[list[_Cells]]:
        found = steps(part, days, alone, gap)
        values = {field: part.values[field][found.inside] for field in fields}
        made = []
        for figure in figures:
            begins = session_begins(part, gap)[found.inside] if figure.kind == "sessions" else None
            here = np.flatnonzero(_counted(part, found, figure, alone) if begins is None else begins)
            half = (found.day.take(here) >= days.half).astype(np.int64)
            seen = _Seen(part.key, found.user.take(here), half, figure)
            made.append([_cells(seen, values[field].take(here), part.words[field]) for field in fields])
        return made

    meant: dict[str, Any] = {} if whole else {"meant": [{"field": "event", "op": "in", "value": [*alone]}]}
    folded = events.in_user_order(tally, marks=meant, values=fields, marked_only=not whole, columns=["name", "session"])
    return [
        _best(figure, {field: _summed([part[i][j] for part in folded]) for j, field in enumerate(fields)})
        for i, figure in enumerate(figures)
    ]


def _candidates(events: EventReader, days: Days, names: Sequence[str], n: int, *, whole: bool) -> list[str]:
    """Properties with 2 to 20 texts or truth values on a tenth of the events or more.

    By a sample that is the same each time: of some days, so that few files are read, and there of events far apart, as
    those side by side are of few visitors.
    """
    chosen = np.unique(np.linspace(0, len(days) - 1, _WINDOWS).round().astype(np.int64)).tolist()
    every = min(max(n // len(days) // _SAMPLE, 1), _SPARSEST)
    bound: dict[str, Any] = {"all": whole, "names": list(names), "every": every}
    for day in chosen:
        bound |= {f"from{day}": days.begin(day), f"to{day}": days.begin(day + 1)}
    windows = "UNION ALL".join(_WINDOW.format(day=day, most=_SAMPLE) for day in chosen)
    query = _CANDIDATES.format(windows=windows, values=_VALUES, part=_LEAST_PART, fields=_FIELDS)
    fields: list[str] = events.sql(query, bound)["field"].to_pylist()
    return fields


class _Cells(NamedTuple):
    """By value and half, shape ``(values, 2)``: what the figure counts, and for a conversion ``of`` how many."""

    words: Sequence[str]
    counted: I64
    of: I64


class _Seen(NamedTuple):
    """What a figure counts of a part: the visitor and the half of each event, shape ``(n,)``. ``key`` (users,)."""

    key: U64
    user: I64
    half: I64
    figure: Figure


def _cells(seen: _Seen, value: I32, words: Sequence[str]) -> _Cells:
    """``value`` (n,) indexes ``words``, -1 for none."""
    figure, size = seen.figure, 2 * len(words)
    some = np.flatnonzero(value >= 0)
    user, half, value = seen.user.take(some), seen.half.take(some), value.take(some)
    if figure.kind not in ("visitors", "conversion"):
        counted = np.bincount(value * 2 + half, minlength=size).reshape(-1, 2)
        return _Cells(words, counted, counted)
    who, cell = np.divmod(once(user * size + value * 2 + half, len(seen.key) * size), max(size, 1))  # each visitor once
    of = np.bincount(cell, minlength=size).reshape(-1, 2)
    if figure.keys is None:
        return _Cells(words, of, of)
    went_on = _among(seen.key.take(who), cell % 2, figure.keys)
    return _Cells(words, np.bincount(cell[went_on], minlength=size).reshape(-1, 2), of)


def _counted(part: UserOrder, found: Steps, figure: Figure, names: Sequence[str]) -> Mask:
    """The events that stand for what the figure counts, but for sessions."""
    known = part.known[found.user]
    if figure.kind == "visitors":
        return known
    named: Mask = found.name == names.index(figure.names[0])
    return named & known if figure.kind == "conversion" else named


def _among(key: U64, half: I64, keys: tuple[U64, U64]) -> Mask:
    return np.where(half == 1, np.isin(key, keys[1]), np.isin(key, keys[0]))


def _summed(cells: Sequence[_Cells]) -> _Cells:
    if not cells:
        return _Cells((), np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64))
    return _Cells(cells[0].words, sum(each.counted for each in cells), sum(each.of for each in cells))  # type: ignore[arg-type]


def _best(figure: Figure, cells: Mapping[str, _Cells]) -> Segment | None:
    level = _LEVEL / max(sum(len(each.words) for each in cells.values()), 1)
    best, most = None, _LEAST_EXCESS
    for field, each in cells.items():
        for word, count, of in zip(each.words, each.counted.tolist(), each.of.tolist(), strict=True):
            share, weight, p = _of_conversion(figure, count, of) if figure.tried else _of_count(figure, count)
            if share >= _LEAST_SHARE and share - weight >= most and p <= level:
                best, most = Segment(field, word, share), share - weight
    return best


def _of_count(figure: Figure, count: tuple[int, int]) -> tuple[float, float, float]:
    """The segment's part of the change and of the whole before, and the probability that its part has not changed."""
    before, after = int(figure.before), int(figure.after)
    if not before or not after:
        return 0.0, 0.0, 1.0
    p = share_shift(min(count[0], before), before, min(count[1], after), after).p
    return (count[1] - count[0]) / (after - before), count[0] / before, p


def _of_conversion(figure: Figure, count: tuple[int, int], of: tuple[int, int]) -> tuple[float, float, float]:
    """As `_of_count`; p is of a rate that has changed as that of the other visitors."""
    assert figure.tried is not None
    rest = [tried - own for tried, own in zip(figure.tried, of, strict=True)]
    others = [
        round(share * tried) - own
        for share, tried, own in zip((figure.before, figure.after), figure.tried, count, strict=True)
    ]
    if min(*of, *rest) < 1:
        return 0.0, 0.0, 1.0
    own_shift, own_variance = _difference(count, of)
    their_shift, their_variance = _difference(others, rest)
    weight = (of[0] / figure.tried[0] + of[1] / figure.tried[1]) / 2
    variance = own_variance + their_variance
    p = normal_p((own_shift - their_shift) / math.sqrt(variance)) if variance else 1.0
    return weight * own_shift / (figure.after - figure.before), weight, p


def _difference(count: Sequence[int], of: Sequence[int]) -> tuple[float, float]:
    """Of two shares, and its variance."""
    first, second = count[0] / of[0], count[1] / of[1]
    return second - first, first * (1 - first) / of[0] + second * (1 - second) / of[1]
