"""Runs one fault in one isolation, in every hook, and tells in words of `fault_cells.WORDS` what the host has done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psutil
from msgspec import Struct

from analytics_core.errors import (
    HookFailedError,
    HookTimeoutError,
    OverloadedError,
    PluginUnavailableError,
    WorkerDiedError,
)
from tests.flow.fault_cells import CALLS, START, Hook
from tests.flow.fault_plugins import BESIDE, HOME, MOVES, install, pids
from tests.flow.fault_runs import Run, first_run, running
from tests.flow.plugin_house import until, until_state, view

_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.03
_TROUBLE: Final = frozenset({"load_error", "start_error", "retrying", "degraded", "quarantined", "rolled_back"})
_ASKED_TOGETHER: Final[tuple[Hook, ...]] = ("enrich", "guard")
_APART: Final[tuple[tuple[Hook, ...], ...]] = (
    ("export_state", "erase", "process"),
    ("ingest", "reply", "teardown", "insight"),
)
_ERRORS: Final = {
    HookTimeoutError: "timed_out",
    HookFailedError: "failed",
    WorkerDiedError: "died",
    OverloadedError: "rejected",
}


class Seen(Struct):
    """What was seen in one cell: ``words``; what was ``told`` of the fault; a ``problem``, when it came to no end."""

    words: set[str] = set()
    told: str = ""
    problem: str = ""


class Cell:
    """One hook of a `Run`, from the fault to the mended plugin."""

    def __init__(self, run: Run, hook: Hook) -> None:
        self.run = run
        self.hook = hook
        self.plugin = HOME[hook]
        self.seen = Seen()
        self._mark = 0 if hook in START else len(run.pushes(self.plugin))
        self._pids = 1 if hook in START else len(pids(run.house, self.plugin))
        self.blocks = (run.fault, run.isolation) == ("holds", "thread")
        self.again_and_again = self.blocks and hook in MOVES

    async def observed(self) -> Seen:
        """All of it. What never comes is the ``problem``; the fault is mended in any case."""
        steps = _start if self.hook in START else _called if self.hook in CALLS else _PROVOKED[self.hook]
        try:
            await steps(self)
            assert self.run.done(self.hook), "the plugin has never reached its fault"
        except Exception as error:
            self.seen.problem = f"{type(error).__name__}: {error}; states: {self._pushes()}"
        finally:
            self.run.mend(self.hook)
        self._sum_up()
        return self.seen

    def _pushes(self) -> list[tuple[str, str]]:
        return self.run.pushes(self.plugin)[self._mark :]

    def troubled(self) -> bool:
        return any(state in _TROUBLE for state, _ in self._pushes())

    async def comes(self, condition: Callable[[], Any], what: str, seconds: float = _SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}"
            await asyncio.sleep(_LOOK_SECONDS)

    async def mended(self) -> None:
        """Mend the fault, and wait until the plugin runs and has counted all."""
        run = self.run
        run.mend(self.hook)
        if view(run.host, self.plugin).state in ("load_error", "start_error"):
            assert (await run.reload(self.plugin)).outcome == "active"
        run.add(1)
        await self.comes(lambda: run.exact(self.plugin), f"{run.accepted} events of {self.plugin} and its neighbour")
        await self.comes(lambda: view(run.host, self.plugin).state == "active", f"{self.plugin} active")

    async def left(self) -> None:
        """What of the plugin a reload leaves behind in the host's process."""
        if self.run.isolation == "process":
            return
        receipt = await self.run.reload(self.plugin)
        assert receipt.outcome == "active", receipt
        if any(f"leftover-{self.hook}" in name for name in receipt.survivors):
            self.seen.words.add("survivor")

    async def moved(self) -> None:
        """The host wants it in another process, and gets it there as soon as the lock is free."""
        await self.comes(lambda: any(state == "reloading" for state, _ in self._pushes()), "the next generation", 60.0)
        self.run.mend(self.hook)
        await self.comes(lambda: view(self.run.host, self.plugin).isolation == "process", "its process")
        self.seen.words.add("moved")

    def _sum_up(self) -> None:
        words, died = self.seen.words, len(pids(self.run.house, self.plugin)) > self._pids
        for state, reason in self._pushes():
            if state in ("load_error", "start_error"):
                words.add(state)
            elif state in _TROUBLE and self.run.isolation == "process" and died:
                words.add("restarted")
            elif state in _TROUBLE:
                words.add("abandoned" if "no answer within" in reason else "retried")
        if self.blocks and self.run.stalled(self.hook):
            words.add("stalled")
        if not words:
            words.add("unseen")
        self.seen.told = "; ".join([self.seen.told, *(reason for _, reason in self._pushes())])


async def _start(cell: Cell) -> None:
    """Armed before the host has started."""
    run = cell.run
    await cell.comes(lambda: cell.troubled() or view(run.host, cell.plugin).state == "active", "an end of the start")
    if (run.fault, run.isolation) == ("hoards", "process"):
        await cell.comes(cell.troubled, "the look at its memory")
    if run.fault == "leaves":
        await cell.left()
    await cell.mended()


async def _folded(cell: Cell) -> None:
    """``process``, ``export_state`` and ``erase``."""
    run = cell.run
    run.arm(cell.hook)
    if cell.hook == "erase":
        run.erase()
    run.add(2)
    if cell.again_and_again:
        await cell.moved()
    await cell.comes(lambda: cell.troubled() or run.exact(cell.plugin), "the fault, or the count")
    if run.fault == "leaves":
        await cell.left()
    await cell.mended()


async def _called(cell: Cell) -> None:
    run = cell.run
    run.arm(cell.hook)
    asked = asyncio.create_task(run.call(cell.hook))
    if cell.again_and_again:
        await cell.moved()
    try:
        if not await asked:
            cell.seen.words.add("passed_over")
    except (HookFailedError, WorkerDiedError, OverloadedError) as error:
        cell.seen.words.add(_ERRORS[type(error)])
        cell.seen.told = str(error)
    run.add(1)
    await cell.comes(lambda: run.exact(cell.plugin), "the count while the fault is there")
    if run.fault == "leaves":
        await cell.left()
    await cell.mended()
    deadline = time.monotonic() + _SECONDS
    while not await _answers(run, cell.hook):
        assert time.monotonic() < deadline, "it never answers again"
        await asyncio.sleep(0.05)


async def _answers(run: Run, hook: Hook) -> bool:
    try:
        return await run.call(hook)
    except (HookFailedError, WorkerDiedError, OverloadedError, PluginUnavailableError):
        return False


async def _retired(cell: Cell) -> None:
    run = cell.run
    run.arm("teardown", view(run.host, cell.plugin).generation)
    before = int(pids(run.house, cell.plugin)[-1])
    receipt = await run.reload(cell.plugin)
    cell.seen.words.add("retired" if receipt.outcome == "active" else receipt.outcome)
    if receipt.survivors:
        cell.seen.words.add("survivor")
    cell.seen.told = f"{receipt.reason} {receipt.survivors}"
    if run.isolation == "process":
        await cell.comes(lambda: not psutil.pid_exists(before), "the end of its process")
    run.add(1)
    await cell.mended()


_PROVOKED: dict[str, Callable[[Cell], Awaitable[None]]] = {
    "process": _folded,
    "export_state": _folded,
    "erase": _folded,
    "teardown": _retired,
}


async def observe(run: Run) -> dict[Hook, Seen]:
    """What was seen in each hook; one with a ``problem`` too when the counts do not agree at the end."""
    await first_run(run)
    for plugin in set(HOME.values()) - {HOME["import_state"]}:
        install(run.house, plugin, run.fault, run.isolation)
    for hook in START:
        run.arm(hook)
    found: dict[Hook, Seen] = {}
    async with running(run):
        await _all_cells(run, found)
        run.add(1)
        await _all_agree(run, found)
    for hook, seen in found.items():
        if run.isolation == "process" and any(psutil.pid_exists(int(pid)) for pid in pids(run.house, HOME[hook])):
            seen.problem = seen.problem or "its process outlives the host"
    return found


async def _all_cells(run: Run, found: dict[Hook, Seen]) -> None:
    one_by_one = run.fault == "holds"  # else other cells' events and the lock meet
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(_in_turn(run, (hook,), found)) for hook in START]
        if one_by_one:
            await asyncio.wait(starts)
        for hook in _ASKED_TOGETHER:
            await until_state(run.host, HOME[hook], "active")
        await _in_turn(run, _ASKED_TOGETHER, found)
        for hooks in _APART:
            going = group.create_task(_in_turn(run, hooks, found))
            if one_by_one:
                await going


async def _in_turn(run: Run, hooks: tuple[Hook, ...], found: dict[Hook, Seen]) -> None:
    for hook in hooks:
        found[hook] = await Cell(run, hook).observed()


async def _all_agree(run: Run, found: dict[Hook, Seen]) -> None:
    """The counts after all, when whatever was given up has long woken up again; the neighbour has noticed nothing."""
    for hook, seen in found.items():
        try:
            await until(lambda plugin=HOME[hook]: run.exact(plugin), "the last count", 5.0)  # type: ignore[misc]
            assert run.house.log.durable == run.accepted + run.tombstones
            assert [state for state, _ in run.pushes(BESIDE)] == ["loading", "starting", "active"]
            assert view(run.host, BESIDE).errors == 0
        except AssertionError as error:
            seen.problem = seen.problem or f"at the end: {error}"
