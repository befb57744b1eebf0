"""``/api/v1/users``: erase and export one user."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from typing import Final

from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, read_json, reply
from analytics_core.api.services import Services
from analytics_core.erasure.receipts import ErasureReceipt

NDJSON: Final = "application/x-ndjson"
_AGAIN_SECONDS: Final = 0.02


class EraseRequest(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Who is to be erased; all ids that are given. ``dryRun``: only say how many events there are."""

    user_id: str | int | None = None
    anonymous_id: str | int | None = None
    ids: list[str | int] = []
    dry_run: bool = False

    def all(self) -> list[str]:
        given = [id_ for id_ in (self.user_id, self.anonymous_id) if id_ is not None]
        return [str(id_) for id_ in (*given, *self.ids)]


class ErasuresReply(Struct, frozen=True):
    """The newest first."""

    erasures: list[ErasureReceipt]


async def erase(request: web.Request, services: Services, identity: Identity) -> web.Response:
    """202, or 200 when there is no event of theirs; the receipt goes on in both cases."""
    asked = await read_json(request, services, EraseRequest)
    if asked.dry_run:
        return reply(await asyncio.to_thread(services.erasures.look, identity.tenant, asked.all()))
    receipt = await asyncio.to_thread(services.erasures.begin, identity.tenant, asked.all(), identity.subject)
    return reply(receipt, 202 if receipt.events else 200)


async def erasure(request: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply(await asyncio.to_thread(services.erasures.view, identity.tenant, request.match_info["id"]))


async def erasures(_: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply(ErasuresReply(await asyncio.to_thread(services.erasures.all, identity.tenant)))


async def drop_state(request: web.Request, services: Services, identity: Identity) -> web.Response:
    """202: the receipt says so a moment later."""
    id_, plugin = request.match_info["id"], request.match_info["name"]
    receipt = await asyncio.to_thread(services.erasures.drop_state, identity.tenant, id_, plugin, identity.subject)
    return reply(receipt, 202)


async def export(request: web.Request, services: Services, identity: Identity) -> web.StreamResponse:
    """What cannot be exported is refused before the first line; what fails later breaks the answer off."""
    lines = services.user_exports.lines(identity.tenant, request.match_info["id"])
    try:
        some = await asyncio.to_thread(next, lines)
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        while some:
            await response.write(some)
            some = await asyncio.to_thread(next, lines, b"")
        await response.write_eof()
    finally:
        await asyncio.to_thread(_close, lines)
    return response


def _close(lines: Iterator[bytes]) -> None:
    """Give back the snapshot that is read; when the request was cancelled, its last step first comes to its end."""
    while isinstance(lines, Generator):
        try:
            lines.close()
        except ValueError:  # it is executing
            time.sleep(_AGAIN_SECONDS)
        else:
            break


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/api/v1/users/erase",
        handler=erase,
        role="operator",
        tag="users",
        summary="Erase all events of a user, and what names them, for good",
        description="From the answer on nothing shows an event of theirs that was accepted before it. The receipt says "
        "what has become of it in each place. Events that come later are kept.",
        body=Content(EraseRequest),
        replies={
            200: Content(
                {"type": "object"}, description="A receipt when no event was found; else what a dry run found"
            ),
            202: Content(ErasureReceipt, description="Begun; the receipt goes on under its id"),
        },
        refusals=(400, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/users/erasures",
        handler=erasures,
        role="operator",
        tag="users",
        summary="The receipts of all erasures, the newest first",
        replies={200: Content(ErasuresReply)},
    ),
    Operation(
        method="GET",
        path="/api/v1/users/erasures/{id}",
        handler=erasure,
        role="operator",
        tag="users",
        summary="The receipt of one erasure: each place, and what has become of it there",
        parameters=(Parameter("id", "the id that the erasure was answered with", "path", required=True),),
        replies={200: Content(ErasureReceipt)},
        refusals=(404,),
    ),
    Operation(
        method="DELETE",
        path="/api/v1/users/erasures/{id}/plugins/{name}",
        handler=drop_state,
        role="operator",
        tag="users",
        summary="Drop the stored state of a plugin that cannot be told, so that an erasure need not wait for it",
        description="For one that is uninstalled or disabled. It concerns all tenants: should the plugin come back, it "
        "folds anew all history that is kept. What it has given stays, but for what names an erased user.",
        parameters=(
            Parameter("id", "the id of the erasure", "path", required=True),
            Parameter("name", "which plugin, as its place in the receipt names it", "path", required=True),
        ),
        replies={202: Content(ErasureReceipt, description="Dropped; the receipt says so a moment later")},
        refusals=(404, 409, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/users/{id}/export",
        handler=export,
        role="reader",
        tag="users",
        summary="All that is stored about a user: a line that says what, then every event in order of time",
        parameters=(Parameter("id", "a user id or an anonymous id", "path", required=True),),
        replies={200: Content({"type": "string"}, (NDJSON,), "One JSON object a line")},
        refusals=(404,),
    ),
)
