"""The host, its lanes and what looks after them: each is opened, started, and its closing put on the stack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from analytics_core.app.storage import Storage
from analytics_core.config import Settings
from analytics_core.erasure.erasing import Places
from analytics_core.erasure.erasures import Erasures
from analytics_core.erasure.receipts import Receipts
from analytics_core.errors import StorageError
from analytics_core.host.installed.admission import idle_patterns
from analytics_core.host.installed.discovery import discover
from analytics_core.host.life.boot_guard import BootGuard, Journal
from analytics_core.host.plugins import PluginHost
from analytics_core.host.reloader import Reloader
from analytics_core.host.replaying.replays import Replays
from analytics_core.intake import Intake
from analytics_core.intake.duplicates import DuplicateLedger
from analytics_core.lanes.live_metrics import LiveMetrics
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.log.ids import read_secret
from analytics_core.manifest import Deployment
from analytics_core.metrics.live import LiveWindows
from analytics_core.queries.declarations import Declarations
from analytics_core.queries.history import History
from analytics_core.state.sqlite_erasing import SqliteErasing
from analytics_core.state.sqlite_side import SqliteSides

_FLUSH_SECONDS = 5.0
"""How long an erasure waits for the store writer, before it looks whether it is to stop."""
_log = structlog.get_logger("host")


def open_history(settings: Settings, store: Storage, stack: AsyncExitStack) -> History:
    log, cache = store.log, settings.storage.data_dir / "cache"
    history = History(log, store.lake, log_directory=log.directory, erased=log.tombstones.current, cache=cache)
    stack.push_async_callback(asyncio.to_thread, history.close)
    return history


def open_intake(
    settings: Settings, store: Storage, host: PluginHost, duplicates: DuplicateLedger, stack: AsyncExitStack
) -> Intake:
    intake = Intake(settings.intake, store.log, store.dedup, host.calls, tell_duplicates=duplicates.add)
    intake.start()
    stack.push_async_callback(intake.stop)
    return intake


async def open_host(settings: Settings, deployment: Deployment, store: Storage, stack: AsyncExitStack) -> PluginHost:
    guard = BootGuard(Journal(settings.storage.data_dir / "starts.jsonl"), safe_mode=settings.plugins.safe_mode)
    wake = store.outbox.wake
    host = PluginHost(
        settings,
        deployment,
        store.log,
        store.lake,
        store.state,
        store.bus,
        on_commit=wake,
        backlog=store.backlog(),
        guard=guard,
    )
    stack.push_async_callback(host.close)
    stack.callback(guard.end)
    await host.start()
    await asyncio.to_thread(_tell_idle_patterns, settings)
    return host


def open_live_metrics(declarations: Declarations, store: Storage, stack: AsyncExitStack) -> LiveMetrics:
    windows = LiveWindows(declarations.now.metrics.definitions.values())
    declarations.follow(lambda now: windows.declare(now.metrics.definitions.values()))
    live_metrics = LiveMetrics(store.log, store.bus, windows)
    live_metrics.start()
    stack.push_async_callback(asyncio.to_thread, live_metrics.stop)
    return live_metrics


def open_duplicates(store: Storage, stack: AsyncExitStack) -> DuplicateLedger:
    ledger = DuplicateLedger(store.state)
    ledger.start()
    stack.push_async_callback(asyncio.to_thread, ledger.close)
    return ledger


def open_store_writer(
    settings: Settings,
    declarations: Declarations,
    store: Storage,
    stack: AsyncExitStack,
    on_fatal: Callable[[StorageError], None],
) -> StoreWriter:
    days = settings.storage.retention_days
    writer = StoreWriter(
        store.log,
        store.lake,
        settings.storage,
        dedup_floor=lambda: store.dedup.floor,
        policy=declarations.now.retention(days),
        forget=store.state.forget,
        on_fatal=on_fatal,
    )
    declarations.follow(lambda now: writer.retain_by(now.retention(days)))
    writer.start()
    stack.push_async_callback(asyncio.to_thread, writer.stop)
    return writer


async def open_replays(settings: Settings, host: PluginHost, store: Storage, stack: AsyncExitStack) -> Replays:
    replays = Replays(
        lambda name: host.original(name), store.log, store.backlog(), SqliteSides(store.state), settings.lanes
    )
    await asyncio.to_thread(replays.start)
    stack.push_async_callback(asyncio.to_thread, replays.close)
    return replays


async def open_erasures(
    settings: Settings,
    store: Storage,
    host: PluginHost,
    writer: StoreWriter,
    live_metrics: LiveMetrics,
    history: History,
    replays: Replays,
    stack: AsyncExitStack,
) -> Erasures:
    places = Places(
        log=store.log,
        lake=store.lake,
        state=SqliteErasing(store.state),
        plugins=host.views,
        lanes=lambda: [live_metrics.view()],
        flush=lambda: writer.flush(_FLUSH_SECONDS),
        drop_caches=history.forget,
        earlier=history.earlier,
        drop_replays=replays.discard_all,
    )
    receipts = Receipts(store.state, read_secret(settings.storage.data_dir / "erasures.key"))
    erasures = Erasures(places, receipts, history, ids_of=history.identities.ids_of)
    erasures.start()
    stack.push_async_callback(asyncio.to_thread, erasures.close)
    return erasures


async def open_watch(settings: Settings, reloader: Reloader, stack: AsyncExitStack) -> None:
    """Take what changes into the running host, unless the operator does not want that.

    Returns before it watches: no request waits for that.
    """
    if settings.plugins.watch != "off":
        stack.push_async_callback(asyncio.to_thread, reloader.stop)
        starting = asyncio.create_task(asyncio.to_thread(reloader.start))  # its look finds what comes until then
        starting.add_done_callback(_tell_unwatched)
        stack.push_async_callback(asyncio.wait, [starting])


def _tell_unwatched(starting: asyncio.Task[None]) -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        _log.error("watch_failed", problem=str(error), exc_info=error)


def _tell_idle_patterns(settings: Settings) -> None:
    """Log each entry of the lists of plugins that matches none: the operator may have mistyped it."""
    if settings.plugins.allow or settings.plugins.deny:
        for which, pattern in idle_patterns(discover(), settings.plugins):
            _log.warning("plugin_list_matches_nothing", list=f"plugins.{which}", pattern=pattern)
