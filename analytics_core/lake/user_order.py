"""Events in user order: integer columns sorted by visitor, time and log position, and how several become one.

Everything here is numpy on whole columns and knows neither files nor questions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field

from analytics_core.hashing import hash_strings

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

COLUMNS: Final = {
    "at": np.dtype(np.int64),
    "place": np.dtype(np.int64),
    "name": np.dtype(np.int32),
    "session": np.dtype(np.uint64),
    "flags": np.dtype(np.uint8),
}
"""Of each event. ``place`` is its position in the log: ``partition << 48 | seq``."""
LATE: Final = 1
BOT: Final = 2
"""The bits of ``flags``."""

_SESSIONS: Final = 0x5E55
"""The seed by which session ids are hashed, so that none equals a visitor's key."""
_BITS: Final = 63
_KNOWN: Final = np.uint64(1)


def visitor_keys(ids: pa.Array | Sequence[str]) -> U64:
    """The key of each visitor id, shape ``(n,)``: a hash with its lowest bit set; that of null means nothing."""
    return hash_strings(ids) | _KNOWN


def session_hashes(ids: pa.Array) -> U64:
    """A hash of each session id, shape ``(n,)``; 0 for null."""
    hashes = hash_strings(ids, _SESSIONS) | _KNOWN
    if ids.null_count:
        hashes[~_valid(ids)] = 0
    return hashes


class Keys(NamedTuple):
    """Whose each event is, shape ``(n,)`` each; see `Run`."""

    key: U64
    session: U64


def keys_of(user: pa.Array, anonymous: pa.Array, session: pa.Array) -> Keys:
    """The visitor is the user id, or the anonymous id without one. A session of nobody is a visitor whose key is even.

    Events that have none of the three are nobody's: their key is 0.
    """
    visitor = pc.coalesce(user, anonymous)
    key, sessions = visitor_keys(visitor), session_hashes(session)
    if visitor.null_count:
        nobody = ~_valid(visitor)
        key[nobody] = sessions[nobody] & ~_KNOWN
    return Keys(key, sessions)


def _valid(column: pa.Array) -> Mask:
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


class Run(Struct, frozen=True, eq=False):
    """``n`` events of ``users`` visitors.

    ``key`` (users,): the visitors, ascending; odd for a person, even for a session of nobody, 0 for what is nobody's at
    all. ``end`` (users,): one past the last event of each. Of each event, shape ``(n,)``: ``at`` (microseconds UTC),
    ``place`` (log position), ``name`` (a code), ``session`` (a hash, 0 for none), ``flags`` (`LATE`, `BOT`). The events
    of a visitor are in the order of (at, place). Without some columns (`only`) these are empty.

    Two 64-bit hashes are taken for different ids: among ten million visitors that is wrong once in 180,000 data sets.
    """

    key: U64
    end: I64
    at: I64
    place: I64
    name: I32
    session: U64
    flags: U8
    times: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """What `time_span` has found."""

    def __len__(self) -> int:
        return len(self.at)

    def time_span(self, first: int, last: int) -> tuple[int, int]:
        """The earliest and the latest time of the events ``first`` to ``last - 1``, of which there is one at least."""
        found = self.times.get((first, last))
        if found is None:
            at = self.at[first:last]
            found = self.times[first, last] = int(at.min()), int(at.max())
        return found

    @property
    def start(self) -> I64:
        """Where each visitor's events begin, shape ``(users,)``."""
        return np.concatenate([np.zeros(min(len(self.end), 1), np.int64), self.end[:-1]])

    def user(self) -> I64:
        """The number of each event's visitor, from 0, shape ``(n,)``."""
        return np.repeat(np.arange(len(self.key)), np.diff(self.end, prepend=0))

    def only(self, names: Collection[str]) -> Run:
        """Without the columns that are not in ``names``, which has ``at``."""
        return Run(self.key, self.end, *(getattr(self, name)[: None if name in names else 0] for name in COLUMNS))

    def _each(self, made: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Iterator[Any]:
        """What is made of each column that is there."""
        for name in COLUMNS:
            column = getattr(self, name)
            yield made(column) if len(column) else column

    def between(self, first: int, last: int) -> Run:
        """The visitors ``first`` to ``last - 1``, without a copy."""
        low = int(self.end[first - 1]) if first else 0
        high = int(self.end[last - 1]) if last > first else low
        return Run(self.key[first:last], self.end[first:last] - low, *self._each(lambda column: column[low:high]))

    def bounds(self, low: int, high: int) -> tuple[int, int]:
        """The numbers of the visitors with ``low <= key < high``; ``high`` may be ``2**64``."""
        first = int(np.searchsorted(self.key, np.uint64(low)))
        return first, int(np.searchsorted(self.key, np.uint64(high))) if high < 2**64 else len(self.key)

    def span(self, low: int, high: int) -> Run:
        """The visitors with ``low <= key < high``, without a copy."""
        return self.between(*self.bounds(low, high))

    def where(self, kept: Mask) -> Run:
        """The events for which ``kept`` holds, shape ``(n,)``; visitors without any are gone."""
        chosen = np.flatnonzero(kept)
        end = np.searchsorted(chosen, self.end)
        some = np.diff(end, prepend=0) > 0
        return Run(self.key[some], end[some], *self._each(lambda column: column.take(chosen)))

    def visitors(self, kept: Mask) -> Run:
        """The visitors for which ``kept`` holds, shape ``(users,)``."""
        if kept.all():
            return self
        counts = np.diff(self.end, prepend=0)[kept]
        end = np.cumsum(counts)
        events = np.arange(end[-1] if len(end) else 0) + np.repeat(self.start[kept] - (end - counts), counts)
        return Run(self.key[kept], end, *self._each(lambda column: column.take(events)))

    def renamed(self, keys: U64) -> Run:
        """The same events of other visitors: ``keys`` (users,) are theirs, of which some may be the same."""
        whose = np.diff(self.end, prepend=0)
        return ordered(np.repeat(keys, whose), *(getattr(self, name) for name in COLUMNS))

    def among(self, keys: U64) -> Mask:
        """Which visitors are in ``keys``, which ascend; shape ``(users,)``."""
        if not len(keys):
            return np.zeros(len(self.key), np.bool_)
        at = np.minimum(np.searchsorted(keys, self.key), len(keys) - 1)
        found: Mask = keys[at] == self.key
        return found


_NONE: Final[dict[str, Any]] = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
EMPTY: Final = Run(np.zeros(0, np.uint64), np.zeros(0, np.int64), **_NONE)


def ordered(key: U64, at: I64, place: I64, name: I32, session: U64, flags: U8) -> Run:
    """A run of events in any order. Fastest when they come in the order of time."""
    users, code = np.unique(key, return_inverse=True)
    by = np.arange(len(place))
    for values in (place, at, code):
        by = by[_stable(values[by])]
    end = np.cumsum(np.bincount(code, minlength=len(users)))
    return Run(users, end, at[by], place[by], name[by], session[by], flags[by])


def _stable(values: npt.NDArray[Any]) -> I64:
    """``np.argsort(values, kind="stable")``, several times as fast: a value and its place in one number sort alone."""
    if not len(values) or (values[1:] >= values[:-1]).all():
        return np.arange(len(values))
    bits = len(values).bit_length()
    least = int(values.min())
    if (int(values.max()) - least).bit_length() + bits > _BITS:
        return np.argsort(values, kind="stable")
    packed: I64 = (values - least).astype(np.int64)
    packed <<= bits
    packed |= np.arange(len(values))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def merged(old: Run, new: Run) -> Run:
    """One run of both. Every event of ``new`` is later in the log than each of ``old`` of the same visitor and time."""
    if not len(new) or not len(old):
        return old if len(old) else new
    key = np.sort(np.concatenate([old.key, new.key]))  # `np.union1d` takes seven times as long
    key = key[np.append(True, key[1:] != key[:-1])]
    here, there = np.searchsorted(key, old.key), np.searchsorted(key, new.key)
    counts = np.zeros(len(key), np.int64)
    counts[here] = np.diff(old.end, prepend=0)
    counts[there] += np.diff(new.end, prepend=0)
    place = _places(old, new, here, there) + np.arange(len(new))
    events = len(old) + len(new)
    source = np.arange(events)
    source -= np.repeat(np.arange(len(new) + 1), np.diff(place, prepend=0, append=events))
    source[place] = np.arange(len(old), events)

    def column(name: str) -> Any:
        both = np.concatenate([getattr(old, name), getattr(new, name)])
        return both.take(source) if len(both) else both

    return Run(key, np.cumsum(counts), *map(column, COLUMNS))


def _places(old: Run, new: Run, here: I64, there: I64) -> I64:
    """How many events of ``old`` come before each of ``new``, shape ``(len(new),)``.

    ``here`` and ``there`` number the visitors of both alike. The visitor and the time make one number where they fit.
    """
    low = min(int(old.at.min()), int(new.at.min()))
    span = max(int(old.at.max()), int(new.at.max())) - low + 1
    users = max(int(here[-1]), int(there[-1])) + 1
    if (users * span).bit_length() <= _BITS:
        mine, theirs = (
            run.at + np.repeat(who * span - low, np.diff(run.end, prepend=0))
            for run, who in ((old, here), (new, there))
        )
        return np.searchsorted(mine, theirs, side="right")
    later = np.repeat(np.array([0, 1], np.int8), [len(old), len(new)])
    who = np.concatenate([here[old.user()], there[new.user()]])
    by = np.lexsort((later, np.concatenate([old.at, new.at]), who))
    return np.flatnonzero(by >= len(old)) - np.arange(len(new))


def joined(runs: Sequence[Run]) -> Run:
    """One run of all; each is later in the log than those before it. A large one is merged once, with all others."""
    if len(runs) < 2:
        return runs[0] if runs else EMPTY
    upto = np.cumsum([len(run) for run in runs])
    half = min(int(np.searchsorted(upto, upto[-1] / 2)) + 1, len(runs) - 1)
    return merged(joined(runs[:half]), joined(runs[half:]))


def concatenated(runs: Sequence[Run]) -> Run:
    """One run of runs whose visitors follow one another."""
    if len(runs) < 2:
        return runs[0] if runs else EMPTY
    before = np.cumsum([0, *map(len, runs[:-1])])
    end = np.concatenate([run.end + events for run, events in zip(runs, before, strict=True)])
    key = np.concatenate([run.key for run in runs])
    columns: list[Any] = [np.concatenate([getattr(run, name) for run in runs]) for name in COLUMNS]
    return Run(key, end, *columns)


def settled(run: Run) -> Run:
    """The same run, when events of equal visitor and time may be out of the order of the log."""
    same = (run.at[1:] == run.at[:-1]) & (np.diff(run.user()) == 0) if len(run) else np.zeros(0, np.bool_)
    if not (same & (run.place[1:] < run.place[:-1])).any():
        return run
    tied = np.zeros(len(run), np.bool_)
    tied[1:], tied[:-1] = same, tied[:-1] | same
    where = np.flatnonzero(tied)
    by = where[np.lexsort((run.place[where], run.at[where], run.user()[where]))]
    columns = {name: getattr(run, name).copy() for name in COLUMNS}
    for name, column in columns.items():
        column[where] = getattr(run, name)[by]
    return Run(run.key, run.end, *columns.values())


def cuts(runs: Sequence[Run], rows: int) -> list[int]:
    """Keys that cut all runs into pieces of whole visitors with about ``rows`` events each: ``pieces + 1`` of them,
    from 0 to ``2**64``. A visitor with more events is a piece larger than that."""
    inner: list[int] = []
    total = sum(map(len, runs))
    if total > rows:
        largest = max(runs, key=len)
        pieces = -(-total // rows)
        wanted = np.arange(1, pieces) * len(largest) // pieces
        inner = sorted({int(key) for key in largest.key[np.searchsorted(largest.end, wanted, side="right")]} - {0})
    return [0, *inner, 2**64]
