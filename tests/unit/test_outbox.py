"""The outbox reader over the real state store: what lanes have committed reaches the bus, whatever fails meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analytics_core.errors import StorageError
from analytics_core.lanes import outbox
from analytics_core.lanes.outbox import OutboxReader
from analytics_core.state import Message
from analytics_core.state.sqlite import SqliteState

SECONDS = 20.0


class Bus:
    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def publish(self, message: Message) -> None:
        self.messages.put(message)

    def subscribe(self, receiver: Callable[[Message], None]) -> Callable[[], None]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def next(self) -> str:
        return self.messages.get(timeout=SECONDS).id


class Failing:
    """A state store of which one method fails a few times."""

    def __init__(self, state: SqliteState, method: str, times: int = 2) -> None:
        self._state = state
        self._method = method
        self.left = times

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._state, name)

        def call(*arguments: Any) -> Any:
            if self.left:
                self.left -= 1
                raise StorageError("the disk is asleep")
            return real(*arguments)

        return call if name == self._method else real


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    opened = SqliteState(tmp_path / "state.db")
    yield opened
    opened.close()


def commit(state: SqliteState, *ids: str) -> None:
    claimed = state.claim("lane")
    at = msgspec.structs.replace(claimed, position=claimed.position + 1, state=None)
    state.commit(at, [], [Message(id=id_, topic="metric", tenant="a", body=b"{}") for id_ in ids])


def test_each_message_goes_out_in_order_and_after_a_restart_only_what_is_new(state: SqliteState) -> None:
    for ids in (("1", "2"), ("3",)):
        bus = Bus()
        reader = OutboxReader(state, bus)
        commit(state, *ids)
        reader.start()
        assert tuple(bus.next() for _ in ids) == ids
        reader.stop()
        assert bus.messages.empty()


def test_stopping_publishes_what_is_there(state: SqliteState) -> None:
    bus = Bus()
    reader = OutboxReader(state, bus)
    reader.start()
    commit(state, "1")
    reader.stop()
    assert bus.next() == "1"


@pytest.mark.parametrize("method", ["document", "outbox"])
def test_a_store_that_fails_delays_messages_and_ends_nothing(
    state: SqliteState, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.01)
    bus = Bus()
    failing = Failing(state, method)
    reader = OutboxReader(failing, bus)  # type: ignore[arg-type]
    commit(state, "1")
    reader.start()
    assert bus.next() == "1"
    commit(state, "2")
    reader.wake()
    assert bus.next() == "2"
    reader.stop()
    assert failing.left == 0
