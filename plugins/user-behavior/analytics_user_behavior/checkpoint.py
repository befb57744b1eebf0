"""The whole fold state as bytes and back: an Arrow IPC stream with one row per tenant and a list column per array.

The form is canonical: equal states give equal bytes, whichever batches led to them. The open sessions, which are nearly
all of it, are the bytes of their rows, as 64-bit words: they are copied once, not field by field.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa

from analytics_core import HistogramSketch, UniqueSketch
from analytics_user_behavior.clusters import ROW, Rows
from analytics_user_behavior.columns import Names
from analytics_user_behavior.fold import Limits, TenantFold
from analytics_user_behavior.open_sessions import OpenSessions
from analytics_user_behavior.tallies import HourlyTally
from analytics_user_behavior.windows import Minute

VERSION = 2
_FIELDS_APART = 1
"""The version that had a column for each field of an open session."""
READABLE = (_FIELDS_APART, VERSION)
_COUNTS = ("events", "started", "ended", "bounces", "late")
_SKETCHES: dict[str, type[UniqueSketch] | type[HistogramSketch]] = {
    "users": UniqueSketch,
    "durations": HistogramSketch,
    "lengths": HistogramSketch,
}


def pack(tenants: dict[str, TenantFold]) -> bytes:
    folds = [tenants[name] for name in sorted(tenants)]
    minutes = [sorted(fold.minutes.by_minute) for fold in folds]
    columns: dict[str, pa.Array] = {
        "tenant": pa.array(sorted(tenants), pa.string()),
        "minute": pa.array([fold.minute for fold in folds], pa.int64()),
        "floor": pa.array([fold.minutes.floor for fold in folds], pa.int64()),
        "stepped_since": pa.array([fold.stepped for fold in folds], pa.bool_()),
        "ended_since": pa.array([fold.ended for fold in folds], pa.bool_()),
        "names": pa.array([fold.names.words for fold in folds], pa.list_(pa.string())),
        "sent": _lists([np.array(sorted(fold.sent), np.int64) for fold in folds]),
        "minutes": _lists([np.array(own, np.int64) for own in minutes]),
    }
    for field in _COUNTS:
        columns[field] = _lists([_counts(fold, own, field) for fold, own in zip(folds, minutes, strict=True)])
    for field in _SKETCHES:
        columns[field] = pa.array(
            [[getattr(fold.minutes.by_minute[m], field).to_bytes() for m in own]
             for fold, own in zip(folds, minutes, strict=True)],
            pa.list_(pa.large_binary()),
        )  # fmt: skip
    for field in ("transitions", "exits"):
        columns[field] = _lists([_triples(getattr(fold, field)) for fold in folds])
    columns["open"] = _lists([fold.open.rows().view(np.uint64) for fold in folds])
    batch = pa.RecordBatch.from_pydict(columns)
    sink = BytesIO()  # gives its bytes away without a copy
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def unpack(state: bytes, limits: Limits) -> dict[str, TenantFold]:
    """The folds of `pack`. :raises ValueError: for bytes that are no such state."""
    try:
        table = pa.ipc.open_stream(pa.py_buffer(state)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"the state of {len(state)} bytes is no Arrow stream: {error}") from None
    return {table["tenant"][i].as_py(): _unpack(table, i, limits) for i in range(table.num_rows)}


def _unpack(table: pa.Table, i: int, limits: Limits) -> TenantFold:
    fold = TenantFold(limits, table["minute"][i].as_py())
    fold.minutes.floor = table["floor"][i].as_py()
    fold.stepped, fold.ended = table["stepped_since"][i].as_py(), table["ended_since"][i].as_py()
    fold.names = Names(table["names"][i].as_py())
    fold.sent = set(table["sent"][i].as_py())
    fold.transitions = _tally(table["transitions"][i])
    fold.exits = _tally(table["exits"][i])
    for place, minute in enumerate(table["minutes"][i].as_py()):
        entry = fold.minutes.by_minute[minute] = Minute()
        for field in _COUNTS:
            setattr(entry, field, table[field][i].values[place].as_py())
        for field, kind in _SKETCHES.items():
            setattr(entry, field, kind.from_bytes(table[field][i].values[place].as_py()))
    fold.open = OpenSessions(_rows(table, i))
    return fold


def _rows(table: pa.Table, i: int) -> Rows:
    """The open sessions, in memory that can be written."""
    if "open" in table.column_names:
        return np.array(table["open"][i].values.to_numpy()).view(ROW)
    rows = np.zeros(len(table["open.key"][i].values), ROW)
    for field in ROW.names or ():
        rows[field] = table[f"open.{field}"][i].values.to_numpy(zero_copy_only=False)
    return rows


def _counts(fold: TenantFold, minutes: list[int], field: str) -> Any:
    return np.array([getattr(fold.minutes.by_minute[m], field) for m in minutes], np.int64)


def _lists(arrays: list[Any]) -> pa.Array:
    """One list per array: their values joined, without a copy per element."""
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays) if arrays else np.empty(0, np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(joined))


def _triples(tally: HourlyTally) -> Any:
    """(hour, code, count) one after the other, shape ``(3 n,)``."""
    listed = [(hour, code, count) for hour, entry in tally.hours.items() for code, count in entry.items()]
    return np.array(sorted(listed), np.int64).reshape(-1)


def _tally(value: Any) -> HourlyTally:
    hours: dict[int, dict[int, int]] = {}
    for hour, code, count in value.values.to_numpy(zero_copy_only=False).reshape(-1, 3).tolist():
        hours.setdefault(hour, {})[code] = count
    return HourlyTally(hours)
