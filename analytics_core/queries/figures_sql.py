"""Figures by SQL: every bucket and the whole range of any metrics from one pass of DuckDB over a reader's snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core.metrics.buckets import Buckets
from analytics_core.metrics.definition import Definition
from analytics_core.queries.grid import MAX_SERIES, Grid
from analytics_core.queries.reader import Reader


class _Query:
    """SQL with its bound parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def bind(self, value: Any) -> str:
        self.parameters[f"p{len(self.parameters)}"] = value
        return f"$p{len(self.parameters) - 1}"


def scan_sql(reader: Reader, definitions: Sequence[Definition], spans: Buckets) -> Grid:
    """One pass over the events: every metric by bucket and in whole (GROUPING SETS), per combination of labels.

    All ``definitions`` have the same breakdown.
    """
    query = _Query()
    fields = definitions[0].breakdown
    names = [f"l{i}" for i in range(len(fields))]
    shown = [f"coalesce({field.text(query.bind)}::VARCHAR, '') AS l{i}" for i, (_, field) in enumerate(fields)]
    counted = " OR ".join(f"({d.condition(query.bind)})" for d in definitions)
    columns = ", ".join([f"{_bucket(spans, query)} AS bucket", *shown, "*"])
    source = f"(SELECT {columns} FROM events WHERE {counted})"
    if names:
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
    return _read(table, definitions, len(spans), names)


def _bucket(spans: Buckets, query: _Query) -> str:
    """SQL for the bucket's number: by division when all are equally long, else through a list of equal cells."""
    cell = f"((epoch_us(timestamp) - {query.bind(int(spans.edges[0]))}) // {query.bind(spans.cell)})"
    cells = spans.cells()
    if len(cells) == len(spans):
        return cell
    return f"list_extract({query.bind(cells.tolist())}, {cell} + 1)"


def _read(table: pa.Table, definitions: Sequence[Definition], buckets: int, names: Sequence[str]) -> Grid:
    """The rows as a grid. A row without a bucket is the whole range."""
    numbers: dict[tuple[str, ...], int] = {} if names else {(): 0}
    keys = zip(*(table.column(name).to_pylist() for name in names), strict=True) if names else [()] * len(table)
    group = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
    at = table.column("bucket").fill_null(-1).to_numpy().astype(np.int64)
    inside = at >= 0
    grid = Grid.empty(definitions, list(numbers), buckets)
    for number, definition in enumerate(definitions):
        empty = np.nan if definition.empty is None else definition.empty
        column = table.column(f"m{number}").fill_null(empty).to_numpy()
        grid.values[number][group[inside], at[inside]] = column[inside]
        grid.whole[number][group[~inside]] = column[~inside]
    return grid
