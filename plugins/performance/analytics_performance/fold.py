"""The fold of one tenant: requests, errors and durations per minute and event name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import EventBatch, HistogramSketch, Insight, Metric, ProcessResult, Window
from analytics_performance.timings import I64, MINUTE, Timings, read

OTHER = "(other)"
HOURS = 24
_LEAST_REQUESTS = 50
_LEAST_HOURS = 3
_LEAST_FACTOR = 2.0


class Limits(NamedTuple):
    """From the settings: minutes of lateness, and how many event names are told apart."""

    lateness: int = 24 * 60
    names: int = 100


class Cell:
    """One event name in one minute."""

    __slots__ = ("durations", "errors", "requests")

    def __init__(self, requests: int = 0, errors: int = 0, durations: HistogramSketch | None = None) -> None:
        self.requests = requests
        self.errors = errors
        self.durations = durations or HistogramSketch()

    def metrics(self, minute: int, name: str) -> Iterable[Metric]:
        window, labels = Window(datetime.fromtimestamp(minute * 60, UTC)), {"event": name}
        yield Metric(name="requests", value=self.requests, window=window, labels=labels)
        yield Metric(name="errors", value=self.errors, window=window, labels=labels)
        yield Metric(
            name="duration",
            value=self.durations.quantile(0.5),
            window=window,
            kind="histogram",
            labels=labels,
            sketch=self.durations.to_bytes(),
            unit="ms",
        )


class TenantFold:
    """``minute`` is the tenant's clock: the running maximum of ``received_at`` or watermark, in whole minutes.

    An event that happened more than ``limits.lateness`` before the minute of its arrival is left to the analyses.
    """

    def __init__(self, limits: Limits, minute: int) -> None:
        self.limits = limits
        self.minute = minute
        self.names: list[str] = [OTHER]
        self.cells: dict[tuple[int, int], Cell] = {}
        self.usual: dict[int, list[tuple[int, float]]] = {}
        """By name: (hour, 95th percentile) of the trailing day's hours with enough requests, oldest first."""

    def process(self, batch: EventBatch) -> ProcessResult | None:
        changed: set[tuple[int, int]] = set()
        insights: list[Insight] = []
        if len(batch):
            received = batch.column("received_at").cast(pa.int64()).to_numpy()
            clock: I64 = np.maximum(np.maximum.accumulate(received) // MINUTE, self.minute)
            at = batch.column("timestamp").cast(pa.int64()).to_numpy()
            on_time = at >= (clock - self.limits.lateness) * MINUTE
            _, first = np.unique(clock // 60, return_index=True)
            ahead = [*first[1:].tolist(), len(clock)]
            for low, high in zip(first.tolist(), ahead, strict=True):
                insights += self._reach(int(clock[low]))
                part = EventBatch(batch.record_batch.slice(low, high - low), batch.tenant, batch.watermark)
                if timings := read(part if on_time[low:high].all() else part.filter(on_time[low:high])):
                    changed |= self._add(timings)
            insights += self._reach(int(clock[-1]))
        else:
            insights += self._reach(int(batch.watermark.timestamp()) // 60)
        metrics = [m for minute, name in sorted(changed) for m in self._metrics(minute, name)]
        for key in [key for key in self.cells if key[0] < self.minute - self.limits.lateness]:
            del self.cells[key]
        return ProcessResult(metrics, (), insights) if metrics or insights else None

    def _reach(self, minute: int) -> list[Insight]:
        """Let the clock go on to ``minute``; what the hours that are over on the way show."""
        found = []
        last = max((m for m, _ in self.cells), default=0) // 60
        for hour in range(self.minute // 60, min(minute // 60, last + 1)):
            found += self._look_back(hour)
        self.minute = max(self.minute, minute)
        return found

    def _metrics(self, minute: int, name: int) -> Iterable[Metric]:
        return self.cells[minute, name].metrics(minute, self.names[name])

    def _add(self, timings: Timings) -> set[tuple[int, int]]:
        name = self._codes(timings)
        minute = timings.at // MINUTE
        by = np.lexsort((name, minute))
        key = np.stack([minute[by], name[by]])
        first = np.flatnonzero(np.concatenate([[True], (np.diff(key) != 0).any(axis=0)]))
        ahead = np.append(first[1:], len(by))
        changed = set()
        for low, high in zip(first.tolist(), ahead.tolist(), strict=True):
            part = by[low:high]
            place = int(key[0, low]), int(key[1, low])
            cell = self.cells.get(place)
            if cell is None:
                cell = self.cells[place] = Cell()
            cell.requests += len(part)
            cell.errors += int(timings.failed[part].sum())
            cell.durations.add(timings.duration[part])
            changed.add(place)
        return changed

    def _codes(self, timings: Timings) -> I64:
        """Codes of the names in log order of their first event; those beyond the limit are told apart no more."""
        used, first = np.unique(timings.name, return_index=True)
        table = np.zeros(len(timings.words), np.int64)
        known = {name: code for code, name in enumerate(self.names)}
        for index in used[np.argsort(first)].tolist():
            word = timings.words[index]
            if word not in known and len(self.names) <= self.limits.names:
                known[word] = len(self.names)
                self.names.append(word)
            table[index] = known.get(word, 0)
        codes: I64 = table[timings.name]
        return codes

    def _look_back(self, hour: int) -> list[Insight]:
        """Names whose 95th percentile in ``hour``, which is over, is far above that of the day's other hours."""
        hourly: dict[int, HistogramSketch] = {}
        for (minute, name), cell in self.cells.items():
            if minute // 60 == hour:
                hourly.setdefault(name, HistogramSketch()).merge(cell.durations)
        found = []
        for name, sketch in sorted(hourly.items()):
            if sketch.count < _LEAST_REQUESTS:
                continue
            p95 = sketch.quantile(0.95)
            before = [(h, value) for h, value in self.usual.get(name, []) if h > hour - HOURS]
            usual = float(np.median([value for _, value in before])) if len(before) >= _LEAST_HOURS else np.inf
            if p95 >= _LEAST_FACTOR * usual:
                found.append(_degraded(self.names[name], hour, sketch.count, p95, usual, len(before)))
            self.usual[name] = [*before, (hour, p95)]
        return found


def _degraded(name: str, hour: int, requests: int, p95: float, usual: float, hours: int) -> Insight:
    window = Window(datetime.fromtimestamp(hour * 3600, UTC), 3600)
    return Insight(
        key=f"degraded:{name}:{window.start:%Y-%m-%dT%H}",
        title=f"{name} has become slow",
        description=f"In the hour from {window.start:%H:%M} UTC the 95th percentile of {name} was {p95:.0f} ms over "
        f"{requests} events; the median of the {hours} hours before it is {usual:.0f} ms.",
        severity="medium",
        window=window,
        data={"event": name, "p95": p95, "usual_p95": usual, "requests": requests, "hours": hours},
    )
