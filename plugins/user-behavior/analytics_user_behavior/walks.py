"""Walks: the events of sessions or users one after the other, cut to where a path begins or ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core import UserOrder
from analytics_user_behavior.activity import filters_of
from analytics_user_behavior.columns import I64, MINUTE, Mask
from analytics_user_behavior.session_order import by_session, spans

START: Final = "start"
END: Final = "end"


class Cut(NamedTuple):
    """What of each session (``gap`` microseconds) or, with None, of each user is a walk.

    With the mark `START` it begins at the first event that has it, with `END` it ends at the last one; units without
    such an event have none. ``collapse``: what follows its like is left out.
    """

    gap: int | None
    collapse: bool
    start: bool = False
    end: bool = False


class Walks(NamedTuple):
    """``n`` events of walks, each of which has at least one. ``name`` and ``at`` (all,) are of these and others, and
    ``place`` (n,) is where these stand in them, None for all as they are. ``end`` (walks,) is one past the last event
    of each; ``user`` (walks,) the number of its visitor in the part, ascending."""

    name: npt.NDArray[np.int32]
    at: I64
    place: I64 | None
    end: I64
    user: I64

    def first(self) -> I64:
        """Where each walk begins, shape ``(walks,)``."""
        return np.append(np.zeros(min(len(self.end), 1), np.int64), self.end[:-1])

    def number(self) -> I64:
        """The walk of each event, shape ``(n,)``."""
        return np.repeat(np.arange(len(self.end)), np.diff(self.end, prepend=0))

    def at_places(self, place: I64) -> tuple[npt.NDArray[np.int32], I64]:
        """The name and the time of some of the events, shape of ``place``."""
        origin = place if self.place is None else self.place.take(place)
        return self.name.take(origin), self.at.take(origin)

    def steps(self) -> tuple[npt.NDArray[np.int32], I64]:
        """The name and the time of each event, shape ``(n,)``."""
        return (self.name, self.at) if self.place is None else (self.name[self.place], self.at[self.place])


def cut_by(given: Mapping[str, Any], gap_minutes: int) -> tuple[Cut, dict[str, Any]]:
    """The cut that the parameters ``by``, ``collapse``, ``start`` and ``end`` ask for, and the marks that it needs."""
    marks = {mark: filters_of(given[mark]) for mark in (START, END) if given.get(mark)}
    gap = gap_minutes * MINUTE if given.get("by", "session") == "session" else None
    return Cut(gap, given.get("collapse", True), START in marks, END in marks), marks


def walks(part: UserOrder, cut: Cut) -> Walks:
    """Sessions are of persons and of nobody; users are persons only."""
    if cut.gap is None:
        name, at, end, user = part.name, part.at, part.end, np.arange(len(part.end))
        marks, chosen = part.marks, part.known
    else:
        order = by_session(part, cut.gap)
        name, at, end, user = order.column(part.name), order.column(part.at), order.end, order.user
        marks = {mark: order.column(holds) for mark, holds in part.marks.items()}
        chosen = np.ones(len(user), np.bool_)
    begin, last = np.append(0, end[:-1]), end - 1
    if cut.start:
        begin = marked_places(end, marks[START])
        chosen = chosen & (begin >= 0)
    if cut.end:
        last = marked_places(end, marks[END], last=True)
        chosen = chosen & (last >= begin)
    place = None
    if cut.start or cut.end or not chosen.all():
        begin, user = begin[chosen], user[chosen]
        lengths = last[chosen] - begin + 1
        place, end = spans(begin, lengths), np.cumsum(lengths)
    found = Walks(name, at, place, end, user)
    return _collapsed(found) if cut.collapse else found


def _collapsed(found: Walks) -> Walks:
    name = found.name if found.place is None else found.name[found.place]
    kept, begins = np.empty(len(name), np.bool_), np.zeros(len(name), np.bool_)
    begins[found.first()] = True
    np.not_equal(name[1:], name[:-1], out=kept[1:])
    np.logical_or(kept, begins, out=kept)
    place = np.flatnonzero(kept)
    end = np.append(np.flatnonzero(begins[place])[1:], np.full(min(len(name), 1), len(place)))
    return found._replace(place=place if found.place is None else found.place[place], end=end)


def marked_places(end: I64, mark: Mask, *, last: bool = False) -> I64:
    """Where the first event with the mark (or the ``last``) of each unit is, shape ``(units,)``; -1 for none.

    ``end`` (units,) is one past the last event of each, ``mark`` has shape ``(n,)``.
    """
    places = np.flatnonzero(mark)
    if last:
        places = places[::-1]
    unit = np.searchsorted(end, places, side="right")
    found = np.full(len(end), -1)
    first = np.append(np.ones(min(len(unit), 1), np.bool_), unit[1:] != unit[:-1])
    found[unit[first]] = places[first]
    return found
