"""Requests to ``POST /api/v1/events`` of a running server: retried while it is busy, split when they are too large."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import aiohttp
import msgspec
import pyarrow as pa
from msgspec import Struct

from analytics_core.errors import NoServerError, ServerRefusedError
from analytics_core.importing.bodies import body

_BUSY: Final = frozenset({429, 502, 503, 504})
_LONGEST_WAIT: Final = 30.0
_CONTENT: Final = "application/x-ndjson"


class Rejection(Struct, frozen=True):
    """Why one row was not taken. ``event`` is its text as it was sent, empty when it was never sent."""

    row: int
    field: str
    message: str
    event: str = ""


class Receipt(Struct):
    """What became of some events; ``rejected`` holds indexes into them with field and message."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[tuple[int, str, str]] = []

    def add(self, other: Receipt, shift: int) -> None:
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.rejected = [*self.rejected, *((index + shift, field, message) for index, field, message in other.rejected)]


class _Refused(Struct):
    index: int
    field: str = ""
    message: str = ""


class _Reply(Struct):
    accepted: int = 0
    duplicates: int = 0
    rejected: list[_Refused] = []


class _Problem(Struct):
    title: str = ""
    detail: str = ""


class Sender:
    """Posts events to one server. ``patience``: seconds without an answer other than "busy" until it gives up."""

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str = "", *, patience: float = 300.0) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": _CONTENT, **({"X-API-Key": api_key} if api_key else {})}
        self._patience = patience

    async def check(self) -> None:
        """:raises NoServerError: when nothing answers there."""
        try:
            async with self._session.get(f"{self._url}/healthz"):
                pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoServerError(self._url, _words(error)) from error

    async def send(self, events: pa.StringArray) -> Receipt:
        """Send NDJSON lines, shape ``(n,)``, until they are answered for.

        :raises ServerRefusedError: for an answer that sending again would not change.
        :raises NoServerError: when the server is gone or busy for longer than ``patience``.
        """
        if not len(events):
            return Receipt()
        status, answer = await self._answered(body(events))
        if status == 202 or (status == 422 and b'"rejected"' in answer):
            reply = msgspec.json.decode(answer, type=_Reply)
            return Receipt(reply.accepted, reply.duplicates, [(r.index, r.field, r.message) for r in reply.rejected])
        if status == 413 and len(events) > 1:
            half = len(events) // 2
            receipt = await self.send(events[:half])
            receipt.add(await self.send(events[half:]), half)
            return receipt
        if status == 413:
            return Receipt(rejected=[(0, "", _detail(answer))])
        raise ServerRefusedError(self._url, status, _detail(answer), _ADVICE.get(status, ""))

    async def _answered(self, content: bytes) -> tuple[int, bytes]:
        """The first answer that is not "busy"."""
        clock = asyncio.get_running_loop().time
        give_up, attempt = clock() + self._patience, 0
        while True:
            try:
                async with self._session.post(
                    f"{self._url}/api/v1/events", data=content, headers=self._headers
                ) as response:
                    answer = await response.read()
                    if response.status not in _BUSY:
                        return response.status, answer
                    why, told = f"busy: {_detail(answer)}", response.headers.get("Retry-After", "")
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why, told = _words(error), ""
            attempt += 1
            wait = _wait(attempt, told)
            if clock() + wait > give_up:
                raise NoServerError(self._url, f"{why}, for {self._patience:.0f} s")
            await asyncio.sleep(wait)


_ADVICE: Final = {
    401: "name a key with --api-key or ANALYTICS_API_KEY",
    403: "the key needs the role 'writer'",
    404: "is this the address of an analytics server?",
}


def _wait(attempt: int, told: str) -> float:
    """Seconds until the next attempt: what the server told, at least, and longer each time, with some noise."""
    own = 0.1 * 2.0 ** min(attempt, 9) * random.uniform(0.75, 1.25)
    least = float(told) if told.isdigit() else 0.0
    return max(least, min(own, _LONGEST_WAIT))


def _detail(answer: bytes) -> str:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except msgspec.MsgspecError:
        return answer[:200].decode(errors="replace").strip() or "(no text)"
    return problem.detail or problem.title


def _words(error: Any) -> str:
    cause = getattr(error, "os_error", error)
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error) or type(error).__name__
