"""Results on their way out: a bus that carries messages to whoever is connected. Results only, never control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from analytics_core.records import Message

Receiver = Callable[[Message], None]


class Bus(Protocol):
    """Every backend keeps true: messages of one publisher arrive in order; a receiver that raises stops no other.
    ``publish`` is safe from any thread and never blocks on a receiver; receivers run on the event loop. What waits for
    delivery is bounded: of more the oldest messages are dropped, counted and logged."""

    def publish(self, message: Message) -> None: ...

    def subscribe(self, receiver: Receiver) -> Callable[[], None]:
        """Call ``receiver`` for every message from now on; the returned function ends it."""
        ...

    async def close(self) -> None: ...
