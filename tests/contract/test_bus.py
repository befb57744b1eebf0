"""The contract of `Bus`, over every backend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from analytics_core.bus import Bus
from analytics_core.bus.memory import MemoryBus
from analytics_core.records import Message

Make = Callable[[], Bus]


@pytest.fixture(params=["memory"])
def make(request: pytest.FixtureRequest) -> Make:
    """A bus of the running loop."""
    return {"memory": lambda: MemoryBus(asyncio.get_running_loop())}[request.param]


def message(id_: str, tenant: str = "acme") -> Message:
    return Message(id=id_, topic="metric", tenant=tenant, body=b"{}")


class Heard:
    """A receiver that can be waited for."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.threads: set[int] = set()
        self._news = asyncio.Event()

    def __call__(self, received: Message) -> None:
        self.ids.append(received.id)
        self.threads.add(threading.get_ident())
        self._news.set()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.ids) < number:
                self._news.clear()
                await self._news.wait()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_every_receiver_gets_every_message_in_order(make: Make) -> None:
    async def scenario() -> None:
        bus, one, two = make(), Heard(), Heard()
        bus.subscribe(one)
        bus.subscribe(two)
        for number in range(1000):
            bus.publish(message(str(number)))
        await one.until(1000)
        await two.until(1000)
        assert one.ids == two.ids == [str(number) for number in range(1000)]
        await bus.close()

    run(scenario())


def test_threads_publish_and_the_loop_delivers(make: Make) -> None:
    async def scenario() -> None:
        bus, heard = make(), Heard()
        bus.subscribe(heard)

        def publish(name: str) -> None:
            for number in range(500):
                bus.publish(message(f"{name}{number}"))

        await asyncio.gather(*(asyncio.to_thread(publish, name) for name in "abcd"))
        await heard.until(2000)
        for name in "abcd":  # each publisher's own order is kept
            assert [i for i in heard.ids if i[0] == name] == [f"{name}{number}" for number in range(500)]
        assert heard.threads == {threading.get_ident()}
        await bus.close()

    run(scenario())


def test_a_receiver_that_raises_stops_no_other(make: Make) -> None:
    async def scenario() -> None:
        bus, heard = make(), Heard()

        def broken(_: Message) -> None:
            raise RuntimeError("broken receiver")

        bus.subscribe(broken)
        bus.subscribe(heard)
        bus.publish(message("1"))
        bus.publish(message("2"))
        await heard.until(2)
        assert heard.ids == ["1", "2"]
        await bus.close()

    run(scenario())


def test_publish_never_runs_a_receiver_itself(make: Make) -> None:
    async def scenario() -> None:
        bus, heard = make(), Heard()
        bus.subscribe(heard)
        bus.publish(message("1"))
        assert heard.ids == []
        await heard.until(1)
        await bus.close()

    run(scenario())


def test_the_end_of_a_subscription(make: Make) -> None:
    async def scenario() -> None:
        bus, gone, heard = make(), Heard(), Heard()
        end = bus.subscribe(gone)
        bus.subscribe(heard)
        bus.publish(message("1"))
        await heard.until(1)
        end()
        end()  # twice is once
        bus.publish(message("2"))
        await heard.until(2)
        assert gone.ids == ["1"]
        await bus.close()

    run(scenario())


def test_a_receiver_may_subscribe_and_publish(make: Make) -> None:
    async def scenario() -> None:
        bus, late, heard = make(), Heard(), Heard()

        def first(received: Message) -> None:
            if received.id == "1":
                bus.subscribe(late)
                bus.publish(message("2"))

        bus.subscribe(first)
        bus.subscribe(heard)
        bus.publish(message("1"))
        await heard.until(2)
        assert "2" in late.ids
        await bus.close()

    run(scenario())


def test_close_delivers_what_was_published_and_takes_no_more(make: Make) -> None:
    async def scenario() -> None:
        bus, heard = make(), Heard()
        bus.subscribe(heard)
        for number in range(700):
            bus.publish(message(str(number)))
        await bus.close()
        assert len(heard.ids) == 700
        bus.publish(message("late"))
        await asyncio.sleep(0)
        assert "late" not in heard.ids

    run(scenario())


def test_a_publisher_that_outlives_the_loop_is_not_hurt() -> None:
    buses: list[MemoryBus] = []

    async def scenario() -> None:
        buses.append(MemoryBus(asyncio.get_running_loop()))
        await buses[0].close()

    run(scenario())
    buses[0].publish(message("after"))


def test_when_too_many_wait_the_oldest_give_way_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        bus, heard = MemoryBus(asyncio.get_running_loop(), most=100), Heard()
        bus.subscribe(heard)
        for number in range(250):
            bus.publish(message(str(number)))
        await heard.until(100)
        assert heard.ids == [str(number) for number in range(150, 250)]
        assert bus.dropped == 150
        for number in range(250, 350):
            bus.publish(message(str(number)))
        await heard.until(200)
        assert bus.dropped == 150
        await bus.close()

    run(scenario())
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "bus_overrun" in line]
    assert "dropped=150" in told


def test_a_burst_wakes_the_loop_once_and_leaves_it_room() -> None:
    """One wake-up for many messages, and between parts of a long burst the loop serves others."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        woken = 0

        class Counting:
            def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
                nonlocal woken
                woken += 1
                loop.call_soon_threadsafe(call)

            call_soon = staticmethod(loop.call_soon)

        bus, heard = MemoryBus(Counting()), Heard()  # type: ignore[arg-type]
        bus.subscribe(heard)
        for number in range(2000):
            bus.publish(message(str(number)))
        assert woken == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(heard.ids) < 2000
        await heard.until(2000)
        await bus.close()

    run(scenario())
