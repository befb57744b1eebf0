"""Who is looked after, blamed for a blocked event loop and moved to a process; and what none of that may disturb."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from analytics_core.host.life.boot_guard import BootGuard, Journal
from analytics_core.host.plugins import PluginHost
from analytics_core.manifest import Deployment, PluginSettingsManifest
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, House, until, until_state, view
from tests.flow.test_handover_races import QUESTION, answer, insight, setup, waiting
from tests.flow.test_plugin_host import Spec
from tests.flow.test_reload import receipt, refreshed, rewrite
from tests.flow.test_succession import PROVIDES

pytestmark = pytest.mark.usefixtures("no_thread_fails")

SETUP = (*COUNTING_HOOKS, "setup")


# --- the supervisor --------------------------------------------------------------------------------------------------


def test_a_plugin_that_waits_for_its_turn_holds_up_no_other(house: House, tmp_path: Path) -> None:
    gate, failed, journal = tmp_path / "gate", tmp_path / "failed", Journal(tmp_path / "starts")
    once = "self.n += len(batch)\n    if self.n > 3 and not failed.exists(): failed.touch(); raise ValueError('once')"
    well = COUNTING.replace("self.n += len(batch)", once)
    house.install("ant", well, isolation="thread", head=f"failed = Path({str(failed)!r})\n")
    for name in ("bee", "cat"):
        house.install(name, COUNTING + setup(waiting(gate)), SETUP, isolation="thread", after=["ant"])
    BootGuard(journal)  # a start that came to nothing: in the next one they begin one after another

    async def main() -> None:
        async with house.host(settled=False, guard=BootGuard(journal, turn_seconds=0.05)) as host:
            house.add(3)
            await until(lambda: house.value("ant") == 3, "the first events")
            names = {"lane:bee", "lane:cat"}
            await until(lambda: names <= {thread.name for thread in threading.enumerate()}, "both are to begin")
            await until(lambda: "starting" in {view(host, "bee").state, view(host, "cat").state}, "one has begun")
            house.add(1)
            await until(lambda: house.value("ant") == 4, "it has failed, and was tried again")
            assert "active" not in {view(host, "bee").state, view(host, "cat").state}
            gate.touch()
            for name in ("bee", "cat"):
                await until_state(host, name, "active")

    asyncio.run(main())


class Counting(BootGuard):
    """Counts the rounds of the supervisor."""

    rounds = 0

    def tick(self) -> None:
        self.rounds += 1
        super().tick()


def test_the_supervisor_sleeps_while_a_plugin_waits_for_another(house: House) -> None:
    house.install("base", "def process(self, batch:", isolation="thread")
    house.install("user", isolation="thread", requires={"plugins": {"base": ">=1"}})
    guard = Counting()

    async def main() -> None:
        async with house.host(guard=guard) as host:
            await until_state(host, "user", "blocked")
            before, began = guard.rounds, time.monotonic()
            await until(lambda: guard.rounds >= before + 5, "five rounds")
            assert time.monotonic() - began > 0.5, "two a second, but for those that a change has caused"

    asyncio.run(main())


# --- what is moved to a process --------------------------------------------------------------------------------------


def burn() -> None:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass


def test_only_the_work_of_a_plugin_is_blamed_on_it_and_not_the_work_of_its_change(house: House) -> None:
    """Threads of the host's own hold the lock under the names of those that look for survivors; then one does under
    that of the lane, which shows that the former were seen too."""
    house.install("counting", isolation="thread")
    interval = sys.getswitchinterval()

    def block(times: int) -> None:
        for _ in range(times):
            time.sleep(0.4)  # its processor time is looked at before and after
            burn()
        time.sleep(0.4)

    async def blocked(name: str, times: int) -> None:
        thread = threading.Thread(target=block, args=(times,), name=name, daemon=True)
        thread.start()
        await until(lambda: not thread.is_alive(), f"{name} has ended")

    async def main() -> None:
        async with house.host() as host:
            sys.setswitchinterval(5.0)  # Python code then keeps the lock, as C code does that never lets go of it
            await blocked("reload:counting", 1)
            await blocked("retire:counting", 1)
            tries = 0
            while view(host, "counting").state == "active" and view(host, "counting").isolation == "thread":
                await blocked("lane:counting", 1)
                tries += 1
                assert tries < 10
            sys.setswitchinterval(interval)
            assert tries >= 3, "the others did not count"
            assert (await receipt(host, "counting")).outcome == "active"
            assert view(host, "counting").isolation == "process"

    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("trouble", ["source", "settings"])
def test_what_is_moved_to_a_process_is_what_runs_and_not_a_later_broken_change(house: House, trouble: str) -> None:
    """`Roster.isolate` is called as for whoever goes on to block the loop, which would take seconds to force."""
    told = setup("self.factor = context.settings.get('factor', -1)")
    body = COUNTING.replace("value=self.n,", "value=self.factor * self.n,") + told
    schema = {"type": "object", "properties": {"factor": {"type": "integer", "default": 1}}}
    house.install("counting", body, SETUP, isolation="thread", settings=schema)

    def tell(factor: object) -> Deployment:
        return Deployment(plugins={"counting": PluginSettingsManifest(name="counting", settings={"factor": factor})})

    def moved(host: PluginHost) -> bool:
        host._roster.isolate("counting", "has blocked the event loop")
        return view(host, "counting").isolation == "process"

    async def main() -> None:
        async with house.host(deployment=tell(10)) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 30, "ten times three")
            if trouble == "source":
                rewrite(house, "counting", "def process(self, batch:")
            await refreshed(host, tell("many") if trouble == "settings" else None)
            await until_state(host, "counting", "rolled_back")
            await until(lambda: moved(host), "it has a process of its own")
            house.add(1)
            await until(lambda: house.value("counting") == 40, "with the code and the settings that it had")

    asyncio.run(main())


def test_what_cannot_run_in_a_process_is_not_said_to_run_in_one(house: House, tmp_path: Path) -> None:
    here, failed = (Path(tmp_path / name) for name in ("here", "failed"))
    once = "self.n += len(batch)\n    if self.n == 2 and not failed.exists(): failed.touch(); raise ValueError('once')"
    head = f"""
    here, failed = Path({str(here)!r}), Path({str(failed)!r})
    if here.exists(): raise RuntimeError("not twice")
    here.touch()
    """
    house.install("counting", COUNTING.replace("self.n += len(batch)", once), isolation="thread", head=head)

    async def main() -> None:
        async with house.host() as host:
            host._roster.isolate("counting", "has blocked the event loop")
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            house.add(2)
            await until(lambda: house.value("counting") == 2, "it goes on after its failure")
            seen = await until_state(host, "counting", "active")
            assert (seen.isolation, seen.reason) == ("thread", "")

    asyncio.run(main())


def test_what_sits_in_a_registry_of_the_host_does_not_hinder_a_process(house: House) -> None:
    head = "def found(name): return None\nimport codecs\ncodecs.register(found)\n"
    house.install("counting", isolation="thread", head=head)
    apart = Deployment(plugins={"counting": PluginSettingsManifest(name="counting", isolation="process")})

    async def main() -> None:
        async with house.host() as host:
            await refreshed(host, apart)
            assert (await receipt(host, "counting")).outcome == "active"
            assert view(host, "counting").isolation == "process"

    asyncio.run(main())


# --- processes -------------------------------------------------------------------------------------------------------


def test_an_old_process_that_comes_up_again_late_is_not_the_present_one(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, pid = tmp_path / "gate", tmp_path / "pid"
    body = insight(answer(1), tmp_path, tmp_path) + setup(f"Path({str(pid)!r}).write_text(str(os.getpid()))")
    house.install("asked", body, ("insight", "setup"), isolation="process", provides=PROVIDES)
    connected, held, free = socket.socketpair, threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread().name == "lane:asked":
            held.set()
            free.wait()
        return connected(*arguments, **options)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "asked", "active")
            rewrite(house, "asked", insight(answer(2), tmp_path, tmp_path) + setup(waiting(gate)))
            await refreshed(host)
            await until_state(host, "asked", "reloading")
            monkeypatch.setattr(socket, "socketpair", slowly)  # what a process begins with
            os.kill(int(pid.read_text()), signal.SIGKILL)
            await until(held.is_set, "the old one is tried again")
            late = next(thread for thread in threading.enumerate() if thread.name == "lane:asked")
            gate.touch()
            assert (await receipt(host, "asked")).outcome == "active"
            free.set()
            await until(lambda: not late.is_alive(), "the old one has ended")
            seen = await until_state(host, "asked", "active")
            assert seen.generation == 2
            assert (await host.calls.insight(QUESTION, Spec([]))).table.to_pydict() == {"n": [2]}

    asyncio.run(main())
