"""The edge of every request: its id, its log line, and every error as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import re
import secrets
import time
from itertools import count
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from analytics_core.errors import AnalyticsError, BodyTooLargeError, near

log = structlog.get_logger("analytics_core.api")

INGEST_PATH: Final = "/api/v1/events"
REQUEST_ID: Final = "X-Request-Id"
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PREFIX: Final = secrets.token_hex(6)
_NUMBERS: Final = count(1)
_KEY: Final[Any] = web.RequestKey("request_id", str) if hasattr(web, "RequestKey") else "request_id"  # aiohttp < 3.14
_SLOW_SECONDS: Final = 1.0
_CHALLENGE: Final = 'Bearer realm="analytics"'


def request_id(request: web.Request) -> str:
    """The client's ``X-Request-Id`` when it is a plain word, else one of our own; the same for the whole request."""
    known: str | None = request.get(_KEY)
    if known is None:
        given = request.headers.get(REQUEST_ID)
        known = given if given and _GIVEN_ID.fullmatch(given) else f"{_PREFIX}-{next(_NUMBERS):x}"
        request[_KEY] = known
    return known


def problem(
    request: web.Request,
    status: int,
    title: str,
    detail: str,
    *,
    type_: str = "about:blank",
    headers: dict[str, str] | None = None,
    **extensions: Any,
) -> web.Response:
    """One problem document; ``instance`` is the request id, by which the log lines of the request are found."""
    document = {"type": type_, "title": title, "status": status, "detail": detail, "instance": request_id(request)}
    return web.Response(
        status=status,
        body=msgspec.json.encode({**extensions, **document}),
        content_type="application/problem+json",
        headers=headers,
    )


def of_error(request: web.Request, error: AnalyticsError) -> web.Response:
    """The document of one of our own errors. Those of status 500 keep their text in the log."""
    if error.status == 500:
        return _unexpected(request, error)
    headers = {}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = _CHALLENGE
    if error.status > 500:
        log.warning("request_refused", status=error.status, error=str(error), path=request.path, id=request_id(request))
    return problem(
        request,
        error.status,
        error.title,
        str(error),
        type_=f"urn:analytics:problem:{_kebab(type(error).__name__)}",
        headers=headers,
        **error.extensions(),
    )


def _of_http(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < 400:  # a redirect
        return error
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return of_error(request, BodyTooLargeError(request.client_max_size, inflated=False))
    detail, headers = error.text or error.reason, {}
    if isinstance(error, web.HTTPNotFound):
        detail = f"nothing is at {request.path}{near(request.path, _paths(request.app))}"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        detail = f"{request.path} takes {allowed}, not {request.method}"
        headers["Allow"] = allowed
    return problem(request, error.status, error.reason, detail, headers=headers)


def _unexpected(request: web.Request, error: Exception) -> web.Response:
    identity = request_id(request)
    log.error("request_failed", method=request.method, path=request.path, id=identity, exc_info=error)
    if request.writer.output_size and request.transport is not None:
        request.transport.close()  # a stream has begun: a second head of a response would be read as its content
    return problem(request, 500, "Internal error", f"the server failed; its log names the cause under {identity}")


def _paths(app: web.Application) -> set[str]:
    return {resource.canonical for resource in app.router.resources() if "{" not in resource.canonical}


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Error")).lower()


def edge(fallback: Handler) -> Middleware:
    """The outermost middleware. ``fallback`` answers requests that no route takes, or raises what the router said.

    Ingest passes with nothing but the ``try``: no context, no clock, no log line.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.http_exception is not None:
            handler = fallback
        if request.path == INGEST_PATH and request.method == "POST":
            return await _answer(request, handler)
        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id(request)):
            response = await _answer(request, handler)
            seconds = time.perf_counter() - started
            _log_access(request, response, seconds)
            return response

    return middleware


def _log_access(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    """One line at debug level; at info when it failed, or was slow without being a stream."""
    slow = seconds > _SLOW_SECONDS and isinstance(response, web.Response)
    level = log.info if response.status >= 500 or slow else log.debug
    level("request", method=request.method, path=request.path, status=response.status, ms=round(seconds * 1000, 1))


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AnalyticsError as error:
        return of_error(request, error)
    except web.HTTPException as error:
        return _of_http(request, error)
    except ConnectionResetError:
        raise  # the client went away: aiohttp closes its side
    except Exception as error:
        return _unexpected(request, error)


def identify_response(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """The request id goes out on every response, streams too."""
    if isinstance(request, web.Request):
        response.headers[REQUEST_ID] = request_id(request)
