"""Metrics over events in SQL: every bucket and the whole range from one pass over a reader's snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from analytics_core.metrics.buckets import Buckets
from analytics_core.metrics.definition import Definition
from analytics_core.queries.reader import Reader

MAX_SERIES: Final = 100
"""Label combinations that one answer shows per metric: those with the most events."""


class Figures(Struct, frozen=True):
    """One series. ``values``: one per bucket, shape ``(n,)``, NaN where there is nothing to say; ``value``: the whole
    range's figure, which is not the sum of the buckets for distinct users and percentiles."""

    metric: str
    labels: dict[str, str]
    value: float | None
    values: npt.NDArray[np.float64]
    unit: str = ""


def over_events(
    reader: Reader, definitions: Sequence[Definition], spans: Buckets, breakdown: Sequence[str] | None
) -> dict[str, list[Figures]]:
    """All metrics without labels in one scan, then one scan for each set of labels."""
    found = {f.metric: [f] for f in _scan(reader, definitions, spans, ())}
    split: dict[tuple[str, ...], list[Definition]] = {}
    for definition in definitions:
        labelled = definition if breakdown is None else definition.broken_down(breakdown)
        if labelled.breakdown:
            split.setdefault(tuple(name for name, _ in labelled.breakdown), []).append(labelled)
    for labels, together in split.items():
        for figures in _scan(reader, together, spans, labels):
            found[figures.metric].append(figures)
    return found


class _Query:
    """SQL with its bound parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def bind(self, value: Any) -> str:
        self.parameters[f"p{len(self.parameters)}"] = value
        return f"$p{len(self.parameters) - 1}"


def _scan(reader: Reader, definitions: Sequence[Definition], spans: Buckets, labels: tuple[str, ...]) -> list[Figures]:
    """One pass over the events: every metric by bucket and in whole (GROUPING SETS), per combination of labels."""
    query = _Query()
    names = [f"l{i}" for i in range(len(labels))]
    fields = definitions[0].breakdown
    shown = [f"coalesce({field.text(query.bind)}::VARCHAR, '') AS l{i}" for i, (_, field) in enumerate(fields)]
    counted = " OR ".join(f"({d.condition(query.bind)})" for d in definitions)
    columns = ", ".join([f"{_bucket(spans, query)} AS bucket", *shown, "*"])
    source = f"(SELECT {columns} FROM events WHERE {counted})"
    if labels:
        top = ", ".join(names)
        most = f"SELECT {top} FROM src GROUP BY {top} ORDER BY count(*) DESC, {top} LIMIT {MAX_SERIES}"
        source = f"(WITH src AS {source} SELECT * FROM src SEMI JOIN ({most}) USING ({top}))"
    figures = ", ".join(f"({d.sql(query.bind)})::DOUBLE AS m{i}" for i, d in enumerate(definitions))
    whole = ", ".join(names)
    table = reader.sql(
        f"SELECT {', '.join([*names, 'bucket', figures])} FROM {source} "
        f"GROUP BY GROUPING SETS (({', '.join([*names, 'bucket'])}), ({whole}))",
        query.parameters,
    )
    return _read(table, definitions, spans, labels)


def _bucket(spans: Buckets, query: _Query) -> str:
    """SQL for the bucket's number: by division when all are equally long, else through a list of equal cells."""
    cell = f"((epoch_us(timestamp) - {query.bind(int(spans.edges[0]))}) // {query.bind(spans.cell)})"
    cells = spans.cells()
    if len(cells) == len(spans):
        return cell
    return f"list_extract({query.bind(cells.tolist())}, {cell} + 1)"


def _read(table: pa.Table, definitions: Sequence[Definition], spans: Buckets, labels: tuple[str, ...]) -> list[Figures]:
    """The rows of `_scan` as one `Figures` per metric and combination. A row without a bucket is the whole range."""
    at = table.column("bucket").fill_null(-1).to_numpy().astype(np.int64)
    groups: dict[tuple[str, ...], list[int]] = {} if labels else {(): []}
    for row, key in enumerate(zip(*(table.column(f"l{i}").to_pylist() for i in range(len(labels))), strict=True)):
        groups.setdefault(key, []).append(row)
    if not labels:
        groups[()] = list(range(len(table)))
    found = []
    for number, definition in enumerate(definitions):
        empty = np.nan if definition.empty is None else definition.empty
        column = table.column(f"m{number}").fill_null(empty).to_numpy()
        for key, rows in groups.items():
            inside = np.array([r for r in rows if at[r] >= 0], np.int64)
            values = np.full(len(spans), empty)
            values[at[inside]] = column[inside]
            whole = next((float(column[r]) for r in rows if at[r] < 0), empty)
            named = dict(zip(labels, key, strict=True))
            shown = None if np.isnan(whole) else whole
            found.append(Figures(definition.name, named, shown, values, definition.unit))
    return sorted(found, key=_largest_first)


def _largest_first(figures: Figures) -> tuple[float, list[str]]:
    return (np.inf if figures.value is None else -figures.value), list(figures.labels.values())
