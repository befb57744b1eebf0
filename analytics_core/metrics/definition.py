"""A declared metric, made ready for its two readings: exact SQL over the view ``events``, and live windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from msgspec import Struct

from analytics_core.errors import ClashError, ManifestError, NotFoundError, ParameterError
from analytics_core.manifest import MetricManifest, Source
from analytics_core.metrics.filters import Bind, Field, Filter, conjunction, short_form

QUANTILES: Final = {"p50": 0.50, "p75": 0.75, "p90": 0.90, "p95": 0.95, "p99": 0.99}
_SQL: Final = {"sum": "sum", "avg": "avg", "min": "min", "max": "max"}
PEOPLE: Final = "coalesce(user_id, anonymous_id)"
_COUNTED: Final = frozenset({"count", "sum", "unique"})


class Definition(Struct, frozen=True):
    """A metric over events. ``events``: the names it counts, all when empty; ``value``: what is aggregated.

    ``value`` None counts events. ``unique`` of ``user_id`` counts people: those who are not known by name count by
    their ``anonymous_id``. Only numbers enter sums, means, extremes and percentiles.
    """

    name: str
    aggregate: str
    events: tuple[str, ...] = ()
    value: Field | None = None
    where: tuple[Filter, ...] = ()
    breakdown: tuple[tuple[str, Field], ...] = ()
    unit: str = ""

    @property
    def quantile(self) -> float | None:
        """The share for ``p50`` to ``p99``, else None."""
        return QUANTILES.get(self.aggregate)

    @property
    def empty(self) -> float | None:
        """The figure of a bucket without events: 0 for what is counted, None where there is nothing to say."""
        return 0.0 if self.aggregate in _COUNTED else None

    def condition(self, bind: Bind) -> str:
        """SQL that is true for the events that count."""
        return conjunction(self.filters, bind)

    def sql(self, bind: Bind) -> str:
        """The aggregate as SQL over ``events``, exact, with its condition as a FILTER clause."""
        return f"{self._aggregate(bind)} FILTER (WHERE {self.condition(bind)})"

    def _aggregate(self, bind: Bind) -> str:
        if self.aggregate == "count":
            return f"count({self.value.text(bind)})" if self.value else "count(*)"
        if self.aggregate == "unique":
            return f"count(DISTINCT {self.value.text(bind) if self.value else PEOPLE})"
        assert self.value is not None
        if self.quantile is not None:
            return f"quantile_cont({self.value.number(bind)}, {self.quantile})"
        return f"{_SQL[self.aggregate]}({self.value.number(bind)})"

    @property
    def filters(self) -> tuple[Filter, ...]:
        """What an event holds that counts: ``events`` and ``where``."""
        if not self.events:
            return self.where
        return (Filter(Field("name"), "in", self.events), *self.where)

    def broken_down(self, by: Iterable[str]) -> Definition:
        """The same metric split by these fields or properties. :raises ParameterError: for a name that is neither."""
        fields = tuple((name, _field(name, "breakdown")) for name in by)
        return Definition(self.name, self.aggregate, self.events, self.value, self.where, fields, self.unit)


def define(metric: MetricManifest, source: Source | None = None) -> Definition:
    """The definition that a manifest declares. ``source``, where it is written, is named by errors.

    :raises ManifestError: when the aggregate lacks its property or cannot take it, or a field or filter is none.
    """
    if metric.property is None and metric.aggregate not in ("count", "unique"):
        raise _refusal(metric, source, "property", f"{metric.aggregate} needs the property to take")
    events = (metric.event,) if metric.event is not None else metric.events
    try:
        people = metric.aggregate == "unique" and metric.property in (None, "user_id", "userId")
        value = _field(metric.property, "property") if metric.property and not people else None
        if value is not None and value.kind != "json" and metric.aggregate not in ("count", "unique"):
            held = "times" if value.kind == "time" else "text"
            raise ParameterError(
                "property",
                f"{metric.aggregate} takes numbers, and {metric.property} holds {held}; valid is a property of the "
                "event, such as 'properties.amount', or the aggregates count and unique",
            )
        return Definition(
            name=metric.name,
            aggregate=metric.aggregate,
            events=events,
            value=value,
            where=tuple(short_form(metric.where or {}, "where")),
            breakdown=tuple((name, _field(name, "breakdown")) for name in metric.breakdown),
            unit=metric.unit,
        )
    except ParameterError as error:
        problem = str(error).removeprefix(f"{error.parameter}: ")
        raise _refusal(metric, source, error.parameter, problem) from None


def _refusal(metric: MetricManifest, source: Source | None, key: str, problem: str) -> ManifestError:
    """``key`` is one of the manifest, or ``where.``, a key of that, and which part of its filter is wrong."""
    if source is None:
        return ManifestError(f"metric {metric.name!r}", key, problem)
    first, _, rest = key.partition(".")
    filtered = [name for name in metric.where or {} if f"{rest}.".startswith(f"{name}.")]
    return source.error((first, *sorted(filtered, key=len)[-1:]), problem)


def _field(name: str, parameter: str) -> Field:
    """A column or path; a bare word that is no column names a property."""
    try:
        return Field.of(name, parameter)
    except ParameterError:
        if "." in name or not name:
            raise
        return Field("properties", name)


class PluginMetric(Struct, frozen=True):
    """A metric whose points a lane stores: ``name`` without the lane, and how its windows merge."""

    lane: str
    name: str
    kind: str

    @property
    def full_name(self) -> str:
        return f"{self.lane}.{self.name}"


class EventNames(Protocol):
    def __call__(self) -> Iterable[str]:
        """Every event name that the tenant has sent."""
        ...


def look_up(
    name: str,
    manifests: Mapping[str, Definition],
    plugin_metrics: Mapping[str, PluginMetric],
    event_names: EventNames,
) -> Definition | PluginMetric:
    """What ``name`` stands for, in this order: a ``kind: metric`` manifest, a plugin metric, an event (its count).

    Event names come last because clients choose them freely: a client that sends one cannot take a metric's name.

    :raises ClashError: when a manifest and a plugin declare the same name.
    :raises NotFoundError: with near names.
    """
    if name in manifests and name in plugin_metrics:
        raise ClashError("metric", name, ["a metric manifest", f"the plugin {plugin_metrics[name].lane!r}"])
    if name in manifests:
        return manifests[name]
    if name in plugin_metrics:
        return plugin_metrics[name]
    seen = set(event_names())
    if name in seen:
        return Definition(name, "count", (name,))
    raise NotFoundError("metric", name, [*manifests, *plugin_metrics, *seen])
