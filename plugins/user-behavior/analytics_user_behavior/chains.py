"""Chains of events that fit the steps of a funnel, found for all groups of a part at once.

Events stand in runs, one per group (a visitor, a session, a visitor's events of one value), each in the order
(timestamp, partition, seq). All that is said of before, between and after is by that order, so equal times are told
apart. What is found has one form in every mode: `Reached` for each number of steps, and which groups may yet get
further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from analytics_user_behavior.columns import I64, Mask

_SEARCH: Final = 8
"""Looking one position up takes as long as passing so many events."""


class Runs(NamedTuple):
    """Events group by group: ``at`` (n,) microseconds; ``end`` (groups,), one past the last event of each.

    ``fits`` has a mask (n,) for each step. ``stops`` has the positions, ascending, of the events that end a chain: for
    each step but the last, a chain that has come so far and no further.
    """

    at: I64
    end: I64
    fits: Sequence[Mask]
    stops: Sequence[I64]

    def group(self) -> I64:
        """The number of each event's group, shape ``(n,)``."""
        return np.repeat(np.arange(len(self.end)), np.diff(self.end, prepend=0))


class Reached(NamedTuple):
    """The groups with a chain of so many steps, ascending, and of each the chain that ends first, shape ``(n,)``.

    ``first``, ``previous`` and ``last`` are positions of its first event, its last but one (the first, in a chain of
    one) and its last one. Among the chains that end there it is one that has begun latest.
    """

    group: I64
    first: I64
    previous: I64
    last: I64


class Found(NamedTuple):
    """``reached`` for one step, two steps, ...; ``open`` (groups,): whether some chain may still go on."""

    reached: list[Reached]
    open: Mask


def in_order(runs: Runs, window: int, until: int) -> Found:
    """Chains whose k-th event fits step k and comes after the one before it.

    The last event is at most ``window`` (microseconds) after the first, and none of ``stops[k]`` is between those of
    the steps k and k + 1. A chain may still go on when it lacks a step, no stop has come since its last event, and its
    window is not over before ``until``.

    Of the chains of k steps before an event, it is enough to know the one that ends last: chains that end later have
    begun no earlier, and less can stand between. So one search for each step finds which chain an event prolongs, and
    every event of the chain that is found is the latest before the next. This is the dynamic programming of
    ClickHouse's ``windowFunnel``, for all groups together.
    """
    at, group = runs.at, runs.group()
    last = np.flatnonzero(runs.fits[0])
    first = previous = last
    may_go_on = np.zeros(len(runs.end), np.bool_)
    reached = []
    for k, fits in enumerate((*runs.fits[1:], None)):
        of = group[last]
        earliest = changes(of)
        reached.append(Reached(of[earliest], first[earliest], previous[earliest], last[earliest]))
        if fits is None:
            break
        latest = np.append(earliest[1:], len(last)) - 1 if len(last) else earliest
        going = _undisturbed(last[latest], runs.stops[k], runs.end[of[latest]])
        going &= at[first[latest]] + window >= until
        may_go_on[of[latest[going]]] = True

        place = np.flatnonzero(fits)
        place = place[np.searchsorted(place, last[0], side="right") :] if len(last) else last
        before = _ahead(last, place, len(at)) - 1
        good = group[place] == of[before]
        good &= at[place] - at[first[before]] <= window
        good &= _undisturbed(last[before], runs.stops[k], place)
        place, before = place[good], before[good]
        first, previous, last = first[before], last[before], place
    return Found(reached, may_go_on)


def in_any_order(runs: Runs, sizes: Sequence[int], window: int, until: int) -> Found:
    """Chains of events of which each fits another step, in whatever order they come.

    ``fits`` are masks of different steps, of which no two hold for one event; the i-th is listed ``sizes[i]`` times
    and so takes as many events. The last event is at most ``window`` after the first, and none of ``stops[0]`` is
    between them.

    For each event that may begin a chain, the next ones of every step are looked up, and sorted: the j-th of them
    ends the chain of j steps from there that ends first, and the others before it are its events.
    """
    at, group = runs.at, runs.group()
    begin = np.flatnonzero(np.logical_or.reduce(runs.fits))
    chain = _next(begin, runs.fits, sizes, len(at))
    limit = runs.end[group[begin]]
    stop = np.append(runs.stops[0], len(at))[np.searchsorted(runs.stops[0], begin, side="right")]
    when = np.append(at, np.iinfo(np.int64).max)
    reached = []
    for k in range(chain.shape[1]):
        last = chain[:, k]
        good = (last < limit) & (last <= stop) & (when[last] - at[begin] <= window)
        of, first, ends = group[begin[good]], begin[good], last[good]
        earliest = changes(of)
        same_end = changes(ends)  # ends grow with beginnings, and no two groups share one
        latest = np.append(same_end[1:], len(ends))[np.searchsorted(same_end, earliest)] - 1 if len(ends) else earliest
        previous = chain[good, k - 1] if k else first
        reached.append(Reached(of[latest], first[latest], previous[latest], ends[latest]))
    may_go_on = np.zeros(len(runs.end), np.bool_)
    of = group[begin]
    newest = begin[np.append(changes(of)[1:], len(of)) - 1] if len(of) else begin
    going = _undisturbed(newest, runs.stops[0], runs.end[group[newest]]) & (at[newest] + window >= until)
    may_go_on[group[newest[going]]] = True
    return Found(reached, may_go_on)


def _next(begin: I64, fits: Sequence[Mask], sizes: Sequence[int], none: int) -> I64:
    """The next ``sizes[i]`` events of each ``fits[i]`` from each of ``begin`` on, sorted, shape ``(n, sum(sizes))``."""
    columns = []
    for mask, size in zip(fits, sizes, strict=True):
        places = np.append(np.flatnonzero(mask), np.full(size, none))
        rank = np.searchsorted(places, begin)
        columns += [places[np.minimum(rank + i, len(places) - 1)] for i in range(size)]
    chain = np.stack(columns, axis=1)
    chain.sort(axis=1)
    return chain


def _ahead(places: I64, of: I64, events: int) -> I64:
    """How many of ``places`` come before each position ``of``, shape of that; both ascend and are below ``events``."""
    if len(of) * _SEARCH < events:
        return np.searchsorted(places, of)
    passed = np.zeros(events + 1, np.bool_)
    passed[places + 1] = True
    found: I64 = np.cumsum(passed, dtype=np.int64).take(of)
    return found


def changes(ordered: I64) -> I64:
    """Where each run of equal values begins, shape ``(runs,)``."""
    if not len(ordered):
        return np.zeros(0, np.int64)
    return np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _undisturbed(after: I64, stops: I64, before: I64) -> Mask:
    """Whether no stop stands between two positions, shape of both."""
    if not len(stops):
        return np.ones(len(after), np.bool_)
    return np.asarray(np.searchsorted(stops, after, side="right") == np.searchsorted(stops, before))
