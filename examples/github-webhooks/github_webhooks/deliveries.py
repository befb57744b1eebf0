"""One delivery of GitHub: whether it is GitHub's own, and the event that it is.

https://docs.github.com/en/webhooks/webhook-events-and-payloads describes the headers and payloads, and
https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries the signature.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from analytics_core import Event, Request

_FORM: Final = "application/x-www-form-urlencoded"
_HEADS: Final = "refs/heads/"


def signed(request: Request, secret: bytes) -> bool:
    """Whether who sent the request knows the secret. Takes as long for a wrong signature as for the right one."""
    expected = "sha256=" + hmac.new(secret, request.body, "sha256").hexdigest()
    return hmac.compare_digest(expected.encode(), request.headers.get("x-hub-signature-256", "").encode())


def header(request: Request, name: str) -> str:
    """:raises ValueError: when GitHub's header is missing."""
    value = request.headers.get(name.lower(), "")
    if not value:
        raise ValueError(f"the header {name} is missing")
    return value


def payload(request: Request) -> dict[str, Any]:
    """The JSON object of either content type that a webhook can be given.

    :raises ValueError: for a body that holds none.
    """
    text = request.body.decode()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
        (text,) = parse_qs(text).get("payload", [""])[:1]
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("the payload is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("the payload is no JSON object")
    return found


def event(kind: str, delivery: str, found: Mapping[str, Any]) -> Event:
    """``github_push`` of a push. The delivery's id stays the same when it is sent again, so it is counted once."""
    sender = _at(found, "sender", "login")
    properties = {"repository": _at(found, "repository", "full_name"), "action": found.get("action")}
    if kind in _MORE:
        properties |= _MORE[kind](found)
    return Event.of(
        f"github_{kind}",
        {key: value for key, value in properties.items() if value is not None},
        user_id=sender if isinstance(sender, str) else None,
        message_id=delivery,
        timestamp=_at(found, *_TIMES[kind]) if kind in _TIMES else None,
    )


def _push(found: Mapping[str, Any]) -> dict[str, Any]:
    ref, commits = found.get("ref"), found.get("commits")
    return {
        "branch": ref.removeprefix(_HEADS) if isinstance(ref, str) and ref.startswith(_HEADS) else None,
        "commits": len(commits) if isinstance(commits, list) else 0,
        "forced": found.get("forced"),
    }


def _issue(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": _at(found, "issue", "number"), "state": _at(found, "issue", "state")}


def _pull_request(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _at(found, "pull_request", key) for key in ("number", "state", "merged", "additions", "deletions")}


def _release(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"tag": _at(found, "release", "tag_name"), "prerelease": _at(found, "release", "prerelease")}


_MORE: Final[dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "push": _push,
    "issues": _issue,
    "pull_request": _pull_request,
    "release": _release,
}
"""What is kept of each kind besides the repository and the action."""

_TIMES: Final = {
    "push": ("repository", "pushed_at"),
    "issues": ("issue", "updated_at"),
    "pull_request": ("pull_request", "updated_at"),
    "release": ("release", "published_at"),
}
"""Where each kind says when it happened; without it the time of receipt holds."""


def _at(found: Any, *path: str) -> Any:
    """What is at ``path`` inside objects; None when there is nothing."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
