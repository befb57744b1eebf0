"""From what a plugin has answered to what a client is sent: rows and findings as JSON, and what stands beside."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
import pyarrow as pa

from analytics_core.errors import BudgetError
from analytics_core.queries.reader import Reader
from analytics_core.records import Answer

MAX_ROWS: Final = 100_000


def shown(answer: Answer, reader: Reader) -> dict[str, Any]:
    """The answer, ready for JSON. Many rows take seconds.

    :raises TypeError, ValueError, RecursionError: for what has no form in JSON; :raises BudgetError: for too many rows.
    """
    columns, rows = _rows(answer.table)
    return {"columns": columns, "data": rows, **_findings(answer), **_beside(reader)}


def _rows(table: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Column names and JSON-ready rows of what the plugin gave: an Arrow table or a list of row dicts."""
    if isinstance(table, pa.Table):
        if len(table) <= MAX_ROWS:
            return list(table.column_names), [jsonable(row) for row in table.to_pylist()]
        size = len(table)
    else:
        listed = [] if table is None else list(table)
        if len(listed) <= MAX_ROWS:
            return list(dict.fromkeys(key for row in listed for key in row)), [jsonable(dict(row)) for row in listed]
        size = len(listed)
    raise BudgetError(
        f"the answer has {size:,} rows, and at most {MAX_ROWS:,} can be given; narrow the time range, or ask for fewer "
        "values or longer periods"
    )


def _beside(reader: Reader) -> dict[str, Any]:
    """What stands beside the figures: how good their events are, and what was asked for in vain."""
    events, late, bots = reader.visitors.quality()
    share = round(bots / events, 4) if events else None
    return {"quality": {"events": events, "late": late, "bot_share": share}, "notes": reader.visitors.notes()}


def _findings(answer: Answer) -> dict[str, Any]:
    return {
        "insights": jsonable(list(answer.insights)),
        "recommendations": jsonable(list(answer.recommendations)),
        "chart": jsonable(answer.chart),
    }


def freshness(watermark: datetime | None, end: datetime) -> dict[str, Any]:
    return {
        "data_as_of": min(watermark, end).isoformat() if watermark else None,
        "watermark": watermark.isoformat() if watermark else None,
    }


def jsonable(value: Any) -> Any:
    """Plain JSON values: times as ISO 8601, decimals and numpy numbers as numbers, what is not finite as null."""
    return _finite(msgspec.to_builtins(value, enc_hook=_plain, builtin_types=(datetime, Decimal)))


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(child) for key, child in value.items()}
        case list() | tuple():
            return [_finite(child) for child in value]
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return None
    return value


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, and whatever else knows its plain form."""
    for name in ("item", "tolist", "to_pylist"):
        if (hasattr(value, name) and getattr(value, "ndim", 0) == 0) or (name != "item" and hasattr(value, name)):
            return getattr(value, name)()
    raise TypeError(f"{type(value).__name__} is no JSON value")
