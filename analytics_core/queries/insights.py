"""Insights: the analyses that plugins mark for it, asked over one time range, and what they found in one ranking."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, get_args

from msgspec import Struct

from analytics_core.errors import AnalyticsError, ParameterError, PluginStartingError, StoppingError, near
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.ranges import time_range, whole_minute
from analytics_core.records import Severity

COMPREHENSIVE: Final = "comprehensive"
DEFAULT_RANGE: Final = "7d"
_AT_ONCE: Final = 2
"""Analyses that are asked at the same time, of all callers: each may take as much as its reader allows."""
_SEVERITIES: Final = get_args(Severity)


class Marked(Protocol):
    """`host.views.AnalysisSpec`. ``insights``: the parameters to ask it with; None when it is not marked."""

    @property
    def name(self) -> str: ...
    @property
    def plugin(self) -> str: ...
    @property
    def insights(self) -> Mapping[str, Any] | None: ...


class Provider(Protocol):
    """`host.calls.Calls`, as far as it is needed here."""

    def analyses(self) -> Mapping[str, Marked]: ...


class Asking(Protocol):
    """`queries.analyses.Analyses`, as far as it is needed here."""

    async def ask(self, name: str, parameters: Mapping[str, Any], tenant: str, timezone: str) -> dict[str, Any]: ...


class Wanted(Struct, frozen=True, kw_only=True):
    """Which insights. ``data_source`` is a plugin, or None for all that have marked analyses; ``analysis_type`` is
    `COMPREHENSIVE` or one of those analyses; ``_`` equals ``-`` in both. ``common`` are parameters that every analysis
    understands, such as ``filters``: they are handed on."""

    data_source: str | None = None
    time_range: Any = DEFAULT_RANGE
    analysis_type: str = COMPREHENSIVE
    recommendations: bool = False
    common: Mapping[str, Any] = {}


class _Asked(NamedTuple):
    """One marked analysis after it was asked: its answer, or why there is none."""

    name: str
    parameters: dict[str, Any]
    answer: dict[str, Any]
    error: AnalyticsError | None

    @property
    def query(self) -> dict[str, Any]:
        return {"analysis": self.name, "parameters": self.answer.get("parameters", self.parameters)}


class Insights:
    """What the marked analyses of ``provider`` find, asked through ``analyses``."""

    def __init__(
        self, provider: Provider, analyses: Asking, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._provider = provider
        self._analyses = analyses
        self._clock = clock
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def find(self, wanted: Wanted, tenant: str, timezone: str = "UTC") -> dict[str, Any]:
        """``{"dataSource", "timeRange", "analysisType", "insights", "recommendations", "analyses", "data_as_of",
        "watermark"}``; ``timezone`` is meant where ``wanted`` names none.

        The range ends with the current minute at the latest, so that time to come is not taken for a fall, and that the
        analyses are asked the same for as long. Every analysis reads its own snapshot; ``data_as_of`` and ``watermark``
        are the earliest of theirs. An analysis that fails is listed with its ``error``, and the others count.

        ``insights`` are ranked by `_rank`. Each has an ``id``, unique in the answer, what the plugin said, and
        ``query``: asked again, that shows the same figures. ``recommendations`` name one of them as ``insight`` and
        come in their order; those of no insight in the answer are left out.

        :raises ParameterError: for an unknown source or type, a range, zone or filter that is none, and when all that
            was asked refuses a parameter. :raises PluginStartingError: when all that was asked is on its way up.
        :raises StoppingError: when the host stops meanwhile.
        """
        specs = self._chosen(wanted)
        zone = wanted.common.get("timezone", timezone)
        now = whole_minute(self._clock())
        span = time_range(wanted.time_range, zone, now)
        parse_filters(wanted.common.get("filters"))
        shown = {"start": span.start.isoformat(), "end": max(min(span.end, now), span.start).isoformat()}
        if span.start >= now:
            raise ParameterError("timeRange", f"begins at {shown['start']}, which is yet to come")
        common = {**wanted.common, "timeRange": shown, "timezone": zone}
        asked = await asyncio.gather(*(self._ask(spec, common, tenant, zone) for spec in specs))
        refused = [one.error for one in asked if isinstance(one.error, ParameterError | PluginStartingError)]
        if refused and len(refused) == len(asked):
            raise refused[0]
        insights = _ranked(asked)
        return {
            "dataSource": wanted.data_source and _dashed(wanted.data_source),
            "timeRange": shown,
            "analysisType": _dashed(wanted.analysis_type),
            "insights": insights,
            "recommendations": _recommendations(asked, insights) if wanted.recommendations else [],
            "analyses": [_told(one) for one in asked],
            "data_as_of": _earliest(one.answer.get("data_as_of") for one in asked),
            "watermark": _earliest(one.answer.get("watermark") for one in asked),
        }

    def _chosen(self, wanted: Wanted) -> list[Marked]:
        """The marked analyses that are wanted, by plugin and name."""
        marked = [spec for spec in self._provider.analyses().values() if spec.insights is not None]
        marked.sort(key=lambda spec: (spec.plugin, spec.name))
        if wanted.data_source is not None:
            sources = {spec.plugin for spec in marked}
            source = _dashed(wanted.data_source)
            if source not in sources:
                raise ParameterError("dataSource", f"no plugin {source!r} has insights{near(source, sources)}")
            marked = [spec for spec in marked if spec.plugin == source]
        kind = _dashed(wanted.analysis_type)
        if kind == COMPREHENSIVE:
            return marked
        one = [spec for spec in marked if _dashed(spec.name) == kind]
        if not one:
            valid = [COMPREHENSIVE, *(spec.name for spec in marked)]
            raise ParameterError("analysisType", f"no analysis {kind!r} is marked for insights{near(kind, valid)}")
        return one

    async def _ask(self, spec: Marked, common: Mapping[str, Any], tenant: str, timezone: str) -> _Asked:
        parameters = {**(spec.insights or {}), **common}
        async with self._turn:
            try:
                answer = await self._analyses.ask(spec.name, parameters, tenant, timezone)
            except StoppingError:
                raise
            except AnalyticsError as error:
                return _Asked(spec.name, parameters, {}, error)
        return _Asked(spec.name, parameters, answer, None)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _ranked(asked: Sequence[_Asked]) -> list[dict[str, Any]]:
    found = [
        {
            **insight,
            "id": _id(one.name, insight["key"]),
            "confidence": min(max(float(insight["confidence"] or 0.0), 0.0), 1.0),
            "query": one.query,
        }
        for one in asked
        for insight in one.answer.get("insights", ())
    ]
    return sorted(found, key=_rank)


def _rank(insight: Mapping[str, Any]) -> tuple[int, float, float]:
    """The gravest first, then the surest, then the largest: ``data.size``, by the measure of its analysis, 0 where it
    says none. Equal ones stay in the order of plugin, analysis and the analysis' own."""
    size = insight["data"].get("size")
    known = isinstance(size, int | float) and math.isfinite(size)
    return -_SEVERITIES.index(insight["severity"]), -insight["confidence"], -abs(size) if known else 0.0


def _recommendations(asked: Sequence[_Asked], insights: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    place = {insight["id"]: at for at, insight in enumerate(insights)}
    tied = [
        {**advice, "insight": _id(one.name, advice["insight"]), "query": one.query}
        for one in asked
        for advice in one.answer.get("recommendations", ())
        if _id(one.name, advice["insight"]) in place
    ]
    return sorted(tied, key=lambda advice: place[advice["insight"]])


def _id(analysis: str, key: str) -> str:
    return f"{analysis}:{key}"


def _told(one: _Asked) -> dict[str, Any]:
    told = {
        "name": one.name,
        "parameters": one.query["parameters"],
        "rows": len(one.answer.get("data", ())),
        "data_as_of": one.answer.get("data_as_of"),
    }
    return told if one.error is None else {**told, "error": str(one.error)}


def _earliest(times: Iterable[str | None]) -> str | None:
    """Times are ISO 8601 in UTC."""
    return min((at for at in times if at is not None), key=datetime.fromisoformat, default=None)
