"""Whatever comes in between, a change ends: it runs, or what ran before it goes on, and its receipt says which."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from analytics_core.host.life.attempt import Attempt
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.life.supervise import Life
from analytics_core.manifest import Deployment, PluginSettingsManifest
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, House, captured_logs, until, until_state, view
from tests.flow.test_handover_races import QUESTION, answer, insight, setup, teardown, touching, unless, waiting
from tests.flow.test_reload import TWICE, receipt, refreshed, rewrite
from tests.flow.test_succession import PROVIDES

SETUP = (*COUNTING_HOOKS, "setup")
BROKEN = "def process(self, batch:"


def refusing(why: str) -> str:
    return COUNTING + setup(f"raise ValueError({why!r})")


# --- what runs afterwards --------------------------------------------------------------------------------------------


def test_a_change_whose_first_attempt_hangs_is_shown_with_its_own_manifest(house: House, tmp_path: Path) -> None:
    gate, once = tmp_path / "gate", tmp_path / "once"
    house.install("asked", BROKEN, ("process",), isolation="thread")
    hangs_once = setup(f"{touching(once)} if not Path({str(once)!r}).exists() else {touching(gate)}; {waiting(gate)}")

    async def main() -> None:
        async with house.host(hang_seconds=0.3) as host:
            await until_state(host, "asked", "load_error")
            body = COUNTING + hangs_once + insight(answer(1), once, once)
            rewrite(house, "asked", body, hooks=[*SETUP, "insight"], provides=PROVIDES)
            await refreshed(host)
            assert (await receipt(host, "asked")).outcome == "failed"
            await until_state(host, "asked", "active")  # the next attempt
            assert (await host.calls.insight(QUESTION, None)).table.to_pydict() == {"n": [1]}

    asyncio.run(main())


def test_what_is_about_to_be_tried_again_outlives_a_broken_change(house: House, tmp_path: Path) -> None:
    well = tmp_path / "well"
    once = f"self.n += len(batch)\n    if self.n > 3 and not Path({str(well)!r}).exists(): raise ValueError('for now')"
    house.install("counting", COUNTING.replace("self.n += len(batch)", once), isolation="thread")

    async def main() -> None:
        async with house.host(restarts=RestartPolicy(backoff=600.0, backoff_most=600.0)) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            house.add(1)
            await until_state(host, "counting", "degraded")
            well.touch()
            rewrite(house, "counting", BROKEN)
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            await until(lambda: house.value("counting") == 4, "it goes on, and need not wait any more")

    asyncio.run(main())


def test_what_is_on_its_way_back_outlives_a_second_broken_change(house: House, tmp_path: Path) -> None:
    hold, gate = tmp_path / "hold", tmp_path / "gate"
    held = setup(waiting(gate, f"Path({str(hold)!r}).exists()"))
    house.install("counting", COUNTING + held, SETUP, isolation="thread", reload={"strategy": "stop_first"})

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            hold.touch()
            for number, why in enumerate(("one", "two"), 1):
                rewrite(house, "counting", refusing(why))
                await refreshed(host)
                found = await receipt(host, "counting", number)
                assert (found.outcome, why in found.reason) == ("rolled_back", True)
            gate.touch()
            house.add(1)
            await until(lambda: house.value("counting") == 4, "the first generation goes on")

    asyncio.run(main())


def test_what_was_stopped_first_comes_back_though_its_teardown_hangs(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hooks = (*COUNTING_HOOKS, "teardown")
    body = COUNTING + teardown(waiting(gate))
    house.install("counting", body, hooks, isolation="thread", reload={"strategy": "stop_first"})

    async def main() -> None:
        async with house.host(hang_seconds=0.5) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", refusing("no"), hooks=list(SETUP))
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            house.add(1)
            await until(lambda: house.value("counting") == 4, "the old one goes on")
            gate.touch()

    asyncio.run(main())


def test_what_is_stopped_first_does_not_wait_for_what_its_change_requires(house: House) -> None:
    house.install("base", BROKEN, isolation="thread")
    house.install("user", isolation="thread", reload={"strategy": "stop_first"})

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("user") == 3, "the first events")
            await until_state(host, "base", "load_error")
            rewrite(house, "user", TWICE, requires={"plugins": {"base": ">=1"}})
            await refreshed(host)
            assert (await receipt(host, "user")).outcome == "active"
            house.add(1)
            await until(lambda: house.value("user") == 8, "as beside one that runs")

    asyncio.run(main())


def test_what_comes_back_at_once_waits_for_the_end_of_its_earlier_self(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    alone = f"self.lock = Path({str(tmp_path)!r}, LOCKS.pop()); self.lock.touch(exist_ok=False)"
    body = COUNTING + setup(alone) + teardown(f"{waiting(gate)}; self.lock.unlink()")
    hooks, head = (*SETUP, "teardown"), "LOCKS = ['a', 'b']\n"
    house.install("counting", body, hooks, isolation="thread", head=head, reload={"strategy": "stop_first"})
    house.install("other", isolation="thread")

    def told(enabled: bool) -> Deployment:
        named = {name: PluginSettingsManifest(name=name, enabled=enabled) for name in ("counting", "other")}
        return Deployment(plugins=named)

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            await refreshed(host, told(enabled=False))
            await refreshed(host, told(enabled=True))
            await until_state(host, "other", "active")  # it is looked after later than the one that waits
            gate.touch()
            await until_state(host, "counting", "active")
            house.add(1)
            await until(lambda: house.value("counting") == 4, "it goes on")
            assert "start_error" not in house.states("counting")

    asyncio.run(main())


def test_a_host_that_ends_between_two_generations_tears_both_down(house: House, tmp_path: Path) -> None:
    fail, begun, gate, downs = (tmp_path / name for name in ("fail", "begun", "gate", "downs"))
    downs.mkdir()
    down = teardown(f"{touching(begun)}; {waiting(gate)}; Path({str(downs)!r}, str(id(self))).touch()")
    house.install("counting", unless(fail) + down, (*COUNTING_HOOKS, "teardown"), isolation="thread")

    async def main() -> None:
        async with house.host(checkpoint_seconds=600.0) as host:
            house.add(3)
            await until_state(host, "counting", "active")
            fail.touch()
            rewrite(house, "counting", TWICE, hooks=list(COUNTING_HOOKS))
            await refreshed(host)
            await until(begun.exists, "what cannot hand over makes way")
        gate.touch()
        await until(lambda: len(list(downs.iterdir())) == 2, "that of the lane and that of the calls")

    asyncio.run(main())


# --- that it ends, and how -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["side_by_side", "stop_first"])
def test_a_plugin_put_to_rest_as_its_change_begins_takes_it(
    house: House, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """`Life.carrier` is replaced: only there, between the look and the move, may a failed call come in between."""
    house.install("counting", isolation="thread", reload={"strategy": strategy})
    carrier = Life.carrier

    def rested(life: Life) -> Attempt | None:
        attempt = carrier(life)
        life.health.move("quarantined", "too many calls have failed")
        return attempt

    monkeypatch.setattr(Life, "carrier", rested)

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", TWICE)
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "active"
            house.add(1)
            await until(lambda: house.value("counting") == 8, "the next generation goes on")

    asyncio.run(main())


def test_a_change_for_which_the_system_has_no_thread_comes_in_at_the_next_look(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.install("counting", isolation="thread")
    start, refused = threading.Thread.start, threading.Event()

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name == "reload:counting" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", TWICE)
            assert await refreshed(host) == []
            assert refused.is_set()
            assert await refreshed(host) == ["counting"]
            assert (await receipt(host, "counting")).outcome == "active"

    asyncio.run(main())


def test_a_constructor_that_hangs_beside_another_instance_is_given_up(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    house.install("counting", isolation="thread")
    hanging = COUNTING.replace("self.n = 0", f"self.n = 0; self.made.append(1); {waiting(gate, 'len(self.made) == 2')}")

    async def main() -> None:
        async with house.host(hang_seconds=0.5) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            rewrite(house, "counting", f"made = []\n{hanging}")
            await refreshed(host)
            assert (await receipt(host, "counting")).outcome == "rolled_back"
            gate.touch()
            house.add(1)
            await until(lambda: house.value("counting") == 4, "the running generation goes on")

    asyncio.run(main())


def test_what_a_reload_has_brought_in_is_no_change_at_the_next_look(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", TWICE)
            assert (await asyncio.to_thread(host.reload, "counting")).outcome == "active"
            assert await refreshed(host) == []

    asyncio.run(main())


FAILING = COUNTING.replace("self.n += len(batch)", "self.n += len(batch)\n    assert self.n < 4, 'four'")
RARELY = RestartPolicy(backoff=600.0, backoff_most=600.0)
"""What has failed stays between two attempts."""


def test_what_follows_a_failed_generation_has_to_get_further(house: House) -> None:
    house.install("counting", FAILING, isolation="thread")

    async def main() -> None:
        async with house.host(restarts=RARELY) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            house.add(1)
            await until_state(host, "counting", "degraded")
            with captured_logs() as logs:
                again = await asyncio.to_thread(host.reload, "counting")
            assert (again.outcome, again.after) == ("rolled_back", 2)
            assert "hook 'process' failed: AssertionError: four (" in again.reason
            assert [line["exc_info"] is not None for line in logs if line["event"] == "reload_failed"] == [True]
            assert view(host, "counting").generation == 1
            rewrite(house, "counting", TWICE)
            mended = await asyncio.to_thread(host.reload, "counting")
            assert (mended.outcome, mended.reason, mended.events_lost) == ("active", "", 0)
            await until(lambda: house.value("counting") == 8, "twice four")

    asyncio.run(main())


def test_a_generation_that_has_nothing_to_show_yet_is_said_to_be_untried(house: House) -> None:
    pid = house.data / "pid"
    body = COUNTING.replace("self.n = 0", f"self.n = 0; Path({str(pid)!r}).write_text(str(os.getpid()))")
    house.install("counting", body, isolation="process")

    async def main() -> None:
        async with house.host(restarts=RARELY) as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            await until(lambda: host.lanes()[0].lag == 0, "all is done")
            os.kill(int(pid.read_text()), signal.SIGKILL)
            await until_state(host, "counting", "degraded")
            found = await asyncio.to_thread(host.reload, "counting")
            assert found.outcome == "active"
            assert found.reason == "untried: what ran before had failed, and nothing has been processed since"

    asyncio.run(main())


def test_between_two_attempts_a_plugin_shows_how_far_it_was(house: House, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    body = FAILING + setup(f"[time.sleep(0.005) for _ in iter(Path({str(gate)!r}).exists, False)]")
    house.install("counting", body, SETUP, isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            gate.touch()
            house.add(2)
            await until_state(host, "counting", "degraded")
            await until(lambda: any(t.name == "lane:counting" for t in threading.enumerate()), "the next attempt")
            seen, (lane,) = view(host, "counting"), host.lanes()
            assert (seen.state, seen.lag, seen.events_processed) == ("degraded", 2, 3)
            assert (lane.state, lane.position, lane.lag, lane.events) == ("degraded", 3, 2, 3)
            gate.unlink()

    asyncio.run(main())


def test_a_reload_that_finds_a_broken_manifest_is_told_as_the_view_shows_it(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            rewrite(house, "counting", COUNTING, nonsense=1)
            found = await asyncio.to_thread(host.reload, "counting")
            assert found.outcome == view(host, "counting").state == "rolled_back"
            assert "nonsense" in found.reason

    asyncio.run(main())
