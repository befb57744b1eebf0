"""Figures from columns: metrics by bucket out of the events in user order and their values by log position.

The order does not matter here, only that the columns are at hand. What they do not tell is left to SQL, whose figures
these are: the same events, the same numbers, the same quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, reduce
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_core.errors import BuildingError
from analytics_core.lake.user_order import I32, I64, U64, Mask
from analytics_core.lake.value_column import ValueColumn
from analytics_core.metrics.buckets import Buckets
from analytics_core.metrics.definition import Definition
from analytics_core.metrics.filters import Field
from analytics_core.queries.aggregates import Aggregate, aggregates
from analytics_core.queries.grid import MAX_SERIES, Grid
from analytics_core.queries.labels import Labels
from analytics_core.queries.marks import Test, Tests, texts
from analytics_core.queries.reader import Reader
from analytics_core.queries.user_order import Events, Step, View

_LARGE: Final = 1 << 22
"""Figures from which one thread makes them, since each has a copy."""
_PERSON: Final = np.uint64(1)
"""The bit of a person's key; see `Run`."""
Chosen = I64 | slice
"""Some events: the numbers of these, or all."""


class _Plan(NamedTuple):
    """A definition over columns: the events that pass all ``tests``, and what of each is aggregated, as codes with 0
    for nothing; None when the event is all.

    ``numbers``: the number of each code, NaN for none; None when it stands for nothing but itself.
    """

    definition: Definition
    tests: Sequence[Test]
    codes: Callable[[Events, Chosen], npt.NDArray[Any]] | None = None
    numbers: npt.NDArray[np.float64] | None = None


class Columnar:
    """The events of a reader's range as columns, and metrics over them."""

    def __init__(self, reader: Reader, spans: Buckets, view: View) -> None:
        self._reader = reader
        self._spans = spans
        self._view = view
        self._names = list(view.names)
        self._plans: dict[Definition, _Plan | None] = {}
        self._cells = None if spans.cell * len(spans) == spans.edges[-1] - spans.edges[0] else spans.cells()

    @classmethod
    def of(cls, reader: Reader, spans: Buckets) -> Columnar | None:
        """None when there are no columns at hand, or they do not tell which events are meant."""
        if reader.snapshot.spec.cohort is not None:
            return None
        with suppress(BuildingError):  # SQL need not wait
            view = reader.at_hand()
            return None if view is None else cls(reader, spans, view)
        return None

    def tell(self, definition: Definition) -> bool:
        """Whether the columns tell its figures, whatever its breakdown."""
        return self._plan(definition) is not None

    def grid(self, definitions: Sequence[Definition]) -> Grid | None:
        """The figures of all, which have the same breakdown; None when the columns do not tell."""
        plans = [plan for plan in map(self._plan, definitions) if plan is not None]
        labels = Labels.of([field for _, field in definitions[0].breakdown], self._column, self._names)
        if len(plans) < len(definitions) or labels is None:
            return None
        groups = self._most_frequent(plans, labels) if not labels.none else np.zeros(1, np.int64)
        number = np.full(labels.combinations, -1)
        number[groups] = np.arange(len(groups))
        found = self._figures(plans, labels, number, len(groups))
        grid = Grid.empty(definitions, [labels.texts(int(group)) for group in groups], len(self._spans))
        for i, each in enumerate(found):
            each.into(grid.values[i], grid.whole[i])
        return grid

    # --- what is asked -----------------------------------------------------------------------------------------------

    def _plan(self, definition: Definition) -> _Plan | None:
        if definition not in self._plans:
            self._plans[definition] = self._planned(definition)
        return self._plans[definition]

    def _planned(self, definition: Definition) -> _Plan | None:
        tests = self._tests.of([*definition.filters, *self._reader.snapshot.spec.filters])
        if tests is None or definition.value is None:
            people = self._people if definition.aggregate == "unique" else None
            return None if tests is None else _Plan(definition, tests, people)
        column = self._column(definition.value)
        if column is None:
            return None

        def codes(events: Events, chosen: Chosen) -> I32:
            return column.at(events.place[chosen])

        if definition.aggregate == "unique":
            text = texts(column)[0] + 1
            return _Plan(definition, tests, lambda events, chosen: text[codes(events, chosen)])
        return _Plan(definition, tests, codes, None if definition.aggregate == "count" else column.numbers())

    @cached_property
    def _tests(self) -> Tests:
        return Tests(self._names, self._column)

    def _column(self, field: Field) -> ValueColumn | None:
        with suppress(BuildingError):
            return self._view.columns(field)
        return None

    @cached_property
    def _persons(self) -> U64:
        """The keys of all people, told apart as `definition.PEOPLE` does, ascending."""
        keys = [np.zeros(0, np.uint64), *(level.run.key for level in self._view.levels)]
        every = np.concatenate(keys)
        every = np.sort(every[every & _PERSON == _PERSON])
        return every[np.diff(every, prepend=np.uint64(0)) > 0]  # several times as fast as `np.unique`

    def _people(self, events: Events, chosen: Chosen) -> I64:
        """The number of the person whose each event is, from 1; 0 when it is nobody's."""

        def numbers(key: U64) -> I64:
            return np.where(key & _PERSON == _PERSON, np.searchsorted(self._persons, key) + 1, 0)

        return events.by_visitor(numbers)[chosen]

    # --- scans -------------------------------------------------------------------------------------------------------

    def _most_frequent(self, plans: Sequence[_Plan], labels: Labels) -> I64:
        """The combinations of labels that most events have which any of ``plans`` counts, most frequent first."""

        def counted(pieces: Iterable[Events]) -> I64:
            counts = np.zeros(labels.combinations, np.int64)
            for events in pieces:
                meant = _any_of([_passing(plan.tests, events) for plan in plans], len(events.at))
                chosen, _ = self._inside(events, meant)
                counts += np.bincount(labels.numbers(events, chosen), minlength=labels.combinations)
            return counts

        counts = reduce(np.add, self._scan(counted, labels.combinations))
        some = np.flatnonzero(counts)
        if len(some) > MAX_SERIES:
            some = some[counts[some] >= np.partition(counts[some], -MAX_SERIES)[-MAX_SERIES]]
        by = sorted(some.tolist(), key=lambda group: (-counts[group], labels.texts(group)))
        return np.array(by[:MAX_SERIES], np.int64)

    def _figures(self, plans: Sequence[_Plan], labels: Labels, number: I64, groups: int) -> list[Aggregate]:
        """One for each plan, by group and bucket. ``number``: the group of each combination of labels, or -1."""
        buckets = len(self._spans)

        makers = [aggregates(plan.definition, groups, buckets, plan.numbers) for plan in plans]

        def made(pieces: Iterable[Events]) -> list[Aggregate]:
            found = [make() for make in makers]
            for events in pieces:
                for plan, each in zip(plans, found, strict=True):
                    chosen, at = self._inside(events, _passing(plan.tests, events))
                    cell = self._bucket(at)
                    if not labels.none:
                        group = number[labels.numbers(events, chosen)]
                        shown = group >= 0
                        chosen, cell = _narrowed(chosen, shown), (group * buckets + cell)[shown]
                    each.add(cell, None if plan.codes is None else plan.codes(events, chosen))
            return found

        parts = self._scan(made, groups * buckets * len(plans))
        for other in parts[1:]:
            for mine, theirs in zip(parts[0], other, strict=True):
                mine.join(theirs)
        return parts[0]

    def _scan(self, step: Callable[[Iterator[Events]], Step], size: int) -> list[Step]:
        threads = 1 if size > _LARGE else self._reader.snapshot.limits.threads
        return self._view.scan(step, threads, self._reader.snapshot.budget())

    def _inside(self, events: Events, chosen: Chosen) -> tuple[Chosen, I64]:
        """Those of ``chosen`` that are in the range, and when they were."""
        at = events.at[chosen]
        if events.earliest >= self._spans.start and events.latest < self._spans.end:
            return chosen, at
        kept = (at >= self._spans.start) & (at < self._spans.end)
        return _narrowed(chosen, kept), at[kept]

    def _bucket(self, at: I64) -> I64:
        """`Buckets.assign`, for times in the range."""
        cell: I64 = at - self._spans.edges[0]
        cell //= self._spans.cell
        if self._cells is not None:
            cell = self._cells[cell]
        return cell


def _passing(tests: Sequence[Test], events: Events) -> Chosen:
    chosen: Chosen = slice(None)
    for test in tests:
        chosen = _narrowed(chosen, test.of(events.name[chosen], events.place[chosen]))
    return chosen


def _narrowed(chosen: Chosen, kept: Mask) -> Chosen:
    """Those of ``chosen`` for which ``kept`` holds."""
    if kept.all():
        return chosen
    return np.flatnonzero(kept) if isinstance(chosen, slice) else chosen[kept]


def _any_of(several: Sequence[Chosen], count: int) -> Chosen:
    if len(several) == 1:
        return several[0]
    kept = np.zeros(count, np.bool_)
    for chosen in several:
        kept[chosen] = True
    return _narrowed(slice(None), kept)
