"""``GET /api/v1/events``: history by URL, a page at a time or all of it as a file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from analytics_core.api.analytics import HistoryPage, Wanted, events_page
from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, query_of, reply, words
from analytics_core.api.services import Services
from analytics_core.api.streaming import stream
from analytics_core.errors import ParameterError, near
from analytics_core.metrics.buckets import zone_named
from analytics_core.metrics.filters import Filter
from analytics_core.queries.export_formats import FORMATS
from analytics_core.queries.filters import parse_compact
from analytics_core.queries.history import ALL_TIME
from analytics_core.queries.pages import MAX_PAGE, with_names
from analytics_core.queries.projection import WIRE
from analytics_core.queries.ranges import time_range

TOTAL: Final = "X-Total-Events"
_TEXTS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "string"}}
_CHOICE: Final = (
    Parameter("timeRange", "a span up to now, such as 7d, 24h or 30m; all of history without it"),
    Parameter("start", "instead: where the range begins, a date or an ISO 8601 time"),
    Parameter("end", "where it ends, exclusive; now when missing"),
    Parameter("timezone", "the IANA zone of start and end without an offset; the tenant's when missing"),
    Parameter("event", "a name; repeat it for further ones", schema=_TEXTS),
    Parameter("user", "events with this userId alone"),
    Parameter(
        "filter",
        "one condition; repeat it for further ones, all must hold. properties.amount>10, properties.plan=pro, "
        "event~^cart (a regular expression), properties.name contains ann, event in view,cart, properties.coupon "
        "exists, properties.coupon not exists; or a JSON object with field, op and value",
        schema=_TEXTS,
    ),
    Parameter("fields", f"which fields to show, separated by commas: {', '.join(WIRE)}, properties.<name>"),
)
_LIMIT: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}
_PAGE: Final = (
    *_CHOICE,
    Parameter("limit", "events in a page", schema=_LIMIT),
    Parameter("cursor", "the nextCursor of the page before, with all else as it was"),
)
_EXPORT: Final = (
    *_CHOICE,
    Parameter("format", "what it is written as; ndjson when missing", schema={"enum": list(FORMATS)}),
)
_REPEATED: Final = ("event", "filter")


async def page(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = query_of(request, {p.name for p in _PAGE}, _REPEATED)
    limit = asked.get("limit", "100")
    if not limit.isascii() or not limit.isdigit() or len(limit) > 9:
        raise ParameterError("limit", f"{limit[:20]!r} is no number in 1..{MAX_PAGE}")
    wanted = Wanted(
        time_range=range_of(request),
        timezone=asked.get("timezone"),
        filters=_filters(request),
        names=request.query.getall("event", None),
        fields=_fields(request),
        limit=int(limit),
        cursor=asked.get("cursor"),
    )
    return reply(await asyncio.to_thread(events_page, services, identity.tenant, wanted))


async def export(request: web.Request, services: Services, identity: Identity) -> web.StreamResponse:
    asked = query_of(request, {p.name for p in _EXPORT}, _REPEATED)
    name = asked.get("format", "ndjson")
    if name not in FORMATS:
        raise ParameterError("format", f"{name[:40]!r} is no format{near(name, FORMATS)}")
    given, timezone = range_of(request), asked.get("timezone") or services.timezone(identity.tenant)
    zone_named(timezone)
    span = ALL_TIME if given is None else time_range(given, timezone, datetime.now(UTC))
    filters = with_names(_filters(request), request.query.getall("event", None))
    wanted = Wanted(fields=_fields(request))
    opened = await asyncio.to_thread(
        services.history.export, identity.tenant, span, filters, wanted.shown(), FORMATS[name]
    )
    try:
        headers = {
            "Content-Type": opened.format.media_type,
            "Content-Disposition": f'attachment; filename="events{opened.format.suffixes[0]}"',
            "Cache-Control": "no-store",
            TOTAL: str(opened.rows),
        }
        return await stream(request, opened.chunks(), headers)
    finally:
        await asyncio.to_thread(opened.close)


def range_of(request: web.Request) -> Any:
    """In the form of a POST's ``timeRange``."""
    query = request.query
    ends = {name: query[name] for name in ("start", "end") if name in query}
    if "timeRange" in query:
        if ends:
            raise ParameterError("timeRange", f"is given together with {' and '.join(ends)}; give one of the two")
        return query["timeRange"]
    if ends and "start" not in ends:
        raise ParameterError("start", "is needed with an end; or give timeRange alone")
    return ends or None


def _filters(request: web.Request) -> tuple[Filter, ...]:
    user = request.query.get("user")
    own = () if user is None else parse_compact([f"userId={msgspec.json.encode(user).decode()}"], "user")
    return (*own, *parse_compact(request.query.getall("filter", [])))


def _fields(request: web.Request) -> Sequence[str] | None:
    return words(request.query["fields"]) if "fields" in request.query else None


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/events",
        handler=page,
        role="reader",
        tag="history",
        summary="Page through events, newest first",
        description="As POST /api/analytics/query. An empty page has notes on names that no event has.",
        parameters=_PAGE,
        replies={200: Content(HistoryPage)},
        refusals=(422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/events/export",
        handler=export,
        role="reader",
        tag="history",
        summary="All events of a range as NDJSON, CSV, Parquet or an Arrow stream, oldest first",
        description=(
            f"One snapshot, sent as it is read; {TOTAL} says how many events it holds. An answer that breaks off lacks "
            "the end of the chunked encoding: what came is not the whole."
        ),
        parameters=_EXPORT,
        replies={
            200: Content(
                {"type": "string", "format": "binary"},
                tuple(one.media_type.partition(";")[0] for one in FORMATS.values()),
                "The events",
            )
        },
        refusals=(409, 422, 503),
    ),
)
