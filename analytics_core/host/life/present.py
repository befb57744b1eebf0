"""Which generation of a plugin is the present one, and which calls are still out with an earlier one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from analytics_core.host.running.runtime import Runtime


class Present:
    """One runtime at a time, lent to calls. Safe for use from any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.hooks: frozenset[str] = frozenset()
        self._out: Counter[int] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def lent(self) -> Iterator[Runtime]:
        """The present runtime for one call."""
        with self._changed:
            runtime = self.runtime
            self._out[runtime.generation] += 1
        try:
            yield runtime
        finally:
            with self._changed:
                self._out[runtime.generation] -= 1
                self._changed.notify_all()

    def exchange(self, runtime: Runtime, hooks: frozenset[str]) -> None:
        """From now on ``runtime`` is lent; calls that are out stay with theirs."""
        with self._changed:
            self.runtime, self.hooks = runtime, hooks

    def drained(self, generation: int, seconds: float) -> bool:
        """Wait for so many seconds until no call is out with ``generation``; whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._out[generation] <= 0, seconds)
