"""The sessions that are still open, as fixed-size rows in a few parts that are sorted by key."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_user_behavior.clusters import ROW, Rows, grow, put, stacked
from analytics_user_behavior.columns import I64, U64, Columns, Mask, runs

_NEVER = np.iinfo(np.int64).max
_NOTHING = np.iinfo(np.int64).min
_SMALLEST = 1024


class Joined(NamedTuple):
    """What `OpenSessions.join` did: the touched sessions as they were and as they are, each sorted by key.

    ``owner`` and ``code`` number the keys of ``before`` and of the events, shape ``(len(before),)`` and ``(n,)``.
    """

    before: Rows
    after: Rows
    owner: I64
    code: I64


class _Part:
    """Rows sorted by key, with the keys once more side by side for the search."""

    def __init__(self, rows: Rows, keys: U64 | None = None) -> None:
        self.rows = rows
        self.keys: U64 = np.ascontiguousarray(rows["key"]) if keys is None else keys
        self.alive: Mask = np.ones(len(rows), np.bool_)

    def find(self, keys: U64) -> tuple[I64, I64]:
        """Positions of living rows with one of the sorted ``keys``, and which key it is."""
        low = np.searchsorted(self.keys, keys, side="left")
        hit = self.keys[np.minimum(low, len(self.keys) - 1)] == keys
        owner = np.flatnonzero(hit)
        low = low[hit]
        counts = np.searchsorted(self.keys, keys[hit], side="right") - low
        if len(counts) and counts.max() > 1:
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            low, owner = np.repeat(low, counts) + within, np.repeat(owner, counts)
        living = self.alive[low]
        return low[living], owner[living]


class OpenSessions:
    """Sorted parts, each at most half as long as the one before it, as in a log-structured merge tree.

    A batch searches its keys in every part, writes sessions that go on in place, and puts the others into a new part.
    A million open sessions make 80 MB in about eight parts.
    """

    def __init__(self, rows: Rows | None = None) -> None:
        rows = np.zeros(0, ROW) if rows is None else rows
        self._parts = [_Part(rows)] if len(rows) else []
        self._due, self._last = _quiet(rows)

    @property
    def last(self) -> int | None:
        """The latest end or receipt of an open session, in microseconds; None when none is open."""
        return None if self._last == _NOTHING else self._last

    def of(self, keys: U64) -> tuple[Rows, I64]:
        """The sessions of the sorted, distinct ``keys``, and which key each is of."""
        places = [part.find(keys) for part in self._parts]
        return self._found(places), _owners(places)

    def __len__(self) -> int:
        return sum(int(part.alive.sum()) for part in self._parts)

    def join(self, events: Columns, gap: int) -> Joined:
        """Put events into the sessions of their keys. ``gap`` is in microseconds."""
        keys, code = numbered(events.key)
        places = [part.find(keys) for part in self._parts]
        before, owner = self._found(places), _owners(places)
        after = grow(before, owner, events, code, gap)
        due, last = _quiet(after)
        self._due, self._last = min(self._due, due), max(self._last, last)

        single = np.bincount(owner, minlength=len(keys)) == 1
        number = np.repeat(np.arange(len(keys)), np.diff(runs(after["key"])))
        single &= np.bincount(number, minlength=len(keys)) == 1
        only = after.compress(single[number])
        rank = np.cumsum(single) - 1
        for part, (at, mine) in zip(self._parts, places, strict=True):
            stays = single[mine]
            put(part.rows, at[stays], only.take(rank[mine[stays]]))
            part.alive[at[~stays]] = False
        self._insert(after.compress(~single[number]))
        return Joined(before, after, owner, code)

    def close(self, before: int, gap: int) -> Rows:
        """Take out the sessions whose end and last receipt are both more than ``gap`` before ``before``, by end."""
        if self._due + gap >= before:
            return np.zeros(0, ROW)
        closed, self._due, self._last = [], _NEVER, _NOTHING
        for part in self._parts:
            quiet = np.maximum(part.rows["end"], part.rows["received"])
            over = part.alive & (quiet + gap < before)
            closed.append(part.rows.compress(over))
            part.alive &= ~over
            self._due = min(self._due, int(quiet[part.alive].min(initial=_NEVER)))
            self._last = max(self._last, int(quiet[part.alive].max(initial=_NOTHING)))
        self._parts = [_compacted(part) for part in self._parts if part.alive.any()]
        rows = stacked(closed)
        return rows.take(np.lexsort((rows["start"], rows["key"], rows["end"])))

    def drop(self, keys: U64) -> None:
        """Forget the sessions of these keys, as if they had never been."""
        wanted = np.unique(keys)
        for part in self._parts:
            at, _ = part.find(wanted)
            part.alive[at] = False
        self._parts = [_compacted(part, always=True) for part in self._parts if part.alive.any()]
        self._due, self._last = _quiet(stacked([part.rows for part in self._parts]))

    def rows(self) -> Rows:
        """All open sessions, sorted by (key, start)."""
        if not self._parts:
            return np.zeros(0, ROW)
        while len(self._parts) > 1:
            self._merge_last()
        part = _compacted(self._parts[0], always=True)
        same = np.flatnonzero(part.keys[1:] == part.keys[:-1])
        if len(same) and (part.rows["start"][same + 1] < part.rows["start"][same]).any():
            part = _Part(part.rows.take(np.lexsort((part.rows["start"], part.keys))))
        self._parts = [part]
        return part.rows

    def _found(self, places: list[tuple[I64, I64]]) -> Rows:
        return stacked([part.rows.take(at) for part, (at, _) in zip(self._parts, places, strict=True)])

    def _insert(self, rows: Rows) -> None:
        if not len(rows):
            return
        self._parts.append(_Part(rows))
        while len(self._parts) > 1 and len(self._parts[-2].rows) < max(2 * len(self._parts[-1].rows), _SMALLEST):
            self._merge_last()

    def _merge_last(self) -> None:
        parts = [_compacted(part, always=True) for part in self._parts[-2:]]
        keys = np.concatenate([part.keys for part in parts])
        by = np.argsort(keys, kind="stable")  # two sorted runs: one pass
        self._parts[-2:] = [_Part(stacked([part.rows for part in parts]).take(by), keys[by])]


def _compacted(part: _Part, *, always: bool = False) -> _Part:
    """Without its dead rows, when they are the most or ``always``."""
    living = int(part.alive.sum())
    if living == len(part.alive) or (not always and 2 * living > len(part.alive)):
        return part
    return _Part(part.rows.compress(part.alive), part.keys[part.alive])


def _owners(places: list[tuple[I64, I64]]) -> I64:
    return np.concatenate([owner for _, owner in places]) if places else np.empty(0, np.int64)


def numbered(key: U64) -> tuple[U64, I64]:
    """The distinct keys in order, and the number of each event's key among them."""
    encoded = pa.array(key).dictionary_encode()
    distinct: U64 = encoded.dictionary.to_numpy()
    by = np.argsort(distinct)
    rank = np.empty(len(by), np.int64)
    rank[by] = np.arange(len(by))
    return distinct[by], rank[encoded.indices.to_numpy()]


def _quiet(rows: Rows) -> tuple[int, int]:
    """The earliest and the latest end or receipt."""
    quiet = np.maximum(rows["end"], rows["received"])
    return int(quiet.min(initial=_NEVER)), int(quiet.max(initial=_NOTHING))
