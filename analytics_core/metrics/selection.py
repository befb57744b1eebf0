"""Which events of a batch a live metric counts, and what of them: a column is cut to their rows when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.events import MINUTE, EventBatch
from analytics_core.hashing import hash_strings
from analytics_core.metrics.definition import Definition
from analytics_core.metrics.filters import Field, Filter
from analytics_core.properties import extract_property

Labels = tuple[tuple[str, str], ...]
Rows = npt.NDArray[np.int64]


class Selection:
    """Some events of a batch in log order: those at ``rows``, ascending, or all. What is read of them is kept."""

    __slots__ = ("_batch", "_made", "_rows")

    def __init__(self, batch: EventBatch, rows: Rows | None = None) -> None:
        self._batch = batch
        self._rows = rows
        self._made: dict[tuple[Any, Any], Any] = {}

    def __len__(self) -> int:
        return len(self._batch) if self._rows is None else len(self._rows)

    def column(self, name: str) -> pa.Array:
        """One column of `events.SCHEMA`, shape ``(len(self),)``."""
        if self._rows is None:
            return self._batch.column(name)
        return self._once("column", name, lambda: self._batch.column(name).take(pa.array(self._rows)))

    def property(self, name: str, type: type[str | float | int | bool]) -> pa.Array:  # noqa: A002
        """`EventBatch.property` of these events alone."""
        return self._once(name, type, lambda: extract_property(self.column("properties"), name, type))

    def where(self, conditions: tuple[Filter, ...]) -> Selection:
        """Those of which all ``conditions`` hold."""
        kept = self
        for condition in conditions:
            kept = kept.at(np.flatnonzero(condition.mask(kept)))
        return kept

    def at(self, places: Rows) -> Selection:
        """Those at ``places`` among these, ascending."""
        if len(places) == len(self):
            return self
        return Selection(self._batch, places if self._rows is None else self._rows[places])

    def texts(self, field: Field | None) -> pa.Array:
        """The value of each event as text, null where it has none; without a field the person."""
        return self._once("text", field, lambda: _people(self) if field is None else _as_text(field, self))

    def hashes(self, field: Field | None) -> npt.NDArray[np.uint64]:
        """`hash_strings` of `texts`, shape ``(len(self),)``."""
        found: npt.NDArray[np.uint64] = self._once("hash", field, lambda: hash_strings(self.texts(field)))
        return found

    def _once(self, what: Any, of: Any, make: Callable[[], Any]) -> Any:
        if (what, of) not in self._made:
            self._made[what, of] = make()
        return self._made[what, of]


class Part:
    """The events of a batch in one minute. ``counts``: how many have each name."""

    def __init__(self, events: Selection) -> None:
        self._events = events
        names = events.column("name")
        self._codes = np.asarray(names.indices)
        self._by_code = np.bincount(self._codes)
        found = np.flatnonzero(self._by_code)
        kept = names.dictionary if len(found) == len(names.dictionary) else names.dictionary.take(pa.array(found))
        words = kept.to_pylist()
        self._code_of: dict[str, int] = dict(zip(words, found.tolist(), strict=True))
        self.counts: dict[str, int] = dict(zip(words, self._by_code[found].tolist(), strict=True))
        self._selected: dict[tuple[tuple[str, ...], str], Selection] = {}

    def number(self, names: tuple[str, ...]) -> int:
        """How many events have one of these names; all when there are none."""
        return sum(self.counts.get(name, 0) for name in set(names)) if names else len(self._events)

    def selected(self, definition: Definition) -> Selection:
        """The events that ``definition`` counts; the same object for all that count the same events."""
        key = definition.events, repr(definition.where)  # as text: 1 equals True and does not match the same
        if key not in self._selected:
            self._selected[key] = self._named(definition.events).where(definition.where)
        return self._selected[key]

    def _named(self, names: tuple[str, ...]) -> Selection:
        if self.number(names) == len(self._events):
            return self._events
        wanted = np.zeros(len(self._by_code), np.bool_)
        wanted[[code for name, code in self._code_of.items() if name in names]] = True
        return self._events.at(np.flatnonzero(wanted.take(self._codes)))


def parts(batch: EventBatch, since: int, until: int) -> Iterator[tuple[int, Part]]:
    """The events from ``since`` until before ``until`` (microseconds) by minute, the earliest minute first."""
    at = batch.column("timestamp").view(pa.int64()).to_numpy()
    first, last = int(at.min()), int(at.max())
    if since <= first and last < until and first // MINUTE == last // MINUTE:
        yield first // MINUTE * MINUTE, Part(Selection(batch))
        return
    rows = np.flatnonzero((at >= since) & (at < until))
    minutes = at[rows] // MINUTE * MINUTE
    for minute in np.unique(minutes).tolist():
        yield minute, Part(Selection(batch, rows[minutes == minute]))


def measured(definition: Definition, events: Selection) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """What is aggregated: a truth for ``count``, a hash for ``unique``, else a number, and which events have it.

    Both have shape ``(len(events),)``; the second is None when all have it.
    """
    if definition.aggregate not in ("count", "unique"):
        assert definition.value is not None
        numbers = definition.value.column_of(events, float).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        return numbers, None if finite.all() else finite
    if definition.aggregate == "count" and definition.value is None:
        return np.ones(len(events), np.bool_), None
    texts = events.texts(definition.value)
    present = texts.is_valid().to_numpy(zero_copy_only=False) if texts.null_count else None
    values = events.hashes(definition.value) if definition.aggregate == "unique" else np.ones(len(events), np.bool_)
    return values, present


def labelled(definition: Definition, events: Selection) -> Iterator[tuple[Labels, Rows]]:
    """Each combination of labels with its places among ``events``, ascending, in the order of their first places."""
    if not definition.breakdown:
        return
    columns = [pc.fill_null(events.texts(field), "").dictionary_encode() for _, field in definition.breakdown]
    codes = np.asarray(columns[0].indices)  # ascending in the order in which the values come first
    for column in columns[1:]:
        pairs = codes.astype(np.int64) * len(column.dictionary) + np.asarray(column.indices)
        codes = np.asarray(pa.array(pairs).dictionary_encode().indices)
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    firsts = pa.array([places[0] for places in groups], pa.int64())
    words = [column.take(firsts).to_pylist() for column in columns]
    names = [name for name, _ in definition.breakdown]
    for labels, places in zip(zip(*words, strict=True), groups, strict=True):
        yield tuple(zip(names, labels, strict=True)), places


def _people(events: Selection) -> pa.Array:
    known = events.column("user_id")
    if not known.null_count:
        return known
    return pc.if_else(known.is_valid(), known, events.column("anonymous_id"))  # half the time of pc.coalesce


def _as_text(field: Field, events: Selection) -> pa.Array:
    """A value as text, whatever scalar it is, so that 5 and "5" are one value as they are in history's SQL."""
    found = field.column_of(events, str)
    for kind in (int, float, bool):
        if field.path and found.null_count:
            found = pc.coalesce(found, field.column_of(events, kind).cast(pa.string()))
    return found.cast(pa.string())
