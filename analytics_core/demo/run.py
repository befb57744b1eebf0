"""``analytics demo`` from beginning to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import aiohttp
from rich.console import Console
from rich.live import Live

from analytics_core.demo.screen import View, line, table
from analytics_core.demo.server import ServerProcess
from analytics_core.demo.shop import Shop
from analytics_core.demo.traffic import Conversation

_FRAME_SECONDS: Final = 0.5
_LINE_SECONDS: Final = 3.0


async def run(
    arguments: Sequence[str],
    url: str,
    *,
    seed: int,
    rate: float,
    api_key: str = "",
    screen: bool = True,
    duration: float | None = None,
) -> View:
    """Start ``analytics serve`` with ``arguments``, be its shop until SIGINT, SIGTERM, SIGHUP or ``duration`` seconds
    are over, then end it. What was last known of it is given back.

    :raises ServerDiedError: when the server ends before it was told to.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    view = View(url=url)
    headers = {"X-API-Key": api_key} if api_key else {}
    opening = asyncio.create_task(asyncio.to_thread(Shop, seed, datetime.now().astimezone(), rate))
    async with ServerProcess(arguments) as server, aiohttp.ClientSession(headers=headers) as session:
        await _unless(stopped, server.ready(session, url))
        shop = await opening
        conversation = Conversation(session, url, view)
        try:
            async with asyncio.timeout(duration) as over:
                await _unless(
                    stopped,
                    server.died(),
                    conversation.post(shop),
                    conversation.watch_lanes(),
                    conversation.watch_stream(),
                    _show(view, screen),
                )
        except TimeoutError:
            if not over.expired():
                raise
    return view


async def _unless(stopped: asyncio.Event, *jobs: object) -> None:
    """Run ``jobs`` together until one ends or fails, or ``stopped`` is set; then cancel what is left."""
    tasks = [asyncio.ensure_future(job) for job in (stopped.wait(), *jobs)]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(view: View, screen: bool) -> None:
    """Draw until cancelled: a live table on a terminal, else a line every few seconds."""
    console = Console()
    if not (screen and console.is_terminal):
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            console.print(line(view), highlight=False, markup=False, soft_wrap=True)
    with Live(table(view), console=console, auto_refresh=False) as live:
        while True:
            live.update(table(view), refresh=True)
            await asyncio.sleep(_FRAME_SECONDS)
