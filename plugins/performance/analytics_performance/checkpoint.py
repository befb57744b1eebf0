"""The whole fold state as bytes and back: an Arrow IPC stream with one row per tenant. Equal states, equal bytes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from analytics_core import HistogramSketch
from analytics_performance.fold import Cell, Limits, TenantFold

VERSION = 1
_CELL = pa.struct(
    [
        ("minute", pa.int64()),
        ("name", pa.int32()),
        ("requests", pa.int64()),
        ("errors", pa.int64()),
        ("durations", pa.binary()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("tenant", pa.string()),
        ("minute", pa.int64()),
        ("names", pa.list_(pa.string())),
        ("cells", pa.list_(_CELL)),
        ("usual", pa.list_(pa.struct([("name", pa.int32()), ("hour", pa.int64()), ("p95", pa.float64())]))),
    ]
)


def pack(tenants: dict[str, TenantFold]) -> bytes:
    rows = [
        {"tenant": name, "minute": fold.minute, "names": fold.names, "cells": _cells(fold), "usual": _usual(fold)}
        for name, fold in sorted(tenants.items())
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    return bytes(sink.getvalue())


def unpack(state: bytes, limits: Limits) -> dict[str, TenantFold]:
    """The folds of `pack`. :raises ValueError: for bytes that are no such state."""
    try:
        rows = pa.ipc.open_stream(pa.py_buffer(state)).read_all().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"the state of {len(state)} bytes is no Arrow stream: {error}") from None
    folds = {}
    for row in rows:
        fold = folds[row["tenant"]] = TenantFold(limits, row["minute"])
        fold.names = row["names"]
        for cell in row["cells"]:
            sketch = HistogramSketch.from_bytes(cell["durations"])
            fold.cells[cell["minute"], cell["name"]] = Cell(cell["requests"], cell["errors"], sketch)
        for entry in row["usual"]:
            fold.usual.setdefault(entry["name"], []).append((entry["hour"], entry["p95"]))
    return folds


def _cells(fold: TenantFold) -> list[dict[str, Any]]:
    return [
        {
            "minute": minute,
            "name": name,
            "requests": cell.requests,
            "errors": cell.errors,
            "durations": cell.durations.to_bytes(),
        }
        for (minute, name), cell in sorted(fold.cells.items())
    ]


def _usual(fold: TenantFold) -> list[dict[str, Any]]:
    return [
        {"name": name, "hour": hour, "p95": p95}
        for name, entries in sorted(fold.usual.items())
        for hour, p95 in entries
    ]
