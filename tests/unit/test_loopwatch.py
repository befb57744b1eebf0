"""Who is blamed for a loop that does not turn."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from analytics_core.host.life.loopwatch import BLOCKED_SECONDS, STRIKES, WITHIN_SECONDS, Blame, LoopWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a thread has used")


def owner(thread: str) -> str | None:
    return thread.partition(":")[2] or None


def hold(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.fixture
def unswitched() -> Iterator[None]:
    """Python code keeps the interpreter's lock, as C code does that never lets go of it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5.0)
    yield
    sys.setswitchinterval(interval)


def watched(block: Callable[[threading.Event], Awaitable[None]]) -> list[tuple[str, float]]:
    """Who was blamed while ``block(done)`` ran beside a loop, until ``done`` was set or somebody was."""
    blamed: list[tuple[str, float]] = []

    async def main() -> None:
        watch = LoopWatch(asyncio.get_running_loop(), owner, lambda plugin, seconds: blamed.append((plugin, seconds)))
        watch.start()
        done = threading.Event()
        await block(done)
        while not (done.is_set() or blamed):
            await asyncio.sleep(0.01)
        done.set()
        watch.stop()

    asyncio.run(main())
    return blamed


@pytest.mark.usefixtures("unswitched")
def test_the_thread_that_holds_the_lock_is_blamed() -> None:
    async def block(done: threading.Event) -> None:
        def work() -> None:
            while time.monotonic() < until and not done.is_set():
                hold(4 * BLOCKED_SECONDS)
                time.sleep(0.01)
            done.set()

        until = time.monotonic() + 15.0
        threading.Thread(target=work, name="lane:greedy", daemon=True).start()

    found = watched(block)
    assert found
    assert {plugin for plugin, _ in found} == {"greedy"}
    assert all(seconds >= BLOCKED_SECONDS for _, seconds in found)


def test_a_loop_that_is_at_work_itself_is_nobodys_fault() -> None:
    async def block(done: threading.Event) -> None:
        def work() -> None:
            while not done.is_set():
                hold(0.02)
                time.sleep(0.005)

        threading.Thread(target=work, name="lane:busy", daemon=True).start()
        for _ in range(4):
            hold(2 * BLOCKED_SECONDS)
            await asyncio.sleep(0.01)
        done.set()

    assert watched(block) == []


def test_a_watch_of_a_loop_that_turns_no_more_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.host.life.loopwatch._PAUSE_SECONDS", 0.01)
    loop, asked = asyncio.new_event_loop(), threading.Event()
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda _: asked.set())
    before = set(threading.enumerate())
    watch = LoopWatch(loop, owner, lambda plugin, seconds: None)
    watch.start()
    (thread,) = set(threading.enumerate()) - before
    assert asked.wait(5)
    watch.stop()
    thread.join(5)
    assert not thread.is_alive()
    loop.close()


def test_blame_counts_within_a_time() -> None:
    now = [0.0]
    blame = Blame(lambda: now[0])
    for _ in range(2 * STRIKES):
        assert blame.add("slow", 0.3) == "", "one each now and then"
        now[0] += WITHIN_SECONDS
    told = [blame.add("fast", 0.3) for _ in range(STRIKES)]
    assert told[:-1] == [""] * (STRIKES - 1)
    assert told[-1] == "has blocked the event loop 3 times within 60 s, for 0.9 s in all"
