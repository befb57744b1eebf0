"""The fold of one tenant: events and passing time in, metrics, patterns and insights out.

Time is the tenant's own clock, the running maximum of ``received_at`` in log order (or the watermark of an empty
batch), looked at in whole minutes. What depends on it happens when a minute begins, before that minute's first event,
and when an hour begins. A minute that nothing looked at leaves no trace, so the same events give the same outputs
whatever the batches are, and with empty ones between that are no later than the receipt of what follows.

Events join sessions by the span of minutes (see `spans`), at the cost of one look for all of them; then the minutes and
hours are gone through one by one, at the cost of what was counted and ended in each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import EventBatch, Insight, ProcessResult
from analytics_user_behavior.columns import I64, MINUTE, Columns, Names, read, runs
from analytics_user_behavior.findings import Shown, bounce_rise, session_insights, shown_steps, transition
from analytics_user_behavior.open_sessions import OpenSessions
from analytics_user_behavior.spans import spans
from analytics_user_behavior.tallies import HOUR, ByMinute, HourlyTally, by_minute, steps
from analytics_user_behavior.windows import Minutes

_EXITS = 512
"""More than there are codes of an exit: the name of the last event * 2 + whether it was the only one."""


class Limits(NamedTuple):
    """From the settings, in whole minutes."""

    gap: int = 30
    lateness: int = 24 * 60


class TenantFold:
    """Everything that is known of one tenant. ``minute`` is its clock, in minutes since 1970.

    An event is late when it happened more than ``limits.lateness`` before the minute in which it arrived; it is
    counted and otherwise left to the analyses, which answer history exactly.
    """

    def __init__(self, limits: Limits, minute: int) -> None:
        self.limits = limits
        self.minute = minute
        self.names = Names()
        self.open = OpenSessions()
        self.minutes = Minutes()
        self.transitions = HourlyTally()
        self.exits = HourlyTally()
        self.sent: set[int] = set()
        self.stepped = False
        """Whether steps were counted since the patterns were last given."""
        self.ended = False
        """Whether sessions have ended since the insights were last given."""
        self._ending: ByMinute = {}
        """The sessions to come that end, by the minute at which they do: hour of the last event * `_EXITS` + exit."""
        self._quiet: int | None = None
        """The latest end or receipt of a session that is open in the present minute; None when none is."""
        self._shown: dict[int, Shown] = {}
        self._insights: dict[str, Insight] = {}

    def process(self, batch: EventBatch) -> ProcessResult | None:
        self._quiet = self.open.last
        if len(batch):
            self._fold(batch)
        else:
            self._reach(int(batch.watermark.timestamp()) // 60)
        metrics, insights = self.minutes.drain(), list(self._insights.values())
        patterns = [transition(step, shown, self.names.words) for step, shown in self._shown.items()]
        self._shown, self._insights = {}, {}
        if not (metrics or patterns or insights):
            return None
        return ProcessResult(metrics, patterns, insights)

    def _fold(self, batch: EventBatch) -> None:
        at, received = (batch.column(name).cast(pa.int64()).to_numpy() for name in ("timestamp", "received_at"))
        clock: I64 = np.maximum(np.maximum.accumulate(received) // MINUTE, self.minute)
        until = int(clock[-1])
        late = at < (clock - self.limits.lateness) * MINUTE
        if late.any():
            self._count_late(clock[late])
            batch, clock = batch.filter(~late), clock[~late]
        if len(batch):
            events = read(batch, self.names.encode(batch.column("name")))
            self.minutes.add_events(events.at, events.who, events.known)
            for low, high in pairwise(spans(events, clock, self.open, self.limits.gap * MINUTE).tolist()):
                self._reach(int(clock[low]))
                self._take(events.take(slice(low, high)), clock[low:high])
        self._reach(until)

    def _count_late(self, clock: I64) -> None:
        for low, high in pairwise(runs(clock).tolist()):
            self.minutes.add_late(int(clock[low]), high - low)

    def _take(self, events: Columns, clock: I64) -> None:
        """Events of a span of minutes, the first of which is the present one."""
        minutes = clock[runs(clock)[:-1]].tolist()
        if not events.kept.all():
            events, clock = events.take(events.kept), clock[events.kept]
        quiet, stepped = self._join(events, clock) if len(events.at) else ({}, {})
        self._plan(minutes[1:])
        for minute in minutes:
            self._pass(minute)
            if minute in quiet:
                self._quiet = max(quiet[minute], self._quiet or 0)
            for code, count in stepped.get(minute, ()):
                self.transitions.add(minute // 60, code, count)
                self.stepped = True

    def _join(self, events: Columns, clock: I64) -> tuple[dict[int, int], ByMinute]:
        """Put events into sessions. By minute: the latest end or receipt in it, and the steps that were made."""
        gap = self.limits.gap * MINUTE
        joined = self.open.join(events, gap)
        self.minutes.add_starts(joined.before, joined.after)
        codes, to = steps(joined, events, gap)
        first = runs(clock)[:-1]
        quiet = np.maximum.reduceat(np.maximum(events.at, events.received), first)
        return dict(zip(clock[first].tolist(), quiet.tolist(), strict=True)), by_minute(clock[to], codes)

    def _reach(self, minute: int) -> None:
        """Let the clock go on to ``minute``."""
        if minute > self.minute:
            self._plan([minute])
            self._pass(minute)

    def _plan(self, minutes: list[int]) -> None:
        """Find what ends while the clock goes on from the present minute to each of ``minutes`` in turn."""
        gap = self.limits.gap * MINUTE
        self._ending = {}
        if minutes and len(closed := self.open.close(minutes[-1] * MINUTE, gap)):
            self.minutes.add_ends(closed)
            hours = 60 * np.arange(self.minute // 60 + 1, minutes[-1] // 60 + 1)
            looks = np.unique(np.concatenate([minutes, hours - 1, hours]))
            over = np.maximum(closed["end"], closed["received"]) + gap
            at = looks[np.searchsorted(looks * MINUTE, over, side="right")]
            exits = closed["end_name"].astype(np.int64) * 2 + (closed["events"] == 1)
            self._ending = by_minute(at, closed["end"] // HOUR * _EXITS + exits)

    def _pass(self, minute: int) -> None:
        """Go on to ``minute``, by way of the hours in which there is something to do."""
        if minute <= self.minute:
            return
        if self.stepped:
            self._shown.update(shown_steps(self.transitions, self.minute // 60, self.sent))
            self.stepped = False
        hour: int | None = self.minute // 60 + 1
        while hour is not None and hour <= minute // 60:
            self._end(hour * 60 - 1)
            self._end(hour * 60)
            self._begin_hour(hour)
            hour = self._next_hour(hour)
        self.exits.trim(minute // 60)
        self.transitions.trim(minute // 60)
        self._end(minute)
        self.minute = minute
        self.minutes.expire(minute - self.limits.lateness - self.limits.gap)

    def _begin_hour(self, hour: int) -> None:
        if self.ended:
            self._give_insights(hour)
        self._insights.update((found.key, found) for found in bounce_rise(self.exits, hour))

    def _next_hour(self, hour: int) -> int | None:
        """The next one in which a session may end, or whose beginning shows the exits of two hours before."""
        if self._quiet is not None:
            return hour + 1
        return min((ended + 2 for ended in self.exits.hours if ended + 2 > hour), default=None)

    def _end(self, minute: int) -> None:
        """What ends as ``minute`` begins."""
        for exits, count in self._ending.pop(minute, ()):
            self.exits.add(*divmod(exits, _EXITS), count)
            self.ended = True
        if self._quiet is not None and self._quiet + self.limits.gap * MINUTE < minute * MINUTE:
            self._quiet = None
        if self.ended and self._quiet is None:
            self._give_insights(minute // 60)

    def _give_insights(self, hour: int) -> None:
        self._insights.update((found.key, found) for found in session_insights(self.exits, self.names.words, hour))
        self.ended = False
