"""The lane that copies the log into the lake, then lets the log forget what both it and the deduplication have done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import structlog

from analytics_core.config import Storage
from analytics_core.errors import LogCorruptionError, StorageError
from analytics_core.events import SCHEMA
from analytics_core.lake import EventStore, RetentionPolicy
from analytics_core.lanes import LaneView
from analytics_core.lanes.maintenance import Forget, HeldRetention, Maintenance
from analytics_core.log import EventLog
from analytics_core.memory import give_back

NAME: Final = "store-writer"
_ROW_BYTES: Final = 256.0
"""What a row is taken to hold until the first commit has shown it."""
_ROWS: Final = 8_192
"""Rows of one read. Batches of one event take 5 kB each until they are put together, so this bounds the memory."""
_PACE_SECONDS: Final = 0.25
_IDLE_FACTOR: Final = 10
"""A log in which only time passes moves the position so much more seldom."""
_BACKOFF_SECONDS: Final = (0.5, 30.0)
_GOODBYE_SECONDS: Final = 5.0
_log = structlog.get_logger(__name__)


class StoreWriter:
    """Copies from ``store.position`` on, one commit at ``store_commit_bytes`` or ``store_commit_seconds``.

    It holds positions only and reads the rows again when it commits, so its memory is one commit. Whatever fails is
    shown as ``retrying`` with its reason and tried again, after 0.5 s at first and 30 s at most: the log keeps every
    event until the lake has it. ``dedup_floor`` gives the lowest position that deduplication still needs.

    ``on_fatal`` is called once, from the lane's thread, with an error that no later try can mend: a damaged log. The
    lane has ended then; the host must stop.

    Maintenance (`maintain`) runs on a second thread every ``maintenance_seconds``; ``now`` is its clock. ``forget``
    (`state.StateStore.forget`) is called once a day, after retention: what was found lasts as long as the events.
    """

    def __init__(
        self,
        log: EventLog,
        store: EventStore,
        storage: Storage,
        *,
        dedup_floor: Callable[[], int],
        policy: RetentionPolicy | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        forget: Forget | None = None,
        on_fatal: Callable[[StorageError], None] | None = None,
    ) -> None:
        self._source = log
        self._store = store
        self._limits = storage
        self._dedup_floor = dedup_floor
        self._maintenance = Maintenance(
            store, storage.maintenance_seconds, policy or RetentionPolicy(storage.retention_days), now, forget
        )
        self._on_fatal = on_fatal
        self._state = "starting"
        self._reason = ""
        self._events = 0
        self._row_bytes = _ROW_BYTES
        self._pending_since: float | None = None
        self._patience = storage.store_commit_seconds
        self._flush_to = 0
        self._trimmed = 0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._committed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"lane:{NAME}", daemon=True),
            threading.Thread(target=self._maintenance.run, name=f"lane:{NAME}:maintenance", daemon=True),
        ]

    def start(self) -> None:
        """:raises StorageError: when log and lake do not belong together: events would be taken for stored ones."""
        position, first, durable = self._store.position, self._source.first, self._source.durable
        if durable < position:
            raise StorageError(
                f"the log ends at {durable}, but the lake holds all below {position}: the log was replaced; "
                "restore the log or the lake from one backup"
            )
        if first > position:
            raise StorageError(
                f"the log starts at {first}, but the lake ends at {position}: events between are missing; "
                "restore the log or the lake from one backup"
            )
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Commit what is durable, if that takes no more than seconds, and end. What is left stays in the log."""
        self._stopping.set()
        self._wake.set()
        self._maintenance.stop()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._state = "stopped"

    def flush(self, timeout: float = 30.0) -> int:
        """Commit all that is durable now and wait for it; the lake's position, which is lower when it failed."""
        target = self._source.durable
        with self._committed:
            self._flush_to = max(self._flush_to, target)
            self._wake.set()
            self._committed.wait_for(lambda: self._store.position >= target, timeout)
        return self._store.position

    def view(self) -> LaneView:
        """``events`` counts from the start of this process."""
        position = self._store.position
        reason = "; ".join(filter(None, (self._reason, self._maintenance.reason)))
        return LaneView(NAME, self._state, position, max(0, self._source.durable - position), self._events, reason)

    # --- the lane ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._step()
                failures = 0
            except LogCorruptionError as error:
                self._give_up(error)
                return
            except Exception as error:  # whatever it is: a lane that dies in silence would fill the disk
                failures += 1
                self._failed(error, failures)
        if not failures:
            self._say_goodbye()

    def _step(self) -> None:
        due = self._due()
        if due:
            self._commit()
            give_back()
        self._trim()
        self._state, self._reason = "active", ""
        if not due:
            self._wake.wait(_PACE_SECONDS)
            self._wake.clear()

    def _failed(self, error: Exception, failures: int) -> None:
        first, most = _BACKOFF_SECONDS
        pause = min(most, first * 2 ** min(failures - 1, 10))
        self._state, self._reason = "retrying", str(error) or type(error).__name__
        _log.error("store_writer_failed", reason=self._reason, retry_seconds=pause, position=self._store.position)
        self._forget()
        self._stopping.wait(pause)

    def _give_up(self, error: LogCorruptionError) -> None:
        self._state, self._reason = "failed", str(error)
        _log.critical("store_writer_failed", reason=self._reason, position=self._store.position)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _due(self) -> bool:
        """By the number of waiting positions and the size of the last commit's rows: no event is read for this."""
        position, durable = self._store.position, self._source.durable
        if durable <= position:
            self._forget()
            return False
        now = time.monotonic()
        if self._pending_since is None:
            self._pending_since = now
        size = (durable - position) * self._row_bytes
        waited = now - self._pending_since
        return size >= self._limits.store_commit_bytes or waited >= self._patience or self._flush_to > position

    def _commit(self) -> None:
        """Store what waits, up to about ``store_commit_bytes``. Watermarks alone can wait longer."""
        events, position = self._pending()
        if not events.num_rows and self._patience < self._idle_patience() and self._flush_to <= self._store.position:
            self._patience = self._idle_patience()
            return
        if events.num_rows:
            self._row_bytes = max(1.0, events.nbytes / events.num_rows)
        self._events += self._store.append(events, position)
        self._forget()
        with self._committed:
            self._committed.notify_all()

    def _trim(self) -> None:
        """Also between commits: the ids of a segment may come to its file only after the last event was taken."""
        below = min(self._store.position, self._dedup_floor())
        if below > self._trimmed:
            self._source.trim(below)
            self._trimmed = below

    def _pending(self) -> tuple[pa.Table, int]:
        position, size, pieces = self._store.position, 0, [SCHEMA.empty_table()]
        while size < self._limits.store_commit_bytes:
            batches, end = self._source.read(position, _ROWS, self._limits.store_commit_bytes - size)
            if end == position:
                break
            position = end
            rows = [batch.record_batch for batch in batches if len(batch)]
            if rows:
                pieces.append(pa.Table.from_batches(rows, SCHEMA).unify_dictionaries().combine_chunks())
                size += pieces[-1].nbytes
        return pa.concat_tables(pieces), position

    def _idle_patience(self) -> float:
        return self._limits.store_commit_seconds * _IDLE_FACTOR

    def _forget(self) -> None:
        self._pending_since, self._patience = None, self._limits.store_commit_seconds

    def _say_goodbye(self) -> None:
        deadline = time.monotonic() + _GOODBYE_SECONDS
        try:
            while self._source.durable > self._store.position and time.monotonic() < deadline:
                self._flush_to = self._source.durable
                self._commit()
        except Exception as error:  # the log has it all, and the next start goes on from there
            _log.error("store_writer_failed", reason=str(error), position=self._store.position)

    # --- maintenance -------------------------------------------------------------------------------------------------

    @property
    def held(self) -> Sequence[HeldRetention]:
        """What the last retention run has held back, one for each tenant; empty when nothing waits for the operator."""
        return self._maintenance.held

    def confirm_retention(self) -> bool:
        """Let the held retention go on, soon and on the maintenance thread; False when nothing is held.

        The run drops whatever is past its policy by then, of all tenants.
        """
        return self._maintenance.confirm()

    def retain_by(self, policy: RetentionPolicy) -> None:
        """Keep events by ``policy`` from now on; the next maintenance comes at once. What was held is asked anew."""
        self._maintenance.follow(policy)

    def maintain(self, *, confirmed: bool = False) -> None:
        """Compact, retain, forget and vacuum once. ``confirmed``: a held retention goes on.

        A part that fails is logged and shown as the lane's reason until it works again; the others run.
        """
        self._maintenance.once(confirmed=confirmed)
