"""Retention that waits for an operator: what it would drop, and the word that lets it."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, reply
from analytics_core.api.services import Services
from analytics_core.lanes.maintenance import HeldRetention

log = structlog.get_logger(__name__)


class RetentionReply(Struct, frozen=True):
    """``held`` waits for ``POST /api/v1/retention/confirm``."""

    held: list[HeldRetention]


class Confirmed(Struct, frozen=True):
    """``confirmed`` goes with the next maintenance; nothing is in it when nothing was held."""

    confirmed: list[HeldRetention]


def text(held: HeldRetention) -> str:
    return f"tenant {held.tenant!r}: retention would drop {held.share:.0%} of its events; {held.reason}"


async def retention(_: web.Request, services: Services, __: Identity) -> web.Response:
    return reply(RetentionReply(_held(services)))


async def confirm(_: web.Request, services: Services, identity: Identity) -> web.Response:
    """Nothing is confirmed ahead: a run that is held only later asks again."""
    held = _held(services)
    if held:
        log.warning("retention_confirmed", by=identity.subject, tenants=[one.tenant for one in held])
        await asyncio.to_thread(services.maintenance.confirm_retention)
    return reply(Confirmed(held), 202)


def _held(services: Services) -> list[HeldRetention]:
    return list(services.maintenance.held)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/retention",
        handler=retention,
        role="operator",
        tag="retention",
        summary="Retention runs that wait, since they would drop much or follow a jump of the clock",
        replies={200: Content(RetentionReply)},
    ),
    Operation(
        method="POST",
        path="/api/v1/retention/confirm",
        handler=confirm,
        role="operator",
        tag="retention",
        summary="Let what is held be dropped",
        replies={202: Content(Confirmed, description="What was confirmed")},
    ),
)
