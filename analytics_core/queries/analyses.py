"""Analyses: the questions that plugins answer, from checked parameters to a JSON-ready answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from analytics_core.errors import (
    HookFailedError,
    NotFoundError,
    ParameterError,
    PluginError,
    StoppingError,
)
from analytics_core.manifest import fit_schema
from analytics_core.metrics.filters import Filter
from analytics_core.queries.answers import freshness, shown
from analytics_core.queries.cache import AnswerCache, Made
from analytics_core.queries.cohorts import Cohort, read_cohort
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.history import History
from analytics_core.queries.ranges import time_range, whole_minute
from analytics_core.queries.reader import MetricSource, Reader
from analytics_core.records import Answer, EventReader, Question, TimeRange

DEFAULT_RANGE: Final = "30d"
_WEEK_START: Final = "weekStart"
"""A parameter of this name has the tenant's default."""
COMMON: Final[dict[str, Any]] = {
    "timeRange": {
        "description": 'The last "7d", "24h", ... or {"start", "end"}; end is exclusive.',
        "default": DEFAULT_RANGE,
        "anyOf": [
            {"type": "string", "pattern": "^[1-9][0-9]*[mhdw]$"},
            {
                "type": "object",
                "properties": {"start": {"type": "string"}, "end": {"type": "string"}},
                "required": ["start"],
            },
        ],
    },
    "timezone": {"type": "string", "default": "UTC", "description": "IANA name in which days and hours are meant."},
    "filters": {
        "type": ["array", "object"],
        "description": "What counts: [{field, op, value}] or {field: value}.",
    },
    "cohort": {
        "type": ["string", "object"],
        "description": 'Who counts: the name of a cohort, or {"all": [{"did": {"event"}, "at_least", "within"}, ...]}.',
    },
}
"""What every analysis understands beside its own parameters, as JSON Schema properties."""


class Spec(Protocol):
    """`host.plugins.AnalysisSpec`: ``schema`` is the JSON Schema of its own parameters."""

    @property
    def name(self) -> str: ...
    @property
    def plugin(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def schema(self) -> Mapping[str, Any]: ...


class Answering(Protocol):
    """`host.calls.Calls`, as far as it is needed here."""

    def analyses(self) -> Mapping[str, Spec]: ...

    def generation(self, plugin: str) -> int: ...

    async def insight(self, question: Question, reader: EventReader) -> Answer:
        """:raises PluginUnavailableError, HookFailedError: when the plugin does not answer."""
        ...


class Analyses:
    """Asks plugins on behalf of a tenant. ``metrics`` gives what lets them read metrics by name, once a question."""

    def __init__(
        self,
        calls: Answering,
        history: History,
        metrics: Callable[[], MetricSource | None] = lambda: None,
        *,
        cohorts: Callable[[], Mapping[str, Cohort]] = dict,
        week_start: Callable[[str], str] = lambda _: "monday",
        duplicates: Callable[[str, TimeRange], int] = lambda _tenant, _range: 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._calls = calls
        self._history = history
        self._metrics = metrics
        self._cohorts = cohorts
        self._week_start = week_start
        self._duplicates = duplicates
        self._clock = clock
        self._answers = AnswerCache()

    def catalogue(self, tenant: str, timezone: str = "UTC") -> list[dict[str, Any]]:
        """Every analysis: ``{"name", "plugin", "title", "parameters": JSON Schema with the common ones}``, by name.

        ``timezone`` is the tenant's, which holds where a question names none; so does its first day of the week.
        """
        common = {**COMMON, "timezone": {**COMMON["timezone"], "default": timezone}}
        week_start = self._week_start(tenant)

        def own(spec: Spec) -> Iterator[tuple[str, Any]]:
            for key, schema in spec.schema.get("properties", {}).items():
                yield key, {**schema, "default": week_start} if key == _WEEK_START else schema

        return [
            {
                "name": spec.name,
                "plugin": spec.plugin,
                "title": spec.title or spec.name,
                "parameters": {
                    "type": "object",
                    **spec.schema,
                    "properties": {**common, **dict(own(spec))},
                },
            }
            for _, spec in sorted(self._calls.analyses().items())
        ]

    async def ask(self, name: str, parameters: Mapping[str, Any], tenant: str, timezone: str = "UTC") -> dict[str, Any]:
        """``{"analysis", "plugin", "parameters", "columns", "data", "insights", "recommendations", "chart",
        "quality", "notes", "data_as_of", "watermark"}``.

        ``timezone`` is meant where the parameters name none. ``watermark`` is the log's clock at the snapshot that was
        read, ``data_as_of`` the time up to which it says something: the earlier of that and the range's end.
        ``quality`` is of all events of the range: how many, how many of them ``late`` (received over an hour after they
        happened), the share that bots sent, and how many ``duplicates`` were dropped in its hours. ``notes`` name
        events and properties that were asked for and do not exist.

        :raises NotFoundError: for an unknown analysis; :raises ParameterError: for a parameter that does not fit.
        :raises PluginError: when the plugin does not answer; :raises QueryError: over budget.
        :raises StoppingError: when the host stops meanwhile.
        """
        specs = self._calls.analyses()
        if name not in specs:
            raise NotFoundError("analysis", name, specs)
        asked = self._asked(specs[name], parameters, tenant, timezone)
        metrics, now = self._metrics(), await asyncio.to_thread(self._history.changed, tenant)
        key = (
            asked.text(),
            asked.cohort,
            self._calls.generation(asked.spec.plugin),
            metrics,
            now[:-1],
            asked.until(now.watermark),
        )
        answer = await self._answers.get(key, lambda: self._answer(asked, metrics))
        duplicates = await asyncio.to_thread(self._duplicates, tenant, asked.question.range)
        quality = {**answer["quality"], "duplicates": duplicates}
        return {**answer, "quality": quality, **freshness(now.watermark, asked.question.range.end)}

    def _asked(self, spec: Spec, parameters: Mapping[str, Any], tenant: str, timezone: str) -> Asked:
        if _WEEK_START in spec.schema.get("properties", {}):
            parameters = {_WEEK_START: self._week_start(tenant), **parameters}
        own, common = _split(parameters, spec.schema)
        zone = _text(common.get("timezone", timezone), "timezone")
        given = common.get("timeRange", DEFAULT_RANGE)
        span = time_range(given, zone, whole_minute(self._clock()))
        filters = parse_filters(common.get("filters"))
        named = common.get("cohort")
        cohort = None if named is None else read_cohort(named, self._cohorts())
        shown = {
            **own,
            "timeRange": {"start": span.start.isoformat(), "end": span.end.isoformat()},
            "timezone": zone,
            **({"filters": common["filters"]} if filters else {}),
            **({"cohort": named} if named is not None else {}),
        }
        question = Question(analysis=spec.name, tenant=tenant, range=span, parameters=own)
        return Asked(spec, question, filters, cohort, shown)

    async def _answer(self, asked: Asked, metrics: MetricSource | None) -> Made:
        """Ask the plugin, over a snapshot of its own."""
        question = asked.question
        reader = await asyncio.to_thread(
            self._history.reader, question.tenant, question.range, asked.filters, cohort=asked.cohort, metrics=metrics
        )
        try:
            answer = await self._calls.insight(question, reader)
            made = await asyncio.to_thread(_shown, asked.spec, answer, reader)
        except PluginError as error:
            if self._history.stopping:  # the plugin was cut off, whatever it made of that
                raise StoppingError from error
            raise
        finally:
            await asyncio.to_thread(reader.close)
        named = {"analysis": asked.spec.name, "plugin": asked.spec.plugin, "parameters": asked.shown}
        return Made({**named, **made}, not reader.beyond_events)


class Asked(NamedTuple):
    """A question, checked; ``shown`` are its parameters as the answer repeats them."""

    spec: Spec
    question: Question
    filters: tuple[Filter, ...]
    cohort: Cohort | None
    shown: dict[str, Any]

    def text(self) -> bytes:
        """The same for the same question."""
        return msgspec.json.encode([self.spec.name, self.question.tenant, self.shown], order="sorted", enc_hook=str)

    def until(self, watermark: datetime | None) -> datetime | None:
        """How far the log's clock has come in the range, in whole minutes: what has passed may be part of an answer."""
        return None if watermark is None else min(watermark, self.question.range.end).replace(second=0, microsecond=0)


def _split(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The analysis' own parameters, checked and with defaults; and the common ones. A name may be both."""
    declared = schema.get("properties", {})
    common = {key: value for key, value in parameters.items() if key in COMMON}
    own = {key: value for key, value in parameters.items() if key not in COMMON or key in declared}
    values, problems = fit_schema(schema, own)
    if problems:
        key, problem = problems[0]
        raise ParameterError(key or "parameters", problem)
    return values, common


def _text(value: Any, parameter: str) -> str:
    if not isinstance(value, str):
        raise ParameterError(parameter, "must be a text")
    return value


def _shown(spec: Spec, answer: Answer, reader: Reader) -> dict[str, Any]:
    try:
        return shown(answer, reader)
    except (TypeError, ValueError, RecursionError) as error:
        raise HookFailedError(spec.plugin, "insight", f"{spec.name!r} gave what is no row: {error}") from error
