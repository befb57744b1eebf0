"""A host that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import structlog
import uvloop
from aiohttp import web

from analytics_core.api import Services, build, runner
from analytics_core.app.services import open_services
from analytics_core.config import Settings, check_exposure
from analytics_core.errors import ConfigError, StorageError
from analytics_core.host.installed.provenance import check_lock
from analytics_core.logs import configure_logging
from analytics_core.memory import arrange

_log = structlog.get_logger("host")
_QUESTIONS_AT_ONCE = 16
"""Threads for what asks the stores; DuckDB has threads of its own beside each."""
_GC_THRESHOLDS = (50_000, 20, 20)
"""One request of 1,000 events makes more objects than the usual threshold of 700; nearly none of them are cycles."""


def serve(load: Callable[[], Settings], *, ready: Callable[[], None] | None = None) -> None:
    """Run the host until SIGINT or SIGTERM. ``ready`` is called once it answers.

    ``load`` gives the settings now, and later those that a restart would bring.

    :raises ConfigError: before anything is opened.
    :raises StorageError: for storage that cannot be used: a log that another process owns, or one that is corrupt.
    """
    settings = load()
    check_exposure(settings)
    check_lock(settings)
    configure_logging(settings.logging, sys.stderr)
    if not settings.manifests_dir.exists():
        _log.info("no_manifests", directory=str(settings.manifests_dir), meaning="every setting is as shipped")
    arrange()
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.freeze()  # what the imports have made stays, and no later collection looks at it; plugins come after, and may go
    try:
        uvloop.run(_serve(settings, load, ready))
    finally:
        gc.unfreeze()


async def _serve(settings: Settings, load: Callable[[], Settings], ready: Callable[[], None] | None) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_QUESTIONS_AT_ONCE, thread_name_prefix="question"))
    stop: asyncio.Future[None] = loop.create_future()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, _end, stop, None)

    def on_fatal(error: StorageError) -> None:
        loop.call_soon_threadsafe(_end, stop, error)

    async with AsyncExitStack() as stack:
        services = await open_services(settings, load, stack, on_fatal)
        url = await listen(services, stack)
        guard = services.host.guard
        guard.ready()
        data, plugins = str(settings.storage.data_dir), len(services.host.views())
        _log.info("listening", url=url, data=data, plugins=plugins, safe_mode=guard.safe_mode is not None)
        if ready is not None:
            ready()
        try:
            await stop
        finally:
            guard.end()  # what may still go wrong is not its start
            _log.info("stopping")
            services.history.interrupt()


def _end(stop: asyncio.Future[None], error: StorageError | None) -> None:
    if stop.done():
        return
    if error is None:
        stop.set_result(None)
    else:
        stop.set_exception(error)


async def listen(services: Services, stack: AsyncExitStack) -> str:
    """Serve over HTTP; the URL. :raises ConfigError: when the address cannot be had."""
    server = services.settings.server
    running = runner(build(services))
    await running.setup()
    stack.push_async_callback(running.cleanup)
    try:
        site = web.TCPSite(running, server.host, server.port, backlog=1024)
        await site.start()
    except OSError as error:
        where = f"{server.host}:{server.port}"
        raise ConfigError("server", f"cannot listen on {where}: {error.strerror}; set ANALYTICS_PORT") from error
    port = running.addresses[0][1]
    return f"http://{server.host}:{port}"
