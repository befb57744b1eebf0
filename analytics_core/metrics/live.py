"""Live windows: every declared metric and every event name per minute, folded from batches as they become durable."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog

from analytics_core.events import MINUTE, EventBatch, micros
from analytics_core.lanes.live_metrics import Change
from analytics_core.metrics.accumulators import Accumulator, accumulator
from analytics_core.metrics.definition import Definition
from analytics_core.metrics.selection import Labels, Part, labelled, measured, parts

MAX_LABELS: Final = 100
"""Label combinations of one metric in one window; further ones count in the total alone."""
MAX_NAMES: Final = 5_000
"""Event names counted in one window; `LiveWindows` shows the most frequent."""

_log = structlog.get_logger(__name__)

Series = tuple[str, Labels]


class _Tenant:
    """``windows``: by minute (microseconds), then by metric, then by labels; ``names``: events by minute and name.

    ``broken``: minutes and metrics of which an event could not be counted, so that there is no figure to show.
    """

    def __init__(self) -> None:
        self.windows: dict[int, dict[str, dict[Labels, Accumulator]]] = {}
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
        self.windows.get(minute, {}).pop(metric, None)

    def drop(self, metrics: frozenset[str]) -> None:
        """Forget these metrics. Events of such a name are shown as what they are, unless another takes the name."""
        for held in self.windows.values():
            for metric in metrics & held.keys():
                del held[metric]
        self.told = {k: value for k, value in self.told.items() if k[1][0] not in metrics}
        self.touched = {k for k in self.touched if k[1][0] not in metrics}
        self.touched |= {
            (minute, (name, ())) for minute, names in self.names.items() for name in metrics & names.keys()
        }
        self.broken = {k for k in self.broken if k[1] not in metrics}

    def adopt(self, other: _Tenant, metrics: frozenset[str]) -> None:
        """Take the windows of ``metrics`` from the same tenant elsewhere."""
        for minute, held in other.windows.items():
            self.windows.setdefault(minute, {}).update(held)
        self.touched |= {k for k in other.touched if k[1][0] in metrics}
        self.broken |= other.broken


class LiveWindows:
    """The last ``keep`` minutes of every metric, by event time. For one thread, but for `declare`.

    An event outside of these minutes, before or after the log's clock, belongs to history alone.
    """

    def __init__(self, definitions: Iterable[Definition], *, keep: int = 10, top_names: int = 200) -> None:
        self._definitions = self._wanted = tuple(definitions)
        self._declared = frozenset(d.name for d in self._definitions)
        self._begins: dict[str, int] = {}
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

    def declare(self, definitions: Iterable[Definition]) -> None:
        """Count these from the next `renew` on, and nothing else. From any thread."""
        self._wanted = tuple(definitions)

    def renew(self, catch_up: Callable[[LiveWindows], None]) -> frozenset[str] | None:
        """Follow `declare`: the metrics whose figures hold no longer; None when nothing was declared.

        What stays as it was goes on. ``catch_up`` begins the windows of what is new, and adds to them the events of
        these windows that were added here. When it raises, nothing has changed.
        """
        wanted, known = self._wanted, self._definitions
        if wanted is known:
            return None
        new = [definition for definition in wanted if definition not in known]
        fresh = LiveWindows(new, keep=self._keep // MINUTE)
        if new:
            catch_up(fresh)
        declared = frozenset(definition.name for definition in wanted)
        gone = (self._declared - declared) | fresh._declared
        self._definitions, self._declared = wanted, declared
        kept = {name: begin for name, begin in self._begins.items() if name not in gone}
        self._begins = {**kept, **dict.fromkeys(fresh._declared, fresh._since)}
        self._adopt(fresh, gone)
        return gone

    def _adopt(self, fresh: LiveWindows, gone: frozenset[str]) -> None:
        for held in self._tenants.values():
            held.drop(gone)
        for tenant, counted in fresh._tenants.items():
            self._tenants.setdefault(tenant, _Tenant()).adopt(counted, fresh._declared)
        kept = {name: problem for name, problem in self._problems.items() if name not in gone}
        self._problems = {**kept, **fresh._problems}

    def add(self, batch: EventBatch) -> None:
        """Count the events of one tenant. An empty batch lets time pass."""
        self._tick(micros(batch.watermark))
        if not len(batch):
            return
        for minute, part in parts(batch, max(self._since, self.oldest), self._clock + self._keep):
            self._count(self._tenants.setdefault(batch.tenant, _Tenant()), minute, part)

    def changes(self) -> Iterator[Change]:
        """Every window whose figure differs from the one given last, oldest first; each is given once."""
        for tenant, state in self._tenants.items():
            if not state.touched:
                continue
            shown = self._shown_names(state)
            for minute, series in sorted(state.touched):
                metric, labels = series
                held = state.windows.get(minute, {}).get(metric, {}).get(labels)
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
        every = frozenset[str]().union(*state.names.values()) - self._declared
        if len(every) <= self._top:
            return every
        total: Counter[str] = Counter()
        for counted in state.names.values():
            total.update(counted)
        for name in self._declared & total.keys():
            del total[name]
        return frozenset(heapq.nlargest(self._top, total, key=total.__getitem__))

    def _count(self, state: _Tenant, minute: int, part: Part) -> None:
        self._count_names(state, minute, part.counts)
        for definition in self._definitions:
            begun = minute >= self._begins.get(definition.name, 0)
            if begun and (minute, definition.name) not in state.broken:
                self._try_fold(state, minute, definition, part)

    def _count_names(self, state: _Tenant, minute: int, counts: dict[str, int]) -> None:
        held = state.names.setdefault(minute, Counter())
        for name, count in counts.items():
            if name in held or len(held) < MAX_NAMES:
                held[name] += count
                state.touched.add((minute, (name, ())))

    def _try_fold(self, state: _Tenant, minute: int, definition: Definition, part: Part) -> None:
        """What one definition cannot count costs its own window, and neither the others nor the next minute."""
        try:
            self._fold(state, minute, definition, part)
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

    def _fold(self, state: _Tenant, minute: int, definition: Definition, part: Part) -> None:
        number = part.number(definition.events)
        if not number:
            return
        if definition.aggregate == "count" and not (definition.value or definition.where or definition.breakdown):
            self._accumulate(state, minute, definition, (), np.ones(number, np.bool_))
            return
        events = part.selected(definition)
        if not len(events):
            return
        values, present = measured(definition, events)
        self._accumulate(state, minute, definition, (), values if present is None else values[present])
        for labels, places in labelled(definition, events):
            kept = places if present is None else places[present[places]]
            self._accumulate(state, minute, definition, labels, values[kept])

    def _accumulate(
        self, state: _Tenant, minute: int, definition: Definition, labels: Labels, values: npt.NDArray[Any]
    ) -> None:
        if not len(values):
            return
        held = state.windows.setdefault(minute, {}).setdefault(definition.name, {})
        if labels not in held:
            if len(held) > MAX_LABELS:
                return
            held[labels] = accumulator(definition)
        held[labels].add(values)
        state.touched.add((minute, (definition.name, labels)))
