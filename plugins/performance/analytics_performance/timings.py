"""From an `EventBatch` to the events that carry a duration, and whether each failed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core import EventBatch

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MINUTE = 60_000_000
SERVER_ERROR = 500


class Timings(NamedTuple):
    """Events with ``properties.duration`` in log order, every array of shape ``(n,)``.

    ``at`` is microseconds UTC, ``duration`` milliseconds; ``name`` indexes ``words``.
    """

    at: I64
    duration: npt.NDArray[np.float64]
    failed: Mask
    name: I64
    words: list[str]


def read(batch: EventBatch) -> Timings | None:
    """None when no event has a duration: a number of milliseconds, 0 or more.

    An event failed when ``properties.error`` is true or ``properties.status`` is 500 or more.
    """
    duration = batch.property("duration", float)
    timed = pc.fill_null(pc.and_(pc.is_finite(duration), pc.greater_equal(duration, 0)), fill_value=False)
    batch = batch.filter(timed)
    if not len(batch):
        return None
    names = batch.column("name")
    status = batch.property("status", float).fill_null(0)
    return Timings(
        at=batch.column("timestamp").cast(pa.int64()).to_numpy(),
        duration=duration.filter(timed).to_numpy(),
        failed=pc.or_(batch.property("error", bool).fill_null(False), pc.greater_equal(status, SERVER_ERROR)).to_numpy(
            zero_copy_only=False
        ),
        name=names.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        words=names.dictionary.to_pylist(),
    )
