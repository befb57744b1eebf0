"""Cross-origin requests: answers name the origins of ``CORS_ORIGIN`` and ``FRONTEND_URL``; preflights are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from analytics_core.config import Server

_METHODS: Final = "GET, POST, DELETE, OPTIONS"
_HEADERS: Final = (
    "Authorization, Content-Encoding, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Key, X-Request-Id"
)
_EXPOSED: Final = "Retry-After, WWW-Authenticate, X-Request-Id"


class Origins:
    """The origins that may read answers. ``*`` stands for all; credentials in cookies do not exist here."""

    def __init__(self, server: Server) -> None:
        self.allowed = frozenset(_origin(o) for o in (*server.cors_origins, server.frontend_url) if o)

    def allow(self, origin: str) -> bool:
        return "*" in self.allowed or origin in self.allowed

    def allow_page(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of ``origin`` may act on the server ``host``: one of ours, its own, or no browser at all."""
        return not origin or self.allow(origin) or urlsplit(origin).netloc == host

    def allow_socket(self, origin: str | None, environ: Mapping[str, str]) -> bool:
        """Whether a page of ``origin`` may open a socket."""
        return self.allow_page(origin, environ.get("HTTP_HOST"))

    def mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Tell the browser that this origin may read the answer, streams too."""
        origin = request.headers.get("Origin")
        if origin is None or "Access-Control-Allow-Origin" in response.headers:
            return
        if self.allow(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.add("Vary", "Origin")


def preflight(request: web.Request) -> web.Response | None:
    """The answer to a browser's question before a cross-origin request, or None when it is no such question."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _HEADERS,
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


def _origin(url: str) -> str:
    """``https://shop.example/app/`` to the ``https://shop.example`` that browsers send."""
    parts = urlsplit(url.strip())
    return f"{parts.scheme}://{parts.netloc}".lower() if parts.netloc else url.strip()
