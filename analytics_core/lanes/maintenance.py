"""What keeps the lake small and in order beside the store writer, and the retention that waits for the operator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from msgspec import Struct

from analytics_core.errors import RetentionHeldError
from analytics_core.lake import EventStore, RetentionPolicy

Forget = Callable[[datetime | None, Mapping[str, datetime | None]], int]
"""`state.StateStore.forget`."""
_log = structlog.get_logger(__name__)


class HeldRetention(Struct, frozen=True):
    """A tenant whose retention waits for the operator: it would drop ``share`` (0 to 1) of the events."""

    tenant: str
    share: float
    reason: str


class Maintenance:
    """Compaction, retention, forgetting and vacuum, one after the other every ``seconds`` on a thread of its own.

    ``now`` is its clock. ``forget`` is called once a day, after retention: what was found lasts as long as the events.
    """

    def __init__(
        self,
        store: EventStore,
        seconds: float,
        policy: RetentionPolicy,
        now: Callable[[], datetime],
        forget: Forget | None,
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._policy = policy
        self._now = now
        self._forget = forget
        self._forgotten: datetime | None = None
        self._confirmed = False
        self._stopping = threading.Event()
        self._due = threading.Event()
        self.held: Sequence[HeldRetention] = ()
        self.reason = ""

    def stop(self) -> None:
        """Break off what is under way; `run` returns."""
        self._stopping.set()
        self._due.set()

    def confirm(self) -> bool:
        """Let the held retention go on, soon and on the thread of `run`; False when nothing is held."""
        if not self.held:
            return False
        self._confirmed = True
        self._due.set()
        return True

    def run(self) -> None:
        """The thread's body."""
        while not self._stopping.is_set():
            self._due.wait(self._seconds)
            self._due.clear()
            if not self._stopping.is_set():
                confirmed, self._confirmed = self._confirmed, False
                self.once(confirmed=confirmed)

    def once(self, *, confirmed: bool) -> None:
        """A part that fails is logged and kept as ``reason`` until it works again; the others run."""
        parts: list[tuple[str, Callable[[], int]]] = [
            ("compaction", lambda: self._store.compact(self._stopping.is_set)),
            ("retention", lambda: self._retain(confirmed)),
            ("forgetting", self._forget_old),
            ("vacuum", self._store.vacuum),
        ]
        problems = []
        for part, run in parts:
            if self._stopping.is_set():
                return
            try:
                count = run()
            except Exception as error:  # maintenance must neither end nor stop the copying
                _log.error("lake_maintenance_failed", part=part, reason=str(error))
                problems.append(f"{part}: {error}")
            else:
                if count:
                    _log.info("lake_maintained", part=part, count=count)
        self.reason = "; ".join(problems)

    def _retain(self, confirmed: bool) -> int:
        try:
            dropped = self._store.retain(self._policy, self._now(), confirmed=confirmed)
        except RetentionHeldError as error:
            self.held = tuple(HeldRetention(e.tenant, e.share, e.reason) for e in (error, *error.others))
            raise
        self.held = ()
        return dropped

    def _forget_old(self) -> int:
        """By the same days as the events, and never by a clock that retention has doubted."""
        today = self._now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self._forget is None or self.held or today == self._forgotten:
            return 0

        def before(days: int | None) -> datetime | None:
            return None if days is None else today - timedelta(days=days)

        by_tenant = {tenant: before(days) for tenant, days in self._policy.by_tenant.items()}
        count = self._forget(before(self._policy.days), by_tenant)
        self._forgotten = today
        return count
