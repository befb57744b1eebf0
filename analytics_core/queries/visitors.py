"""The visitors of one snapshot: its events in user order, narrowed to the question's cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import TypeVar

import numpy as np

from analytics_core.errors import ParameterError, near
from analytics_core.events import micros
from analytics_core.lake.user_order import I64, U64
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.cohorts import Cohort, members
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.marks import Asked, Meant
from analytics_core.queries.notes import unknown_names, unknown_path
from analytics_core.queries.ranges import ALL_TIME
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.user_order import Quality, View
from analytics_core.records import COLUMNS, Json, UserOrder

Step = TypeVar("Step")


class Visitors:
    """Reads what `Reader.in_user_order` gives. ``order`` gives the view of the snapshot, once."""

    def __init__(self, snapshot: Snapshot, order: Callable[[Snapshot], View]) -> None:
        self._snapshot = snapshot
        self._order = order
        self._view: View | None = None
        self._members: U64 | None = None
        self._viewing, self._choosing = Lock(), Lock()
        self._filters: list[Filter] = list(snapshot.spec.filters)
        self._fields: list[Field] = []

    @property
    def view(self) -> View:
        with self._viewing:  # not `cached_property`, which has one lock for all readers
            if self._view is None:
                self._view = self._order(self._snapshot)
            return self._view

    @property
    def cohort(self) -> U64 | None:
        """The keys of those that are asked for, ascending; None for all."""
        asked = self._snapshot.spec.cohort
        with self._choosing:
            if self._members is None and asked is not None:
                self._members = self.members(asked)
            return self._members

    def members(self, cohort: Cohort) -> U64:
        """The keys of the people in ``cohort`` at the end of the range, ascending."""
        self._filters += cohort.filters

        def fold(step: Callable[[UserOrder], U64], marks: Mapping[str, tuple[Filter, ...]]) -> list[U64]:
            whole = micros(ALL_TIME.start), micros(ALL_TIME.end)
            return self._fold(step, Asked((), marks, {}, *whole, marked_only=False, columns=["first_at"]), None)

        return members(cohort, micros(self._snapshot.spec.range.end), fold)

    def places(self) -> I64:
        """The log positions of the events that are asked for, for SQL."""
        spec = self._snapshot.spec
        low, high = micros(spec.range.start), micros(spec.range.end)
        asked = Asked((), {}, {}, low, high, marked_only=False, columns=["place"])
        found = self._fold(lambda part: part.seq.copy(), asked, self.cohort)
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def fold(
        self,
        step: Callable[[UserOrder], Step],
        marks: Mapping[str, Json],
        values: Sequence[str],
        since: datetime | None,
        *,
        marked_only: bool,
        columns: Sequence[str],
    ) -> list[Step]:
        """As `EventReader.in_user_order`."""
        spec = self._snapshot.spec
        low = spec.range.start if since is None else min(since, spec.range.start)
        asked = Asked(
            filters=spec.filters,
            marks={mark: parse_filters(given, mark) for mark, given in marks.items()},
            values={name: Field.of(name, "values") for name in values},
            low=micros(low),
            high=micros(spec.range.end),
            marked_only=marked_only,
            columns=[_column(name) for name in columns],
        )
        self._filters += [filter_ for filters in asked.marks.values() for filter_ in filters]
        self._fields += asked.values.values()
        return self._fold(step, asked, self.cohort)

    def notes(self) -> list[str]:
        """A sentence for each event and property that was asked for and that nobody has sent."""
        if not self._filters and not self._fields:
            return []
        fields = dict.fromkeys([*self._fields, *(filter_.field for filter_ in self._filters)])
        columns = {field: self.view.columns(field) for field in fields if field.path}
        empty = [field for field, column in columns.items() if column is None or not column.words]
        said = list(unknown_names(self._filters, self.view.names))
        return said + [note for field in empty for note in unknown_path(self._snapshot.ever, field, "ever")]

    def quality(self) -> Quality:
        """What the events of the range are worth, whatever filters and cohort."""
        asked = self._snapshot.spec.range
        return self.view.quality(micros(asked.start), micros(asked.end), self._snapshot.limits.threads)

    def _fold(self, step: Callable[[UserOrder], Step], asked: Asked, cohort: U64 | None) -> list[Step]:
        meant = Meant(self._snapshot, self.view.names, self.view.columns, asked)
        return self.view.fold(step, meant, cohort, self._snapshot.limits.threads, self._snapshot.budget())


def _column(name: str) -> str:
    """What `Asked` calls a column of `UserOrder`. :raises ParameterError: for one that it never has."""
    if name not in COLUMNS:
        raise ParameterError("columns", f"{name!r} is no column in user order{near(name, COLUMNS)}")
    return "place" if name == "seq" else name
