"""Opens everything the host is made of, in order, and closes it in the opposite order: one `AsyncExitStack`, no engine.

    log ─ dedup ─ lake ─ state ─ bus ─ outbox ─ plugin host ─ store writer ─ live metrics ─ intake ─ live ─ HTTP

Whoever opens a thing puts its closing on the stack, so a start that fails half-way closes what it had opened.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from os import environ
from typing import NamedTuple

import structlog
import uvloop
from aiohttp import web

from analytics_core.api import Services, build, runner
from analytics_core.bus.memory import MemoryBus
from analytics_core.config import Settings, check_exposure
from analytics_core.erasure.erasing import Places
from analytics_core.erasure.erasures import Erasures
from analytics_core.erasure.export import UserExports
from analytics_core.erasure.receipts import Receipts
from analytics_core.errors import ConfigError, StorageError
from analytics_core.host.caretaker import Caretaker
from analytics_core.host.installed.admission import idle_patterns
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.provenance import check_lock
from analytics_core.host.life.boot_guard import BootGuard, Journal
from analytics_core.host.plugins import PluginHost
from analytics_core.host.reloader import Reloader
from analytics_core.host.replaying.replays import Replays
from analytics_core.intake import Intake
from analytics_core.intake.duplicates import DuplicateLedger
from analytics_core.lake.delta import DeltaStore
from analytics_core.lanes.fold import Backlog
from analytics_core.lanes.live_metrics import LiveMetrics
from analytics_core.lanes.outbox import OutboxReader
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.live import Live
from analytics_core.log.dedup import Deduplicator
from analytics_core.log.ids import read_secret
from analytics_core.log.segments import SegmentLog, partition_directory
from analytics_core.log.tombstones import woven
from analytics_core.logs import configure_logging
from analytics_core.manifest import Deployment, read_deployment
from analytics_core.memory import arrange
from analytics_core.metrics.live import LiveWindows
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.cohort_sizes import CohortSizes
from analytics_core.queries.declarations import Declarations
from analytics_core.queries.history import History
from analytics_core.queries.identity.merging import Merging
from analytics_core.queries.insights import Insights
from analytics_core.queries.submissions import Submissions
from analytics_core.state.sqlite import SqliteState
from analytics_core.state.sqlite_erasing import SqliteErasing
from analytics_core.state.sqlite_side import SqliteSides

_log = structlog.get_logger("host")
_QUESTIONS_AT_ONCE = 16
"""Threads for what asks the stores; DuckDB has threads of its own beside each."""
_FLUSH_SECONDS = 5.0
"""How long an erasure waits for the store writer, before it looks whether it is to stop."""
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


class Storage(NamedTuple):
    """What is on disk, and the way out of it."""

    log: SegmentLog
    dedup: Deduplicator
    lake: DeltaStore
    state: SqliteState
    bus: MemoryBus
    outbox: OutboxReader

    def backlog(self) -> Backlog:
        """What the log has trimmed."""
        return woven(self.lake.read, self.log.tombstones.current)


async def open_services(
    settings: Settings, load: Callable[[], Settings], stack: AsyncExitStack, on_fatal: Callable[[StorageError], None]
) -> Services:
    """Open storage, plugins and lanes on the running loop; ``stack`` closes them.

    ``load`` gives the settings that a restart would bring. ``on_fatal`` is told, from a thread, when the host cannot go
    on: the log is corrupt.
    """
    deployment = await asyncio.to_thread(read_deployment, settings.manifests_dir, environ)
    log, dedup, lake, state, bus, outbox = store = await _open_storage(settings, stack)
    history = History(
        log, lake, log_directory=log.directory, erased=log.tombstones.current, cache=settings.storage.data_dir / "cache"
    )
    stack.push_async_callback(asyncio.to_thread, history.close)
    declarations = Declarations(history, state, deployment)
    host = await _host(settings, deployment, store, stack)
    writer = _store_writer(settings, declarations, store, stack, on_fatal)
    live_metrics = _live_metrics(declarations, store, stack)
    duplicates = _duplicates(store, stack)
    intake = Intake(settings.intake, log, dedup, host.calls, tell_duplicates=duplicates.add)
    intake.start()
    stack.push_async_callback(intake.stop)
    submissions = Submissions(intake.accept_events, host.calls, host.views, state)
    stack.push_async_callback(submissions.close)
    live = Live(bus, max_connections=settings.live.max_connections, queue_messages=settings.live.queue_messages)
    stack.callback(live.close)
    reloader = Reloader(host, settings, deployment, environ=environ, load=load, apply=declarations.apply)
    await _watch(settings, reloader, stack)
    outbox.start()  # last: what a crash has left unpublished is for those who listen now
    analyses = Analyses(
        host.calls,
        history,
        lambda: declarations.now.metrics,
        cohorts=lambda: declarations.now.cohorts,
        week_start=lambda tenant: declarations.now.week_start(tenant),
        duplicates=duplicates.count,
    )
    replays = await _replays(settings, host, store, stack)
    return Services(
        settings=settings,
        declarations=declarations,
        manifests=reloader.view,
        intake=intake,
        host=host,
        replays=replays,
        caretaker=Caretaker(host, settings, environ, reloader.look),
        lanes=lambda: [writer.view(), live_metrics.view(), *host.lanes()],
        history=history,
        analyses=analyses,
        insights=Insights(host.calls, analyses),
        cohorts=CohortSizes(history, lambda: declarations.now),
        merging=Merging(intake.accept_events, history.identities, history.reader),
        submissions=submissions,
        state=state,
        live=live,
        live_metrics=live_metrics,
        maintenance=writer,
        erasures=await _erasures(settings, store, host, writer, live_metrics, history, replays, stack),
        user_exports=UserExports(history, SqliteErasing(state), host.views, ids_of=history.identities.ids_of),
        figures=partial(_figures, store, intake, live),
        started_at=datetime.now(UTC),
    )


async def _host(settings: Settings, deployment: Deployment, store: Storage, stack: AsyncExitStack) -> PluginHost:
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


def _live_metrics(declarations: Declarations, store: Storage, stack: AsyncExitStack) -> LiveMetrics:
    windows = LiveWindows(declarations.now.metrics.definitions.values())
    declarations.follow(lambda now: windows.declare(now.metrics.definitions.values()))
    live_metrics = LiveMetrics(store.log, store.bus, windows)
    live_metrics.start()
    stack.push_async_callback(asyncio.to_thread, live_metrics.stop)
    return live_metrics


def _duplicates(store: Storage, stack: AsyncExitStack) -> DuplicateLedger:
    ledger = DuplicateLedger(store.state)
    ledger.start()
    stack.push_async_callback(asyncio.to_thread, ledger.close)
    return ledger


def _store_writer(
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


async def _replays(settings: Settings, host: PluginHost, store: Storage, stack: AsyncExitStack) -> Replays:
    replays = Replays(
        lambda name: host.original(name), store.log, store.backlog(), SqliteSides(store.state), settings.lanes
    )
    await asyncio.to_thread(replays.start)
    stack.push_async_callback(asyncio.to_thread, replays.close)
    return replays


async def _erasures(
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


async def _watch(settings: Settings, reloader: Reloader, stack: AsyncExitStack) -> None:
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


async def _open_storage(settings: Settings, stack: AsyncExitStack) -> Storage:
    storage = settings.storage
    data = storage.data_dir
    data.mkdir(parents=True, exist_ok=True)
    log = SegmentLog(
        partition_directory(data),
        segment_bytes=storage.segment_bytes,
        log_max_bytes=storage.log_max_bytes,
        disk_reserve_bytes=storage.disk_reserve_bytes,
    )
    stack.callback(log.close)
    dedup = Deduplicator(log, window=storage.dedup_window)
    stack.callback(dedup.close)
    lake = DeltaStore(data / "lake" / "events")
    stack.push_async_callback(asyncio.to_thread, lake.close)
    state = SqliteState(data / "state.db")
    stack.callback(state.close)
    bus = MemoryBus(asyncio.get_running_loop())
    stack.push_async_callback(bus.close)
    outbox = OutboxReader(state, bus)
    stack.push_async_callback(asyncio.to_thread, outbox.stop)
    return Storage(log, dedup, lake, state, bus, outbox)


def _figures(store: Storage, intake: Intake, live: Live) -> dict[str, int | float]:
    """What the host counts about itself, since its start."""
    return {
        "durable_position": store.log.durable,
        "dedup_window_reached": store.dedup.reached,
        "events_accepted": intake.accepted,
        "events_duplicate": intake.duplicates,
        "events_rejected": intake.rejected,
        "events_clamped": intake.clamped,
        "ingest_requests": intake.requests,
        "ingest_queued_bytes": intake.queued_bytes,
        "last_commit_seconds": intake.commit_seconds,
        "live_connections": live.connections,
        "live_dropped": live.dropped,
    }


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
