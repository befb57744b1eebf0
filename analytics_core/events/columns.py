"""From the wire to columns: the fields of many events as Arrow arrays, at a fixed cost that is small for a few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Raw, Struct

from analytics_core.events import EMPTY_OBJECT, MAX_NAME, TIMESTAMP, UNPLACED_SCHEMA, Event

_STRING: Final = pa.string()
_CODE: Final = pa.int32()


def identifiers(*ids: Sequence[str | int | None]) -> tuple[list[pa.Array], pa.Array]:
    """Ids as text columns, shape ``(n,)`` each, and the one column that they are cut from.

    Numbers are written out, the empty string is no id. One conversion of all costs less than one of each.
    """
    n = len(ids[0])
    stack: list[str | int | None] = []
    starts: list[int | None] = []
    for values in ids:
        absent = all_are(values, None)
        starts.append(None if absent else len(stack))
        stack.extend(() if absent else values)
    whole = _strings(stack)
    return [pa.nulls(n, _STRING) if at is None else whole.slice(at, n) for at in starts], whole


def _strings(values: Sequence[str | int | None]) -> pa.Array:
    if "" not in values:
        try:
            return pa.array(values, _STRING)
        except pa.ArrowTypeError:
            pass
    written = [(v or None) if isinstance(v, str) else v if v is None else str(v) for v in values]
    return pa.array(written, _STRING)


def all_are(values: Sequence[Any], value: Any) -> bool:
    """Whether there are any, each of them ``value``."""
    return values[:1] == [value] and values.count(value) == len(values)


_KEPT: Final = 1 << 14
"""Rows of the columns that are kept ready: a shorter one is a slice of them."""
_KEPT_ZEROS: Final = np.zeros(_KEPT, np.int32)


@lru_cache(maxsize=256)
def _kept_word(text: str) -> pa.DictionaryArray:
    return _coded(_KEPT_ZEROS, [text])


def word(text: str, length: int) -> pa.DictionaryArray:
    """A dictionary column of one repeated word, shape ``(length,)``."""
    if length <= _KEPT and len(text) <= MAX_NAME:
        return _kept_word(text).slice(0, length)
    return _coded(np.zeros(length, np.int32), [text])


class _Codes(dict[str, int]):
    """Words by number, from 0 in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        code = self[text] = len(self)
        return code


def words(values: Sequence[str]) -> tuple[pa.DictionaryArray, list[str]]:
    """A dictionary column, shape ``(n,)``, and its dictionary."""
    codes = _Codes()
    indices = np.fromiter(map(codes.__getitem__, values), np.int32, len(values))
    distinct = list(codes)
    return word(distinct[0], len(values)) if len(distinct) == 1 else _coded(indices, distinct), distinct


def _coded(indices: npt.NDArray[np.int32], dictionary: list[str]) -> pa.DictionaryArray:
    codes = pa.Array.from_buffers(_CODE, len(indices), [None, pa.py_buffer(indices)])
    return pa.DictionaryArray.from_arrays(codes, pa.array(dictionary, _STRING), safe=False)


def times_column(at: npt.NDArray[np.int64]) -> pa.Array:
    """Microseconds UTC, shape ``(n,)``, as a timestamp column over the same memory."""
    return pa.Array.from_buffers(TIMESTAMP, len(at), [None, pa.py_buffer(np.ascontiguousarray(at))])


class Texts(NamedTuple):
    """Strings end to end, known to be UTF-8; ``sizes`` and ``offsets`` in bytes, shapes ``(n,)`` and ``(n + 1,)``."""

    joined: bytes
    sizes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]

    @classmethod
    def of(cls, values: Sequence[Raw]) -> Texts:
        """One join and one running sum."""
        sizes = np.fromiter(map(len, values), np.int32, len(values))
        offsets = np.zeros(len(values) + 1, np.int32)
        np.add.accumulate(sizes, out=offsets[1:])
        return cls(b"".join(values), sizes, offsets)

    def column(self) -> pa.Array:
        return pa.Array.from_buffers(
            _STRING, len(self.sizes), [None, pa.py_buffer(self.offsets), pa.py_buffer(self.joined)]
        )


def texts(values: Sequence[Raw]) -> pa.Array:
    """Raw JSON as a string column, shape ``(n,)``."""
    return empty_objects(len(values)) if all_are(values, EMPTY_OBJECT) else Texts.of(values).column()


def empty_objects(length: int) -> pa.Array:
    """A string column of empty objects, shape ``(length,)``."""
    return _KEPT_EMPTY.slice(0, length) if length <= _KEPT else Texts.of([EMPTY_OBJECT] * length).column()


_KEPT_EMPTY: Final = Texts.of([EMPTY_OBJECT] * _KEPT).column()


class Columns(Struct):
    """The fields of many events, each of shape ``(n,)`` in the events' order: `Event` turned on its side."""

    name: Sequence[str]
    properties: Sequence[Raw]
    user_id: Sequence[str | int | None]
    anonymous_id: Sequence[str | int | None]
    session_id: Sequence[str | int | None]
    timestamp: Sequence[str | int | float | None]
    message_id: Sequence[str | None]
    context: Sequence[Raw]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Columns:
        """A comprehension for each field: quicker than one pass that makes a tuple of each event."""
        return cls(
            [e.name for e in events],
            [e.properties for e in events],
            [e.user_id for e in events],
            [e.anonymous_id for e in events],
            [e.session_id for e in events],
            [e.timestamp for e in events],
            [e.message_id for e in events],
            [e.context for e in events],
        )


def to_batch(
    columns: Columns,
    *,
    tenant: str,
    event_ids: pa.Array,
    properties: pa.Array,
    context: pa.Array,
    at: npt.NDArray[np.int64],
    received_at: npt.NDArray[np.int64],
    source: str,
) -> pa.RecordBatch:
    """Events that need no check as one `UNPLACED_SCHEMA` batch. ``at`` and ``received_at``: microseconds, ``(n,)``."""
    others, _ = identifiers(columns.user_id, columns.anonymous_id, columns.session_id)
    return unplaced(
        tenant=tenant,
        source=source,
        names=words(columns.name)[0],
        ids=[event_ids, *others],
        at=at,
        received_at=received_at,
        properties=properties,
        context=context,
    )


def unplaced(
    *,
    tenant: str,
    source: str,
    names: pa.DictionaryArray,
    ids: Sequence[pa.Array],
    at: npt.NDArray[np.int64],
    received_at: npt.NDArray[np.int64],
    properties: pa.Array,
    context: pa.Array,
) -> pa.RecordBatch:
    """One `UNPLACED_SCHEMA` batch of its columns, shape ``(n,)`` each. ``ids``: event, user, anonymous, session."""
    n = len(at)
    return pa.RecordBatch.from_arrays(
        [
            word(tenant, n),
            ids[0],
            names,
            *ids[1:],
            times_column(at),
            times_column(received_at),
            word(source, n),
            properties,
            context,
        ],
        schema=UNPLACED_SCHEMA,
    )
