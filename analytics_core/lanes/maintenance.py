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

    ``now`` is its clock. ``forget`` is called once a day and for each new policy, after retention: what was found lasts
    as long as the events.
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
        self._forgotten: tuple[datetime, RetentionPolicy] | None = None
        self._held: tuple[RetentionPolicy, Sequence[HeldRetention]] = (policy, ())
        self._confirmed: RetentionPolicy | None = None
        self._stopping = threading.Event()
        self._due = threading.Event()
        self.reason = ""

    @property
    def held(self) -> Sequence[HeldRetention]:
        """What the present policy would drop and waits for the operator."""
        policy, held = self._held
        return held if policy is self._policy else ()

    def follow(self, policy: RetentionPolicy) -> None:
        """Retain by ``policy``, soon and from then on. What the one before held or was confirmed holds no longer."""
        if policy != self._policy:
            self._policy = policy
            self._due.set()
            _log.info("retention_changed", days=policy.days, tenants=policy.by_tenant)

    def stop(self) -> None:
        """Break off what is under way; `run` returns."""
        self._stopping.set()
        self._due.set()

    def confirm(self) -> bool:
        """Let the held retention go on, soon and on the thread of `run`; False when nothing is held."""
        policy, held = self._held
        if policy is not self._policy or not held:
            return False
        self._confirmed = policy
        self._due.set()
        return True

    def run(self) -> None:
        """The thread's body."""
        while not self._stopping.is_set():
            self._due.wait(self._seconds)
            self._due.clear()
            if not self._stopping.is_set():
                confirmed, self._confirmed = self._confirmed, None
                self._run_parts(self._policy, confirmed)

    def once(self, *, confirmed: bool) -> None:
        """A part that fails is logged and kept as ``reason`` until it works again; the others run."""
        policy = self._policy
        self._run_parts(policy, policy if confirmed else None)

    def _run_parts(self, policy: RetentionPolicy, confirmed: RetentionPolicy | None) -> None:
        parts: list[tuple[str, Callable[[], int]]] = [
            ("compaction", lambda: self._store.compact(self._stopping.is_set)),
            ("retention", lambda: self._retain(policy, confirmed is policy)),
            ("forgetting", lambda: self._forget_old(policy)),
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

    def _retain(self, policy: RetentionPolicy, confirmed: bool) -> int:
        try:
            dropped = self._store.retain(policy, self._now(), confirmed=confirmed)
        except RetentionHeldError as error:
            self._held = policy, tuple(HeldRetention(e.tenant, e.share, e.reason) for e in (error, *error.others))
            raise
        self._held = policy, ()
        return dropped

    def _forget_old(self, policy: RetentionPolicy) -> int:
        """By the same days as the events, and never by a clock that retention has doubted."""
        today = self._now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self._forget is None or self._held[1] or self._forgotten == (today, policy):
            return 0

        def before(days: int | None) -> datetime | None:
            return None if days is None else today - timedelta(days=days)

        by_tenant = {tenant: before(days) for tenant, days in policy.by_tenant.items()}
        count = self._forget(before(policy.days), by_tenant)
        self._forgotten = today, policy
        return count
