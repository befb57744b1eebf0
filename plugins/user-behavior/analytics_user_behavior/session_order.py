"""The sessions of visitors: which events belong to which, and the events session by session.

A session is (visitor, client's session id) where the client gives one, whatever the pauses and whatever comes between
(two tabs). The other events of a visitor make sessions of their own, in which each follows another by at most the gap.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core import UserOrder
from analytics_user_behavior.columns import I64, U64, Mask, places

_TABLE: Final = 1 << 16
_BLOCK: Final = 1 << 14


class _Moves(NamedTuple):
    """The events that stand elsewhere than in the part: at ``to``, and at ``origin`` before."""

    to: I64
    origin: I64


_AS_THEY_STAND: Final = _Moves(np.zeros(0, np.int64), np.zeros(0, np.int64))


class SessionOrder(NamedTuple):
    """The sessions of ``part``, shape ``(sessions,)``, by visitor and those of one in the order of their first events.

    ``user`` is the visitor's number in the part; ``first`` and ``last`` are where the first and the last event stand
    in the part; ``end`` is one past the last event when the events are session by session, as `events` has them.
    """

    part: UserOrder
    user: I64
    first: I64
    last: I64
    end: I64
    moves: _Moves = _AS_THEY_STAND

    @property
    def events(self) -> UserOrder:
        """The events session by session: each "visitor" is one session, with the key and all else of its visitor.

        Copies no column of an event unless the sessions of a visitor interleave.
        """
        part, user = self.part, self.user
        return UserOrder(
            key=part.key[user],
            known=part.known[user],
            end=self.end,
            first_at=part.first_at[user] if len(part.first_at) else part.first_at,
            at=self.column(part.at),
            seq=self.column(part.seq),
            name=self.column(part.name),
            session=self.column(part.session),
            names=part.names,
            marks={mark: self.column(column) for mark, column in part.marks.items()},
            values={field: self.column(column) for field, column in part.values.items()},
            words=part.words,
        )

    def column(self, column: npt.NDArray[Any]) -> Any:
        """A column of the part, shape ``(n,)``, session by session."""
        if not len(self.moves.to) or not len(column):  # unmoved, or not asked for
            return column
        whole = column.copy()
        whole[self.moves.to] = column[self.moves.origin]
        return whole


class _Pieces(NamedTuple):
    """Events side by side that are of one session, shape ``(pieces,)``: from ``start`` to before ``end``, of the
    visitor number ``user``; ``head`` is the client's session, or the visitor where there is none. ``opens``: that the
    piece before it has another head."""

    start: I64
    end: I64
    user: I64
    head: U64
    client: Mask
    opens: Mask


def by_session(part: UserOrder, gap: int) -> SessionOrder:
    """``gap`` in microseconds."""
    pieces = _pieces(part, gap)
    owner = _owners(part.at, pieces, gap)
    if owner is None:
        return SessionOrder(part, pieces.user, pieces.start, pieces.end - 1, pieces.end)
    joined = owner != np.arange(len(owner))
    alone = np.flatnonzero(~joined)
    several = np.zeros(len(part.end), np.bool_)
    several[pieces.user.take(np.flatnonzero(joined))] = True
    mine = np.flatnonzero(several.take(pieces.user))  # those of visitors whose pieces are put together, and no others
    order = mine[np.argsort(owner[mine], kind="stable")]
    start, end = pieces.start[order], pieces.end[order]
    stop = _restacked(start, end, pieces.user[order])
    moved = np.flatnonzero(stop != end)
    lengths = (end - start)[moved]
    moves = _Moves(spans(stop[moved] - lengths, lengths), spans(start[moved], lengths))
    lasts = np.flatnonzero(np.append(np.diff(owner[order]) > 0, True))
    place = np.searchsorted(alone, owner[order[lasts]])
    stops = pieces.end.take(alone)
    last = stops - 1
    last[place], stops[place] = end[lasts] - 1, stop[lasts]
    return SessionOrder(part, pieces.user.take(alone), pieces.start.take(alone), last, stops, moves)


def _restacked(start: I64, end: I64, user: I64) -> I64:
    """Where each piece ends when those of a visitor stand one after the other, the first of them where it is."""
    stop = np.cumsum(end - start)
    first = np.flatnonzero(np.append(True, np.diff(user) > 0))
    shift = end[first] - stop[first]
    return stop + np.repeat(shift, np.diff(first, append=len(user)))


def spans(start: I64, lengths: I64) -> I64:
    """``start[i], start[i] + 1, ...``, ``lengths[i]`` of them, for each i."""
    stop = np.cumsum(lengths)
    return np.repeat(start - (stop - lengths), lengths) + np.arange(int(lengths.sum()))


def _pieces(part: UserOrder, gap: int) -> _Pieces:
    begin = part.start()
    opens, begins = _edges(part.at, part.session, gap)
    visits = np.zeros(len(part), np.bool_)
    opens[begin] = begins[begin] = visits[begin] = True
    start = places(begins)
    user = np.cumsum(visits.take(start)) - 1
    head = part.session.take(start)
    client = head != 0
    others = np.flatnonzero(~client)
    head[others] = part.key.take(user.take(others))
    return _Pieces(start, np.append(start[1:], len(part)), user, head, client, opens.take(start))


def _edges(at: I64, session: U64, gap: int) -> tuple[Mask, Mask]:
    """At which events the session id is another than before; and where that is so, or the pause without one too long.

    In blocks, so that what is made on the way stays in the processor's cache and is made in one place: twice as fast.
    """
    other, apart = np.empty(len(at), np.bool_), np.empty(len(at), np.bool_)
    pauses, alone = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.bool_)
    for low in range(1, len(at), _BLOCK):
        here, before = slice(low, low + _BLOCK), slice(low - 1, min(low + _BLOCK, len(at)) - 1)
        ids, changed, cut = session[here], other[here], apart[here]
        np.not_equal(ids, session[before], out=changed)
        pause = np.subtract(at[here], at[before], out=pauses[: len(ids)])
        np.greater(pause, gap, out=cut)
        cut &= np.equal(ids, 0, out=alone[: len(ids)])
        cut |= changed
    return other, apart


def _owners(at: I64, pieces: _Pieces, gap: int) -> I64 | None:
    """The first piece of each one's session, shape ``(pieces,)``; None when every piece is a session of its own."""
    heads = np.sort(pieces.head[pieces.opens])
    again = heads[1:][heads[1:] == heads[:-1]]
    if not len(again):
        return None
    some = _among(pieces.head, again)
    some = some[np.lexsort((pieces.head[some], pieces.user[some]))]  # stable: those of one head stay in order
    one, other = some[:-1], some[1:]
    joins = (pieces.user[one] == pieces.user[other]) & (pieces.head[one] == pieces.head[other])
    joins &= pieces.client[other] | (at[pieces.start[other]] - at[pieces.end[one] - 1] <= gap)
    if not joins.any():
        return None
    owner = np.arange(len(pieces.start))
    begins = np.append(True, ~joins)
    owner[some] = some[np.maximum.accumulate(np.where(begins, np.arange(len(some)), 0))]
    return owner


def _among(values: U64, wanted: U64) -> I64:
    """Where a value is one of ``wanted``, which ascend. Most are none, which their lowest bits tell at once."""
    low = np.uint64(_TABLE - 1)
    table = np.zeros(_TABLE, np.bool_)
    table[wanted & low] = True
    likely = np.flatnonzero(table.take((values & low).view(np.int64)))
    place = np.minimum(np.searchsorted(wanted, values[likely]), len(wanted) - 1)
    found: I64 = likely[wanted[place] == values[likely]]
    return found
