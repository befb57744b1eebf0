"""A house with real storage whose plugins are written on the spot, each as an installed distribution."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent, indent
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pyarrow as pa
import structlog
import yaml

from analytics_core.bus.memory import MemoryBus
from analytics_core.config import Intake, Lanes, Plugins, Settings, Storage
from analytics_core.events import UNPLACED_SCHEMA, micros
from analytics_core.events.columns import times_column, word
from analytics_core.host.health import BEGINNING
from analytics_core.host.installed.discovery import discover
from analytics_core.host.life.boot_guard import BootGuard
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.plugins import PluginHost
from analytics_core.host.running import process
from analytics_core.host.views import PluginView
from analytics_core.lake import EventStore
from analytics_core.lanes.fold import Backlog
from analytics_core.log.segments import SegmentLog, partition_directory
from analytics_core.manifest import Deployment
from analytics_core.state import Message
from analytics_core.state.sqlite import SqliteState
from tests.flow.nursery import fork_worker

T0 = datetime(2025, 1, 1, tzinfo=UTC)
QUICK = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=3, hangs=2, refill=3600.0, cool_down=600.0)

COUNTING = """
def __init__(self):
    self.n = 0

@hookimpl
def process(self, batch):
    self.n += len(batch)
    if len(batch):
        return ProcessResult([Metric(name="events", value=self.n, window=Window(DAY, 86400))])

@hookimpl
def export_state(self):
    return {"n": self.n}

@hookimpl
def import_state(self, state, version):
    self.n = state["n"]
"""
COUNTING_HOOKS = ("process", "export_state", "import_state")

_HEAD = """
import asyncio, ctypes, os, sys, time
from datetime import datetime, timezone
from pathlib import Path
from analytics_core import *
DAY = datetime(2025, 1, 1, tzinfo=timezone.utc)
"""


def head() -> str:
    """What every plugin's module begins with."""
    return _HEAD


def install(
    site: Path, name: str, body: str, hooks: Sequence[str], *, version: str = "1.0", head: str = "", **manifest: Any
) -> None:
    """A distribution under ``site`` with one plugin class, ``body`` its methods."""
    package = f"plugin_{name.replace('-', '_')}_{site.parent.name.replace('-', '_')}"
    home = site / package
    home.mkdir(parents=True)
    code = f"{_HEAD}\n{dedent(head)}\nclass Plugin:\n{indent(dedent(body), '    ')}\n"
    (home / "__init__.py").write_text(code, encoding="utf-8")
    declared = {"kind": "plugin", "manifest": 1, "name": name, "entry": f"{package}:Plugin", "hooks": list(hooks)}
    (home / "plugin.yaml").write_text(yaml.safe_dump({**declared, **manifest}), encoding="utf-8")
    info = site / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")
    entry = f"[analytics_core.plugins]\n{name} = {package}:plugin.yaml\n"
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")


def rows(tenant: str, names: Sequence[str], at: datetime) -> pa.RecordBatch:
    n = len(names)
    return pa.RecordBatch.from_arrays(
        [
            word(tenant, n),
            pa.array([f"{tenant}-{micros(at)}-{i}" for i in range(n)]),
            pa.array(list(names), pa.string()).dictionary_encode(),
            *[pa.nulls(n, pa.string())] * 3,
            *[times_column(np.full(n, micros(at), np.int64))] * 2,
            word("native", n),
            *[pa.array(["{}"] * n, pa.string())] * 2,
        ],
        schema=UNPLACED_SCHEMA,
    )


class House:
    """Log, state store and bus over one directory. `host` runs a plugin host in it."""

    def __init__(self, directory: Path, *, segment_bytes: int = 64 << 20) -> None:
        self.site = directory / "site"
        self.site.mkdir(exist_ok=True)
        self.data = directory / "data"
        self.log = SegmentLog(partition_directory(self.data), segment_bytes=segment_bytes, disk_reserve_bytes=0)
        self.state = SqliteState(self.data / "state.db")
        self.store: EventStore | None = None
        self.backlog: Backlog | None = None
        self.at = T0
        self.pushed: list[Message] = []

    def install(self, name: str, body: str = COUNTING, hooks: Sequence[str] = COUNTING_HOOKS, **options: Any) -> None:
        install(self.site, name, body, hooks, **options)

    def add(self, n: int = 1, tenant: str = "a", name: str = "x", after: float = 1.0) -> None:
        """One commit of ``n`` events; with none only the watermark."""
        self.at += timedelta(seconds=after)
        self.log.append([rows(tenant, [name] * n, self.at)] if n else [], self.at)

    @asynccontextmanager
    async def host(
        self,
        *,
        plugins: Plugins | None = None,
        deployment: Deployment | None = None,
        restarts: RestartPolicy = QUICK,
        hang_seconds: float = 30.0,
        enrich_seconds: float = 5.0,
        checkpoint_seconds: float = 0.02,
        settled: bool = True,
        guard: BootGuard | None = None,
        forked: bool = True,
    ) -> AsyncIterator[PluginHost]:
        """A running host; with ``settled`` one in which every plugin has come to something, or hangs in its start.

        Its workers come from the `nursery`, unless they are not to be ``forked``.
        """
        settings = Settings(
            plugins=plugins or Plugins(),
            storage=Storage(data_dir=self.data),
            lanes=Lanes(checkpoint_seconds=checkpoint_seconds, hang_seconds=hang_seconds),
            intake=Intake(enrich_seconds=enrich_seconds),
        )
        bus = MemoryBus(asyncio.get_running_loop())
        bus.subscribe(self.pushed.append)
        sys.path.insert(0, str(self.site))
        host = PluginHost(
            settings,
            deployment or Deployment(),
            self.log,
            self.store,
            self.state,
            bus,
            find=lambda: discover([str(self.site)]),
            backlog=self.backlog,
            restarts=restarts,
            guard=guard,
        )
        with mock.patch.object(process, "launch", fork_worker) if forked else nullcontext():
            try:
                await host.start()
                if settled:
                    await until_settled(host, min(2 * hang_seconds, 10.0))
                yield host
            finally:
                await host.close()
                await bus.close()
                sys.path.remove(str(self.site))

    def value(self, plugin: str, metric: str = "events", tenant: str = "a") -> float | None:
        """The stored value of a plugin's metric on the first day."""
        points = self.state.points(tenant, metric, T0, T0 + timedelta(days=1))
        return next((point.value for point in points if point.lane == plugin), None)

    def states(self, plugin: str) -> list[str]:
        """Every state that was pushed for a plugin, in order."""
        bodies = [msgspec.json.decode(m.body) for m in self.pushed if m.topic == "plugin"]
        return [body["state"] for body in bodies if body["plugin"] == plugin]

    def close(self) -> None:
        self.state.close()
        self.log.close()


@contextmanager
def captured_logs() -> Iterator[list[Any]]:
    """As `structlog.testing.capture_logs`, whose list of processors is empty for a moment: a thread that logs then ends
    in a TypeError."""
    capture, before = structlog.testing.LogCapture(), structlog.get_config()["processors"]
    structlog.configure(processors=[capture])
    try:
        yield capture.entries
    finally:
        structlog.configure(processors=before)


def view(host: PluginHost, name: str) -> PluginView:
    return next(v for v in host.views() if v.name == name)


async def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what}; threads: {[t.name for t in threading.enumerate()]}"
        await asyncio.sleep(0.005)
    return value


async def until_settled(host: PluginHost, seconds: float) -> None:
    """Until no plugin is on its way up any more, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while any(v.state in BEGINNING for v in host.views()) and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


async def until_state(host: PluginHost, name: str, state: str) -> PluginView:
    def reached() -> PluginView | None:
        seen = view(host, name)
        return seen if seen.state == state else None

    found: PluginView = await until(reached, f"{name} {state}, it is {view(host, name)}")
    return found
