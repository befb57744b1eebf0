"""Figures in columns: shares, and floats in which NaN is null."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_user_behavior.columns import I64, Mask

F64 = npt.NDArray[np.float64]


def integers(column: pa.ChunkedArray) -> I64:
    values: I64 = column.to_numpy().astype(np.int64, copy=False)
    return values


def ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> F64:
    """``part / whole``; NaN where ``whole`` is 0."""
    result = np.full(len(whole), np.nan)
    some: Mask = np.asarray(whole) > 0
    result[some] = np.asarray(part, np.float64)[some] / np.asarray(whole, np.float64)[some]
    return result


def shown(values: F64) -> pa.Array:
    """Floats with null for NaN."""
    return pa.array(values, pa.float64(), from_pandas=True)
