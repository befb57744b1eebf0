"""Walks: the events of sessions or users one after the other, cut to where a path begins or ends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core import UserOrder
from analytics_user_behavior.activity import filters_of
from analytics_user_behavior.columns import I64, MINUTE, Mask, places
from analytics_user_behavior.session_order import by_session, spans

START: Final = "start"
END: Final = "end"
WALKED: Final = ("name", "session")
"""The columns of `UserOrder` that walks are made of."""
_STEPS: Final = 6
"""Few events are left out one after the other, so going on one by one is faster than looking up where it ends."""


class Cut(NamedTuple):
    """What of each session (``gap`` microseconds) or, with None, of each user is a walk.

    With the mark `START` it begins at the first event that has it, with `END` it ends at the last one; units without
    such an event have none. ``collapse``: what follows its like is left out.
    """

    gap: int | None
    collapse: bool
    start: bool = False
    end: bool = False


class Listed(NamedTuple):
    """The ``n`` events of walks, one walk after the other: ``name`` and ``at`` (n,), ``end`` (walks,) one past the last
    of each."""

    name: npt.NDArray[np.int32]
    at: I64
    end: I64

    def first(self) -> I64:
        """Where each walk begins, shape ``(walks,)``."""
        return np.append(np.zeros(min(len(self.end), 1), np.int64), self.end[:-1])

    def number(self) -> I64:
        """The walk of each event, shape ``(n,)``."""
        return np.repeat(np.arange(len(self.end)), np.diff(self.end, prepend=0))


class Kept:
    """Which of ``n`` events are not left out. ``mask``: shape ``(n + 1,)``, the last is True."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    @cached_property
    def _resumes(self) -> I64:
        """The kept ones that come after one left out."""
        return places(self.mask[1:] > self.mask[:-1]) + 1

    @cached_property
    def _pauses(self) -> I64:
        """The kept ones that come before one left out."""
        return places(self.mask[1:] < self.mask[:-1])

    def at_or_after(self, place: I64) -> I64:
        """``place``, below ``n + 1``, moved in place on to the next that is kept."""
        out = self._moved(place, 1)
        if len(out):
            place[out] = self._resumes[np.searchsorted(self._resumes, place[out])]
        return place

    def at_or_before(self, place: I64) -> I64:
        """``place``, at least -1, moved in place back to the last that is kept; -1 stays."""
        out = self._moved(place, -1)  # -1 means the last one, which is kept
        if len(out):
            place[out] = self._pauses[np.searchsorted(self._pauses, place[out]) - 1]
        return place

    def _moved(self, place: I64, step: int) -> I64:
        """``place`` moved in place, a few steps at most, and which of them are still on none that is kept."""
        out = places(~self.mask.take(place))
        for _ in range(_STEPS):
            if len(out):
                place[out] += step
                out = out[~self.mask.take(place.take(out))]
        return out


class Walks(NamedTuple):
    """Stretches of events, of which some are left out. ``name`` and ``at`` (all,) are of these events and others; walk
    i has those from ``begin[i]`` to before ``end[i]``, of the visitor number ``user[i]`` in the part, which ascends.
    ``kept``, None for all, has the first of each walk."""

    name: npt.NDArray[np.int32]
    at: I64
    begin: I64
    end: I64
    user: I64
    kept: Kept | None = None

    def after(self, place: I64) -> I64:
        """Where the next event after each place is, shape of ``place``; not before the walk's end if there is none."""
        return place + 1 if self.kept is None else self.kept.at_or_after(place + 1)

    def before(self, place: I64) -> I64:
        """Where the last event before each place is, shape of ``place``; before the walk's begin if there is none."""
        return place - 1 if self.kept is None else self.kept.at_or_before(place - 1)

    def listed(self) -> Listed:
        lengths = self.end - self.begin
        whole = int(lengths.sum()) == len(self.name)
        if whole and self.kept is None:
            return Listed(self.name, self.at, self.end)
        if self.kept is None:
            place, end = spans(self.begin, lengths), np.cumsum(lengths)
        else:
            place = np.flatnonzero(self.kept.mask[:-1]) if whole else spans(self.begin, lengths)
            place = place if whole else place[self.kept.mask[place]]
            begins = np.zeros(len(self.name), np.bool_)
            begins[self.begin] = True
            end = np.append(np.flatnonzero(begins[place])[1:], np.full(min(len(place), 1), len(place)))
        return Listed(self.name[place], self.at[place], end)


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
    begin = np.append(np.zeros(min(len(end), 1), np.int64), end[:-1])
    if cut.start:
        begin = marked_places(end, marks[START])
        chosen = chosen & (begin >= 0)
    if cut.end:
        end = marked_places(end, marks[END], last=True) + 1
        chosen = chosen & (end > begin)
    if not chosen.all():
        begin, end, user = begin[chosen], end[chosen], user[chosen]
    return Walks(name, at, begin, end, user, _collapsed(name, begin) if cut.collapse else None)


def _collapsed(name: npt.NDArray[np.int32], begin: I64) -> Kept:
    """What follows its like in a walk is left out."""
    kept = np.ones(len(name) + 1, np.bool_)
    np.not_equal(name[1:], name[:-1], out=kept[1:-1])
    kept[begin] = True
    return Kept(kept)


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
