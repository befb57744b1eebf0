"""The demo's three conversations with the server: events to it, the lanes' state and the live stream from it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from analytics_core.demo.screen import View
from analytics_core.demo.shop import Shop

_TICK_SECONDS: Final = 0.2
_LARGEST_REQUEST: Final = 2_000
_POLL_SECONDS: Final = 1.0
_BUSY: Final = 503


class _Reply(Struct):
    accepted: int = 0
    duplicates: int = 0
    rejected: list[Any] = []


class _Pushed(Struct):
    """A ``metric`` or ``insight:new`` message."""

    metric: str = ""
    value: float | None = None
    labels: dict[str, Any] = {}
    title: str = ""
    description: str = ""


class Conversation:
    """Everything that goes over one HTTP session and ends up in a `View`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, view: View) -> None:
        self._session = session
        self._url = url
        self._view = view

    async def post(self, shop: Shop) -> None:
        """Send the shop's events as time passes. Runs until cancelled; a busy server gets the same events again."""
        while True:
            now = datetime.now(shop.start.tzinfo)
            events = await asyncio.to_thread(shop.until, now)
            self._view.campaign, self._view.slowdown = shop.campaign(now), shop.slowdown(now)
            for start in range(0, len(events), _LARGEST_REQUEST):
                await self._deliver(msgspec.json.encode(events[start : start + _LARGEST_REQUEST]))
            await asyncio.sleep(_TICK_SECONDS)

    async def _deliver(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        while True:
            wait = _POLL_SECONDS
            try:
                async with self._session.post(f"{self._url}/api/v1/events", data=body, headers=headers) as response:
                    answer = await response.read()
                    if response.status in (202, 422):
                        reply = msgspec.json.decode(answer, type=_Reply)
                        self._view.count(reply.accepted, reply.duplicates, len(reply.rejected))
                        return
                    if response.status != _BUSY:
                        response.raise_for_status()
                    told = response.headers.get("Retry-After", "")
                    wait = float(told) if told.isdigit() else wait
            except aiohttp.ClientConnectionError:
                pass  # it is restarting or gone; who watches the process says so
            self._view.refused += 1
            await asyncio.sleep(wait)

    async def watch_lanes(self) -> None:
        """Ask for the lanes once a second. Runs until cancelled."""
        while True:
            try:
                async with self._session.get(f"{self._url}/api/v1/lanes") as response:
                    if response.status == 200:
                        self._view.lanes = msgspec.json.decode(await response.read())["lanes"]
            except (aiohttp.ClientConnectionError, TimeoutError):
                self._view.lanes = []
            await asyncio.sleep(_POLL_SECONDS)

    async def watch_stream(self) -> None:
        """Take metrics and insights from the event stream, and come back when it ends. Runs until cancelled."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
        while True:
            try:
                async with self._session.get(
                    f"{self._url}/api/v1/stream", params={"stream": "metric,insight"}, timeout=timeout
                ) as response:
                    if response.status == 200:
                        await self._take(response.content)
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(_POLL_SECONDS)

    async def _take(self, stream: aiohttp.StreamReader) -> None:
        event = ""
        async for text in stream:
            name, _, value = text.decode().rstrip("\r\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event in ("metric", "insight:new"):
                self._note(event, msgspec.json.decode(value, type=_Pushed))

    def _note(self, event: str, pushed: _Pushed) -> None:
        if event == "metric" and pushed.value is not None:
            self._view.note_metric(pushed.metric, pushed.value, pushed.labels)
        elif event == "insight:new":
            self._view.insights.append(f"{pushed.title}: {pushed.description}" if pushed.description else pushed.title)
