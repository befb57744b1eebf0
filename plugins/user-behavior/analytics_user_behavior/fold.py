"""The fold of one tenant: events and passing time in, metrics, patterns and insights out.

Time is the tenant's own clock, the running maximum of ``received_at`` in log order (or the watermark of an empty
batch), looked at in whole minutes. What depends on it happens when a minute begins, before that minute's first event,
and when an hour begins. A minute that nothing looked at leaves no trace, so the same events give the same outputs
whatever the batches are, and with empty ones between that are no later than the receipt of what follows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import EventBatch, Insight, Pattern, ProcessResult
from analytics_user_behavior.columns import I64, MINUTE, Columns, Names, read, runs
from analytics_user_behavior.findings import bounce_rise, session_insights, transition_patterns
from analytics_user_behavior.open_sessions import OpenSessions
from analytics_user_behavior.tallies import HOUR, HourlyTally, steps
from analytics_user_behavior.windows import Minutes


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
        self._patterns: dict[str, Pattern] = {}
        self._insights: dict[str, Insight] = {}

    def process(self, batch: EventBatch) -> ProcessResult | None:
        if len(batch):
            self._fold(batch)
        else:
            self._reach(int(batch.watermark.timestamp()) // 60)
        metrics, patterns, insights = self.minutes.drain(), self._patterns, self._insights
        self._patterns, self._insights = {}, {}
        if not (metrics or patterns or insights):
            return None
        return ProcessResult(metrics, list(patterns.values()), list(insights.values()))

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
            for low, high in pairwise(runs(clock).tolist()):
                self._reach(int(clock[low]))
                self._take(events.take(slice(low, high)))
        self._reach(until)

    def _count_late(self, clock: I64) -> None:
        for low, high in pairwise(runs(clock).tolist()):
            self.minutes.add_late(int(clock[low]), high - low)

    def _take(self, events: Columns) -> None:
        """Events of one minute of the clock."""
        self.minutes.add_events(events.at, events.who, events.known)
        if not events.kept.all():
            events = events.take(events.kept)
        if not len(events.at):
            return
        gap = self.limits.gap * MINUTE
        joined = self.open.join(events, gap)
        self.minutes.add_starts(joined.before, joined.after)
        codes = steps(joined, events, gap)
        if len(codes):
            self.transitions.add(self.minute // 60, codes)
            self.stepped = True

    def _reach(self, minute: int) -> None:
        """Let the clock go on to ``minute``, hour by hour as long as there is something that hours change."""
        if minute <= self.minute:
            return
        if self.stepped:
            self._give(transition_patterns(self.transitions, self.names.words, self.minute // 60, self.sent))
            self.stepped = False
        for hour in range(self.minute // 60 + 1, minute // 60 + 1):
            if not (len(self.open) or self.exits.hours or self.transitions.hours):
                break
            self._close(hour * 60 - 1)
            self._close(hour * 60)
            self._begin_hour(hour)
        self._close(minute)
        self.minute = minute
        self.minutes.expire(minute - self.limits.lateness - self.limits.gap)

    def _begin_hour(self, hour: int) -> None:
        self.exits.trim(hour)
        self.transitions.trim(hour)
        if self.ended:
            self._give_insights(hour)
        self._insights.update((found.key, found) for found in bounce_rise(self.exits, hour))

    def _close(self, minute: int) -> None:
        closed = self.open.close(minute * MINUTE, self.limits.gap * MINUTE)
        if len(closed):
            self.minutes.add_ends(closed)
            codes = closed["end_name"].astype(np.int64) * 2 + (closed["events"] == 1)
            hours = closed["end"] // HOUR
            for low, high in pairwise(runs(hours).tolist()):
                self.exits.add(int(hours[low]), codes[low:high])
            self.ended = True
        if self.ended and not len(self.open):
            self._give_insights(minute // 60)

    def _give(self, patterns: list[Pattern]) -> None:
        self._patterns.update((pattern.key, pattern) for pattern in patterns)

    def _give_insights(self, hour: int) -> None:
        self._insights.update((found.key, found) for found in session_insights(self.exits, self.names.words, hour))
        self.ended = False
