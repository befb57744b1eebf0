"""A house whose plugins have one fault, in one isolation: to arm it, to mend it, and to see what goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from analytics_core.events import EventBatch, placed
from analytics_core.events.owners import Owners
from analytics_core.host.life.boot_guard import BootGuard
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.plugins import PluginHost
from analytics_core.host.running import runtime
from analytics_core.manifest import Deployment, PluginSettingsManifest
from analytics_core.records import Outcome, Question, Request, TimeRange
from tests.flow.fault_cells import Fault, Hook, Isolation
from tests.flow.fault_plugins import BESIDE, HELD_SECONDS, HOME, flags, install
from tests.flow.plugin_house import T0, House, rows, until

PATIENT = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=100, hangs=100)


class Reader:
    """Reads nothing, here and in a process."""

    def to_spec(self) -> Reader:
        return self

    def open(self) -> Reader:
        return self


class Run:
    """A house in which the plugins of `fault_plugins.HOME` have one fault, beside one that has none."""

    def __init__(self, house: House, fault: Fault, isolation: Isolation) -> None:
        self.house = house
        self.fault = fault
        self.isolation = isolation
        self.accepted = 0
        self.tombstones = 0
        self.host: PluginHost
        self._gaps: list[tuple[float, float]] = []

    # --- the fault

    def arm(self, hook: Hook, generation: int | None = None) -> None:
        self._flag(hook).write_text("" if generation is None else str(generation))

    def mend(self, hook: Hook) -> None:
        self._flag(hook).unlink(missing_ok=True)

    def armed(self, plugin: str) -> bool:
        return any(self._flag(hook).exists() for hook, home in HOME.items() if home == plugin)

    def done(self, hook: Hook) -> bool:
        return self._flag(hook, ".done").exists()

    def _flag(self, hook: Hook, suffix: str = "") -> Path:
        return Path(f"{flags(self.house, HOME[hook])}.{hook}{suffix}")

    # --- what goes on

    def add(self, n: int) -> None:
        self.house.add(n)
        self.accepted += n

    def erase(self) -> None:
        """A tombstone of somebody who has no event."""
        self.house.log.erase("a", Owners(("nobody",)), "k")
        self.tombstones += 1

    async def call(self, hook: Hook) -> bool:
        """Call a concurrent hook; whether it has answered as it does without a fault."""
        request = Request(method="POST", path="/f", headers={}, query={}, body=b"", tenant="a")
        match hook:
            case "insight":
                question = Question(analysis="q", tenant="a", range=TimeRange(T0, T0))
                return bool((await self.host.calls.insight(question, Reader())).table == [{"n": 1}])
            case "ingest":
                return await self.host.calls.ingest(HOME[hook], request) == []
            case "reply":
                return (await self.host.calls.reply(HOME[hook], request, Outcome())).status == 200
        batch = EventBatch(placed(rows("a", ["x", "y"], T0), 0), "a", T0)
        enriched, dropped = await self.host.calls.enrich(batch)
        assert dropped is None
        return set(enriched.column("properties").to_pylist()) == {'{"by": "passes"}'}

    async def reload(self, plugin: str) -> ReloadReceipt:
        return await asyncio.to_thread(self.host.reload, plugin)

    def exact(self, plugin: str) -> bool:
        return self.house.value(plugin) == self.house.value(BESIDE) == self.accepted

    def pushes(self, plugin: str) -> list[tuple[str, str]]:
        """Every state of a plugin so far, with its reason."""
        bodies = [msgspec.json.decode(m.body) for m in self.house.pushed if m.topic == "plugin"]
        return [(body["state"], body["reason"]) for body in bodies if body["plugin"] == plugin]

    def stalled(self, hook: Hook) -> bool:
        """Whether the event loop has not turned while the plugin says that it has held the lock in ``hook``."""
        told = self._flag(hook, ".held")
        if not told.exists():
            return False
        began, ended = map(float, told.read_text().split())
        return any(min(ended, after) - max(began, before) >= HELD_SECONDS for before, after in self._gaps)

    async def turn(self) -> None:
        """Notes when the event loop does not turn."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            if now - before >= HELD_SECONDS:
                self._gaps.append((before, now))
            before = now


async def first_run(run: Run) -> None:
    """Gives the plugin that is to import a state one, and its neighbour, in a host of threads."""
    name = HOME["import_state"]
    run.house.install(BESIDE, isolation="thread")
    install(run.house, name, run.fault, run.isolation)
    intent = Deployment(plugins={name: PluginSettingsManifest(name=name, isolation="thread")})
    async with run.house.host(deployment=intent):
        run.add(3)
        await until(lambda: run.exact(name), "the first count")
    run.house.pushed.clear()
    flags(run.house, name).with_name(f"{name}.pids").unlink()


@asynccontextmanager
async def running(run: Run, guard: BootGuard | None = None) -> AsyncIterator[None]:
    """A host in which every plugin has been begun."""
    sticks = run.fault in ("hangs", "spins", "holds")
    with _impatient(run) if sticks else nullcontext():
        turning = asyncio.create_task(run.turn())
        async with run.house.host(
            restarts=PATIENT, enrich_seconds=1.0 if sticks else 5.0, settled=False, guard=guard, checkpoint_seconds=0.05
        ) as run.host:
            yield
        turning.cancel()


def _impatient(run: Run) -> AbstractContextManager[Any]:
    """The minute that an import may take is a few seconds: for threads, and for processes that are to stick in it."""
    if run.isolation == "thread":
        return mock.patch.object(runtime, "LOAD_SECONDS", 2.0)

    def load_seconds(subject: runtime.Subject) -> float:
        return 3.0 if subject.name in ("import", "init") and run.armed(subject.name) else runtime.LOAD_SECONDS

    return mock.patch.object(runtime.Subject, "load_seconds", property(load_seconds))
