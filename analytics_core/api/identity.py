"""Who is who: one person with all ids, and merges of two users, which an operator makes and undoes."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import structlog
from aiohttp import web
from msgspec import Struct, field

from analytics_core.api.auth import Identity
from analytics_core.api.operations import Content, Operation, Parameter, query_of, read_json, reply
from analytics_core.api.services import Services
from analytics_core.errors import NotFoundError, ParameterError, near
from analytics_core.queries.identity.merging import MAX_PAGE, Person
from analytics_core.queries.identity.persons import STATES, Merge

log = structlog.get_logger(__name__)
_PAGE: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


class MergeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """All that ``from`` did becomes ``into``'s. ``force``: although both are known users."""

    former: str = field(name="from")
    into: str
    force: bool = False


class MergesReply(Struct, frozen=True):
    """The newest first. ``next``: the ``before`` of the page after this one."""

    merges: list[Merge]
    next: int | None


async def user(request: web.Request, services: Services, identity: Identity) -> web.Response:
    return reply(await asyncio.to_thread(services.merging.person, identity.tenant, request.match_info["id"]))


async def merge(request: web.Request, services: Services, identity: Identity) -> web.Response:
    asked = await read_json(request, services, MergeRequest)
    made = await services.merging.merge(identity.tenant, asked.former, asked.into, force=asked.force)
    log.warning("users_merged", by=identity.subject, tenant=identity.tenant, merge=made.id, forced=made.forced)
    return reply(made, 201)


async def unmerge(request: web.Request, services: Services, identity: Identity) -> web.Response:
    given = request.match_info["id"]
    if not _NUMBER.fullmatch(given):
        raise NotFoundError("merge", given)
    undone = await services.merging.undo(identity.tenant, int(given))
    log.warning("users_unmerged", by=identity.subject, tenant=identity.tenant, merge=undone.id)
    return reply(undone)


async def merges(request: web.Request, services: Services, identity: Identity) -> web.Response:
    query = query_of(request, ("state", "before", "limit"))
    state = query.get("state")
    if state is not None and state not in STATES:
        raise ParameterError("state", f"{state!r} is not known{near(state, STATES)}")
    limit = _whole(query, "limit") or _PAGE
    found = await asyncio.to_thread(
        services.merging.merges, identity.tenant, state=state, before=_whole(query, "before"), limit=limit
    )
    return reply(MergesReply(found, found[-1].id if len(found) == limit else None))


def _whole(query: Any, name: str) -> int | None:
    given = query.get(name)
    if given is not None and not _NUMBER.fullmatch(given):
        raise ParameterError(name, f"{given!r} is no whole number")
    return None if given is None else int(given)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/v1/users/merges",
        handler=merges,
        role="reader",
        tag="users",
        summary="Links between ids that were made, refused or undone, the newest first",
        parameters=(
            Parameter("state", "only these", schema={"enum": list(STATES)}),
            Parameter(
                "before", "only those with an id below it: the 'next' of the page before", schema={"type": "integer"}
            ),
            Parameter("limit", f"at most so many; without it {_PAGE}", schema={"type": "integer", "maximum": MAX_PAGE}),
        ),
        replies={200: Content(MergesReply)},
        refusals=(422,),
    ),
    Operation(
        method="POST",
        path="/api/v1/users/merges",
        handler=merge,
        role="operator",
        tag="users",
        summary="Make two ids one person",
        description="Refused for two known users unless force is true. It can be undone.",
        body=Content(MergeRequest),
        replies={201: Content(Merge, description="The merge; it is an event in the log")},
        refusals=(400, 409, 413, 415, 422, 503),
    ),
    Operation(
        method="DELETE",
        path="/api/v1/users/merges/{id}",
        handler=unmerge,
        role="operator",
        tag="users",
        summary="Undo one merge: exactly what it joined is parted, and stays so",
        parameters=(Parameter("id", "the id of the merge", "path", required=True),),
        replies={200: Content(Merge, description="The merge, undone")},
        refusals=(404, 409, 503),
    ),
    Operation(
        method="GET",
        path="/api/v1/users/{id}",
        handler=user,
        role="reader",
        tag="users",
        summary="One person: who stands for all ids, how many events, from when to when, and the merges",
        parameters=(Parameter("id", "any id of theirs: user, anonymous or former", "path", required=True),),
        replies={200: Content(Person)},
        refusals=(404,),
    ),
)
