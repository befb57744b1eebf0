"""Metrics over time: every kind of metric per bucket and for the whole range, from one snapshot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from math import inf
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from analytics_core.errors import ParameterError
from analytics_core.events import moment
from analytics_core.manifest import Deployment
from analytics_core.metrics.buckets import Buckets, buckets
from analytics_core.metrics.definition import Definition, PluginMetric, define, look_up
from analytics_core.queries.cache import CELL_BYTES, AnswerCache, Made
from analytics_core.queries.figures import Figures, over_events
from analytics_core.queries.grid import MAX_SERIES
from analytics_core.queries.history import MAX_NAMES, History, Version
from analytics_core.queries.points import merged
from analytics_core.queries.reader import MetricSource, Reader
from analytics_core.queries.series_json import encoded
from analytics_core.records import Series, TimeRange
from analytics_core.state import StateStore

MAX_METRICS: Final = 50
_NEAR: Final = 200
"""Event names among which a near one is sought for a name that is none."""
_NEAR_SECONDS: Final = 60.0
_SECOND: Final = 1_000_000


class Asked(NamedTuple):
    """A question as it was put; ``start`` and ``end`` as `metrics.buckets.instant` takes them."""

    tenant: str
    names: tuple[str, ...]
    start: str | date | datetime
    end: str | date | datetime
    interval: str
    timezone: str
    breakdown: tuple[str, ...] | None


class MetricQueries:
    """Answers ``GET /api/v1/metrics``, and `Reader.metric` for plugins. Safe for use from any thread.

    What it knows of manifests never changes: another deployment has metric queries of its own.
    """

    def __init__(self, history: History, state: StateStore, deployment: Deployment) -> None:
        """:raises ManifestError: for a metric manifest that cannot be computed."""
        self._history = history
        self._state = state
        self._definitions = {
            name: define(metric, deployment.sources.get(("metric", name)))
            for name, metric in deployment.metrics.items()
        }
        self._known: set[tuple[str, str]] = set()
        self._near: dict[str, tuple[float, list[str]]] = {}
        self._answers = AnswerCache()

    @property
    def definitions(self) -> Mapping[str, Definition]:
        """The metrics of the deployment's manifests, for the live windows too."""
        return self._definitions

    async def query(
        self,
        tenant: str,
        names: Sequence[str],
        start: str | date | datetime,
        end: str | date | datetime,
        interval: str = "day",
        timezone: str = "UTC",
        breakdown: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """``{"metrics": [{"metric", "value", "points": [{"timestamp", "value"}]}], "watermark"}``, where what is under
        ``metrics`` is written as JSON already.

        Every bucket of ``[start, end)`` is there: 0 for what is counted, null where there is nothing to say. With
        ``breakdown``, or one in the manifest, the total is followed by a series per combination, which has ``labels``.

        :raises ParameterError: for a range, interval, zone or breakdown that is not one.
        :raises NotFoundError: for a name that is no metric; :raises ClashError: for one that is two.
        """
        if not 1 <= len(names) <= MAX_METRICS:
            raise ParameterError("metrics", f"{len(names)} names were given; valid are 1 to {MAX_METRICS}")
        by = None if breakdown is None else tuple(breakdown)
        asked = Asked(tenant, tuple(dict.fromkeys(names)), start, end, interval, timezone, by)
        found, now = await asyncio.to_thread(self._depends_on, asked)
        answer = await self._answers.get(
            (asked, found, now[:-1]), lambda: asyncio.to_thread(self._answer, asked, found)
        )
        return {**answer, "watermark": now.watermark.isoformat() if now.watermark else None}

    def _depends_on(self, asked: Asked) -> tuple[tuple[Definition | PluginMetric, ...], Version]:
        """What the names stand for, and which events there are."""
        return tuple(self._look_up(asked.tenant, name) for name in asked.names), self._history.changed(asked.tenant)

    def _answer(self, asked: Asked, found: Sequence[Definition | PluginMetric]) -> Made:
        """``found`` is what the names stand for."""
        spans = buckets(asked.start, asked.end, asked.interval, asked.timezone)
        definitions = [metric for metric in found if isinstance(metric, Definition)]
        by_name: dict[str, list[Figures]] = {}
        if definitions:
            span = TimeRange(moment(spans.start), moment(spans.end), asked.timezone)
            with self._history.reader(asked.tenant, span) as reader:
                by_name.update(over_events(reader, definitions, spans, asked.breakdown))
        for metric in found:
            if isinstance(metric, PluginMetric):
                by_name[metric.full_name] = self._from_points(asked.tenant, metric, spans, asked.breakdown or ())
        shown = encoded([figures for name in asked.names for figures in by_name[name]], spans.starts())
        lasting = len(definitions) == len(found)  # points come without an event
        return Made({"metrics": msgspec.Raw(shown)}, lasting, len(shown) // CELL_BYTES)

    def series(self, reader: Reader, name: str, interval: str) -> Series:
        """What `Reader.metric` gives: one metric over the reader's own snapshot, range and filters."""
        metric = self._look_up(reader.tenant, name)
        if isinstance(metric, Definition):
            return _series_over_events(reader, metric, interval)
        reader.beyond_events = True
        spans = _spans(reader, interval)
        return _series(name, spans, self._from_points(reader.tenant, metric, spans, ())[0])

    def __reduce__(self) -> tuple[type[MetricSource], tuple[dict[str, Definition]]]:
        """In another process there is no state store: what is known there is what can be read from the events."""
        return EventMetrics, (self._definitions,)

    def catalogue(self, tenant: str) -> dict[str, list[str]]:
        """Every name that can be asked for: ``{"manifest": [...], "plugin": [...], "event": [...]}``."""
        return {
            "manifest": sorted(self._definitions),
            "plugin": sorted(self._plugin_metrics(tenant)),
            "event": self._history.event_names(tenant),
        }

    def _look_up(self, tenant: str, name: str) -> Definition | PluginMetric:
        return look_up(name, self._definitions, self._plugin_metrics(tenant), lambda: self._seen(tenant, name))

    def _seen(self, tenant: str, name: str) -> Iterable[str]:
        """``name`` alone when the tenant has such events, else names that may have been meant.

        A name that was found is not looked for again, since names do not go away. Suggestions are the most frequent
        names and up to a minute old: they cost a pass over the history.
        """
        if (tenant, name) in self._known:
            return (name,)
        if self._history.has_event(tenant, name):
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            self._known.add((tenant, name))
            return (name,)
        read_at, names = self._near.get(tenant, (-inf, []))
        if time.monotonic() - read_at > _NEAR_SECONDS:
            names = self._history.event_names(tenant, _NEAR)
            self._near[tenant] = time.monotonic(), names
        return names

    def _plugin_metrics(self, tenant: str) -> dict[str, PluginMetric]:
        metrics = (PluginMetric(lane, name, kind) for lane, name, kind in self._state.catalogue(tenant))
        return {metric.full_name: metric for metric in metrics}

    def _from_points(
        self, tenant: str, metric: PluginMetric, spans: Buckets, breakdown: Sequence[str]
    ) -> list[Figures]:
        points = self._state.points(tenant, metric.name, moment(spans.start), moment(spans.end))
        mine = [point for point in points if point.lane == metric.lane and point.kind == metric.kind]
        return [
            Figures(metric.full_name, labels, value, values, mine[0].unit if mine else "")
            for labels, value, values in merged(mine, metric, spans, breakdown, MAX_SERIES)
        ]


class EventMetrics:
    """The `MetricSource` of a reader in a plugin's process: manifest metrics and event names."""

    def __init__(self, definitions: Mapping[str, Definition]) -> None:
        self._definitions = dict(definitions)

    def series(self, reader: Reader, name: str, interval: str) -> Series:
        """:raises NotFoundError: for a plugin's metric too, since its points are not events."""

        def seen() -> list[str]:
            return [name] if reader.has_event(name) else reader.event_names(_NEAR)

        metric = look_up(name, self._definitions, {}, seen)
        assert isinstance(metric, Definition)
        return _series_over_events(reader, metric, interval)


def _spans(reader: Reader, interval: str) -> Buckets:
    return buckets(reader.range.start, reader.range.end, interval, reader.range.timezone)


def _series_over_events(reader: Reader, metric: Definition, interval: str) -> Series:
    spans = _spans(reader, interval)
    return _series(metric.name, spans, over_events(reader, [metric], spans, ())[metric.name][0])


def _series(name: str, spans: Buckets, figures: Figures) -> Series:
    step = int(np.median(np.diff(spans.edges))) // _SECOND
    return Series(metric=name, at=spans.edges[:-1], values=figures.values, step_seconds=step)
