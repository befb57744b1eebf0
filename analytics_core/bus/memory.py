"""`MemoryBus`: the bus of one process. Any thread publishes; the event loop delivers."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from analytics_core.bus import Receiver
from analytics_core.records import Message

log = structlog.get_logger(__name__)

_TURN = 256  # messages per turn of the loop, so that a burst of pushes does not hold up acknowledgements
WAITING_MOST: Final = 65_536
"""Messages that may wait for the loop: more than a loop that still turns leaves, some 30 MB."""


class MemoryBus:
    """A `Bus` inside one process.

    ``publish`` appends to a queue and wakes the loop once, however many messages follow before it runs. When ``most``
    messages wait, each further one takes the place of the oldest: `dropped` counts those, and the log says so. What is
    dropped was a push only; the records that it told of are in the state store.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most: int = WAITING_MOST) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: deque[Message] = deque(maxlen=most)
        self._most = most
        self._dropped = 0
        self._told = 0
        self._woken = False
        self._closed = False
        self._receivers: list[Receiver] = []

    @property
    def dropped(self) -> int:
        """How many messages were never delivered since the start."""
        return self._dropped

    def publish(self, message: Message) -> None:
        """Hand ``message`` to every receiver on a later turn of the loop. After ``close`` it is dropped."""
        with self._lock:
            if self._closed:
                return
            self._dropped += len(self._waiting) == self._most
            self._waiting.append(message)
            if self._woken:
                return
            self._woken = True
            # Inside the lock: ``close`` waits for it, so the loop cannot be closed between the check and the call.
            self._loop.call_soon_threadsafe(self._deliver)

    def subscribe(self, receiver: Receiver) -> Callable[[], None]:
        self._receivers.append(receiver)

        def end() -> None:
            if receiver in self._receivers:
                self._receivers.remove(receiver)

        return end

    async def close(self) -> None:
        """Deliver what was published before, then take nothing more."""
        with self._lock:
            self._closed = True
        while self._waiting:
            self._deliver()
            await asyncio.sleep(0)
        self._receivers.clear()

    def _deliver(self) -> None:
        if self._dropped > self._told:
            log.warning("bus_overrun", dropped=self._dropped - self._told, most=self._most)
            self._told = self._dropped
        for _ in range(_TURN):
            with self._lock:
                if not self._waiting:
                    self._woken = False
                    return
                message = self._waiting.popleft()
            for receiver in tuple(self._receivers):
                try:
                    receiver(message)
                except Exception:
                    log.exception("receiver_failed", receiver=repr(receiver), message=message.id, topic=message.topic)
        self._loop.call_soon(self._deliver)
