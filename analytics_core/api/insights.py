"""``/api/v1/insights``: what the marked analyses found, ranked."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, read_json, reply
from analytics_core.api.services import Services
from analytics_core.queries.insights import COMPREHENSIVE, DEFAULT_RANGE, Wanted


class InsightsQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """``dataSource``: a plugin, else all; ``analysisType``: ``comprehensive`` for all marked analyses, or one of them.
    ``_`` equals ``-`` in both.

    ``timezone``, ``filters`` and ``cohort`` are handed to every analysis; ``timezone`` is the tenant's when not given.
    """

    data_source: str | None = None
    time_range: dict[str, Any] | str = DEFAULT_RANGE
    analysis_type: str = COMPREHENSIVE
    include_recommendations: bool = False
    timezone: str | UnsetType = UNSET
    filters: dict[str, Any] | list[dict[str, Any]] | UnsetType = UNSET
    cohort: dict[str, Any] | str | UnsetType = UNSET


class InsightsReply(Struct, frozen=True):
    """``insights`` and ``recommendations`` name the ``query`` that shows their figures; ``analyses`` are all that were
    asked, with the ``error`` of those that failed."""

    dataSource: str | None  # noqa: N815  the wire's names are of two kinds
    timeRange: dict[str, str]  # noqa: N815
    analysisType: str  # noqa: N815
    insights: list[dict[str, Any]]
    recommendations: list[dict[str, Any]]
    analyses: list[dict[str, Any]]
    data_as_of: str | None
    watermark: str | None


async def find(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = await read_json(request, services, InsightsQuery)
    common = {"timezone": asked.timezone, "filters": asked.filters, "cohort": asked.cohort}
    wanted = Wanted(
        data_source=asked.data_source,
        time_range=asked.time_range,
        analysis_type=asked.analysis_type,
        recommendations=asked.include_recommendations,
        common={name: value for name, value in common.items() if value is not UNSET},
    )
    tenant = identity.tenant
    return reply(await services.insights.find(wanted, tenant, services.timezone(tenant)))


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/api/v1/insights",
        handler=find,
        role="reader",
        tag="analyses",
        summary="What the analyses that plugins mark for insights found, the gravest first",
        description="Ranked by severity, then confidence, then size (`data.size`); equal ones by plugin and analysis.",
        body=Content(InsightsQuery),
        replies={200: Content(InsightsReply)},
        refusals=(400, 413, 415, 422, 503),
    ),
)
