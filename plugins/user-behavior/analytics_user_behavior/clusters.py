"""How events join the open sessions of their keys.

Sessions of one key are single-linkage clusters: two events belong together when a chain of events leads from one to
the other with no step longer than the gap. That is a property of the set of events, so neither their order nor the
boundaries of batches matter. With a client's session id there is one cluster per key, whatever the gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analytics_user_behavior.columns import I64, Columns

ROW = np.dtype(
    [
        ("key", np.uint64),
        ("start", np.int64),
        ("end", np.int64),
        ("end_order", np.int64),
        ("received", np.int64),
        ("events", np.int64),
        ("last_order", np.int64),
        ("last_at", np.int64),
        ("end_name", np.uint8),
        ("last_name", np.uint8),
        ("client", np.bool_),
    ],
    align=True,
)
"""One open session: ``end*`` is its latest event by (time, order), ``last*`` its latest arrival."""

Rows = npt.NDArray[Any]
_OPAQUE = np.dtype((np.void, ROW.itemsize))


def stacked(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts. Numpy moves structured rows field by field, ten times as slowly as bytes."""
    if not parts:
        return np.zeros(0, ROW)
    return np.concatenate([part.view(_OPAQUE) for part in parts]).view(ROW)


def put(rows: Rows, at: I64, new: Rows) -> None:
    """``rows[at] = new``, moved as bytes."""
    rows.view(_OPAQUE)[at] = new.view(_OPAQUE)


def grow(found: Rows, owner: I64, events: Columns, code: I64, gap: int) -> Rows:
    """The sessions that come of open ones and new events, sorted by (code, start).

    ``owner`` and ``code`` number the keys of ``found`` and ``events``, without holes; every code has an event. ``gap``
    is in microseconds. An open session stands for the points of its start and its end: what lies in between belongs
    to it, whatever the distance.
    """
    inner = _with_events_inside(found, owner, events, code)
    n, m, k = len(events.at), len(found), len(inner)
    codes = np.concatenate([owner[inner], owner, code])
    at = np.concatenate([found["start"][inner], found["end"], events.at])
    order = np.concatenate([np.full(k, -1), found["end_order"], events.order])
    in_order = _in_order(found["end_order"], events.order)
    by = _by_time(codes, at) if in_order else np.lexsort((order, at, codes))
    codes, at = codes[by], at[by]

    client = np.zeros(int(codes[-1]) + 1, np.bool_)
    client[code] = events.client
    opening = np.zeros(k + m + n, np.int64)
    opening[:k], opening[k + inner] = 1, -1
    inside = np.cumsum(opening[by])[:-1] > 0
    apart = (np.diff(at) > gap) & ~inside & ~client[codes[1:]]
    first = np.flatnonzero(np.concatenate([[True], (codes[1:] != codes[:-1]) | apart]))
    last = np.append(first[1:], len(codes)) - 1

    def joined(of_found: npt.NDArray[Any], of_event: Any) -> npt.NDArray[Any]:
        """One value per point in order; a start repeats its session's."""
        return np.concatenate([of_found[inner], of_found, of_event])[by]

    rows = np.zeros(len(first), ROW)
    rows["key"] = joined(found["key"], events.key)[first]
    rows["client"] = client[codes[first]]
    rows["start"] = np.minimum.reduceat(joined(found["start"], events.at), first)
    rows["end"] = at[last]
    rows["end_order"] = order[by[last]]
    rows["end_name"] = joined(found["end_name"], events.name)[last]
    rows["received"] = np.maximum.reduceat(joined(found["received"], events.received), first)
    counts = np.concatenate([np.zeros(k, np.int64), found["events"], np.ones(n, np.int64)])
    rows["events"] = np.add.reduceat(counts[by], first)
    arrived = joined(found["last_order"], events.order)
    rows["last_order"] = np.maximum.reduceat(arrived, first)
    latest = _first_with(rows["last_order"], arrived, first, last)
    rows["last_at"] = joined(found["last_at"], events.at)[latest]
    rows["last_name"] = joined(found["last_name"], events.name)[latest]
    return rows


def _first_with(wanted: I64, values: I64, first: I64, last: I64) -> I64:
    """In each of the runs ``[first, last]`` the first position whose value is the wanted one."""
    hits = np.flatnonzero(values == np.repeat(wanted, last - first + 1))
    return hits[np.searchsorted(hits, first)]


def _with_events_inside(found: Rows, owner: I64, events: Columns, code: I64) -> I64:
    """The sessions of keys with an event before the end of one: only there a start matters."""
    end = np.full(int(code.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(end, owner, found["end"])
    early = events.at < end[code]
    if not early.any():
        return np.empty(0, np.int64)
    touched = np.zeros(len(end), np.bool_)
    touched[code[early]] = True
    return np.flatnonzero(touched[owner])


def _in_order(before: I64, order: I64) -> bool:
    """Whether the events stand in log order and after all that was there: always so with one partition."""
    return bool((order[1:] > order[:-1]).all() and before.max(initial=-1) < order[0])


def _by_time(codes: I64, at: I64) -> I64:
    """Positions in (code, time), and of equal ones as they stand: starts, ends, events in log order."""
    by = stable_order(at)
    return by[stable_order(codes[by])]


def stable_order(values: I64) -> I64:
    """What ``np.argsort(values, kind="stable")`` gives, several times as fast: values and positions are packed into
    one number each, which sort without a comparison by index."""
    bits = len(values).bit_length()
    least = int(values.min())
    if int(values.max()) - least >= 1 << (63 - bits):
        return np.argsort(values, kind="stable")
    packed = np.sort(((values - least) << bits) | np.arange(len(values)))
    packed &= (1 << bits) - 1
    return packed
