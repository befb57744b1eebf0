"""A real plugin host in one directory: log, state store, lanes and supervisor, with the plugins as threads."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from analytics_core.bus.memory import MemoryBus
from analytics_core.config import Lanes, Settings, Storage
from analytics_core.errors import NotFoundError
from analytics_core.events import UNPLACED_SCHEMA, EventBatch
from analytics_core.host.discovery import Found
from analytics_core.host.health import FINAL, RestartPolicy
from analytics_core.host.plugins import PluginHost
from analytics_core.host.views import PluginView
from analytics_core.log.segments import SegmentLog, partition_directory
from analytics_core.manifest import Deployment, PluginSettingsManifest
from analytics_core.state import Checkpoint, Message, Outputs, Point
from analytics_core.state.sqlite import SqliteState
from analytics_core.testing.rows import Feed, Row
from analytics_core.testing.subjects import found

QUICK: Final = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=3, hangs=2, cool_down=600.0)
"""A plugin that fails is tried again at once, and rests for good after three failures or two hangs in a row."""
_CHECKPOINT_SECONDS: Final = 0.02
_RISING: Final = frozenset({"discovered", "loading", "starting"})
_HOPELESS: Final = FINAL | {"blocked", "quarantined"}
_BEGIN, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)

T = TypeVar("T")


class EmbeddedHost:
    """The host as it runs in production, but for the server: what is posted is durable at once, and each plugin folds
    it on a lane of its own. Made by `embedded`; every method may be called from the test's own thread.
    """

    def __init__(self, host: PluginHost, loop: _Loop, log: SegmentLog, state: _State, feed: Feed) -> None:
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
        if len(made) and self._host.enriches():
            made, dropped = self._loop.run(self._host.enrich(made))
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
        subjects = stack.enter_context(found(plugins, directory / "site"))
        deployment = Deployment(
            plugins={each.name: _intent(each, (settings or {}).get(each.name, {})) for each in subjects}
        )
        data = directory / "data"
        lanes = Lanes(checkpoint_seconds=_CHECKPOINT_SECONDS, hang_seconds=hang_seconds)
        told = Settings(storage=Storage(data_dir=data), lanes=lanes)
        log = SegmentLog(partition_directory(data), disk_reserve_bytes=0)
        stack.callback(log.close)
        state = _State(data / "state.db")
        stack.callback(state.close)
        loop = stack.enter_context(_Loop.running())

        async def opened() -> PluginHost:
            bus = MemoryBus(asyncio.get_running_loop())
            stack.callback(lambda: loop.run(bus.close()))
            host = PluginHost(told, deployment, log, None, state, bus, find=lambda: subjects, restarts=restarts)
            stack.callback(lambda: loop.run(host.close()))
            await host.start()
            return host

        host = loop.run(opened())
        _wait_for_start(host, min(2 * hang_seconds, 10.0))
        yield EmbeddedHost(host, loop, log, state, feed)


def _intent(plugin: Found, settings: Mapping[str, Any]) -> PluginSettingsManifest:
    return PluginSettingsManifest(name=plugin.name, settings=dict(settings), isolation="thread")


def _wait_for_start(host: PluginHost, seconds: float) -> None:
    """Until every plugin has come to something; one that hangs in its start is not waited for any longer."""
    deadline = time.monotonic() + seconds
    while any(view.state in _RISING for view in host.views()) and time.monotonic() < deadline:
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


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="analytics-host", daemon=True)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[_Loop]:
        loop = cls()
        loop._thread.start()
        try:
            yield loop
        finally:
            loop._loop.call_soon_threadsafe(loop._loop.stop)
            loop._thread.join()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Wait for ``call`` on the loop."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
