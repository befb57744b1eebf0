"""Results on their way out: a bus that carries messages to whoever is connected. Results only, never control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from analytics_core.records import Message

Receiver = Callable[[Message], None]


class Bus(Protocol):
    """Every backend keeps true: messages of one publisher arrive in order; a receiver that raises stops no other.
    ``publish`` is safe from any thread and never blocks on a receiver; receivers run on the event loop."""

    def publish(self, message: Message) -> None: ...

    def subscribe(self, receiver: Receiver) -> Callable[[], None]:
        """Call ``receiver`` for every message from now on; the returned function ends it."""
        ...

    async def close(self) -> None: ...


class Cache(Protocol):
    """Answers that may be forgotten at any time. Keys carry the tenant and the log position they depend on."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes) -> None: ...
