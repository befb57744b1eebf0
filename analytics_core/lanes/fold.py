"""The fold of one plugin over the log: a window of events and the plugin's state in, what changed out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.errors import HookFailedError, StorageError, TrimmedError
from analytics_core.events import EventBatch
from analytics_core.lanes.checkpoint import Tenants, pack, unpack, value_of
from analytics_core.lanes.outputs import Pending
from analytics_core.log import LogReader
from analytics_core.records import PluginContext, ProcessResult
from analytics_core.state import Checkpoint

_LONG: Final = timedelta(days=366)

Backlog = Callable[[int, int], tuple[list[EventBatch], int]]
"""``(start, max_rows) -> (batches, next)``: the same as `LogReader.read`, for positions that the log has trimmed."""


class Step(Struct, frozen=True):
    """One window, folded: go on at ``position``; ``events`` were in it; ``results`` in the order they came; ``erased``:
    how many tombstones were in it."""

    position: int
    events: int
    results: list[tuple[str, ProcessResult]]
    erased: int = 0


class Fold(Protocol):
    """What a lane drives, in its own process or another. One thread calls it, and a failed call ends its use."""

    @property
    def state_version(self) -> int:
        """The version under which `export` gives its state."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint. Called once, first, also when there is no state yet."""
        ...

    def advance(self, position: int, max_rows: int) -> Step:
        """Fold the events from ``position`` on, about ``max_rows`` of them.

        :raises HookFailedError: from the plugin; the state is then undefined.
        :raises WorkerDiedError: when the plugin's process has ended.
        """
        ...

    def export(self) -> bytes:
        """The state after the last `advance`, as `restore` takes it."""
        ...

    def close(self) -> None:
        """Tear the plugin down. Called once, last, also after a failure."""
        ...


class Calls(Protocol):
    """One live plugin object, as `host.dispatch.Instance` has it."""

    @property
    def hooks(self) -> frozenset[str]: ...

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call a hook and wait; None when the plugin does not have it. :raises HookFailedError: for all it raises."""
        ...

    def close(self) -> None: ...


class Pulse:
    """What a thread is in and since when, on the monotonic clock, for whoever watches it. ``doing`` "" is idle."""

    __slots__ = ("at", "doing")

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.doing = ""

    def beat(self, doing: str) -> None:
        self.at = time.monotonic()
        self.doing = doing

    def busy_for(self) -> float:
        """Seconds in the present step; 0 when idle."""
        return time.monotonic() - self.at if self.doing else 0.0


class HookFold:
    """The fold whose plugin lives in this process: reads ``log`` itself and calls the hooks of ``plugin``.

    ``beat`` is told the name of each hook before it is called, and "" after it.
    """

    def __init__(
        self,
        name: str,
        plugin: Calls,
        log: LogReader,
        *,
        state_version: int = 1,
        backlog: Backlog | None = None,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``plugin`` has been set up; from now on it is this fold's to tear down and close."""
        self._name = name
        self._plugin = plugin
        self._log = log
        self._version = state_version
        self._backlog = backlog
        self._beat = beat
        self._tenants = Tenants()

    @property
    def state_version(self) -> int:
        return self._version

    def restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state is None:
            return
        kept = unpack(checkpoint.state)
        self._tenants = Tenants(kept.tenants)
        if kept.kind == "none" or "export_state" not in self._plugin.hooks:
            return
        if "import_state" not in self._plugin.hooks:
            raise HookFailedError(self._name, "import_state", "is missing, and there is a state to take over")
        self._call("import_state", state=value_of(kept), version=checkpoint.state_version)

    def advance(self, position: int, max_rows: int) -> Step:
        batches, after = self._read(position, max_rows)
        return self.fold(batches, after)

    def fold(self, batches: Sequence[EventBatch], after: int) -> Step:
        """`advance` over a window that was read elsewhere; ``after`` is the position behind it."""
        results: list[tuple[str, ProcessResult]] = []
        events = erased = 0
        for batch in self._tenants.regroup(batches):
            events += len(batch)
            if batch.erased:
                erased += 1
                self._call("erase", tenant=batch.tenant, ids=batch.erased)
            result = self._call("process", batch=batch)
            if result is not None:
                results.append((batch.tenant, result))
        return Step(after, events, results, erased)

    def export(self) -> bytes:
        if "export_state" not in self._plugin.hooks:
            return pack(None, self._tenants.last_event, stateless=True)
        state = self._call("export_state")
        try:
            return pack(state, self._tenants.last_event)
        except (TypeError, ValueError, RecursionError) as error:
            raise HookFailedError(self._name, "export_state", f"gave no bytes and no JSON value: {error}") from error

    def close(self) -> None:
        try:
            self._call("teardown")
        finally:
            self._plugin.close()

    def _read(self, position: int, max_rows: int) -> tuple[list[EventBatch], int]:
        try:
            return self._log.read(position, max_rows)
        except TrimmedError:
            if self._backlog is None:
                raise
        return read_backlog(self._name, self._backlog, position, max_rows)

    def _call(self, hook: str, /, **arguments: Any) -> Any:
        self._beat(hook)
        try:
            return self._plugin.call(hook, **arguments)
        finally:
            self._beat("")


def read_backlog(lane: str, backlog: Backlog, position: int, max_rows: int) -> tuple[list[EventBatch], int]:
    """What the log no longer has. :raises StorageError: when the backlog does not have it either."""
    batches, after = backlog(position, max_rows)
    if after <= position:
        raise StorageError(f"lane {lane!r}: neither the log nor the lake has position {position}")
    return batches, after


def fold_once(name: str, plugin: Calls, batches: Sequence[EventBatch], context: PluginContext) -> ProcessResult:
    """Fold exactly ``batches`` of one tenant with a fresh ``plugin``, then let enough time pass to close everything."""
    pending = Pending(name)
    try:
        plugin.call("setup", context=context)
        for batch in [*batches, *_closing(batches)]:
            result = plugin.call("process", batch=batch)
            if result is not None:
                pending.add(batch.tenant, result)
        plugin.call("teardown")
    finally:
        plugin.close()
    return pending.result()


def _closing(batches: Sequence[EventBatch]) -> list[EventBatch]:
    if not batches:
        return []
    latest = max(batch.watermark for batch in batches)
    times = [pc.max(batch.column("timestamp")).as_py() for batch in batches if len(batch)]
    return [EventBatch.empty(batches[-1].tenant, max([latest, *times]) + _LONG)]
