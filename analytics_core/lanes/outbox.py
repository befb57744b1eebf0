"""The outbox's reader: carries what lanes have committed to the bus, at least once and in order."""

from __future__ import annotations

import threading
from typing import Final

import structlog

from analytics_core.bus import Bus
from analytics_core.state import StateStore

_log = structlog.get_logger(__name__)
_SYSTEM: Final = "_system"
"""No tenant id may start with an underscore."""
_RETRY_SECONDS: Final = 1.0


class OutboxReader:
    """One thread that sleeps until `wake` and publishes every message beyond its stored cursor.

    The cursor is stored after the messages were published, so a crash between the two publishes them again under the
    same ids.
    """

    def __init__(self, state: StateStore, bus: Bus) -> None:
        self._state = state
        self._bus = bus
        self._news = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._news.set()
        self._thread.start()

    def wake(self, _position: int = 0) -> None:
        """Something was committed. Safe from any thread; many calls are one round."""
        self._news.set()

    def stop(self) -> None:
        """Publish what is there, then end."""
        self._stopping = True
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        cursor: int | None = None
        patience: float | None = None
        while True:
            self._news.wait(patience)
            self._news.clear()
            last = self._stopping  # asked first, so that all that was committed before it goes out
            try:
                cursor = self._drain(self._stored() if cursor is None else cursor)
                patience = None
            except Exception:
                _log.exception("outbox_not_read", cursor=cursor, retry_seconds=_RETRY_SECONDS)
                patience = _RETRY_SECONDS
            if last:
                return

    def _stored(self) -> int:
        stored = self._state.document(_SYSTEM, "outbox", "cursor")
        return int(stored) if stored else 0

    def _drain(self, cursor: int) -> int:
        while messages := self._state.outbox(cursor):
            for message in messages:
                self._bus.publish(message)
            cursor = messages[-1].seq
            self._state.document(_SYSTEM, "outbox", "cursor", str(cursor).encode())
        return cursor
