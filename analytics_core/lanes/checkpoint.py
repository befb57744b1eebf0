"""What a lane keeps beside its cursor: the plugin's exported state and the tenants that it has had events of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from analytics_core.events import EventBatch, micros
from analytics_core.records import Json

REMEMBERED: Final = timedelta(hours=24)
"""How long, in watermark time, a tenant without events is still told that time passes."""
TICK: Final = timedelta(seconds=1)
"""The least watermark time between two batches of a tenant that has no events."""

_REMEMBERED_US = REMEMBERED // timedelta(microseconds=1)
_TICK_US = TICK // timedelta(microseconds=1)


class Kept(Struct, frozen=True):
    """The bytes in `state.Checkpoint.state`: msgpack of this. ``tenants``: last event, microseconds of watermark."""

    kind: Literal["none", "bytes", "json"]
    data: bytes
    tenants: dict[str, int]


_kept: Final = msgspec.msgpack.Decoder(Kept)
"""Made once, before there are threads: msgspec is not safe while it looks at a type for the first time."""


def pack(state: bytes | Json, tenants: dict[str, int], *, stateless: bool = False) -> bytes:
    """The envelope of an exported state. :raises TypeError: for a state that is neither bytes nor a JSON value."""
    if stateless:
        kept = Kept("none", b"", tenants)
    elif isinstance(state, bytes | bytearray | memoryview):
        kept = Kept("bytes", bytes(state), tenants)
    else:
        kept = Kept("json", msgspec.json.encode(state), tenants)
    return msgspec.msgpack.encode(kept)


def unpack(envelope: bytes) -> Kept:
    return _kept.decode(envelope)


def value_of(kept: Kept) -> Any:
    """The state as ``export_state`` gave it; tuples have become lists, as JSON has it."""
    return kept.data if kept.kind == "bytes" else msgspec.json.decode(kept.data)


class Tenants:
    """The tenants a lane has had events of, and what watermark each has been told last."""

    def __init__(self, last_event: dict[str, int] | None = None) -> None:
        self.last_event: dict[str, int] = dict(last_event or {})
        self._told: dict[str, int] = {}

    def regroup(self, batches: Sequence[EventBatch]) -> list[EventBatch]:
        """A window of the log as one batch per tenant in log order, then an empty one for each tenant whose time has
        passed without events. All carry the latest watermark of the window, in the log that of its last frame. Nothing
        goes past a tombstone, which stays a batch of its own.
        """
        if not batches:
            return []
        watermark = max(batch.watermark for batch in batches)
        grouped: list[EventBatch] = []
        since = 0
        for at, batch in enumerate(batches):
            if batch.erased:
                grouped += self._together(batches[since:at], watermark)
                grouped.append(EventBatch.empty(batch.tenant, watermark, batch.erased))
                since = at + 1
        grouped += self._together(batches[since:], watermark)
        return grouped + self._due(micros(watermark), watermark)

    def _together(self, batches: Sequence[EventBatch], watermark: datetime) -> list[EventBatch]:
        by_tenant: dict[str, list[EventBatch]] = {}
        for batch in batches:
            if len(batch):
                by_tenant.setdefault(batch.tenant, []).append(batch)
        now = micros(watermark)
        self.last_event.update(dict.fromkeys(by_tenant, now))
        self._told.update(dict.fromkeys(by_tenant, now))
        return [
            EventBatch(EventBatch.concat(parts).record_batch, tenant, watermark) for tenant, parts in by_tenant.items()
        ]

    def _due(self, now: int, watermark: datetime) -> list[EventBatch]:
        for tenant in [t for t, at in self.last_event.items() if now - at > _REMEMBERED_US]:
            del self.last_event[tenant]
            self._told.pop(tenant, None)
        due = [t for t in self.last_event if now - self._told.get(t, now - _TICK_US) >= _TICK_US]
        self._told.update(dict.fromkeys(due, now))
        return [EventBatch.empty(tenant, watermark) for tenant in due]
