"""What happens to a plugin while its change is under way: calls, failures, other changes, and the end of the host."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from analytics_core import Question, TimeRange
from analytics_core.errors import HookFailedError
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.supervise import Life
from analytics_core.host.life.trial import Trial
from analytics_core.manifest import Deployment, PluginSettingsManifest
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, T0, House, until, until_state, view
from tests.flow.test_reload import TWICE, receipt, refreshed, rewrite
from tests.flow.test_succession import PROVIDES

pytestmark = pytest.mark.usefixtures("no_thread_fails")

QUESTION = Question(analysis="asked", parameters={}, tenant="a", range=TimeRange(T0, T0, "UTC"))
HOOK = "\n@hookimpl\ndef {name}: {body}\n"


def waiting(gate: Path, condition: str = "True") -> str:
    """An expression that ends once ``gate`` is there, or at once unless ``condition`` holds."""
    return f"[time.sleep(0.005) for _ in iter(lambda: ({condition}) and not Path({str(gate)!r}).exists(), False)]"


def touching(path: Path) -> str:
    return f"Path({str(path)!r}).touch()"


def setup(body: str) -> str:
    return HOOK.format(name="setup(self, context)", body=body)


def teardown(body: str) -> str:
    return HOOK.format(name="teardown(self)", body=body)


def insight(answer: str, gate: Path, begun: Path) -> str:
    """An ``insight`` that touches ``begun``, waits for ``gate`` and then does ``answer``."""
    return f"""
@hookimpl
async def insight(self, question, events):
    import pyarrow as pa
    {touching(begun)}
    while not Path({str(gate)!r}).exists(): await asyncio.sleep(0.005)
    {answer}
"""


def answer(n: int) -> str:
    return f"return Answer(table=pa.table({{'n': [{n}]}}))"


def unless(gate: Path) -> str:
    """A plugin that counts, and cannot export its state once ``gate`` is there."""
    return COUNTING.replace('return {"n"', f'assert not Path({str(gate)!r}).exists()\n    return {{"n"')


def modules(house: House, generation: int) -> list[str]:
    mine = house.site.parent.name.replace("-", "_")
    return [name for name in sys.modules.copy() if name.endswith(f"{mine}__g{generation}")]


def at_work(*kinds: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.partition(":")[0] in kinds}


# --- other changes ---------------------------------------------------------------------------------------------------


def test_a_change_that_runs_is_told_active_though_another_is_asked_for_while_the_old_one_retires(
    house: House, tmp_path: Path
) -> None:
    fail, gate = tmp_path / "fail", tmp_path / "gate"
    idle = teardown(waiting(gate, "self.n == 0"))  # not that of the fold, which must end first
    house.install("counting", unless(fail) + idle, (*COUNTING_HOOKS, "teardown"), isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            fail.touch()
            rewrite(house, "counting", TWICE, hooks=list(COUNTING_HOOKS))
            asked = asyncio.create_task(asyncio.to_thread(host.reload, "counting"))
            await until(lambda: (view(host, "counting").generation, view(host, "counting").state) == (2, "active"), "2")
            rewrite(house, "counting", COUNTING)
            await refreshed(host)
            gate.touch()
            assert (await asked).outcome == "active"
            found = await receipt(host, "counting", 2)
            assert (found.outcome, found.before, found.after) == ("active", 2, 3)

    asyncio.run(main())


def test_of_two_changes_to_what_does_not_run_the_later_runs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Life.begin` is replaced: nothing else comes between a change that is noted and its beginning. The earlier one
    waits there until the later one has got ahead of it, for half a second at most: it must not be able to."""
    house.install("counting", "def process(self, batch:", isolation="thread")
    begin, held, ahead = Life.begin, threading.Event(), threading.Event()

    def slowly(life: Life, trial: Trial) -> None:
        if trial.change.runtime.generation == 2:
            held.set()
            ahead.wait(0.5)
        begin(life, trial)
        if trial.change.runtime.generation == 3:
            ahead.set()

    monkeypatch.setattr(Life, "begin", slowly)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "counting", "load_error")
            rewrite(house, "counting", COUNTING)
            await refreshed(host)
            await until(held.is_set, "the earlier change is on its way")
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            house.add(3)
            await until(lambda: house.value("counting") == 6, "the latest code")
            assert view(host, "counting").generation == 3

    asyncio.run(main())


@pytest.mark.parametrize("state", ["loading", "starting"])
def test_a_first_generation_that_a_change_overtakes_is_retired(house: House, tmp_path: Path, state: str) -> None:
    gate, down = tmp_path / "gate", tmp_path / "down"
    head, held = (waiting(gate), "pass") if state == "loading" else ("", waiting(gate))
    body = COUNTING + setup(held) + teardown(touching(down))
    house.install("counting", body, (*COUNTING_HOOKS, "setup", "teardown"), isolation="thread", head=head)

    async def main() -> None:
        async with house.host(settled=False) as host:
            await until_state(host, "counting", state)
            rewrite(house, "counting", TWICE, hooks=list(COUNTING_HOOKS))
            await refreshed(host)
            await receipt(host, "counting")
            assert view(host, "counting").generation == 2
            gate.touch()
            if state == "starting":
                await until(down.exists, "what was set up is torn down")
            await until(lambda: not modules(house, 1), "its modules are gone")

    asyncio.run(main())


def test_what_is_disabled_in_the_middle_of_its_swap_guards_nothing_any_more(house: House, tmp_path: Path) -> None:
    hung = at_work("reload", "close")  # of other tests
    gate, swapping, down = tmp_path / "gate", tmp_path / "swapping", tmp_path / "down"
    enrich = HOOK.format(name="enrich(self, batch)", body="return None")
    hooks = (*COUNTING_HOOKS, "enrich", "teardown")
    house.install(
        "counting", COUNTING + enrich + teardown(touching(down)), hooks, isolation="thread", on_failure="reject"
    )
    restored = f"{touching(swapping)} if len(self.came) == 2 else None; {waiting(gate, 'len(self.came) == 2')}"
    held = COUNTING.replace('self.n = state["n"]', f'self.n = state["n"]; self.came.append(1); {restored}')
    ends_late = held.replace('return {"n"', f'{waiting(down, "len(self.came) == 2")}; return {{"n"')

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", "came = []\n" + ends_late + enrich + teardown("pass"))
            await refreshed(host)
            await until(swapping.exists, "it is in the swap")
            off = Deployment(plugins={"counting": PluginSettingsManifest(name="counting", enabled=False)})
            await refreshed(host, off)
            gate.touch()
            await until(lambda: at_work("reload", "close") <= hung, "both have ended")
            assert down.exists(), "the new generation had come in"
            assert await refreshed(host, off) == []
            assert view(host, "counting").state == "disabled"
            assert not host.calls.enriches()

    asyncio.run(main())


# --- calls and failures ----------------------------------------------------------------------------------------------


def test_calls_that_fail_in_an_earlier_generation_are_not_held_against_the_next(house: House, tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    failing = insight("raise ValueError('no')", gate, begun)
    house.install("asked", failing, ("insight",), isolation="thread", provides=PROVIDES)
    policy = RestartPolicy(failures=1, refill=3600.0)  # ten failed calls

    async def main() -> None:
        async with house.host(restarts=policy) as host:
            await until_state(host, "asked", "active")
            calls = [asyncio.create_task(host.calls.insight(QUESTION, None)) for _ in range(12)]
            await until(begun.exists, "they are under way")
            rewrite(house, "asked", insight(answer(2), begun, begun))
            await refreshed(host)
            await until(lambda: view(host, "asked").generation == 2, "the next one is in")
            gate.touch()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(end, HookFailedError) for end in ends)
            seen = view(host, "asked")
            assert (seen.state, seen.errors) == ("active", 12)
            assert (await host.calls.insight(QUESTION, None)).table.to_pydict() == {"n": [2]}

    asyncio.run(main())


def test_a_call_under_way_ends_though_the_next_generation_begins_from_the_checkpoint(
    house: House, tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    body = insight(answer(1), gate, begun)
    house.install("asked", body, ("insight",), isolation="thread", provides=PROVIDES)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "asked", "active")
            call = asyncio.create_task(host.calls.insight(QUESTION, None))
            await until(begun.exists, "it is under way")
            rewrite(house, "asked", COUNTING + body, hooks=[*COUNTING_HOOKS, "insight"])  # it gains a lane
            await refreshed(host)
            house.add(3)
            await until(lambda: house.value("asked") == 3, "the next generation runs")
            await until(lambda: call.done() or len(at_work("retire")) > 1, "the old one is let go of")
            gate.touch()
            assert (await call).table.to_pydict() == {"n": [1]}
            assert (await receipt(host, "asked")).outcome == "active"

    asyncio.run(main())


def test_a_plugin_that_its_calls_put_to_rest_during_its_reload_takes_the_change(house: House, tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    fails = insight("raise ValueError('no')", begun, begun)
    hooks = (*COUNTING_HOOKS, "setup", "insight")
    house.install("asked", COUNTING + fails + setup("pass"), hooks, isolation="thread", provides=PROVIDES)

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("asked") == 3, "the first events")
            rewrite(house, "asked", TWICE + fails + setup(waiting(gate)))
            await refreshed(host)
            await until_state(host, "asked", "reloading")
            while view(host, "asked").state == "reloading":
                with pytest.raises(HookFailedError):
                    await host.calls.insight(QUESTION, None)
            assert view(host, "asked").state == "quarantined"
            gate.touch()
            assert (await receipt(host, "asked")).outcome == "active"
            house.add(1)
            await until(lambda: house.value("asked") == 8, "the next generation goes on")

    asyncio.run(main())
