"""Live windows: every declared metric and every event name per minute, folded from batches as they become durable."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from analytics_core.events import MINUTE, EventBatch, micros
from analytics_core.lanes.live_metrics import Change
from analytics_core.metrics.accumulators import Accumulator, accumulator
from analytics_core.metrics.definition import Definition
from analytics_core.metrics.filters import Field

MAX_LABELS: Final = 100
"""Label combinations of one metric in one window; further ones count in the total alone."""
MAX_NAMES: Final = 5_000
"""Event names counted in one window; `LiveWindows` shows the most frequent."""

_log = structlog.get_logger(__name__)

Labels = tuple[tuple[str, str], ...]
Series = tuple[str, Labels]


class _Tenant:
    """``windows``: by minute (microseconds), then by metric and labels; ``names``: events by minute and name.

    ``broken``: minutes and metrics of which an event could not be counted, so that there is no figure to show.
    """

    def __init__(self) -> None:
        self.windows: dict[int, dict[Series, Accumulator]] = {}
        self.names: dict[int, Counter[str]] = {}
        self.touched: set[tuple[int, Series]] = set()
        self.told: dict[tuple[int, Series], float] = {}
        self.broken: set[tuple[int, str]] = set()

    def forget_before(self, minute: int) -> None:
        self.windows = {m: kept for m, kept in self.windows.items() if m >= minute}
        self.names = {m: kept for m, kept in self.names.items() if m >= minute}
        self.told = {k: value for k, value in self.told.items() if k[0] >= minute}
        self.touched = {k for k in self.touched if k[0] >= minute}
        self.broken = {k for k in self.broken if k[0] >= minute}

    def break_off(self, minute: int, metric: str) -> None:
        self.broken.add((minute, metric))
        window = self.windows.get(minute, {})
        for series in [series for series in window if series[0] == metric]:
            del window[series]


class LiveWindows:
    """The last ``keep`` minutes of every metric, by event time. For one thread.

    An event outside of these minutes, before or after the log's clock, belongs to history alone.
    """

    def __init__(self, definitions: Iterable[Definition], *, keep: int = 10, top_names: int = 200) -> None:
        self._definitions = tuple(definitions)
        self._declared = frozenset(d.name for d in self._definitions)
        self._keep = keep * MINUTE
        self._top = top_names
        self._since = 0
        self._clock = 0
        self._tenants: dict[str, _Tenant] = {}
        self._problems: dict[str, tuple[int, str]] = {}

    @property
    def oldest(self) -> int:
        return self._clock // MINUTE * MINUTE - self._keep + MINUTE

    @property
    def problem(self) -> str:
        return "; ".join(f"metric {name!r} {text}" for name, (_, text) in sorted(self._problems.items()))

    def begin(self, since: datetime) -> None:
        """Only windows from ``since`` on are shown: earlier ones would lack events that were read before."""
        self._since = -(-micros(since) // MINUTE) * MINUTE

    def add(self, batch: EventBatch) -> None:
        """Count the events of one tenant. An empty batch lets time pass."""
        self._tick(micros(batch.watermark))
        if not len(batch):
            return
        at = batch.column("timestamp").view(pa.int64()).to_numpy()
        low = max(self._since, self.oldest)
        fitting = (at >= low) & (at < self._clock + self._keep)
        if not fitting.all():
            batch, at = batch.filter(fitting), at[fitting]
        if len(batch):
            self._count(self._tenants.setdefault(batch.tenant, _Tenant()), batch, at // MINUTE * MINUTE)

    def changes(self) -> Iterator[Change]:
        """Every window whose figure differs from the one given last, oldest first; each is given once."""
        for tenant, state in self._tenants.items():
            shown = self._shown_names(state)
            for minute, series in sorted(state.touched):
                metric, labels = series
                held = state.windows.get(minute, {}).get(series)
                if held is not None:
                    value = self._value(state, minute, metric, held)
                elif metric in shown:
                    value = float(state.names[minute][metric])
                else:
                    continue
                if value is not None and state.told.get((minute, series)) != value:
                    state.told[minute, series] = value
                    yield Change(tenant, metric, dict(labels), minute, MINUTE, value)
            state.touched.clear()

    def _tick(self, now: int) -> None:
        passed = now // MINUTE > self._clock // MINUTE
        self._clock = max(self._clock, now)
        if passed:
            self._problems = {name: held for name, held in self._problems.items() if held[0] >= self.oldest}
            for name, tenant in list(self._tenants.items()):
                tenant.forget_before(self.oldest)
                if not tenant.windows and not tenant.names:
                    del self._tenants[name]

    def _shown_names(self, state: _Tenant) -> frozenset[str]:
        total: Counter[str] = Counter()
        for counted in state.names.values():
            total.update(counted)
        return frozenset(heapq.nlargest(self._top, total, key=total.__getitem__))

    def _count(self, state: _Tenant, batch: EventBatch, minutes: npt.NDArray[np.int64]) -> None:
        column = batch.column("name")
        codes = np.asarray(column.indices)
        names = column.dictionary.to_pylist()
        for minute in np.unique(minutes).tolist():
            here = minutes == minute
            counts = np.bincount(codes[here], minlength=len(names))
            self._count_names(state, minute, {names[c]: int(counts[c]) for c in np.flatnonzero(counts).tolist()})
            part = batch if here.all() else batch.filter(here)
            inside = codes if here.all() else codes[here]
            for definition in self._definitions:
                if (minute, definition.name) not in state.broken:
                    self._try_fold(state, minute, definition, part, inside, names)

    def _count_names(self, state: _Tenant, minute: int, counts: dict[str, int]) -> None:
        held = state.names.setdefault(minute, Counter())
        for name, count in counts.items():
            if name not in self._declared and (name in held or len(held) < MAX_NAMES):
                held[name] += count
                state.touched.add((minute, (name, ())))

    def _try_fold(self, state: _Tenant, minute: int, definition: Definition, *part: Any) -> None:
        """What one definition cannot count costs its own window, and neither the others nor the next minute."""
        try:
            self._fold(state, minute, definition, *part)
        except Exception as error:
            self._break_off(state, minute, definition.name, error)

    def _value(self, state: _Tenant, minute: int, metric: str, held: Accumulator) -> float | None:
        try:
            return held.value()
        except Exception as error:
            self._break_off(state, minute, metric, error)
            return None

    def _break_off(self, state: _Tenant, minute: int, metric: str, error: Exception) -> None:
        state.break_off(minute, metric)
        if self._problems.get(metric, (0, ""))[0] < minute:
            _log.error("live_metric_failed", metric=metric, exc_info=error)
            self._problems[metric] = (minute, f"cannot be counted ({type(error).__name__}, see the log)")

    def _fold(
        self,
        state: _Tenant,
        minute: int,
        definition: Definition,
        batch: EventBatch,
        codes: npt.NDArray[np.int32],
        names: list[str],
    ) -> None:
        if definition.events:
            wanted = np.array([name in definition.events for name in names])
            mask = wanted[codes]
            if not mask.any():
                return
            batch = batch if mask.all() else batch.filter(mask)
        for condition in definition.where:
            batch = batch.filter(condition.mask(batch))
        if not len(batch):
            return
        values = _values(definition, batch)
        self._accumulate(state, minute, definition, (), values)
        for labels, rows in _label_groups(definition, batch):
            self._accumulate(state, minute, definition, labels, values.take(rows))

    def _accumulate(
        self, state: _Tenant, minute: int, definition: Definition, labels: Labels, values: pa.Array
    ) -> None:
        present = _present(values)
        if not len(present):
            return
        window = state.windows.setdefault(minute, {})
        series = (definition.name, labels)
        if series not in window:
            if labels and sum(name == definition.name for name, _ in window) > MAX_LABELS:
                return
            window[series] = accumulator(definition)
        window[series].add(present)
        state.touched.add((minute, series))


def _values(definition: Definition, batch: EventBatch) -> pa.Array:
    """What is aggregated, one value per event, null where the event has none."""
    if definition.aggregate == "count" and definition.value is None:
        return pa.nulls(len(batch), pa.bool_()).fill_null(True)
    if definition.aggregate not in ("unique", "count"):
        assert definition.value is not None
        return definition.value.column_of(batch, float)
    if definition.value is None:
        return pc.coalesce(batch.column("user_id"), batch.column("anonymous_id"))
    return _as_text(definition.value, batch)


def _as_text(field: Field, batch: EventBatch) -> pa.Array:
    """A value as text, whatever scalar it is, so that 5 and "5" are one value as they are in history's SQL."""
    found = field.column_of(batch, str)
    if field.path and found.null_count:
        found = pc.coalesce(found, field.column_of(batch, int).cast(pa.string()))
    if field.path and found.null_count:
        found = pc.coalesce(found, field.column_of(batch, float).cast(pa.string()))
    if field.path and found.null_count:
        found = pc.coalesce(found, field.column_of(batch, bool).cast(pa.string()))
    return found.cast(pa.string())


def _present(values: pa.Array) -> Any:
    """Without nulls: text as Arrow, the rest as numpy, numbers finite."""
    kept = values.drop_null() if values.null_count else values
    if pa.types.is_string(kept.type):
        return kept
    found = kept.to_numpy(zero_copy_only=False)
    return found[np.isfinite(found)] if found.dtype == np.float64 else found


def _label_groups(definition: Definition, batch: EventBatch) -> Iterator[tuple[Labels, pa.Array]]:
    if not definition.breakdown:
        return
    names = [name for name, _ in definition.breakdown]
    columns = [pc.fill_null(_as_text(field, batch), "") for _, field in definition.breakdown]
    table = pa.table({**dict(zip(names, columns, strict=True)), "": np.arange(len(batch))})
    for row in table.group_by(names).aggregate([("", "list")]).to_pylist():
        yield tuple((name, row[name]) for name in names), pa.array(row["_list"], pa.int64())
