"""``GET /api/v1/metrics``: any metric by name over time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, query_of, reply, words
from analytics_core.api.services import Services
from analytics_core.errors import ParameterError
from analytics_core.events import moment
from analytics_core.metrics.buckets import INTERVALS, instant
from analytics_core.queries.ranges import whole_minute


class SeriesPoint(Struct, frozen=True):
    timestamp: str
    value: float | None


class MetricSeries(Struct, frozen=True):
    """One metric over the asked range: ``value`` for the whole of it, ``points`` for each interval.

    A series of a breakdown has ``labels``.
    """

    metric: str
    value: float | None
    points: list[SeriesPoint]
    labels: dict[str, str | None] | UnsetType = UNSET
    unit: str | UnsetType = UNSET


class MetricsReply(Struct, frozen=True):
    metrics: list[MetricSeries]
    watermark: str | None


_TIME: Final[dict[str, Any]] = {
    "type": "string",
    "description": "a date (2025-01-31, local midnight) or ISO 8601, local when it has no offset",
}
_PARAMETERS: Final = (
    Parameter("metrics", "names separated by commas: manifest metrics, plugin.metric, or event names", required=True),
    Parameter("startDate", "where the range begins; 24 hours before its end when missing", schema=_TIME),
    Parameter("endDate", "where it ends, exclusive; the end of this minute when missing", schema=_TIME),
    Parameter("interval", "the length of a bucket; hour when missing", schema={"enum": list(INTERVALS)}),
    Parameter("timezone", "the IANA zone in which hours and days are meant; the tenant's when missing, else UTC"),
    Parameter("breakdown", "labels or properties, separated by commas, by whose values each metric is split"),
)
_KNOWN: Final = {p.name: p for p in _PARAMETERS}


async def query(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = query_of(request, _KNOWN)
    names = words(asked.get("metrics", ""))
    if not names:
        raise ParameterError("metrics", "is needed: one or more metric names separated by commas")
    timezone = asked.get("timezone") or services.timezone(identity.tenant)
    end = asked.get("endDate") or whole_minute(datetime.now(UTC))
    start = asked.get("startDate") or moment(instant(end, timezone, "endDate")) - timedelta(days=1)
    answer = await services.metrics.query(
        identity.tenant,
        names,
        start,
        end,
        asked.get("interval", "hour"),
        timezone,
        words(asked.get("breakdown", "")) or None,
    )
    return reply(answer)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/metrics",
        handler=query,
        role="reader",
        tag="metrics",
        summary="Metrics over time",
        description="Empty intervals are present; days and hours are right when clocks change.",
        parameters=_PARAMETERS,
        replies={200: Content(MetricsReply, description="One series for each metric and value of the breakdown")},
        refusals=(404, 409, 422),
    ),
)
