"""What may go wrong around a change: old code that hangs or fails, plugins that come back or cannot be there twice."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from analytics_core.host.life.budget import RestartPolicy
from analytics_core.manifest import Deployment, Limits, PluginSettingsManifest
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, House, until, until_state, view
from tests.flow.test_reload import TWICE, receipt, refreshed, rewrite

SETUP = "\n@hookimpl\ndef setup(self, context): pass\n"
TEARDOWN = (*COUNTING_HOOKS, "teardown")
FALLING = """
@hookimpl
def teardown(self):
    {body}
"""
ASKED = "@hookimpl\ndef insight(self, question, events): return None\n"
PROVIDES = {"analyses": [{"name": "asked", "title": "Asked", "parameters": {"type": "object"}}]}
ISOLATIONS = pytest.mark.parametrize("isolation", ["thread", "process"])


def test_an_old_generation_that_hangs_in_its_export_is_followed_from_the_checkpoint(
    house: House, tmp_path: Path
) -> None:
    gate = tmp_path / "hang"
    hanging = COUNTING.replace(
        'return {"n": self.n}', f'time.sleep(600 * Path({str(gate)!r}).exists()); return {{"n": self.n}}'
    )
    house.install("counting", hanging, isolation="thread")

    async def main() -> None:
        async with house.host(hang_seconds=1.0) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            gate.touch()
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            found = await receipt(host, "counting")
            assert (found.outcome, found.after, found.position) == ("active", 2, None)
            house.add(4)
            await until(lambda: house.value("counting") == 14, "twice seven")
            await until(lambda: view(host, "counting").state == "active", "it is well")

    asyncio.run(main())


def test_an_old_generation_that_cannot_export_is_followed_from_the_checkpoint(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "fail"
    failing = COUNTING.replace('return {"n"', f'assert not Path({str(gate)!r}).exists()\n    return {{"n"')
    house.install("counting", failing, isolation="thread")

    async def main() -> None:
        async with house.host(checkpoint_seconds=0.05) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            gate.touch()
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            found = await receipt(host, "counting")
            assert (found.outcome, found.after) == ("active", 2), found.reason
            house.add(4)
            await until(lambda: house.value("counting") == 14, "twice seven")

    asyncio.run(main())


def test_a_teardown_that_hangs_is_named_and_holds_up_nothing(house: House) -> None:
    house.install("counting", COUNTING + FALLING.format(body="time.sleep(600)"), TEARDOWN, isolation="thread")

    async def main() -> None:
        async with house.host(hang_seconds=0.5) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", TWICE + FALLING.format(body="pass"))
            await refreshed(host)
            await until(lambda: view(host, "counting").generation == 2, "the next generation is in")
            house.add(4)
            await until(lambda: house.value("counting") == 14, "twice seven")
            found = await receipt(host, "counting")
            assert found.outcome == "active"
            assert any("its teardown, which has not ended" in name for name in found.survivors)
            rewrite(house, "counting", COUNTING + FALLING.format(body="pass"))
            await refreshed(host)
            assert (await receipt(host, "counting", 2)).outcome == "active"
            seen = view(host, "counting")
            assert (seen.state, seen.errors) == ("active", 0), "the lane was not taken for the one that hangs"

    asyncio.run(main())


def test_a_reloaded_plugin_without_a_lane_goes_on(house: House) -> None:
    house.install("asked", ASKED, ("insight",), isolation="process", provides=PROVIDES)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "asked", "active")
            rewrite(house, "asked", ASKED + "\n# another\n")
            await refreshed(host)
            found = await receipt(host, "asked")
            assert found.outcome == "active"
            await asyncio.to_thread(host.refresh)
            seen = view(host, "asked")
            assert (seen.state, seen.generation, seen.errors) == ("active", 2, 0)
        assert house.states("asked") == ["loading", "starting", "active", "reloading", "active"]

    asyncio.run(main())


@ISOLATIONS
def test_a_plugin_may_gain_and_lose_its_lane(house: House, isolation: str) -> None:
    house.install("counting", ASKED, ("insight",), isolation=isolation, provides=PROVIDES)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "counting", "active")
            house.add(3)
            rewrite(house, "counting", COUNTING, hooks=list(COUNTING_HOOKS), provides={})
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "active"
            await until(lambda: house.value("counting") == 3, "it folds from the start")
            rewrite(house, "counting", ASKED, hooks=["insight"], provides=PROVIDES)
            await refreshed(host)
            assert (await receipt(host, "counting", 2)).outcome == "active"
            house.add(4)
            rewrite(house, "counting", TWICE, hooks=list(COUNTING_HOOKS), provides={})
            await refreshed(host)
            assert (await receipt(host, "counting", 3)).outcome == "active"
            await until(lambda: house.value("counting") == 14, "from its checkpoint on")

    asyncio.run(main())


def test_a_plugin_that_comes_back_is_another_generation(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            (entry,) = house.site.glob("plugin_counting_*.dist-info/entry_points.txt")
            text = entry.read_text()
            entry.unlink()
            assert await refreshed(host) == ["counting"]
            entry.write_text(text)
            assert await refreshed(host) == ["counting"]
            seen = await until_state(host, "counting", "active")
            assert seen.generation == 2
            house.add(4)
            await until(lambda: house.value("counting") == 7, "from its checkpoint on")

    asyncio.run(main())


def test_what_is_uninstalled_stops_though_a_manifest_names_it(house: House) -> None:
    house.install("counting", isolation="thread")
    named = Deployment(plugins={"counting": PluginSettingsManifest(name="counting", limits=Limits(call_seconds=9))})

    async def main() -> None:
        async with house.host(deployment=named) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            (entry,) = house.site.glob("plugin_counting_*.dist-info/entry_points.txt")
            text = entry.read_text()
            entry.unlink()
            assert await refreshed(host) == ["counting"]
            gone = view(host, "counting")
            assert (gone.state, gone.reason) == (
                "unresolved",
                "a plugin-settings manifest names it, but it is not installed",
            )
            assert (gone.version, gone.hooks, host.lanes()) == ("", [], [])
            house.add(4)
            entry.write_text(text)
            assert await refreshed(host) == ["counting"]
            assert (await until_state(host, "counting", "active")).generation == 2
            await until(lambda: house.value("counting") == 7, "from its checkpoint on")

    asyncio.run(main())


def test_what_a_plugin_requires_may_be_mended_or_no_longer_be_required(house: House) -> None:
    house.install("base", "def process(self, batch:", isolation="thread")
    house.install("user", isolation="thread", requires={"plugins": {"base": ">=1"}})
    house.install("other", isolation="thread", requires={"plugins": {"base": ">=1"}})

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "base", "load_error")
            for name in ("user", "other"):
                why = "requires 'base', which is load_error: "
                await until(lambda name=name, why=why: view(host, name).reason.startswith(why), f"{name} says why")
                assert view(host, name).state == "blocked"
            house.add(2)
            rewrite(house, "other", COUNTING, requires={})
            await refreshed(host)
            await until(lambda: house.value("other") == 2, "it requires nothing any more")
            rewrite(house, "base", COUNTING)
            await refreshed(host)
            await until(lambda: house.value("user") == 2, "what it requires runs")

    asyncio.run(main())


def test_a_plugin_begins_after_those_that_it_is_to_come_after(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"\n@hookimpl\ndef setup(self, context):\n    while not Path({str(gate)!r}).exists(): time.sleep(0.005)\n"
    house.install("zebra", COUNTING + wait, (*COUNTING_HOOKS, "setup"), isolation="thread")
    house.install("ant", isolation="thread", after=["zebra", "nobody"])
    house.install("ape", isolation="thread")

    async def main() -> None:
        async with house.host(settled=False) as host:
            await until_state(host, "zebra", "starting")
            await until_state(host, "ape", "active")
            assert view(host, "ant").state == "discovered"
            gate.touch()
            for name in ("zebra", "ant"):
                await until_state(host, name, "active")

    asyncio.run(main())


def test_in_a_circle_of_after_nobody_waits(house: House) -> None:
    house.install("ant", isolation="thread", after=["bee"])
    house.install("bee", isolation="thread", after=["ant"])

    async def main() -> None:
        async with house.host() as host:
            for name in ("ant", "bee"):
                assert (await until_state(host, name, "active")).errors == 0

    asyncio.run(main())


def test_a_rested_plugin_takes_a_change(house: House) -> None:
    policy = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=1, cool_down=0.1, cool_down_most=600.0)
    failing = COUNTING.replace(
        "self.n += len(batch)", "self.n += len(batch)\n    if self.n > 3: raise ValueError('four')"
    )
    house.install("counting", failing, isolation="thread")

    async def main() -> None:
        async with house.host(restarts=policy) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            house.add(1)
            await until(lambda: house.states("counting").count("quarantined") >= 3, "it rests for ever longer")
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            found = await receipt(host, "counting")
            assert found.outcome == "active"
            await until(lambda: house.value("counting") == 8, "the new code need not rest")

    asyncio.run(main())


def test_what_failed_to_load_says_whether_the_change_helped(house: House) -> None:
    house.install("counting", "def process(self, batch:", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "counting", "load_error")
            rewrite(house, "counting", "def process(self, batch, more:")
            await refreshed(host)
            found = await receipt(host, "counting")
            assert found.outcome == "failed"
            assert "SyntaxError" in found.reason
            rewrite(house, "counting", COUNTING)
            await refreshed(host)
            assert (await receipt(host, "counting", 2)).outcome == "active"

    asyncio.run(main())


def test_a_process_that_dies_after_a_rollback_comes_back_with_the_code_that_ran(house: House) -> None:
    pid = "Metric(name='pid', value=os.getpid(), window=Window(DAY, 86400))"
    told = COUNTING.replace("window=Window(DAY, 86400))]", f"window=Window(DAY, 86400)), {pid}]")
    house.install("counting", told, isolation="process")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", "def process(self, batch:")
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            os.kill(int(house.value("counting", "pid") or 0), signal.SIGKILL)
            house.add(4)
            await until(lambda: house.value("counting") == 7, "its own code, from its checkpoint")

    asyncio.run(main())


def test_a_failed_newer_copy_is_watched_too(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            (entry,) = house.site.glob("plugin_counting_*.dist-info/entry_points.txt")
            (home,) = house.site.glob("plugin_counting_*[!o]")
            moved = home.with_name(f"{home.name}_moved")
            home.rename(moved)
            moved.joinpath("__init__.py").write_text("class Plugin(:")
            manifest = moved / "plugin.yaml"
            manifest.write_text(manifest.read_text().replace(f"{home.name}:", f"{moved.name}:"))
            entry.write_text(entry.read_text().replace(f"{home.name}:", f"{moved.name}:"))
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            assert moved in host.places()

    asyncio.run(main())


# --- stop_first ------------------------------------------------------------------------------------------------------

EXCLUSIVE = (
    COUNTING
    + """
@hookimpl
def setup(self, context):
    import fcntl
    self.lock = open({lock!r}, "w")
    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

@hookimpl
def teardown(self):
    self.lock.close()
"""
)
EXCLUSIVE_HOOKS = (*COUNTING_HOOKS, "setup", "teardown")


@ISOLATIONS
def test_a_plugin_of_which_no_two_may_be_is_stopped_first(house: House, tmp_path: Path, isolation: str) -> None:
    body = EXCLUSIVE.replace("{lock!r}", "LOCKS.pop()")
    head = f"LOCKS = [{str(tmp_path / 'b')!r}, {str(tmp_path / 'a')!r}]\n"
    house.install("counting", body, EXCLUSIVE_HOOKS, isolation=isolation, head=head, reload={"strategy": "stop_first"})

    def save(text: str) -> None:
        rewrite(house, "counting", text)
        (home,) = house.site.glob("plugin_counting_*[!o]")
        source = home / "__init__.py"
        source.write_text(source.read_text().replace("class Plugin", head + "class Plugin", 1))

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            save(body.replace("value=self.n,", "value=2 * self.n,"))
            await refreshed(host)
            found = await receipt(host, "counting")
            assert (found.outcome, found.reason, found.events_lost) == ("active", "", 0)
            assert list(found.seconds) == ["stop", "begin"]
            house.add(4)
            await until(lambda: house.value("counting") == 14, "twice seven")
            save(body.replace('self.n = state["n"]', 'raise ValueError("no such state")'))
            await refreshed(host)
            found = await receipt(host, "counting", 2)
            assert found.outcome == "rolled_back"
            assert "no such state" in found.reason
            house.add(1)
            await until(lambda: house.value("counting") == 16, "the one before, with the code that it had")
            assert (view(host, "counting").state, view(host, "counting").generation) == ("rolled_back", 2)

    asyncio.run(main())


def test_what_does_not_compile_stops_nothing(house: House) -> None:
    house.install("counting", isolation="thread", reload={"strategy": "stop_first"})

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", "def process(self, batch:")
            await refreshed(host)
            found = await receipt(host, "counting")
            assert (found.outcome, found.seconds) == ("rolled_back", {})
            assert "SyntaxError" in found.reason
        assert house.states("counting") == ["loading", "starting", "active", "rolled_back"]

    asyncio.run(main())


def told(**settings: Any) -> Deployment:
    return Deployment(plugins={"counting": PluginSettingsManifest(name="counting", **settings)})


def test_a_reload_that_is_asked_for_answers_for_itself(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"\n@hookimpl\ndef setup(self, context):\n    while not Path({str(gate)!r}).exists(): time.sleep(0.005)\n"
    house.install("counting", COUNTING + SETUP, (*COUNTING_HOOKS, "setup"), isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", COUNTING + wait)
            await refreshed(host)
            asked = [asyncio.create_task(asyncio.to_thread(host.reload, "counting")) for _ in range(2)]
            await until(lambda: sum(each.done() for each in asked) == 1, "one is passed over")
            gate.touch()
            outcomes = sorted([(await each).outcome for each in asked])
            assert outcomes == ["active", "superseded"]
            assert [each.outcome for each in host.receipts("counting")] == ["active", "active"]

    asyncio.run(main())


def test_another_isolation_is_another_generation(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            await refreshed(host, told(isolation="process"))
            found = await receipt(host, "counting")
            assert (found.outcome, found.survivors) == ("active", ())
            assert view(host, "counting").isolation == "process"
            house.add(4)
            await until(lambda: house.value("counting") == 7, "the state has crossed")

    asyncio.run(main())


# --- what only a restart takes in, and what is moved -----------------------------------------------------------------


def distribution(site: Path, name: str, version: str, source: str) -> None:
    """A library that plugins may require, as pip leaves it."""
    for old in site.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    (site / f"{name}.py").write_text(source)
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).decode().rstrip("=")
    (info / "RECORD").write_text(f"{name}.py,sha256={digest},{len(source)}\n{name}-{version}.dist-info/METADATA,,\n")


@ISOLATIONS
def test_a_changed_dependency_needs_a_restart_in_a_thread_and_none_in_a_process(house: House, isolation: str) -> None:
    library = f"library_{isolation}"
    distribution(house.site, library, "1.0", "FACTOR = 1\n")
    body = COUNTING.replace("value=self.n,", "value=library.FACTOR * self.n,")
    house.install("counting", body, isolation=isolation, head=f"import {library} as library\n")
    (metadata,) = house.site.glob("plugin_counting_*.dist-info/METADATA")
    metadata.write_text(metadata.read_text() + f"Requires-Dist: {library}\n")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            await refreshed(host)
            distribution(house.site, library, "1.1", "FACTOR = 10\n")
            assert await refreshed(host) == ["counting"]
            found = await receipt(host, "counting")
            if isolation == "thread":
                assert found.outcome == "restart_required"
                assert f"{library} 1.0 -> 1.1" in found.reason
                assert view(host, "counting").state == "restart_required"
                house.add(1)
                await until(lambda: house.value("counting") == 4, "the running generation goes on")
                distribution(house.site, library, "1.0", "FACTOR = 1\n")
                await refreshed(host)
                await until_state(host, "counting", "active")
            else:
                assert found.outcome == "active"
                house.add(1)
                await until(lambda: house.value("counting") == 40, "with the new library")

    asyncio.run(main())


def test_what_sits_in_a_registry_of_the_process_needs_a_restart(house: House) -> None:
    head = "def found(name): return None\nimport codecs\ncodecs.register(found)\n"
    house.install("counting", isolation="thread", head=head)

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            found = await receipt(host, "counting")
            assert found.outcome == "restart_required"
            assert "codec search function found" in found.reason
            assert view(host, "counting").generation == 1

    asyncio.run(main())


def test_a_thread_that_blocks_the_event_loop_again_and_again_gets_a_process(house: House) -> None:
    holding = COUNTING.replace(
        "self.n += len(batch)",
        "self.n += len(batch)\n    if len(batch): hold()",
    )
    head = """
        def hold():
            until = time.monotonic() + 0.6
            while time.monotonic() < until:
                pass
        """
    house.install("counting", holding, isolation="thread", head=head)
    interval = sys.getswitchinterval()

    async def main() -> None:
        async with house.host() as host:
            sys.setswitchinterval(5.0)  # Python code then keeps the lock, as C code does that never lets go of it
            sent = 0
            while view(host, "counting").isolation == "thread":
                house.add(1)
                sent += 1
                await asyncio.sleep(0.05)
                assert sent < 400
            sys.setswitchinterval(interval)
            seen = await until_state(host, "counting", "active")
            assert seen.isolation == "process"
            assert "in a process of its own, since it has blocked the event loop 3 times" in seen.reason
            await until(lambda: house.value("counting") == sent, "every event once")
            assert await refreshed(host) == [], "it stays there"

    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(interval)
