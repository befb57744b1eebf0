"""One POST to an incoming webhook, and what its answer means for the notification.

The address of a webhook is its password: it is in no text that leaves this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, InvalidURL
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from analytics_core import Delivery

_PASSING: Final = frozenset({408, 425, 429})
"""Refusals that another attempt may not meet; so are all from 500 on."""
_SHOWN: Final = 200
"""Bytes of an answer that are read: Slack's are words such as ``channel_is_archived``."""


def post(url: str, body: Mapping[str, Any], fingerprint: str, seconds: float) -> Delivery:
    """Send ``body`` once. ``retry`` unless the same attempt is sure to fail again."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Idempotency-Key": fingerprint}
    try:
        request = Request(url, json.dumps(body).encode(), headers, method="POST")
        with _opener.open(request, timeout=seconds) as answer:
            return Delivery(delivered=True, detail=f"{answer.status} {answer.reason}")
    except HTTPError as refusal:
        with refusal:
            return _refused(refusal, url)
    except (ValueError, InvalidURL):
        return Delivery(delivered=False, detail="the channel's url is no address that can be called")
    except URLError as error:
        return Delivery(delivered=False, detail=f"the chat cannot be reached: {error.reason}", retry=True)
    except (OSError, HTTPException) as error:
        return Delivery(delivered=False, detail=f"no answer of the chat: {type(error).__name__}: {error}", retry=True)


def _refused(refusal: HTTPError, url: str) -> Delivery:
    retry = refusal.code in _PASSING or refusal.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    try:
        said = refusal.read(_SHOWN).decode("utf-8", "replace").strip()
    except (OSError, HTTPException):  # its status has said enough
        said = ""
    after = refusal.headers.get("Retry-After", "")
    parts = [f"{refusal.code} {refusal.reason}", said, f"Retry-After: {after}" if after else ""]
    return Delivery(delivered=False, detail=_without(url, "; ".join(filter(None, parts))), retry=retry)


def _without(url: str, text: str) -> str:
    """Some servers repeat the path that they do not know."""
    path = urlsplit(url).path
    return text.replace(path, "/...") if len(path) > 1 else text


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and look like a success."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


_opener: Final = build_opener(_NoRedirect)
