"""A change whose generation is not made beside the one before, but in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from analytics_core.host.life.change import Change, Outcome, ReloadReceipt, ended, outcome_of, reason_of
from analytics_core.host.life.reload import gap, retired
from analytics_core.host.running.runtime import Runtime
from analytics_core.lanes.lane import Lane

_TRYING_SECONDS: Final = 3.0
_UNTRIED: Final = "untried: what ran before had failed, and nothing has been processed since"


class Trial:
    """A change whose generation begins from the checkpoint, after generation ``before`` was stopped or has failed.

    ``fallback`` runs again when the new one does not come to run; ``left_at`` is up to where it has committed. When it
    has ``failed``, to begin is not enough: the new one has to get further. `ended` may block; what is told then is the
    receipt.
    """

    def __init__(
        self,
        change: Change,
        before: int,
        fallback: Runtime | None,
        left_at: int | None,
        seconds: dict[str, float],
        drained: Callable[[int, float], bool],
        settle: Callable[[ReloadReceipt], None],
        *,
        failed: bool,
    ) -> None:
        self.change = change
        self.fallback = fallback
        self.over = False
        self._drained = drained
        self._lane: Lane | None = None
        self._resumed_at: int | None = None
        self._due = float("inf")
        self._failed = failed
        self._before = before
        self._left_at = left_at
        self._seconds = seconds
        self._settle = settle
        self._began = time.monotonic()

    def runs(self, lane: Lane | None) -> bool:
        """Its state is restored. Whether that is all that it can show; else the first commit or failure says what it is
        worth, for which nobody waits longer than `due_in` seconds."""
        self._lane = lane
        if lane is not None:
            self._resumed_at = lane.position
            if self._failed and lane.view().lag:
                self._due = time.monotonic() + _TRYING_SECONDS
        return self._due == float("inf")

    def due_in(self) -> float:
        return self._due - time.monotonic()

    def ended(self, error: BaseException | None) -> None:
        """It runs, or ``error`` is why it does not."""
        self._seconds["begin"] = time.monotonic() - self._began
        survivors: tuple[str, ...] = ()
        outcome: Outcome
        if error is not None:
            outcome = outcome_of(error) if self.fallback is not None else "failed"
            reason = reason_of(error)
        else:
            outcome = "active"
            reason = self._untried() if self.fallback is not None else "nothing ran that could be handed over"
            survivors = self._retired(self.fallback) if self.fallback is not None else ()
        lost = gap(self._left_at, self._resumed_at)
        figures = {"seconds": self._seconds, "events_lost": lost, "survivors": survivors}
        self._settle(ended(self.change.runtime, self._before, outcome, reason, **figures))

    def _untried(self) -> str:
        went_on = self._lane is not None and self._lane.position != self._resumed_at
        return _UNTRIED if self._failed and not went_on else ""

    def _retired(self, old: Runtime) -> tuple[str, ...]:
        return retired(old, [], lambda seconds: self._drained(old.generation, seconds))

    def superseded(self, reason: str) -> None:
        """Something else takes its place before it has come to run."""
        self._settle(ended(self.change.runtime, self._before, "superseded", reason, seconds=self._seconds))
