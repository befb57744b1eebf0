"""Live metrics: one accumulator per minute of event time, from which absolute values are read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from analytics_core import HistogramSketch, Metric, UniqueSketch, Window
from analytics_user_behavior.clusters import Rows, stable_order
from analytics_user_behavior.columns import I64, MINUTE, U64, Mask, runs


class Minute:
    """What happened in one minute: events and started sessions by their time, ended sessions by their end."""

    __slots__ = ("bounces", "durations", "ended", "events", "late", "lengths", "started", "users")

    def __init__(self) -> None:
        self.events = 0
        self.started = 0
        self.ended = 0
        self.bounces = 0
        self.late = 0
        self.users = UniqueSketch()
        self.durations = HistogramSketch()
        self.lengths = HistogramSketch()

    def metrics(self, minute: int) -> Iterable[Metric]:
        window = Window(datetime.fromtimestamp(minute * 60, UTC))
        if self.late:
            yield Metric(name="late_events", value=self.late, window=window)
        if self.events:
            yield Metric(name="events", value=self.events, window=window)
            yield Metric(name="sessions", value=self.started, window=window)
            yield Metric(
                name="active_users",
                value=self.users.estimate(),
                window=window,
                kind="unique",
                sketch=self.users.to_bytes(),
            )
        if self.ended:
            yield Metric(name="sessions_ended", value=self.ended, window=window)
            yield Metric(name="bounces", value=self.bounces, window=window)
            yield Metric(name="bounce_rate", value=self.bounces / self.ended, window=window, kind="last", unit="ratio")
            yield _histogram("events_per_session", self.lengths, window, "")
            yield _histogram("session_duration", self.durations, window, "s")


def _histogram(name: str, sketch: HistogramSketch, window: Window, unit: str) -> Metric:
    return Metric(
        name=name, value=sketch.quantile(0.5), window=window, kind="histogram", sketch=sketch.to_bytes(), unit=unit
    )


class Minutes:
    """The accumulators of one tenant by minute since 1970. Those below ``floor`` are gone for good."""

    def __init__(self) -> None:
        self.by_minute: dict[int, Minute] = {}
        self.floor = 0
        self._changed: set[int] = set()

    def add_events(self, at: I64, who: U64, known: Mask) -> None:
        """Count events and visitors by the minute of ``at`` (microseconds); ``who`` where ``known``."""
        minutes = at // MINUTE
        by = stable_order(minutes)
        for low, high in pairwise(runs(minutes[by]).tolist()):
            if (entry := self._entry(int(minutes[by[low]]))) is None:
                continue
            part = by[low:high]
            entry.events += len(part)
            entry.users.add(who[part[known[part]]])

    def add_starts(self, before: Rows, after: Rows) -> None:
        """Replace the starts of the touched sessions as they were by those as they are."""
        starts = np.concatenate([before["start"], after["start"]]) // MINUTE
        signs = np.repeat(np.array([-1, 1], np.int64), [len(before), len(after)])
        found, place = np.unique(starts, return_inverse=True)
        deltas = np.zeros(len(found), np.int64)
        np.add.at(deltas, place, signs)
        for minute, delta in zip(found.tolist(), deltas.tolist(), strict=True):
            if delta and (entry := self._entry(minute)) is not None:
                entry.started += delta

    def add_ends(self, closed: Rows) -> None:
        """Count ended sessions, sorted by end, in the minute of their last event."""
        minutes = closed["end"] // MINUTE
        for low, high in pairwise(runs(minutes).tolist()):
            if (entry := self._entry(int(minutes[low]))) is None:
                continue
            part = closed[low:high]
            entry.ended += len(part)
            entry.bounces += int((part["events"] == 1).sum())
            entry.lengths.add(part["events"])
            entry.durations.add((part["end"] - part["start"]) / 1e6)

    def add_late(self, minute: int, count: int) -> None:
        if count and (entry := self._entry(minute)) is not None:
            entry.late += count

    def expire(self, floor: int) -> None:
        """From now on nothing enters a minute below ``floor``; what has changed there is still sent once."""
        self.floor = max(self.floor, floor)

    def drain(self) -> list[Metric]:
        """The metrics of every minute that has changed since the last call, oldest first."""
        changed, self._changed = sorted(self._changed), set()
        metrics = [metric for minute in changed for metric in self.by_minute[minute].metrics(minute)]
        for minute in [m for m in self.by_minute if m < self.floor]:
            del self.by_minute[minute]
        return metrics

    def _entry(self, minute: int) -> Minute | None:
        if minute < self.floor:
            return None
        self._changed.add(minute)
        if (entry := self.by_minute.get(minute)) is None:
            entry = self.by_minute[minute] = Minute()
        return entry
