"""The figures that `changes` compares, each with its test. What is too small to say anything is no figure."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from analytics_core import EventReader
from analytics_user_behavior.change_tallies import Conversion, Days, conversions, event_counts, visits
from analytics_user_behavior.columns import I64, U64
from analytics_user_behavior.shifts import (
    Shift,
    count_shift,
    dispersion,
    share_shift,
    turning_point,
    visitor_shift,
)

Kind = Literal["events", "visitors", "sessions", "conversion"]
_LEAST_COUNT, _LEAST_EXPECTED = 20, 5.0
_NAMES, _PAIRS = 50, 10


class Figure(NamedTuple):
    """One figure before and after. ``names``: the event, or the two of a conversion; none for the others.

    ``daily``: counts by day, of a conversion those who went on ``of`` so many. ``before`` and ``after`` are counts, of
    a conversion shares. ``turn``: the day from which on another rate fits best. ``tried`` and
    ``keys``: how many visitors of a conversion there were in each half, and who went on.
    """

    kind: Kind
    names: tuple[str, ...]
    before: float
    after: float
    shift: Shift
    daily: I64
    turn: int
    of: I64 | None = None
    tried: tuple[int, int] | None = None
    keys: tuple[U64, U64] | None = None

    @property
    def what(self) -> str:
        return " → ".join(self.names) or self.kind

    @property
    def relative(self) -> float:
        """By what part of itself it has changed; NaN after nothing."""
        return self.after / self.before - 1 if self.before else np.nan

    @property
    def consistent(self) -> bool:
        """Whether the rate from ``turn`` on differs from that before it in the direction in which the halves differ."""
        of = np.ones(len(self.daily)) if self.of is None else self.of
        sides = (slice(None, self.turn), slice(self.turn, None))
        first, second = (self.daily[side].sum() / max(of[side].sum(), 1) for side in sides)
        return bool((second - first) * (self.after - self.before) > 0)


class Compared(NamedTuple):
    """``usual``: by event, the one that comes before it most often. ``counts``: events in all, by name."""

    figures: list[Figure]
    usual: dict[str, str]
    counts: dict[str, int]


def compare(events: EventReader, days: Days, gap: int) -> Compared:
    """All figures of the second half against the first. ``gap`` is in microseconds.

    They are the events of each of the 50 most frequent names, visitors, sessions, and of the 10 most frequent pairs of
    different events that follow each other within a session's gap, which share of the visitors with the one went on to
    the other at once. Counts of fewer than 20, and shares with an expected count below 5, are left out.
    """
    counts = event_counts(events, days)
    names = list(counts)[:_NAMES]
    seen = visits(events, days, names, gap)
    figures = [_counted("events", (name,), counts[name], days.half) for name in names]
    figures += [_visitors(seen.visitors, *seen.seen.tolist()), _counted("sessions", (), seen.sessions, days.half)]
    ranked = np.argsort(-seen.pairs, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(at), len(names)) for at in ranked if seen.pairs.flat[at]]
    found = conversions(events, days, names, pairs, gap) if pairs else []
    figures += [_converted((names[a], names[b]), each) for (a, b), each in zip(pairs, found, strict=True)]
    usual = {names[b]: names[int(seen.pairs[:, b].argmax())] for b in range(len(names)) if seen.pairs[:, b].any()}
    totals = {name: int(daily.sum()) for name, daily in counts.items()}
    return Compared([figure for figure in figures if figure is not None], usual, totals)


def _counted(kind: Kind, names: tuple[str, ...], daily: I64, half: int) -> Figure | None:
    before, after = int(daily[:half].sum()), int(daily[half:].sum())
    if before + after < _LEAST_COUNT:
        return None
    turn = turning_point(daily)
    shift = count_shift(before, after, dispersion(daily, turn))
    return Figure(kind, names, float(before), float(after), shift, daily, turn)


def _visitors(daily: I64, before: int, after: int, both: int) -> Figure | None:
    if before + after - 2 * both < _LEAST_COUNT:
        return None
    shift = visitor_shift(before, after, both)
    return Figure("visitors", (), float(before), float(after), shift, daily, turning_point(daily))


def _converted(names: tuple[str, str], found: Conversion) -> Figure | None:
    tried, went_on = found.tried_in.tolist(), found.went_on_in.tolist()
    if min(tried) < _LEAST_COUNT:
        return None
    share = sum(went_on) / sum(tried)
    if min(tried) * min(share, 1 - share) < _LEAST_EXPECTED:
        return None
    return Figure(
        kind="conversion",
        names=names,
        before=went_on[0] / tried[0],
        after=went_on[1] / tried[1],
        shift=share_shift(went_on[0], tried[0], went_on[1], tried[1]),
        daily=found.went_on,
        turn=turning_point(found.went_on, found.tried),
        of=found.tried,
        tried=(tried[0], tried[1]),
        keys=found.keys,
    )
