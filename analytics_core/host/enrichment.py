"""The ``enrich`` hooks on the acknowledgement path: in order, under one deadline, with a circuit around each plugin."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog
from msgspec import Struct

from analytics_core.errors import HookFailedError, HookTimeoutError, OverloadedError, PluginError
from analytics_core.events import EventBatch
from analytics_core.records import Enrichment

_OPEN_SECONDS: Final = 1.0
_OPEN_MOST: Final = 60.0

_log = structlog.get_logger(__name__)

Mask = npt.NDArray[np.bool_]


class Enricher(Struct, frozen=True):
    """One plugin with an ``enrich`` hook; ``call(batch, seconds)`` asks it."""

    plugin: str
    after: Sequence[str]
    on_failure: Literal["pass", "reject"]
    call: Callable[[EventBatch, float], Awaitable[Enrichment | None]]


class Circuit:
    """Open after a timeout: for a while, which doubles, nobody waits for the plugin again; then one request tries."""

    def __init__(self) -> None:
        self._until = 0.0
        self._pause = _OPEN_SECONDS
        self._logged_at = float("-inf")
        self.reason = ""

    def admits(self, seconds: float) -> bool:
        """Whether to ask the plugin. Who may try after a pause has ``seconds``, in which nobody else may."""
        now = time.monotonic()
        if now < self._until:
            return False
        if self.reason:
            self._until = now + seconds
        return True

    def tripped(self, reason: str) -> None:
        self.reason = reason
        self._until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _OPEN_MOST)

    def closed(self) -> None:
        self._until, self._pause, self.reason = 0.0, _OPEN_SECONDS, ""

    def speaks(self) -> bool:
        """Whether to log a failure: once a second, however many requests meet it."""
        now = time.monotonic()
        if now - self._logged_at < 1.0:
            return False
        self._logged_at = now
        return True


class Enrichers:
    """All enriching plugins of the host."""

    def __init__(self, seconds: float) -> None:
        self._chain: list[tuple[Enricher, Circuit]] = []
        self._seconds = seconds

    def enlist(self, enrichers: Sequence[Enricher]) -> None:
        """From the next batch on these; what is known of those that stay is kept."""
        circuits = {enricher.plugin: circuit for enricher, circuit in self._chain}
        self._chain = [(enricher, circuits.get(enricher.plugin) or Circuit()) for enricher in in_order(enrichers)]

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Mask | None]:
        """The batch with changed properties, as long as before, and which of its rows were dropped.

        A plugin sees neither rows that an earlier one dropped nor properties before an earlier one's change.

        :raises OverloadedError: when a plugin that must not be passed over gave no answer.
        """
        deadline = time.monotonic() + self._seconds
        dropped: Mask | None = None
        for enricher, circuit in self._chain:
            seen = batch if dropped is None else batch.filter(~dropped)
            if not len(seen):
                break
            enrichment = await self._ask(enricher, circuit, seen, deadline)
            if enrichment is not None:
                batch, dropped = _applied(batch, dropped, enrichment)
        return batch, dropped

    async def _ask(self, enricher: Enricher, circuit: Circuit, batch: EventBatch, deadline: float) -> Enrichment | None:
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                raise HookFailedError(enricher.plugin, "enrich", "the plugins before it left it no time")
            if not circuit.admits(left):
                raise PluginError(enricher.plugin, f"is passed over for a while: {circuit.reason}")
            enrichment = _checked(enricher.plugin, await enricher.call(batch, left), len(batch))
        except PluginError as error:
            if isinstance(error, HookTimeoutError):
                circuit.tripped(str(error))
            if circuit.speaks():
                _log.warning(
                    "enrich_failed", plugin=enricher.plugin, on_failure=enricher.on_failure, problem=str(error)
                )
            if enricher.on_failure == "reject":
                raise OverloadedError(str(error)) from error
            return None
        circuit.closed()
        return enrichment


def in_order(enrichers: Sequence[Enricher]) -> list[Enricher]:
    """By ``after``, names that are not there ignored, else by name; a circle falls back to the order of names."""
    by_name = {enricher.plugin: enricher for enricher in sorted(enrichers, key=lambda e: e.plugin)}
    graph = TopologicalSorter({name: [a for a in e.after if a in by_name] for name, e in by_name.items()})
    try:
        return [by_name[name] for name in graph.static_order()]
    except CycleError as error:
        _log.warning("enrich_order_circular", plugins=error.args[1], order=list(by_name))
        return list(by_name.values())


def _checked(plugin: str, enrichment: Enrichment | None, rows: int) -> Enrichment | None:
    """The same with Arrow and numpy columns. What would corrupt the log is the plugin's failure."""
    if enrichment is None:
        return None
    try:
        properties = None if enrichment.properties is None else _objects(enrichment.properties)
        drop = None if enrichment.drop is None else np.asarray(enrichment.drop, dtype=bool)
    except (TypeError, ValueError, pa.ArrowException, msgspec.MsgspecError) as error:
        raise HookFailedError(plugin, "enrich", f"its columns cannot be used: {error}") from error
    for name, column in (("properties", properties), ("drop", drop)):
        if column is not None and len(column) != rows:
            raise HookFailedError(plugin, "enrich", f"{name} has {len(column)} values for {rows} events")
    return Enrichment(properties, drop, enrichment.reason)


def _objects(values: Any) -> pa.Array:
    """Strings of JSON objects as an Arrow column."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    column = column.cast(pa.string()) if isinstance(column, pa.Array) else pa.array(column, pa.string())
    if column.null_count:
        raise ValueError("properties are never null; valid is '{}'")
    msgspec.json.decode("[" + ",".join(column.to_pylist()) + "]", type=list[dict[str, msgspec.Raw]])
    return column


def _applied(batch: EventBatch, dropped: Mask | None, enrichment: Enrichment) -> tuple[EventBatch, Mask | None]:
    """``enrichment`` speaks of the rows that were not yet ``dropped``."""
    kept = np.flatnonzero(~dropped) if dropped is not None else np.arange(len(batch))
    if enrichment.properties is not None:
        record = batch.record_batch
        index = record.schema.get_field_index("properties")
        column = enrichment.properties
        if dropped is not None:
            every = np.array(record.column(index).to_pylist(), dtype=object)
            every[kept] = column.to_pylist()
            column = pa.array(every, pa.string())
        batch = EventBatch(record.set_column(index, record.schema.field(index), column), batch.tenant, batch.watermark)
    if enrichment.drop is not None and enrichment.drop.any():
        dropped = np.zeros(len(batch), bool) if dropped is None else dropped.copy()
        dropped[kept[enrichment.drop]] = True
    return batch, dropped
