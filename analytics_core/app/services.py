"""What the API is given: all of the host, opened in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from os import environ

from analytics_core.api import Services
from analytics_core.app.lanes import (
    open_duplicates,
    open_erasures,
    open_history,
    open_host,
    open_intake,
    open_live_metrics,
    open_replays,
    open_store_writer,
    open_watch,
)
from analytics_core.app.storage import Storage, open_storage
from analytics_core.config import Settings
from analytics_core.erasure.export import UserExports
from analytics_core.errors import StorageError
from analytics_core.host.caretaker import Caretaker
from analytics_core.host.reloader import Reloader
from analytics_core.intake import Intake
from analytics_core.live import Live
from analytics_core.manifest import read_deployment
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.cohort_sizes import CohortSizes
from analytics_core.queries.declarations import Declarations
from analytics_core.queries.identity.merging import Merging
from analytics_core.queries.insights import Insights
from analytics_core.queries.submissions import Submissions
from analytics_core.state.sqlite_erasing import SqliteErasing


async def open_services(
    settings: Settings, load: Callable[[], Settings], stack: AsyncExitStack, on_fatal: Callable[[StorageError], None]
) -> Services:
    """Open storage, plugins and lanes on the running loop; ``stack`` closes them.

    ``load`` gives the settings that a restart would bring. ``on_fatal`` is told, from a thread, when the host cannot go
    on: the log is corrupt.
    """
    deployment = await asyncio.to_thread(read_deployment, settings.manifests_dir, environ)
    store = await open_storage(settings, stack)
    history = open_history(settings, store, stack)
    declarations = Declarations(history, store.state, deployment)
    host = await open_host(settings, deployment, store, stack)
    writer = open_store_writer(settings, declarations, store, stack, on_fatal)
    live_metrics = open_live_metrics(declarations, store, stack)
    duplicates = open_duplicates(store, stack)
    intake = open_intake(settings, store, host, duplicates, stack)
    submissions = Submissions(intake.accept_events, host.calls, host.views, store.state)
    stack.push_async_callback(submissions.close)
    live = Live(store.bus, max_connections=settings.live.max_connections, queue_messages=settings.live.queue_messages)
    stack.callback(live.close)
    reloader = Reloader(host, settings, deployment, environ=environ, load=load, apply=declarations.apply)
    await open_watch(settings, reloader, stack)
    store.outbox.start()  # last: what a crash has left unpublished is for those who listen now
    analyses = Analyses(
        host.calls,
        history,
        lambda: declarations.now.metrics,
        cohorts=lambda: declarations.now.cohorts,
        week_start=lambda tenant: declarations.now.week_start(tenant),
        duplicates=duplicates.count,
    )
    replays = await open_replays(settings, host, store, stack)
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
        state=store.state,
        live=live,
        live_metrics=live_metrics,
        maintenance=writer,
        erasures=await open_erasures(settings, store, host, writer, live_metrics, history, replays, stack),
        user_exports=UserExports(history, SqliteErasing(store.state), host.views, ids_of=history.identities.ids_of),
        figures=partial(_figures, store, intake, live),
        started_at=datetime.now(UTC),
    )


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
