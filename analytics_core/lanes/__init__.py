"""Lanes: the readers of the log. Each has its own cursor and checkpoint, so that none can hold up another."""

from __future__ import annotations

from msgspec import Struct


class LaneView(Struct, frozen=True):
    """What anybody may see of a lane. ``lag`` is how many log positions it is behind the durable end."""

    name: str
    state: str
    position: int
    lag: int
    events: int
    reason: str = ""
