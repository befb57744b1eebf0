"""What a plugin's ``insight`` hook is given: a snapshot of one tenant's events, by SQL, by visitor and by metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import ClashError, NotFoundError, ParameterError, QueryError, RequestError
from analytics_core.events import SCHEMA
from analytics_core.metrics.filters import Field
from analytics_core.queries.handed_order import HandedOrder
from analytics_core.queries.sealed import PERSON_EVENTS
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.spec import SnapshotSpec
from analytics_core.queries.user_order import View, view_of
from analytics_core.queries.visitors import Visitors
from analytics_core.records import COLUMNS, Json, Series, Step, TimeRange, UserOrder


class MetricSource(Protocol):
    """Who knows metrics by name, for `Reader.metric`. Picklable when a spec is to carry it to another process."""

    def series(self, reader: Reader, name: str, interval: str) -> Series: ...


class Order(Protocol):
    """Who gives the events of a snapshot in user order."""

    def view(self, source: Snapshot, /) -> View: ...

    def at_hand(self, source: Snapshot, /) -> View | None:
        """As `view`, when that takes little waiting."""

    def handed(self, source: Snapshot, /) -> HandedOrder | None:
        """What another process can read of it without sorting."""


class Sorted:
    """`Order` that keeps nothing: it sorts the events for each question, or has what was ``given`` to this process."""

    def __init__(self, given: HandedOrder | None = None) -> None:
        self._given = given

    def view(self, source: Snapshot) -> View:
        return view_of(source) if self._given is None else self._given.view(source)

    def at_hand(self, source: Snapshot) -> None:  # noqa: ARG002
        return None

    def handed(self, source: Snapshot) -> HandedOrder | None:  # noqa: ARG002
        return self._given


class ReaderSpec(Struct, frozen=True, kw_only=True):
    """A reader by reference, picklable while its `metrics` are; see `SnapshotSpec`."""

    snapshot: SnapshotSpec
    metrics: MetricSource | None = None
    order: HandedOrder | None = None

    def open(self) -> Reader:
        """:raises QueryError: as `Snapshot.of`."""
        return Reader(Snapshot.of(self.snapshot), Sorted(self.order), self.metrics)


class Reader:
    """An `EventReader`: read-only, bound to tenant, range and filters, every call on the same snapshot.

    ``sql`` offers the view ``events`` with the columns of `SCHEMA`; days and hours inside it (``date_trunc``) are
    those of ``range.timezone``. Safe for use from any thread, one query at a time.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        order: Order = Sorted(),  # noqa: B008  keeps nothing
        metrics: MetricSource | None = None,
    ) -> None:
        """``snapshot`` is closed with the reader."""
        self.snapshot = snapshot
        self.visitors = Visitors(snapshot, order.view)
        """The same events by visitor, for the host's own questions."""
        self.beyond_events = False
        """Whether something was read that is not in the events: later it may be another, although they are the same."""
        self._order = order
        self._metrics = metrics
        self._cohort_known = False
        self._people_known = False

    @property
    def range(self) -> TimeRange:
        return self.snapshot.spec.range

    @property
    def tenant(self) -> str:
        return self.snapshot.tenant

    @property
    def watermark(self) -> datetime | None:
        """The log's clock at the snapshot's end; None when the log holds nothing."""
        return self.snapshot.watermark

    def to_spec(self) -> ReaderSpec:
        """For another process: with what there is in user order."""
        snapshot = self.snapshot
        return ReaderSpec(snapshot=snapshot.spec, metrics=self._metrics, order=self._order.handed(snapshot))

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one SELECT over the view ``events``; ``$name`` parameters are bound. Times come back in UTC.

        The view ``person_events`` has one column more, ``person``: the user id that stands for whose event it is, or
        the anonymous id of somebody unknown; null for nobody. It costs a join, and nothing where it is not named.

        :raises QueryError: for anything but one SELECT, an error of DuckDB, and a query over its time or memory.
        :raises StoppingError: when the host stops.
        """
        if self.snapshot.spec.cohort is not None and not self._cohort_known:
            self.snapshot.narrow(self.visitors.places())
            self._cohort_known = True
        if PERSON_EVENTS in query.lower() and not self._people_known:
            self.snapshot.join_people()
            self._people_known = True
        return self.snapshot.events(query, parameters or {})

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the events ordered by ``timestamp, partition, seq``.

        ``properties.x`` and ``context.x`` name one value, as text under that name; columns of `SCHEMA` keep their type.
        """
        parameters: dict[str, Any] = {}

        def bind(value: Any) -> str:
            parameters[f"p{len(parameters)}"] = value
            return f"$p{len(parameters) - 1}"

        shown = []
        for name in columns:
            field = _column(name)
            shown.append(f'{field.text(bind)} AS "{name.replace(chr(34), chr(34) * 2)}"')
        query = f"SELECT {', '.join(shown)} FROM events ORDER BY timestamp, partition, seq"
        return self.sql(query, parameters)

    def metric(self, name: str, interval: str) -> Series:
        """A metric by name per ``interval`` over this reader's range, in its zone.

        The reader's filters apply to metrics over events; the points of a plugin's metric are as the plugin made them.

        :raises ParameterError: when there is no such metric; :raises QueryError: when it cannot be read.
        """
        if self._metrics is None:
            raise QueryError(f"metric {name!r} cannot be read here: this reader was opened without metrics")
        try:
            return self._metrics.series(self, name, interval)
        except NotFoundError as error:
            raise ParameterError("metric", str(error)) from error
        except (RequestError, ClashError) as error:
            raise QueryError(str(error)) from error

    def in_user_order(
        self,
        step: Callable[[UserOrder], Step],
        *,
        marks: Mapping[str, Json] = {},
        values: Sequence[str] = (),
        marked_only: bool = False,
        since: datetime | None = None,
        columns: Sequence[str] = COLUMNS,
    ) -> list[Step]:
        """`EventReader.in_user_order`. :raises ParameterError: for a mark, a value or a column that is none."""
        return self.visitors.fold(step, marks, values, since, marked_only=marked_only, columns=columns)

    def at_hand(self) -> View | None:
        """All events of the tenant as columns, when they can be had without much waiting."""
        return self._order.at_hand(self.snapshot)

    def has_event(self, name: str) -> bool:
        """Whether the snapshot has an event of this name."""
        return len(self.sql("SELECT 1 AS found FROM events WHERE name = $name LIMIT 1", {"name": name})) > 0

    def event_names(self, most: int) -> list[str]:
        """Names of events, most frequent first."""
        found = self.sql(f"SELECT name FROM events GROUP BY name ORDER BY count(*) DESC, name LIMIT {most:d}")
        return [str(name) for name in found.column("name").to_pylist()]

    def close(self) -> None:
        """End what runs, wait for that, and release the snapshot. May be called twice, from any thread."""
        self.snapshot.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _column(name: str) -> Field:
    if name in SCHEMA.names:
        return Field(name)
    try:
        return Field.of(name, "columns")
    except ParameterError as error:
        raise QueryError(str(error)) from None
