"""``/api/v1/cohorts``: the cohorts of the manifests, how many people are in them, and in one that is still tried."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.events import range_of
from analytics_core.api.operations import Content, Operation, Parameter, query_of, read_json, reply
from analytics_core.api.services import Services
from analytics_core.queries.cohort_sizes import DEFAULT_RANGE, Asked


class Counted(Struct, frozen=True, kw_only=True):
    """Of when an answer is: the range, and up to where it says something. ``notes`` name events and properties that
    are asked for and that nobody has sent."""

    timeRange: dict[str, str]  # noqa: N815  as analyses have it
    timezone: str
    data_as_of: str | None
    watermark: str | None
    notes: list[str]


class Cohort(Struct, frozen=True):
    """``definition``, as ``name``, may be the ``cohort`` of an analysis. The figures are as in `SizeReply`."""

    name: str
    title: str
    definition: dict[str, Any]
    people: int
    active: int
    share: float | None


class CohortsReply(Counted, frozen=True, kw_only=True):
    """``note`` says how to declare a cohort where there is none."""

    cohorts: list[Cohort]
    note: str | None


class SizeReply(Counted, frozen=True, kw_only=True):
    """``people`` are in it at the end of the range; ``active`` of them have an event in the range, which is ``share``
    of all people who have one, null when nobody has."""

    people: int
    active: int
    share: float | None


class CohortReply(SizeReply, frozen=True, kw_only=True):
    """One cohort, with its definition."""

    name: str
    title: str
    definition: dict[str, Any]


class Preview(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """``all``: the conditions, as in a manifest; ``timezone`` is the tenant's when not given."""

    all: list[dict[str, Any]]
    time_range: dict[str, Any] | str = DEFAULT_RANGE
    timezone: str | None = None


_ASKED: Final = (
    Parameter("timeRange", f"a span up to now, such as 7d or 24h; {DEFAULT_RANGE} when missing"),
    Parameter("start", "instead: where the range begins, a date or an ISO 8601 time"),
    Parameter("end", "where it ends, exclusive, and when people are in the cohort; now when missing"),
    Parameter("timezone", "the IANA zone of start and end without an offset; the tenant's when missing"),
)


async def listed(request: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply(await services.cohorts.all(_asked(request, services, identity)))


async def one(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = _asked(request, services, identity)
    return reply(await services.cohorts.one(request.match_info["name"], asked))


async def preview(request: web.Request, services: Services, identity: Identity) -> web.Response:
    body = await read_json(request, services, Preview)
    asked = Asked(identity.tenant, body.timezone or services.timezone(identity.tenant), body.time_range)
    return reply(await services.cohorts.preview({"all": body.all}, asked))


def _asked(request: web.Request, services: Services, identity: Identity) -> Asked:
    query = query_of(request, {p.name for p in _ASKED})
    timezone = query.get("timezone") or services.timezone(identity.tenant)
    return Asked(identity.tenant, timezone, range_of(request) or DEFAULT_RANGE)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/cohorts",
        handler=listed,
        role="reader",
        tag="cohorts",
        summary="The cohorts of the manifests, and how many people are in each",
        parameters=_ASKED,
        replies={200: Content(CohortsReply)},
        refusals=(422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/cohorts/preview",
        handler=preview,
        role="reader",
        tag="cohorts",
        summary="How many people a definition would have",
        description="Nothing is kept. A manifest with the same `all` declares the cohort.",
        body=Content(Preview),
        replies={200: Content(SizeReply)},
        refusals=(400, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/cohorts/{name}",
        handler=one,
        role="reader",
        tag="cohorts",
        summary="One cohort, and how many people are in it",
        parameters=(Parameter("name", "of its manifest", "path", required=True), *_ASKED),
        replies={200: Content(CohortReply)},
        refusals=(404, 422, 503),
    ),
)
