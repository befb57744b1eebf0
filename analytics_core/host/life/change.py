"""A new generation that is to come in, and what became of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import structlog
from msgspec import Struct

from analytics_core.errors import AnalyticsError, RestartRequiredError
from analytics_core.host.code.traces import line_of
from analytics_core.host.life.attempt import Beats
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.fold import Fold
from analytics_core.lanes.lane import Lane

_log = structlog.get_logger(__name__)

Outcome = Literal[
    "active",  # it runs
    "rolled_back",  # it failed; the one before runs on
    "failed",  # it failed, and there was none that ran before
    "restart_required",  # only a new process of the host can take it in; the one before runs on
    "superseded",  # a later change took its place before it came in
]
Strategy = Literal["side_by_side", "stop_first", "restart"]
ComingIn = Callable[[Beats], AbstractContextManager[None]]
"""In it the next generation comes in, unless it raises; the beats of its fold are those of the lane after it."""


class HandedOver(NamedTuple):
    """Where in the log a lane went over to the next generation, the fold that it had until then, and for how many
    seconds it stood still."""

    position: int
    left: Fold
    pause: float


Handover = Callable[[Lane, ComingIn], HandedOver]
"""Brings the next generation into a running lane."""


class ReloadReceipt(Struct, frozen=True):
    """What one change did. ``seconds`` by phase; ``pause`` is the longest that the lane stood still for it, in seconds;
    ``state_bytes`` the size of the state that was handed over meanwhile.

    ``position``: where in the log the next generation has taken over, None when it began from a checkpoint or has no
    lane. ``events_lost``: how many positions lie between what the generation before had processed and where the next
    has gone on; these are compared at each change, and anything but 0 is a fault of the host. ``survivors`` names what
    of the generation before is still alive after it was retired.
    """

    plugin: str
    before: int
    after: int
    outcome: Outcome
    reason: str
    at: datetime
    seconds: dict[str, float]
    pause: float = 0.0
    state_bytes: int = 0
    position: int | None = None
    events_lost: int = 0
    survivors: tuple[str, ...] = ()

    @classmethod
    def of(cls, plugin: str, before: int, after: int, outcome: Outcome, reason: str, **figures: Any) -> ReloadReceipt:
        """That of a change which ends now."""
        seconds = dict(figures.pop("seconds", {}))
        return cls(plugin, before, after, outcome, reason, datetime.now(UTC), seconds, **figures)


class Change:
    """``runtime`` is to come in for generation ``before`` (0 for none).

    ``came_in`` is told when calls are for it; ``settled`` once, on some thread, what became of it, as is ``receipt``.
    With ``handover`` it comes in by that alone: it has run already, beside the one before.
    """

    def __init__(
        self,
        runtime: Runtime,
        strategy: Strategy,
        came_in: Callable[[], None],
        settled: Callable[[ReloadReceipt], None],
        handover: Handover | None = None,
    ) -> None:
        self.runtime = runtime
        self.strategy = strategy
        self.came_in = came_in
        self.handover = handover
        self.receipt: Future[ReloadReceipt] = Future()
        self._settled = settled
        self._settling = threading.Lock()

    def settle(self, receipt: ReloadReceipt) -> None:
        """The first receipt holds."""
        with self._settling:
            if self.receipt.done():
                return
            try:
                self._settled(receipt)
            except Exception:  # what has come of it holds, whoever could not be told
                _log.exception("receipt_not_told", plugin=receipt.plugin)
            self.receipt.set_result(receipt)


def ended(runtime: Runtime, before: int, outcome: Outcome, reason: str, **figures: Any) -> ReloadReceipt:
    """The receipt of a change to ``runtime``."""
    return ReloadReceipt.of(runtime.plugin, before, runtime.generation, outcome, reason, **figures)


def outcome_of(error: BaseException) -> Literal["rolled_back", "restart_required"]:
    """What the failure of a new generation comes to where another one runs on."""
    return "restart_required" if isinstance(error, RestartRequiredError) else "rolled_back"


def reason_of(error: BaseException) -> str:
    """What went wrong, with the line of the plugin's code when it is known."""
    text = str(error) if isinstance(error, AnalyticsError) else f"{type(error).__name__}: {error}"
    line = line_of(error)
    return f"{text} ({line})" if line else text
