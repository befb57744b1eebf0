"""Every cell of the fault matrix, fault by hook by isolation: the host has done in it what `fault_cells` says it must.

All hooks of one fault in one isolation share a host: what it did is observed once, and each cell is a test of its own.
"""

from __future__ import annotations

import ast
import asyncio
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import msgspec
import pytest

import analytics_core
from analytics_core.hookspecs import HOOKS
from analytics_core.host.calls import Calls
from tests.flow.fault_cells import MATRIX, NOT_CALLED_YET, TELLING, TOLD, WORDS, Fault, Hook, Isolation
from tests.flow.fault_ends import observe_ends
from tests.flow.fault_plugins import BESIDE, HOME, install
from tests.flow.fault_runs import Run, running
from tests.flow.fault_sightings import Seen, observe
from tests.flow.plugin_house import House, until, until_state, view

pytestmark = pytest.mark.timeout(300)  # one test may observe what others then only read

ISOLATIONS: Final[tuple[Isolation, ...]] = get_args(Isolation)
ROWS: Final[dict[str, str]] = {"import": "", "init": "", "guard": "enrich"}
"""Hooks of the matrix that are not specified under their own name."""

SEEN: Final = "seen.json"


def _cells() -> Iterator[object]:
    for fault in MATRIX:
        for number, isolation in enumerate(ISOLATIONS):
            for hook, must in MATRIX[fault].items():
                yield pytest.param(fault, hook, isolation, must[number], id=f"{hook}-{fault}-{isolation}")


class Observations:
    """What was seen, observed once however many processes run the tests; these do different ones at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, fault: Fault, isolation: Isolation) -> dict[Hook, Seen]:
        wanted = self._place(fault, isolation)
        while not (wanted / SEEN).exists():
            ahead = ((each, where) for each in reversed(MATRIX) for where in ISOLATIONS)  # those that take long first
            if not self._observed(fault, isolation) and not any(self._observed(*each) for each in ahead):
                time.sleep(0.1)
        return msgspec.json.decode((wanted / SEEN).read_bytes(), type=dict[Hook, Seen])

    def _observed(self, fault: Fault, isolation: Isolation) -> bool:
        """Observe it, unless it is done or another process is at it; whether that was to be done."""
        folder = self._place(fault, isolation)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if (folder / SEEN).exists():
                return False
            try:
                found = _observe(folder, fault, isolation)
            except Exception as error:  # once for all its cells, not once for each
                found = {hook: Seen(problem=f"{type(error).__name__}: {error}") for hook in HOME}
            (folder / "seen.tmp").write_bytes(msgspec.json.encode(found))
            (folder / "seen.tmp").rename(folder / SEEN)
            return True

    def _place(self, fault: Fault, isolation: Isolation) -> Path:
        folder = self._folder / f"matrix-{fault}-{isolation}"
        folder.mkdir(exist_ok=True)
        return folder


@pytest.fixture(scope="session")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Observations:
    top = tmp_path_factory.getbasetemp()
    return Observations(top.parent if "PYTEST_XDIST_WORKER" in os.environ else top)


def _observe(folder: Path, fault: Fault, isolation: Isolation) -> dict[Hook, Seen]:
    if isolation == "thread" and fault in ("ends", "segfaults"):
        return observe_ends(folder, fault)
    house = House(folder)
    try:
        return asyncio.run(observe(Run(house, fault, isolation)))
    finally:
        house.close()


@pytest.mark.parametrize(("fault", "hook", "isolation", "must"), list(_cells()))
def test_the_host_does_what_it_must(
    observations: Observations, fault: Fault, hook: Hook, isolation: Isolation, must: str
) -> None:
    seen = observations.of(fault, isolation)[hook]
    assert (sorted(seen.words), seen.problem) == (sorted(must.split()), ""), seen.told
    if seen.words & TELLING:
        assert re.search(TOLD[fault], seen.told), seen.told


def test_a_plugin_whose_export_has_failed_is_well_again_without_further_events(tmp_path: Path) -> None:
    run = Run(House(tmp_path), "raises", "thread")
    plugin = HOME["export_state"]

    async def main() -> None:
        run.house.install(BESIDE, isolation="thread")
        install(run.house, plugin, run.fault, run.isolation)
        async with running(run):
            run.arm("export_state")
            run.add(3)
            await until_state(run.host, plugin, "degraded")
            run.mend("export_state")
            await until(lambda: run.exact(plugin), "the count")
            await until(lambda: view(run.host, plugin).state == "active", "the end of its trouble", 1.0)

    try:
        asyncio.run(main())
    finally:
        run.house.close()


def test_no_cell_is_missing_and_every_word_is_explained() -> None:
    assert list(MATRIX) == list(get_args(Fault))
    assert all(list(row) == list(get_args(Hook)) for row in MATRIX.values())
    used = {word for row in MATRIX.values() for cell in row.values() for must in cell for word in must.split()}
    assert used == set(WORDS)


def test_the_matrix_has_every_hook_that_the_host_calls() -> None:
    called = {ROWS.get(hook, hook) for hook in get_args(Hook)} - {""}
    assert called == HOOKS - NOT_CALLED_YET
    assert called == set(_called_in_the_core())
    assert not NOT_CALLED_YET & set(dir(Calls)), "the host offers a hook that the matrix has no row for"


def _called_in_the_core() -> Iterator[str]:
    """Names of hooks that are an argument of a call, in all of the core but what authors test with."""
    core = Path(analytics_core.__file__).parent
    for path in core.rglob("*.py"):
        if path.relative_to(core).parts[0] == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "call" in node.func.attr:
                yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in HOOKS)
