"""The fold of one tenant: requests, errors and durations per minute and event name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from analytics_core import EventBatch, HistogramSketch, Insight, Metric, ProcessResult, Window
from analytics_performance.timings import MINUTE, I64, Timings, read

OTHER = "(other)"
_LEAST_REQUESTS = 50
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

    def process(self, batch: EventBatch) -> ProcessResult | None:
        before = self.minute
        changed: set[tuple[int, int]] = set()
        if len(batch):
            received = batch.column("received_at").cast(pa.int64()).to_numpy()
            clock: I64 = np.maximum(np.maximum.accumulate(received) // MINUTE, self.minute)
            self.minute = int(clock[-1])
            at = batch.column("timestamp").cast(pa.int64()).to_numpy()
            on_time = batch.filter(at >= (clock - self.limits.lateness) * MINUTE)
            if timings := read(on_time):
                changed = self._add(timings)
        else:
            self.minute = max(self.minute, int(batch.watermark.timestamp()) // 60)
        metrics = [m for minute, name in sorted(changed) for m in self._metrics(minute, name)]
        insights = self._degraded(before)
        for key in [key for key in self.cells if key[0] < self.minute - self.limits.lateness]:
            del self.cells[key]
        return ProcessResult(metrics, (), insights) if metrics or insights else None

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

    def _degraded(self, before: int) -> list[Insight]:
        return []
