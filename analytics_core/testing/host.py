"""A real plugin host in one directory: log, state store, lanes and supervisor, with the plugins as threads."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from analytics_core.bus.memory import MemoryBus
from analytics_core.config import Lanes, Settings, Storage
from analytics_core.errors import NotFoundError
from analytics_core.events import UNPLACED_SCHEMA, EventBatch
from analytics_core.host.code.threads import LoopThread
from analytics_core.host.health import BEGINNING, FINAL
from analytics_core.host.installed.discovery import Found, discover
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.plugins import PluginHost
from analytics_core.host.views import PluginView
from analytics_core.log.segments import SegmentLog, partition_directory
from analytics_core.manifest import Deployment, PluginSettingsManifest
from analytics_core.state import Checkpoint, Message, Outputs, Point
from analytics_core.state.sqlite import SqliteState
from analytics_core.testing.declared import manifest_of
from analytics_core.testing.rows import Feed, Row

QUICK: Final = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=3, hangs=2, refill=3600.0, cool_down=600.0)
"""A plugin that fails is tried again at once, and rests for good after three failures or two hangs in a row."""
_CHECKPOINT_SECONDS: Final = 0.02
_HOPELESS: Final = FINAL | {"blocked", "quarantined"}
_BEGIN, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

_given: Final[dict[str, type]] = {}
"""The classes that packages made here stand for, by package."""
_numbers: Final = count(1)
_SOURCE: Final = '''"""Stands for a class that a test has given."""

from analytics_core.testing.host import given

Plugin = given({package!r})
'''


class EmbeddedHost:
    """The host as it runs in production, but for the server: what is posted is durable at once, and each plugin folds
    it on a lane of its own. Made by `embedded`; every method may be called from the test's own thread.
    """

    def __init__(self, host: PluginHost, loop: LoopThread, log: SegmentLog, state: _State, feed: Feed) -> None:
        self._host = host
        self._loop = loop
        self._log = log
        self._state = state
        self._feed = feed

    def post(self, rows: Sequence[Row] = (), tenant: str = "default") -> int:
        """Make rows durable, as `batch` takes them, after the plugins that enrich; the position after them. Without
        rows only the clock's time is written, as an idle host does each second.

        :raises OverloadedError: when a plugin with ``on_failure: reject`` gave no answer.
        """
        made = self._feed(rows, tenant)
        watermark = made.watermark
        if len(made) and self._host.calls.enriches():
            made, dropped = self._loop.submit(self._host.calls.enrich(made)).result()
            made = made if dropped is None else made.filter(~np.asarray(dropped))
        self._log.append([_unplaced(made)] if len(made) else [], watermark)
        return self._log.durable

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until every plugin runs and its lane has made durable what it found in all that was posted.

        :raises AssertionError: when a plugin will never run, or after so many seconds; with its state and reason.
        """
        deadline = time.monotonic() + seconds
        while waiting := self._waiting():
            for view in waiting:
                said = (
                    f"plugin {view.name!r} is {view.state}, {view.lag} positions behind: {view.reason or 'no reason'}"
                )
                assert view.state not in _HOPELESS, said
                assert time.monotonic() < deadline, f"after {seconds:g} s {said}"
            time.sleep(0.005)

    def _waiting(self) -> list[PluginView]:
        durable = self._log.durable
        waiting = []
        for view in self._host.views():
            behind = "process" in view.hooks and self._state.committed.get(view.name, -1) < durable
            if behind or view.state != "active":
                waiting.append(view)
        return waiting

    def metric(self, name: str, tenant: str = "default", **labels: str) -> list[Point]:
        """The stored points of ``plugin.metric``, oldest first; with ``labels`` those that carry all of them.

        :raises NotFoundError: for a plugin that this host does not have.
        """
        plugin, _, metric = name.partition(".")
        points = self._state.points(tenant, metric, _BEGIN, _END, labels or None)
        return [point for point in points if point.lane == self.plugin(plugin).name]

    def insights(self, plugin: str, tenant: str = "default") -> list[dict[str, Any]]:
        """The stored insights of a plugin, oldest first."""
        return self._state.records(tenant, "insight", lane=plugin, limit=1_000)

    def patterns(self, plugin: str, tenant: str = "default") -> list[dict[str, Any]]:
        """The stored patterns of a plugin, oldest first."""
        return self._state.records(tenant, "pattern", lane=plugin, limit=1_000)

    def plugin(self, name: str) -> PluginView:
        """What ``GET /api/v1/plugins`` says of a plugin: its state, the reason, its errors, its lag."""
        views = {view.name: view for view in self._host.views()}
        if name not in views:
            raise NotFoundError("plugin of this host", name, views)
        return views[name]

    def until(self, name: str, state: str, seconds: float = 30.0) -> PluginView:
        """Wait until a plugin is in ``state``. :raises AssertionError: when that has not come after so many seconds."""
        deadline = time.monotonic() + seconds
        while (view := self.plugin(name)).state != state:
            assert time.monotonic() < deadline, (
                f"after {seconds:g} s {name!r} is {view.state}, not {state}: {view.reason}"
            )
            time.sleep(0.005)
        return view


@contextmanager
def embedded(
    plugins: Sequence[type | str],
    directory: Path,
    feed: Feed,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    hang_seconds: float = 30.0,
    restarts: RestartPolicy = QUICK,
) -> Iterator[EmbeddedHost]:
    """A host that runs ``plugins``, classes or installed names, over what is in ``directory``.

    ``settings`` are the operator's, by plugin name. A hook that takes longer than ``hang_seconds`` has hung.
    """
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        found = stack.enter_context(_found(plugins, directory / "site"))
        deployment = Deployment(
            plugins={each.name: _intent(each, (settings or {}).get(each.name, {})) for each in found}
        )
        data = directory / "data"
        lanes = Lanes(checkpoint_seconds=_CHECKPOINT_SECONDS, hang_seconds=hang_seconds)
        told = Settings(storage=Storage(data_dir=data), lanes=lanes)
        log = SegmentLog(partition_directory(data), disk_reserve_bytes=0)
        stack.callback(log.close)
        state = _State(data / "state.db")
        stack.callback(state.close)
        loop = LoopThread("analytics-host")
        stack.callback(_end, loop)

        async def opened() -> PluginHost:
            bus = MemoryBus(asyncio.get_running_loop())
            stack.callback(lambda: loop.submit(bus.close()).result())
            host = PluginHost(told, deployment, log, None, state, bus, find=lambda: found, restarts=restarts)
            stack.callback(lambda: loop.submit(host.close()).result())
            await host.start()
            return host

        host = loop.submit(opened()).result()
        _wait_for_start(host, min(2 * hang_seconds, 10.0))
        yield EmbeddedHost(host, loop, log, state, feed)


def _end(loop: LoopThread) -> None:
    loop.submit(loop.loop.shutdown_default_executor()).result()
    loop.stop()
    loop.join()


def _intent(plugin: Found, settings: Mapping[str, Any]) -> PluginSettingsManifest:
    return PluginSettingsManifest(name=plugin.name, settings=dict(settings), isolation="thread")


def _wait_for_start(host: PluginHost, seconds: float) -> None:
    """Until every plugin has come to something; one that hangs in its start is not waited for any longer."""
    deadline = time.monotonic() + seconds
    while any(view.state in BEGINNING for view in host.views()) and time.monotonic() < deadline:
        time.sleep(0.005)


def _unplaced(made: EventBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(made.record_batch.columns[2:], schema=UNPLACED_SCHEMA)


class _State(SqliteState):
    """Remembers how far each lane is durable."""

    def __init__(self, path: Path) -> None:
        self.committed: dict[str, int] = {}
        super().__init__(path)

    def claim(self, lane: str) -> Checkpoint:
        checkpoint = super().claim(lane)
        self.committed[lane] = checkpoint.position
        return checkpoint

    def commit(self, checkpoint: Checkpoint, outputs: Sequence[Outputs] = (), messages: Sequence[Message] = ()) -> int:
        position = super().commit(checkpoint, outputs, messages)
        self.committed[checkpoint.lane] = checkpoint.position
        return position


# --- what it runs ----------------------------------------------------------------------------------------------------


def given(package: str) -> type:
    """The class for which a package made here stands."""
    return _given[package]


@contextmanager
def _found(plugins: Sequence[type | str], site: Path) -> Iterator[list[Found]]:
    """Each plugin as the host discovers it. A name is what is installed under it; a class is that very object, under
    its own ``plugin.yaml`` if it has one, in a package that is written below ``site``.

    :raises NotFoundError: for a name under which nothing is installed.
    """
    packages: list[str] = []
    try:
        made = []
        for plugin in plugins:
            if isinstance(plugin, str):
                made.append(_installed(plugin))
            else:
                packages.append(f"analytics_given_{next(_numbers)}")
                made.append(_standing_for(plugin, packages[-1], site))
        yield made
    finally:
        for package in packages:
            _given.pop(package, None)


def _installed(name: str) -> Found:
    installed = {each.name: each for each in discover()}
    if name not in installed:
        raise NotFoundError("installed plugin", name, installed)
    return installed[name]


def _standing_for(plugin_class: type, package: str, site: Path) -> Found:
    directory = site / package
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(_SOURCE.format(package=package), encoding="utf-8")
    _given[package] = plugin_class
    manifest = replace(manifest_of(plugin_class), entry=f"{package}:Plugin")
    return Found(manifest.name, package, "0", package, directory, manifest)
