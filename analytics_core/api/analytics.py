"""``/api/analytics``: submit sessions for a plugin, fetch the result, page through history."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, read_json, reply
from analytics_core.api.services import Services
from analytics_core.errors import NotFoundError, ParameterError
from analytics_core.metrics.buckets import zone_named
from analytics_core.metrics.filters import Filter
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.projection import Shown, parse_fields
from analytics_core.queries.ranges import time_range

EVENTS: Final = "events"
_SEQ: Final = re.compile(r"[0-9]{1,19}")
_LAST_SEQ: Final = 2**63 - 1


class Submission(Struct, frozen=True):
    """``type`` is the plugin that is to judge the sessions of ``data``."""

    type: str
    data: dict[str, Any]


class Submitted(Struct, frozen=True, rename="camel"):
    success: bool
    analysis_id: str


class HistoryQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """``type`` is ``events`` or a plugin; ``records`` says whether events or what the plugin found are meant.

    ``timeRange``: a span up to now ("7d", "24h") or {start, end}, end exclusive; ``events`` keeps only these names.
    ``timezone`` is the tenant's when it is not given. ``fields``: what a row shows, such as "event", "timestamp" and
    "properties.plan"; all fields without it.
    """

    type: str = EVENTS
    records: Literal["events", "insights", "patterns"] = "events"
    time_range: dict[str, Any] | str | None = None
    timezone: str | None = None
    filters: dict[str, Any] | list[dict[str, Any]] | None = None
    limit: int = 100
    cursor: str | None = None
    events: list[str] | UnsetType = UNSET
    fields: list[str] | None = None


class HistoryPage(Struct, frozen=True, rename="camel"):
    """``watermark`` is the log's clock; of events only. ``notes`` name what an empty page was asked for in vain."""

    success: bool
    data: list[dict[str, Any]]
    next_cursor: str | None
    watermark: str | UnsetType | None = UNSET
    notes: list[str] | UnsetType = UNSET


class Wanted(Struct, frozen=True, kw_only=True):
    """The events that a request wants, whichever way it says so. ``time_range`` as in a body, None for all."""

    time_range: Any = None
    timezone: str | None = None
    filters: tuple[Filter, ...] = ()
    names: list[str] | None = None
    fields: Sequence[str] | None = None
    limit: int = 100
    cursor: str | None = None

    def shown(self) -> tuple[Shown, ...]:
        return parse_fields(self.fields)


async def submit(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = await read_json(request, services, Submission)
    analysis_id = await services.submissions.submit(asked.type, asked.data, identity.tenant)
    return reply(Submitted(True, analysis_id), 202)


async def result(request: web.Request, services: Services, identity: Identity) -> web.Response:
    analysis_id = request.match_info["id"]
    found = await asyncio.to_thread(services.submissions.result, analysis_id, identity.tenant)
    if found is None:
        raise NotFoundError("analysis", analysis_id)
    return reply(found)


async def query(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = await read_json(request, services, HistoryQuery)
    plugins = {view.name for view in services.host.views()}
    plugin = asked.type.replace("_", "-")
    if plugin != EVENTS and plugin not in plugins:
        raise NotFoundError("type", asked.type, {EVENTS, *plugins})
    if not 1 <= asked.limit <= 1000:
        raise ParameterError("limit", f"{asked.limit} is outside 1..1000")
    ask = _events if asked.records == EVENTS else _records
    return reply(await asyncio.to_thread(ask, services, asked, plugin, identity.tenant))


def events_page(services: Services, tenant: str, wanted: Wanted) -> HistoryPage:
    """One page of events; blocking."""
    given, timezone = wanted.time_range, wanted.timezone or services.timezone(tenant)
    zone_named(timezone)
    span = None if given is None else time_range(given, timezone, datetime.now(UTC))
    page = services.history.page(
        tenant,
        start=span.start if span else None,
        end=span.end if span else None,
        filters=wanted.filters,
        limit=wanted.limit,
        cursor=wanted.cursor,
        names=wanted.names,
        fields=wanted.shown(),
        asked="" if span is None else msgspec.json.encode([given, timezone]).decode(),
    )
    return HistoryPage(True, page["rows"], page["next_cursor"], page["watermark"], page["notes"])


def _events(services: Services, asked: HistoryQuery, _: str, tenant: str) -> HistoryPage:
    wanted = Wanted(
        time_range=asked.time_range,
        timezone=asked.timezone,
        filters=parse_filters(asked.filters),
        names=None if asked.events is UNSET else asked.events,
        fields=asked.fields,
        limit=asked.limit,
        cursor=asked.cursor,
    )
    return events_page(services, tenant, wanted)


def _records(services: Services, asked: HistoryQuery, plugin: str, tenant: str) -> HistoryPage:
    """Insights or patterns as stored, oldest change first; the cursor is the last one's ``seq``."""
    for name, given in (("filters", asked.filters), ("timeRange", asked.time_range), ("fields", asked.fields)):
        if given:
            raise ParameterError(name, "is for events; records are paged whole")
    if asked.cursor and (not _SEQ.fullmatch(asked.cursor) or int(asked.cursor) > _LAST_SEQ):
        raise ParameterError("cursor", "is not one that this query gave")
    rows = services.state.records(
        tenant,
        "insight" if asked.records == "insights" else "pattern",
        lane=None if plugin == EVENTS else plugin,
        after=int(asked.cursor or 0),
        limit=asked.limit,
    )
    return HistoryPage(True, rows, str(rows[-1]["seq"]) if len(rows) == asked.limit else None)


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/api/analytics/submit",
        handler=submit,
        role="writer",
        tag="analytics",
        summary="Store sessions and have a plugin judge exactly these",
        body=Content(Submission),
        replies={202: Content(Submitted, description="Stored; ask for the result under this id")},
        refusals=(400, 404, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/analytics/result/{id}",
        handler=result,
        role="reader",
        tag="analytics",
        summary="The state of a submission, and its insights, patterns and metrics when it is done",
        parameters=(Parameter("id", "the analysisId that submit gave", "path", required=True),),
        replies={200: Content({"type": "object"})},
        refusals=(404,),
    ),
    Operation(
        method="POST",
        path="/api/analytics/query",
        handler=query,
        role="reader",
        tag="analytics",
        summary="Page through events, newest first, or through the insights and patterns of a plugin",
        body=Content(HistoryQuery),
        replies={200: Content(HistoryPage)},
        refusals=(400, 404, 413, 415, 422),
    ),
)
