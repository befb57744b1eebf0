"""Metrics over events by bucket: from the columns of the user-order cache where they tell, else by SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec import Struct

from analytics_core.metrics.buckets import Buckets
from analytics_core.metrics.definition import Definition
from analytics_core.queries.figures_columns import Columnar
from analytics_core.queries.figures_sql import scan_sql
from analytics_core.queries.grid import F64, Grid
from analytics_core.queries.reader import Reader


class Figures(Struct, frozen=True):
    """One series. ``values``: one per bucket, shape ``(n,)``, NaN where there is nothing to say; ``value``: the whole
    range's figure, which is not the sum of the buckets for distinct users and percentiles."""

    metric: str
    labels: dict[str, str]
    value: float | None
    values: F64
    unit: str = ""


def over_events(
    reader: Reader, definitions: Sequence[Definition], spans: Buckets, breakdown: Sequence[str] | None
) -> dict[str, list[Figures]]:
    """All metrics without labels in one scan, then one scan for each set of labels. By metric: its total, then the
    combinations of its labels, the largest first."""
    columns = Columnar.of(reader, spans)
    found: dict[str, list[Figures]] = {}
    for figures in _unlabelled(reader, [d.broken_down(()) for d in definitions], spans, columns):
        found[figures.metric] = [figures]
    split: dict[tuple[str, ...], list[Definition]] = {}
    for definition in definitions:
        labelled = definition if breakdown is None else definition.broken_down(breakdown)
        if labelled.breakdown:
            split.setdefault(tuple(name for name, _ in labelled.breakdown), []).append(labelled)
    for together in split.values():
        grid = columns.grid(together) if columns is not None else None
        shown = _figures(together, scan_sql(reader, together, spans) if grid is None else grid)
        for figures in sorted(shown, key=_largest_first):
            found[figures.metric].append(figures)
    return found


def _unlabelled(
    reader: Reader, definitions: Sequence[Definition], spans: Buckets, columns: Columnar | None
) -> Iterator[Figures]:
    """Without labels each metric stands for itself, so that what the columns tell of some is not asked again."""
    told = [d for d in definitions if columns is not None and columns.tell(d)]
    grid = columns.grid(told) if columns is not None and told else None
    left = definitions if grid is None else [d for d in definitions if d not in told]
    if grid is not None:
        yield from _figures(told, grid)
    if left:
        yield from _figures(left, scan_sql(reader, left, spans))


def _figures(definitions: Sequence[Definition], grid: Grid) -> Iterator[Figures]:
    for definition, values, whole in zip(definitions, grid.values, grid.whole, strict=True):
        for key, row, total in zip(grid.groups, values, whole.tolist(), strict=True):
            labels = {name: value for (name, _), value in zip(definition.breakdown, key, strict=True)}
            yield Figures(definition.name, labels, None if np.isnan(total) else total, row, definition.unit)


def _largest_first(figures: Figures) -> tuple[float, list[str]]:
    return (np.inf if figures.value is None else -figures.value), list(figures.labels.values())
