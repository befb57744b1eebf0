"""The hooks: a delivery in, and after its commit the answer that GitHub shows beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from analytics_core import Event, Outcome, PluginContext, Reply, Request, hookimpl
from github_webhooks.deliveries import event, header, payload, signed

_CHALLENGE: Final = {"WWW-Authenticate": 'X-Hub-Signature-256 realm="github-webhooks"'}
_RETRY: Final = {"Retry-After": "10"}


class GithubWebhooks:
    """An adapter: it translates, and leaves storing and counting to the host."""

    def __init__(self) -> None:
        self._secret = b""
        self._kinds: frozenset[str] = frozenset()

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self._secret = context.settings["secret"].encode()
        self._kinds = frozenset(context.settings["events"])

    @hookimpl
    def ingest(self, request: Request) -> list[Event]:
        """Nothing for a forged delivery, which `reply` refuses, and for a kind that is not wanted, as the first ping.

        :raises ValueError: for a signed delivery that cannot be read: the host answers 400 with its text.
        """
        if not signed(request, self._secret):
            return []
        kind, delivery = header(request, "X-GitHub-Event"), header(request, "X-GitHub-Delivery")
        found = payload(request)
        return [event(kind, delivery, found)] if kind in self._kinds else []

    @hookimpl
    def reply(self, request: Request, outcome: Outcome) -> Reply:
        if not signed(request, self._secret):
            return _problem(401, "X-Hub-Signature-256 is not the signature of this body", _CHALLENGE)
        if outcome.overloaded:
            return _problem(503, outcome.overloaded, _RETRY)
        if outcome.rejected:
            return _problem(422, "; ".join(f"{bad.field}: {bad.message}" for bad in outcome.rejected))
        return _json(202, {"accepted": outcome.accepted, "duplicates": outcome.duplicates})


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Reply:
    """RFC 9457, as the host's own errors."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return _json(status, document, {**(headers or {}), "Content-Type": "application/problem+json"})


def _json(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
