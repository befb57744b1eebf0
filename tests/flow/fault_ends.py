"""Faults that end the host when they happen on one of its threads: each in a process of its own, and then once more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from analytics_core.host.life.boot_guard import BootGuard, Journal
from tests.flow.fault_cells import CALLS, START, Fault, Hook
from tests.flow.fault_plugins import BESIDE, HOME, install
from tests.flow.fault_runs import Run, first_run, running
from tests.flow.fault_sightings import Seen
from tests.flow.plugin_house import House, until, until_state, view

_AT_ONCE: Final = 2
_SURVIVED: Final = 99
_CODES: Final[dict[Fault, int]] = {"ends": 3, "segfaults": -11}


def observe_ends(folder: Path, fault: Fault) -> dict[Hook, Seen]:
    """What was seen in each hook. The processes are forked off one that has no threads."""
    command = f"from tests.flow.fault_ends import fork_all; fork_all({str(folder)!r}, {fault!r})"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", command], env=env, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return {hook: msgspec.json.decode((folder / hook / "seen").read_bytes(), type=Seen) for hook in HOME}


def fork_all(folder: str, fault: Fault) -> None:
    """Each hook after the other, a few at once. Ends with 1 when one could not be observed."""
    parts = [list(HOME)[first::_AT_ONCE] for first in range(_AT_ONCE)]
    codes = [_code(child) for child in [_forked(partial(_each, Path(folder), fault, part)) for part in parts]]
    sys.exit(any(codes))


def _each(folder: Path, fault: Fault, hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        (folder / hook).mkdir()
        code = _code(_forked(partial(_in_loop, _goes, folder / hook, fault, hook)))
        assert _code(_forked(partial(_in_loop, _comes_back, folder / hook, fault, hook, code))) == 0


def _in_loop(run: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    asyncio.run(run(*arguments))


def _forked(call: Callable[[], None]) -> int:
    """The process that does it; it ends with 1 when that fails."""
    child = os.fork()
    if child:
        return child
    try:
        call()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _code(child: int) -> int:
    """How a process ended: its exit code, or a signal's number below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Acknowledging(Run):
    """Writes down how many events the host has acknowledged, as their sender would."""

    def add(self, n: int) -> None:
        super().add(n)
        written = _acknowledged(self.house).with_suffix(".new")
        written.write_text(str(self.accepted))
        written.replace(_acknowledged(self.house))  # whole, whenever this process ends


def _acknowledged(house: House) -> Path:
    return house.site.parent / "acknowledged"


def _stored(house: House) -> int:
    """How many events are in the log."""
    return house.log.durable - len(house.log.tombstones.current())


def _journal(house: House) -> Journal:
    return Journal(house.data / "starts.json")


async def _goes(folder: Path, fault: Fault, hook: Hook) -> None:
    """A host, until it is gone."""
    run, plugin = _Acknowledging(House(folder), fault, "thread"), HOME[hook]
    if hook == "import_state":
        await first_run(run)
    else:
        run.house.install(BESIDE, isolation="thread")
        install(run.house, plugin, fault, "thread")
        run.add(3)
    if hook in START:
        run.arm(hook)
    guard = BootGuard(_journal(run.house))
    async with running(run, guard):
        await until_state(run.host, plugin, "active")
        await until(lambda: run.exact(plugin), "the count before")
        guard.ready()
        run.arm(hook, view(run.host, plugin).generation)
        if hook in CALLS:
            await run.call(hook)
        elif hook == "teardown":
            await run.reload(plugin)
        elif hook == "erase":
            run.erase()
        run.add(2)
        await asyncio.sleep(5)
    os._exit(_SURVIVED)


async def _comes_back(folder: Path, fault: Fault, hook: Hook, code: int) -> None:
    """The next start of that host, with the plugin mended."""
    run, plugin = Run(House(folder), fault, "thread"), HOME[hook]
    start = _journal(run.house).read().start
    words = {"gone"} | ({"named"} if start is not None and plugin in start.suspects else set())
    ended = f"its host has ended with {code}" if code != _CODES[fault] else ""
    seen = Seen(words, problem=ended if run.done(hook) else "the plugin has never reached its fault")
    run.mend(hook)
    acknowledged, run.accepted = int(_acknowledged(run.house).read_text()), _stored(run.house)
    try:
        assert run.accepted >= acknowledged, f"of {acknowledged} acknowledged events {run.accepted} are left"
        async with running(run):
            await until(lambda: run.exact(plugin), f"{run.accepted} events of {plugin} and of {BESIDE}", 10)
            run.add(1)
            await until(lambda: run.exact(plugin), "the next event", 10)
            await until_state(run.host, plugin, "active")
    except AssertionError as error:
        seen.problem = str(error)
    (folder / "seen").write_bytes(msgspec.json.encode(seen))
