"""Every plain type in a hook signature: frozen, serialisable, without behaviour that needs the host.

These types cross threads, pipes and generations, so they hold data only. Times are aware UTC datetimes, durations are
seconds, ``labels`` map short words to short words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from analytics_core.events import FieldError

Severity = Literal["info", "low", "medium", "high", "critical"]
MetricKind = Literal["sum", "last", "max", "unique", "histogram"]
Json = dict[str, Any] | list[Any] | str | int | float | bool | None
Step = TypeVar("Step")

# --- what plugins give back ------------------------------------------------------------------------------------------


class Window(Struct, frozen=True):
    """The half-open time range ``[start, start + seconds)`` that a metric value belongs to."""

    start: datetime
    seconds: int = 60


class Metric(Struct, frozen=True, kw_only=True):
    """The absolute value of ``name`` in its window so far; sent again with more data it replaces the earlier one.

    ``kind`` says how windows merge: ``sum`` adds, ``last`` takes the latest, ``max`` the largest; ``unique`` and
    ``histogram`` merge their ``sketch`` (`analytics_core.sketches`, as bytes), of which ``value`` is the reading.
    """

    name: str
    value: float
    window: Window
    kind: MetricKind = "sum"
    labels: dict[str, str] = {}
    sketch: bytes | None = None
    unit: str = ""


class Pattern(Struct, frozen=True, kw_only=True):
    """Something that recurs in the events. ``key`` is stable: the same pattern found again replaces the earlier."""

    key: str
    name: str
    description: str
    count: int
    window: Window | None = None
    data: dict[str, Any] = {}


class Recommendation(Struct, frozen=True, kw_only=True):
    """What to do about an insight."""

    title: str
    description: str
    insight: str = ""
    priority: Severity = "medium"


class Insight(Struct, frozen=True, kw_only=True):
    """A finding with its evidence. ``key`` is stable; ``confidence`` is in ``[0, 1]``."""

    key: str
    title: str
    description: str
    severity: Severity = "info"
    confidence: float = 1.0
    window: Window | None = None
    data: dict[str, Any] = {}


class ProcessResult(Struct, frozen=True):
    """What one ``process`` call found. Everything is an upsert: replaying the same events changes nothing."""

    metrics: Sequence[Metric] = ()
    patterns: Sequence[Pattern] = ()
    insights: Sequence[Insight] = ()


class Enrichment(Struct, frozen=True):
    """What ``enrich`` changes. ``properties``: strings of JSON objects, shape ``(n,)``; ``drop``: booleans ``(n,)``."""

    properties: Any = None
    drop: Any = None
    reason: str = ""


class Chart(Struct, frozen=True, kw_only=True):
    """How an answer is best drawn: which columns go where."""

    kind: Literal["line", "bar", "funnel", "heatmap", "sankey", "table"]
    x: str = ""
    y: Sequence[str] = ()
    series: str = ""


class Answer(Struct, frozen=True):
    """The answer to a question. ``table``: an Arrow table or a list of row dicts."""

    table: Any
    insights: Sequence[Insight] = ()
    recommendations: Sequence[Recommendation] = ()
    chart: Chart | None = None


class Delivery(Struct, frozen=True):
    """What became of one notification. ``retry`` asks for another attempt."""

    delivered: bool
    detail: str = ""
    retry: bool = False


class Condition(Struct, frozen=True, kw_only=True):
    """Something that is true now. ``key`` is stable while it stays true; the core makes an alert of it."""

    key: str
    title: str
    severity: Severity = "medium"
    value: float | None = None
    threshold: float | None = None
    labels: dict[str, str] = {}
    data: dict[str, Any] = {}


class TrainReport(Struct, frozen=True):
    """How a training went: ``artifact`` bytes to keep, and the figures that were measured on held-out data."""

    artifact: bytes
    measures: dict[str, float] = {}
    notes: str = ""


class Message(Struct, frozen=True, kw_only=True):
    """One outbox entry to push after its commit, at least once. ``id`` is stable across replays.

    ``topic`` is one of ``metric``, ``insight``, ``pattern``, ``alert``, ``plugin``; ``body`` is JSON text.
    """

    id: str
    topic: Literal["metric", "insight", "pattern", "alert", "plugin"]
    tenant: str
    body: bytes
    seq: int = 0
    """Position in the outbox, given by the store."""


# --- what plugins are given ------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, kw_only=True):
    """A foreign protocol's HTTP request, body inflated, on a route that the plugin's manifest claims."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes
    tenant: str


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a request's events, after the commit."""

    accepted: int = 0
    duplicates: int = 0
    rejected: Sequence[FieldError] = ()
    deduplicated: Literal["messageId", "idempotencyKey", "none"] = "none"
    seq: int | None = None
    overloaded: str = ""


class Reply(Struct, frozen=True):
    """The HTTP answer of an ``ingest`` adapter."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class TimeRange(Struct, frozen=True):
    """``[start, end)`` in UTC; ``timezone`` is the IANA name in which days and hours are meant."""

    start: datetime
    end: datetime
    timezone: str = "UTC"


class Question(Struct, frozen=True, kw_only=True):
    """An analysis with its checked parameters, a tenant and a time range."""

    analysis: str
    tenant: str
    range: TimeRange
    parameters: dict[str, Any] = {}


class Notification(Struct, frozen=True, kw_only=True):
    """Alerts that go out together. ``id`` is stable, so a channel can drop what it has sent already."""

    id: str
    status: Literal["firing", "resolved"]
    group: str
    alerts: Sequence[dict[str, Any]]


class Channel(Struct, frozen=True, kw_only=True):
    """One configured channel: its ``kind`` and the settings that the operator gave."""

    name: str
    kind: str
    settings: dict[str, Any] = {}


class Model(Struct, frozen=True, kw_only=True):
    """One declared model of a type that the plugin provides, with its trained ``artifact`` if there is one."""

    name: str
    type: str
    settings: dict[str, Any] = {}
    artifact: bytes | None = None


class Series(Struct, frozen=True, kw_only=True):
    """A metric over time: ``at`` microseconds UTC int64 and ``values`` float64, both shape ``(n,)``, oldest first."""

    metric: str
    at: Any
    values: Any
    step_seconds: int


class Signals(Struct, frozen=True, kw_only=True):
    """What an ``alert`` hook looks at on a tick: the latest values of every series of one tenant."""

    tenant: str
    now: datetime
    series: Mapping[str, Series]


COLUMNS: Final = ("first_at", "seq", "name", "session")
"""What `EventReader.in_user_order` gives beside the events' times, unless it is asked for less."""


class UserOrder(Struct, frozen=True, eq=False):
    """Some visitors with all their events, those of each in the order (timestamp, partition, seq).

    A visitor is a person (the user id, or the anonymous id of an event without one, joined by identity), or a session
    of nobody. Of each visitor, shape ``(users,)``: ``key`` uint64, equal in every question and never in two parts of
    one answer; ``known``, whether it is a person; ``end``, one past the last of its events; ``first_at``, microseconds
    UTC of the first event that is stored of it, whatever was asked for.

    Of each event, shape ``(n,)``: ``at`` microseconds UTC, ``seq`` (log position), ``name`` (index into ``names``),
    ``session`` uint64 (a hash of the client's session id, 0 for none), ``marks`` (a boolean column for each mark) and
    ``values`` (for each field, an index into its ``words``; -1 where there is none). What was not asked for is empty.
    """

    key: npt.NDArray[np.uint64]
    known: npt.NDArray[np.bool_]
    end: npt.NDArray[np.int64]
    first_at: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    name: npt.NDArray[np.int32]
    session: npt.NDArray[np.uint64]
    names: Sequence[str]
    marks: Mapping[str, npt.NDArray[np.bool_]] = {}
    values: Mapping[str, npt.NDArray[np.int32]] = {}
    words: Mapping[str, Sequence[str]] = {}

    def __len__(self) -> int:
        return len(self.at)

    def start(self) -> npt.NDArray[np.int64]:
        """Where each visitor's events begin, shape ``(users,)``."""
        return np.concatenate([np.zeros(min(len(self.end), 1), np.int64), self.end[:-1]])

    def user(self) -> npt.NDArray[np.int64]:
        """The number of each event's visitor in this part, from 0, shape ``(n,)``."""
        return np.repeat(np.arange(len(self.end)), np.diff(self.end, prepend=0))


class EventReader(Protocol):
    """Read-only history, bound to one tenant, range and filter, fresh to the last acknowledged event.

    Each call sees the same snapshot. Errors are `analytics_core.errors.QueryError`.
    """

    @property
    def range(self) -> TimeRange: ...

    @property
    def watermark(self) -> datetime | None:
        """The log's clock at the snapshot, which a range may go beyond; None when the log holds nothing."""
        ...

    def sql(self, query: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Run one SELECT (DuckDB's dialect) over the view ``events``, which has the columns of `events.SCHEMA`.

        ``$name`` parameters are bound from ``parameters``.
        """
        ...

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the events ordered by ``timestamp, partition, seq``; ``properties.x`` names one property."""
        ...

    def metric(self, name: str, interval: str) -> Series:
        """A metric by name (plugin metric, manifest metric or event name) per minute, hour, day, week or month."""
        ...

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
        """What ``step`` makes of each part of the visitors, in order of their keys; of nothing when there are none.

        ``marks`` say which events are meant by filters as a request writes them (``{"event": "cart",
        "properties.plan": "pro"}`` or ``[{"field", "op", "value"}]``); with ``marked_only`` the others are left out.
        ``values`` name properties whose text is wanted. ``since`` asks for events before the range's start as well.
        Of ``first_at``, ``seq``, ``name`` and ``session`` only those in ``columns`` are surely there, and few take less
        time.

        Parts are whole visitors and of bounded size, so the memory is that of a part and of what ``step`` gives. It is
        called on several threads and must not change what it is given.
        """
        ...


class PluginContext(Struct, frozen=True, kw_only=True):
    """What ``setup`` is given: checked settings, a logger bound to the plugin's name, and its model files."""

    name: str
    settings: dict[str, Any]
    logger: Any
    models: dict[str, Model] = {}
    generation: int = 1


Scores = npt.NDArray[Any]
