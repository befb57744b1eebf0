"""Hot reload: the next generation beside the running one, its state handed over, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import yaml

from analytics_core import Question, TimeRange
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.plugins import PluginHost
from analytics_core.manifest import Deployment, PluginSettingsManifest
from tests.flow.plugin_house import COUNTING, T0, House, head, until, until_state, view

TWICE = COUNTING.replace("value=self.n,", "value=2 * self.n,")
ISOLATIONS = pytest.mark.parametrize("isolation", ["thread", "process"])


def rewrite(house: House, name: str, body: str, **manifest: Any) -> None:
    """Save another source, and another manifest when one is given."""
    (home,) = house.site.glob(f"plugin_{name.replace('-', '_')}_*[!o]")
    home.joinpath("__init__.py").write_text(f"{head()}\nclass Plugin:\n{indent(dedent(body), '    ')}\n")
    if manifest:
        path = home / "plugin.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **manifest}))


async def refreshed(host: PluginHost, deployment: Deployment | None = None) -> list[str]:
    return await asyncio.to_thread(host.refresh, deployment)


async def receipt(host: PluginHost, name: str, number: int = 1) -> ReloadReceipt:
    await until(lambda: len(host.receipts(name)) >= number, f"receipt {number} of {name}")
    return host.receipts(name)[number - 1]


@ISOLATIONS
def test_the_state_goes_on_in_the_next_generation(house: House, isolation: str) -> None:
    house.install("counting", isolation=isolation)

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", TWICE)
            assert await refreshed(host) == ["counting"]
            found = await receipt(host, "counting")
            assert (found.outcome, found.before, found.after, found.events_lost) == ("active", 1, 2, 0)
            assert list(found.seconds) == ["load", "setup", "probe", "swap", "retire"]
            assert found.state_bytes > 0
            assert found.survivors == ()
            assert (view(host, "counting").state, view(host, "counting").generation) == ("active", 2)
            house.add(4)
            await until(lambda: house.value("counting") == 14, "twice seven")
            assert await refreshed(host) == [], "nothing has changed since"
        assert house.states("counting") == ["loading", "starting", "active", "reloading", "active"]

    asyncio.run(main())


@ISOLATIONS
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def process(self, batch:", "SyntaxError"),
        ("@hookimpl\ndef proces(self, batch): ...", "proces"),
        (COUNTING.replace('self.n = state["n"]', 'raise ValueError("no such state")'), "no such state"),
        (COUNTING.replace("self.n += len(batch)", "self.n += len(btch)"), "btch"),
        (COUNTING.replace("def __init__(self):", "def __init__(self, more):"), "more"),
        (COUNTING + "\n@hookimpl\ndef setup(self, context): raise SystemExit(3)\n", "setup"),
    ],
    ids=["syntax", "hook", "import_state", "probe", "constructor", "setup"],
)
def test_a_failing_generation_is_rolled_back_and_the_old_one_goes_on(
    house: House, isolation: str, body: str, problem: str
) -> None:
    house.install("counting", isolation=isolation)

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", body)
            await refreshed(host)
            found = await receipt(host, "counting")
            assert found.outcome == "rolled_back"
            assert problem in found.reason
            seen = view(host, "counting")
            assert (seen.state, seen.generation) == ("rolled_back", 1)
            assert problem in seen.reason
            assert problem not in ("no such state", "btch") or ", line " in found.reason, "where in its code that was"
            house.add(4)
            await until(lambda: house.value("counting") == 7, "the old generation goes on")
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            assert (await receipt(host, "counting", 2)).outcome == "active"
            house.add(1)
            await until(lambda: house.value("counting") == 16, "the mended one")

    asyncio.run(main())


@ISOLATIONS
def test_a_generation_that_hangs_in_its_probe_is_given_up(house: House, isolation: str) -> None:
    house.install("counting", isolation=isolation)

    async def main() -> None:
        async with house.host(hang_seconds=1.0) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", COUNTING.replace("self.n += len(batch)", "time.sleep(600)"))
            await refreshed(host)
            found = await receipt(host, "counting")
            assert found.outcome == "rolled_back"
            assert "process" in found.reason
            house.add(4)
            await until(lambda: house.value("counting") == 7, "the old generation goes on")

    asyncio.run(main())


def test_under_steady_events_every_one_is_counted_once_over_many_reloads(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            sent = 0
            for number in range(1, 13):
                rewrite(house, "counting", COUNTING + f"\n# generation {number + 1}\n")
                await refreshed(host)
                while len(host.receipts("counting")) < number:
                    house.add(7, after=0.001)
                    sent += 7
                    await asyncio.sleep(0)
            assert [found.outcome for found in host.receipts("counting")] == ["active"] * 12
            assert all(found.survivors == () for found in host.receipts("counting"))
            await until(lambda: house.value("counting") == sent, f"{sent} events")
            assert view(host, "counting").generation == 13

    asyncio.run(main())


GATED = """
@hookimpl
def setup(self, context):
    while not Path({gate!r}).exists():
        time.sleep(0.005)
"""
SETUP_TOO = ("process", "export_state", "import_state", "setup")


def test_of_changes_during_a_reload_the_latest_follows_it(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    house.install("counting", COUNTING + "\n@hookimpl\ndef setup(self, context): pass\n", SETUP_TOO, isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            for factor in (2, 3, 4, 5):
                body = COUNTING.replace("value=self.n,", f"value={factor} * self.n,")
                rewrite(house, "counting", body + GATED.format(gate=str(gate)))
                assert await refreshed(host) == ["counting"]
            assert host.receipts("counting") == []
            gate.touch()
            first, second = await receipt(host, "counting"), await receipt(host, "counting", 2)
            assert [(each.outcome, each.after) for each in (first, second)] == [("active", 2), ("active", 5)]
            house.add(1)
            await until(lambda: house.value("counting") == 20, "five times four")

    asyncio.run(main())


def test_a_lane_that_fails_meanwhile_goes_on_with_the_new_code(house: House) -> None:
    hooks = ("process", "export_state", "import_state", "setup")
    failing = COUNTING.replace("self.n += len(batch)", "self.n += len(batch)\n    if self.n > 3: raise ValueError(1)")
    slow = "\n@hookimpl\ndef setup(self, context): time.sleep(0.3)\n"
    house.install("counting", failing + slow.replace("0.3", "0"), hooks, isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", COUNTING + slow)
            await refreshed(host)
            house.add(2)
            await until(lambda: house.value("counting") == 5, "with the mended code")
            await until(lambda: view(host, "counting").state == "active", "its state")
            assert view(host, "counting").generation == 2

    asyncio.run(main())


def test_a_plugin_that_failed_to_load_is_tried_again_when_it_is_mended(house: House) -> None:
    house.install("counting", "def process(self, batch:", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "counting", "load_error")
            house.add(3)
            rewrite(house, "counting", COUNTING)
            await refreshed(host)
            await until_state(host, "counting", "active")
            await until(lambda: house.value("counting") == 3, "all from the start")
            assert (await receipt(host, "counting")).outcome == "active"

    asyncio.run(main())


def test_plugins_come_and_go_while_the_others_run(house: House) -> None:
    house.install("stays", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(2)
            house.install("comes", isolation="thread")
            assert await refreshed(host) == ["comes"]
            await until(lambda: house.value("comes") == 2, "the new one has read the log")
            off = Deployment(plugins={"comes": PluginSettingsManifest(name="comes", enabled=False)})
            assert await refreshed(host, off) == ["comes"]
            seen = await until_state(host, "comes", "disabled")
            assert seen.reason == "plugin-settings say 'enabled: false'"
            house.add(3)
            await until(lambda: house.value("stays") == 5, "the other goes on")
            assert house.value("comes") == 2
            assert await refreshed(host, Deployment()) == ["comes"]
            await until(lambda: house.value("comes") == 5, "from its checkpoint on")
            for info in house.site.glob("plugin_comes_*.dist-info/entry_points.txt"):
                info.unlink()
            assert await refreshed(host) == ["comes"]
            assert [each.name for each in host.views()] == ["stays"]
        assert house.states("stays") == ["loading", "starting", "active"]

    asyncio.run(main())


def test_a_changed_setting_is_a_new_generation_of_the_same_code(house: House) -> None:
    body = COUNTING.replace("value=self.n,", "value=self.factor * self.n,")
    body += "\n@hookimpl\ndef setup(self, context): self.factor = context.settings['factor']\n"
    schema = {"type": "object", "properties": {"factor": {"type": "integer", "default": 1}}}
    hooks = ("process", "export_state", "import_state", "setup")
    house.install("counting", body, hooks, isolation="thread", settings=schema)

    def told(factor: Any) -> Deployment:
        settings = PluginSettingsManifest(name="counting", settings={"factor": factor})
        return Deployment(plugins={"counting": settings})

    async def main() -> None:
        async with house.host() as host:
            house.add(2)
            await until(lambda: house.value("counting") == 2, "the first")
            await refreshed(host, told(10))
            await receipt(host, "counting")
            house.add(1)
            await until(lambda: house.value("counting") == 30, "ten times three")
            await refreshed(host, told("many"))
            seen = await until_state(host, "counting", "rolled_back")
            assert "factor" in seen.reason
            house.add(1)
            await until(lambda: house.value("counting") == 40, "the settings that fit go on")

    asyncio.run(main())


def test_a_plugin_that_is_not_to_be_swapped_says_that_a_restart_is_needed(house: House) -> None:
    house.install("counting", isolation="thread", reload={"strategy": "restart"})

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            seen = await until_state(host, "counting", "restart_required")
            assert seen.reason == "its reload.strategy is restart"
            house.add(1)
            await until(lambda: house.value("counting") == 4, "the running one goes on")

    asyncio.run(main())


def test_what_survives_a_generation_is_named(house: House) -> None:
    leaking = COUNTING + dedent(
        """
        @hookimpl
        def setup(self, context):
            import threading
            threading.Thread(target=linger, name="leaked", daemon=True).start()
        """
    )
    hooks = ("process", "export_state", "import_state", "setup")
    house.install(
        "counting", leaking, hooks, isolation="thread", head="def linger():\n    while True: time.sleep(0.01)\n"
    )

    async def main() -> None:
        async with house.host() as host:
            house.add(1)
            await until(lambda: house.value("counting") == 1, "the first")
            found = await asyncio.to_thread(host.reload, "counting")
            assert "thread 'leaked'" in found.survivors

    asyncio.run(main())


def test_a_call_under_way_ends_on_its_own_generation(house: House, tmp_path: Path) -> None:
    slow = f"""
        @hookimpl
        async def insight(self, question, events):
            Path({str(tmp_path / "asked")!r}).touch()
            while not Path({str(tmp_path / "gate")!r}).exists():
                await asyncio.sleep(0.005)
            import pyarrow as pa
            return Answer(table=pa.table({{"generation": [NUMBER]}}))
        """
    provides = {"analyses": [{"name": "slow", "title": "Slow", "parameters": {"type": "object"}}]}
    house.install("asked", slow.replace("NUMBER", "1"), ("insight",), isolation="thread", provides=provides)

    async def main() -> None:
        async with house.host() as host:
            question = Question(analysis="slow", parameters={}, tenant="a", range=TimeRange(T0, T0, "UTC"))
            first = asyncio.create_task(host.calls.insight(question, None))
            await until((tmp_path / "asked").exists, "the call is under way")
            rewrite(house, "asked", slow.replace("NUMBER", "2"))
            await refreshed(host)
            await until(lambda: view(host, "asked").generation == 2, "the second generation is in")
            second = asyncio.create_task(host.calls.insight(question, None))
            assert host.receipts("asked") == [], "the first is not retired while a call is out with it"
            (tmp_path / "gate").touch()
            answers = [(await each).table.to_pydict() for each in (first, second)]
            assert answers == [{"generation": [1]}, {"generation": [2]}]
            assert (await receipt(host, "asked")).survivors == ()

    asyncio.run(main())
