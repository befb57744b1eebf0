"""An `Operation` is one route: its path, the role it needs, what it takes and gives, and the function that answers.

Routes, authorisation and the OpenAPI document are all made from the same list, so none can differ from another.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from analytics_core.api.auth import LOCAL, Authenticator, Identity
from analytics_core.api.cors import Origins
from analytics_core.api.services import Services
from analytics_core.config import Role
from analytics_core.errors import (
    BodyTooLargeError,
    ForbiddenError,
    MalformedBodyError,
    ParameterError,
    UnsupportedTypeError,
    near,
)
from analytics_core.intake.decode import inflate

T = TypeVar("T")
Handler = Callable[[web.Request, Services, Identity], Awaitable[web.StreamResponse]]
AiohttpHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JSON: Final = "application/json"
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.+)`", re.DOTALL)


class Parameter(Struct, frozen=True):
    """One query, path or header parameter with its JSON Schema."""

    name: str
    description: str
    place: Literal["query", "path", "header"] = "query"
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False


class Content(Struct, frozen=True):
    """A body: ``schema`` is a `msgspec.Struct` class or a JSON Schema, for each of the media ``types``."""

    schema: Any
    types: tuple[str, ...] = (JSON,)
    description: str = "OK"


class Operation(Struct, frozen=True, kw_only=True):
    """One route. ``role`` is the least that a caller needs; ``none`` is open to everybody."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    role: Role | Literal["none"]
    summary: str
    tag: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Content | None = None
    replies: dict[int, Content]
    refusals: tuple[int, ...] = ()
    key_in_query: bool = False


def bind(operation: Operation, services: Services, authenticator: Authenticator, origins: Origins) -> AiohttpHandler:
    """The aiohttp handler of an operation: who calls, may they, answer.

    Without authentication everybody on this machine may do everything, but not a page of somebody else's that the
    operator's browser shows: that sends no credential with what it does.
    """
    handler, role, in_query = operation.handler, operation.role, operation.key_in_query
    acts = operation.method != "GET" and role == "operator"

    async def handle(request: web.Request) -> web.StreamResponse:
        identity = authenticator.caller(request, in_query=in_query, optional=role == "none")
        identity.need(role)
        return await handler(request, services, identity)

    async def handle_local(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if acts and not origins.allow_page(origin, request.headers.get("Host")):
            raise ForbiddenError(f"a page of {origin}", "none", role)
        return await handler(request, services, LOCAL)  # who may do everything

    return handle if authenticator.enabled else handle_local


def reply(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type=JSON)


def declared_length(request: web.Request) -> int:
    """How large the body may become: what the request says, else the limit. :raises BodyTooLargeError: beyond that."""
    length, limit = request.content_length, request.client_max_size
    if length is None:
        return limit if request.can_read_body else 0
    if length > limit:
        raise BodyTooLargeError(limit, inflated=False)
    return length


async def read_body(request: web.Request) -> bytes:
    """The body as it was sent, each byte copied at most once; `web.Request.read` copies twice.

    :raises BodyTooLargeError: before it is read when its length is declared, else as soon as it is too long.
    """
    most, content = declared_length(request), request.content
    pieces: list[bytes] = []
    size = 0
    while not content.at_eof():
        pieces.append(await content.readany())
        size += len(pieces[-1])
        if size > most:
            raise BodyTooLargeError(request.client_max_size, inflated=False)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_inflated(request: web.Request, services: Services) -> bytes:
    """The body without its ``Content-Encoding``, capped by ``max_inflated_bytes``."""
    body = await read_body(request)
    encoding = request.headers.get("Content-Encoding")
    if not encoding:
        return body
    return await asyncio.to_thread(inflate, body, encoding, services.settings.intake.max_inflated_bytes)


async def read_json(request: web.Request, services: Services, type_: type[T]) -> T:
    """The JSON body as ``type_``.

    :raises UnsupportedTypeError: for another content type.
    :raises MalformedBodyError: when it is no JSON.
    :raises ParameterError: naming the first member that does not fit.
    """
    if request.headers.get("Content-Type") and request.content_type != JSON:
        raise UnsupportedTypeError("Content-Type", request.content_type, [JSON])
    body = await read_inflated(request, services)
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except msgspec.ValidationError as problem:
        raise _misfit(str(problem), type_) from None
    except msgspec.DecodeError as problem:
        raise MalformedBodyError(str(problem)) from None
    except RecursionError:
        raise MalformedBodyError("its JSON is nested too deeply") from None


def _misfit(problem: str, type_: type) -> ParameterError:
    """What msgspec says of a member that does not fit ``type_``; of an unknown one also which there are."""
    what, _, where = problem.partition(" - at `$.")
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is None or where or not issubclass(type_, Struct):
        return ParameterError(where.rstrip("`") or "body", what[:1].lower() + what[1:])
    known = [field.encode_name for field in msgspec.structs.fields(type_)]
    return ParameterError(unknown[1], f"is not known here{near(unknown[1], known)}")


def query_of(request: web.Request, known: Collection[str], repeated: Collection[str] = ()) -> Mapping[str, str]:
    """The query parameters, of which those of ``repeated`` may come more than once.

    :raises ParameterError: for one that the operation does not know, or that must not be repeated.
    """
    query = request.query
    for name in query:
        if name not in known:
            raise ParameterError(name, f"is not known here{near(name, known)}")
        if len(query.getall(name)) > 1 and name not in repeated:
            raise ParameterError(name, "was given more than once")
    return query


def words(text: str) -> list[str]:
    """``a, b,,c`` to its words, each once, in order."""
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))
