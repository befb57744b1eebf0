"""What one fold has found, as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from analytics_core.errors import HookFailedError
from analytics_core.queries.answers import jsonable
from analytics_core.queries.points import merge
from analytics_core.records import Metric, ProcessResult
from analytics_core.state import Point


class Findings(NamedTuple):
    """JSON values: a list each of insights and patterns, and `figures` of the metrics."""

    insights: list[Any]
    patterns: list[Any]
    metrics: dict[str, Any]


def findings(plugin: str, result: ProcessResult) -> Findings:
    """What ``plugin`` found.

    :raises HookFailedError: naming the place of a value that JSON cannot hold.
    """
    found = Findings(jsonable(list(result.insights)), jsonable(list(result.patterns)), figures(result.metrics))
    for name, value in zip(Findings._fields, found, strict=True):
        if problem := _unwritable(value, name):
            raise HookFailedError(plugin, "process", problem)
    return found


def figures(metrics: Iterable[Metric]) -> dict[str, Any]:
    """One figure per metric name: its windows merged by kind; labels as a breakdown beside the total."""
    latest: dict[tuple[Any, ...], Point] = {}
    for metric in metrics:  # an upsert: of equal keys the last one holds
        labels = tuple(sorted(metric.labels.items()))
        point = Point(
            lane="",
            name=metric.name,
            start=metric.window.start,
            seconds=metric.window.seconds,
            labels=metric.labels,
            kind=metric.kind,
            value=metric.value,
            sketch=metric.sketch,
            unit=metric.unit,
        )
        latest[metric.name, metric.window.start, metric.window.seconds, labels] = point
    by_name: dict[str, dict[tuple[tuple[str, str], ...], list[Point]]] = {}
    for (name, _, _, labels), point in latest.items():
        by_name.setdefault(name, {}).setdefault(labels, []).append(point)
    return {name: jsonable(_figure(name, groups)) for name, groups in sorted(by_name.items())}


def _figure(name: str, groups: Mapping[tuple[tuple[str, str], ...], list[Point]]) -> Any:
    shortest = min(point.seconds for points in groups.values() for point in points)
    fitting = {k: [p for p in points if p.seconds == shortest] for k, points in groups.items()}
    everything = [point for points in fitting.values() for point in points]
    value = merge(fitting.get(()) or everything, everything[0].kind, name)
    if set(groups) == {()}:
        return value
    split = [
        {"labels": dict(labels), "value": merge(points, points[0].kind, name)}
        for labels, points in fitting.items()
        if labels and points
    ]
    return {"value": value, "breakdown": split}


def _unwritable(value: Any, path: str) -> str:
    """Where in ``value`` something lies that cannot be encoded, and why; empty when all of it can be."""
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        inner: Iterable[tuple[str, Any]] = ()
        if isinstance(value, dict):
            inner = ((f"{path}.{key}", child) for key, child in value.items())
        elif isinstance(value, list):
            inner = ((f"{path}[{at}]", child) for at, child in enumerate(value))
        return next(filter(None, (_unwritable(child, place) for place, child in inner)), f"{path}: {error}")
    return ""
