"""The `EventReader` of the host over rows in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from analytics_core.errors import QueryError, near
from analytics_core.events import SCHEMA, EventBatch, micros, moment
from analytics_core.metrics.buckets import buckets
from analytics_core.metrics.filters import Filter
from analytics_core.queries.cohorts import Cohort
from analytics_core.queries.reader import Reader
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.spec import SnapshotSpec
from analytics_core.queries.tail import Tail
from analytics_core.records import Series, TimeRange
from analytics_core.testing.rows import START


class MemoryReader(Reader):
    """The `EventReader` of the host over batches in memory: real SQL, real types. Use it as a context manager.

    ``range`` defaults to the whole days of ``timezone`` that hold events. ``metrics`` are the series that `metric`
    knows by name beside the counts of events; ``filters`` and ``cohort`` are as `queries.filters` and `queries.cohorts`
    read them.
    """

    def __init__(
        self,
        batches: Sequence[EventBatch],
        range: TimeRange | None = None,  # noqa: A002
        *,
        timezone: str = "UTC",
        filters: Sequence[Filter] = (),
        cohort: Cohort | None = None,
        metrics: Mapping[str, Series] | None = None,
    ) -> None:
        table = pa.Table.from_batches([each.record_batch for each in batches], SCHEMA).unify_dictionaries()
        asked = range or _whole_days(table, timezone)
        tenant = batches[0].tenant if batches else "default"
        spec = SnapshotSpec(
            durable=len(table),
            tenant=tenant,
            range=asked,
            filters=tuple(filters),
            cohort=cohort,
        )
        tail = Tail(table, batches[-1].watermark if batches else None)
        super().__init__(Snapshot(spec, tail, ExitStack()), metrics=_Known(dict(metrics or {})))


def _whole_days(table: pa.Table, timezone: str) -> TimeRange:
    at = table["timestamp"].cast(pa.int64()).to_numpy()
    first, last = (int(at.min()), int(at.max())) if len(at) else (micros(START), micros(START))
    edges = buckets(moment(first), moment(last + 1), "day", timezone).edges
    return TimeRange(moment(int(edges[0])), moment(int(edges[-1])), timezone)


class _Known:
    """Metrics by name: given series, and the count of an event."""

    def __init__(self, given: dict[str, Series]) -> None:
        self._given = given

    def series(self, reader: Reader, name: str, interval: str) -> Series:
        if name in self._given:
            return self._given[name]
        spans = buckets(reader.range.start, reader.range.end, interval, reader.range.timezone)
        found = reader.sql("SELECT epoch_us(timestamp) AS at FROM events WHERE name = $name", {"name": name})
        if not len(found):
            raise QueryError(f"no metric and no event is named {name!r}{near(name, self._given)}")
        counts = np.bincount(spans.assign(found["at"].to_numpy()), minlength=len(spans))
        steps = np.diff(spans.edges)
        return Series(
            metric=name, at=spans.edges[:-1], values=counts.astype(np.float64), step_seconds=int(steps[0]) // 1_000_000
        )
