"""How much trouble one generation of a plugin may make before it rests, and when it is tried again.

A token bucket (as in traffic policing) with two currencies: errors, and seconds in calls that had to be given up. Both
refill with time, so that what fails once a day is never kept from running, and what fails all the time rests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

CALL_COST: Final = 0.1
"""What a failed call of a concurrent hook costs, in errors: its client may have asked for it, the lane goes on."""


_DOUBLINGS: Final = 64


class RestartPolicy(Struct, frozen=True):
    """When a failed plugin is tried again. All seconds are monotonic.

    ``failures`` is how many errors the bucket holds and ``hangs`` how many calls that ran into their limit, which count
    for more since each may leave a thread behind; ``refill`` is how long one of either takes to be forgiven.
    """

    backoff: float = 0.25
    backoff_most: float = 30.0
    failures: int = 6
    hangs: int = 3
    refill: float = 30.0
    cool_down: float = 60.0
    cool_down_most: float = 900.0


class Budget:
    """That of one generation. Safe for use from any thread.

    Progress is a commit beyond the place of the last failure. A failure before any progress after a rest is followed by
    a rest twice as long. ``call_seconds``: how long one call may take.
    """

    def __init__(self, policy: RestartPolicy, call_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._call_seconds = call_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._errors = float(policy.failures)
        self._hangs = float(policy.hangs)
        self._at = clock()
        self._rests = 0
        self._failed_at = -1
        self.failures = 0
        """Failures of the lane in a row, without progress."""

    @property
    def rested(self) -> bool:
        """Whether there was a rest, and no progress since."""
        with self._lock:
            return self._rests > 0

    @property
    def strained(self) -> bool:
        """Whether less than half is left."""
        with self._lock:
            self._refill()
            return self._errors < self._policy.failures / 2 or self._hangs < self._policy.hangs / 2

    def failed(self, position: int, *, hung: bool = False) -> tuple[Literal["again", "rest"], float]:
        """The lane failed in the window that begins at ``position``: try again, or rest, for so many seconds."""
        with self._lock:
            self.failures += 1
            self._failed_at = max(self._failed_at, position)
            if self._rests or self._spent(1.0, self._call_seconds if hung else 0.0):
                return "rest", self._rest()
            policy = self._policy
            return "again", _doubled(policy.backoff, self.failures - 1, policy.backoff_most)

    def called(self, given_up_after: float = 0.0) -> float:
        """A concurrent call failed, or was given up after so many seconds: how long to rest, 0 for not at all."""
        with self._lock:
            return self._rest() if self._spent(CALL_COST, given_up_after) else 0.0

    def committed(self, position: int) -> bool:
        """A commit at ``position``: whether that is progress."""
        with self._lock:
            if position <= self._failed_at:
                return False
            self.failures, self._failed_at = 0, -1
            if self._rests:
                self._rests = 0
                self._errors = max(self._errors, self._policy.failures / 2)
                self._hangs = max(self._hangs, self._policy.hangs / 2)
            return True

    def _spent(self, errors: float, seconds: float) -> bool:
        """Take these; whether nothing is left."""
        self._refill()
        self._errors -= errors
        self._hangs -= seconds / self._call_seconds
        return min(self._errors, self._hangs) < CALL_COST / 2

    def _refill(self) -> None:
        now = self._clock()
        forgiven = (now - self._at) / self._policy.refill
        self._at = now
        self._errors = min(float(self._policy.failures), self._errors + forgiven)
        self._hangs = min(float(self._policy.hangs), self._hangs + forgiven)

    def _rest(self) -> float:
        rest = _doubled(self._policy.cool_down, self._rests, self._policy.cool_down_most)
        self._rests += 1
        return rest


def _doubled(seconds: float, times: int, most: float) -> float:
    """However often: a plugin may fail for weeks."""
    return min(seconds * 2.0 ** min(times, _DOUBLINGS), most)
