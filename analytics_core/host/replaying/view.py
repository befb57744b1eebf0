"""What is shown of a replay."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

from analytics_core.host.life.change import ReloadReceipt
from analytics_core.state.side import Difference

ReplayState = Literal[
    "replaying",  # history is being folded
    "ready",  # the difference is known; it waits for a decision, and follows the plugin meanwhile
    "switching",
    "switched",  # the plugin runs on with what was rebuilt
    "failed",  # nothing has changed
    "stale",  # the plugin's code changed meanwhile; nothing has changed
    "discarded",  # nothing has changed
]


class ReplayView(Struct, frozen=True, kw_only=True):
    """One replay. Outputs of windows from ``since`` on are rebuilt, all when it is null; ``kept_from`` is when the
    oldest event was received that history still has. ``note`` says why ``since`` is not what was asked for.

    ``events`` were folded so far, up to ``position``; ``progress`` is in ``[0, 1]``, ``eta_seconds`` an estimate.
    ``generation`` is the one that runs after the switch, of which ``receipt`` tells.
    """

    id: str
    plugin: str
    state: ReplayState
    reason: str
    generation: int
    since: datetime | None
    kept_from: datetime | None
    started_at: datetime
    note: str = ""
    events: int
    position: int
    progress: float
    eta_seconds: float | None = None
    difference: Difference | None = None
    receipt: ReloadReceipt | None = None
