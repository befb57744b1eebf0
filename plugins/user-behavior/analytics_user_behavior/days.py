"""Days of the question's time zone, and figures per day."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core import TimeRange
from analytics_user_behavior.columns import I64, Mask

F64 = npt.NDArray[np.float64]

VISITOR = "coalesce(user_id, anonymous_id)"
DAY = "date_diff('day', DATE '1970-01-01', CAST(timezone($timezone, timestamp) AS DATE))"
"""SQL: the local day of an event, as days since 1970."""

_EPOCH = 719_163  # the ordinal of 1970-01-01


def local_days(asked: TimeRange) -> I64:
    """Every local day that the range touches, as days since 1970, shape ``(days,)``."""
    zone = ZoneInfo(asked.timezone)
    first = asked.start.astimezone(zone).date().toordinal()
    last = (asked.end - timedelta(microseconds=1)).astimezone(zone).date().toordinal()
    return np.arange(first, last + 1, dtype=np.int64) - _EPOCH


def dates(days: I64) -> pa.Array:
    return pa.array(days.astype(np.int32), pa.int32()).cast(pa.date32())


def codes(column: pa.ChunkedArray) -> I64:
    """Dense codes of a string column, shape ``(n,)``; -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values: I64 = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def integers(column: pa.ChunkedArray) -> I64:
    values: I64 = column.to_numpy().astype(np.int64, copy=False)
    return values


def quantiles(values: F64, group: I64, groups: int, q: float) -> F64:
    """The ``q``-quantile of ``values`` in each group, linear between neighbours, shape ``(groups,)``; NaN if empty."""
    ordered = values[np.lexsort((values, group))]
    sizes = np.bincount(group, minlength=groups)
    start = np.cumsum(sizes) - sizes
    place = q * np.maximum(sizes - 1, 0)
    low = np.floor(place).astype(np.int64)
    result = np.full(groups, np.nan)
    some = sizes > 0
    lower = ordered[(start + low)[some]]
    upper = ordered[(start + np.minimum(low + 1, np.maximum(sizes - 1, 0)))[some]]
    result[some] = lower + (upper - lower) * (place - low)[some]
    return result


def ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> F64:
    """``part / whole``; NaN where ``whole`` is 0."""
    result = np.full(len(whole), np.nan)
    some: Mask = np.asarray(whole) > 0
    result[some] = np.asarray(part, np.float64)[some] / np.asarray(whole, np.float64)[some]
    return result


def shown(values: F64) -> pa.Array:
    """Floats with null for NaN."""
    return pa.array(values, pa.float64(), from_pandas=True)
