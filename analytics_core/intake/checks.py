"""What each event must keep to, checked over whole columns. ``errors`` collects (field, message) by row; first wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from analytics_core.events import MAX_DEPTH, MAX_ID, MAX_NAME, texts

Errors = dict[int, tuple[str, str]]

_IDS: Final = {
    "event_id": "messageId",
    "user_id": "userId",
    "anonymous_id": "anonymousId",
    "session_id": "sessionId",
}
_NULL: Final = b"null"
_KINDS: Final = {"[": "an array", '"': "a string", "t": "true", "f": "false"}
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_words(batch: pa.RecordBatch, errors: Errors) -> None:
    """Names that are empty or too long, and ids that are too long."""
    names = batch.column("name")
    for code, name in enumerate(names.dictionary.to_pylist()):
        if name and len(name) <= MAX_NAME:
            continue
        problem = f"is longer than {MAX_NAME} characters" if name else "is empty"
        for row in np.flatnonzero(names.indices.to_numpy() == code).tolist():
            errors.setdefault(row, ("event", problem))
    for column, field in _IDS.items():
        sizes = _sizes(batch.column(column))
        for row in _where(sizes, MAX_ID):
            errors.setdefault(row, (field, f"is longer than {MAX_ID} bytes"))


def json_objects(field: str, values: Sequence[Raw], max_bytes: int, errors: Errors) -> pa.Array:
    """Raw JSON values as a string column of objects: null is the empty object, any other kind an error of its row."""
    column = texts(values)
    offsets = _offsets(column)
    first = np.frombuffer(column.buffers()[2], np.uint8)[offsets[:-1]]
    strange = first != ord("{")
    if strange.any():
        replaced = list(values)
        for row in np.flatnonzero(strange).tolist():
            if bytes(values[row]) != _NULL:
                kind = _KINDS.get(chr(first[row]), "a number")
                errors.setdefault(row, (field, f"must be a JSON object, not {kind}"))
            replaced[row] = Raw(b"{}")
        return json_objects(field, replaced, max_bytes, errors)
    sizes = _sizes(column)
    for row in _where(sizes, max_bytes):
        errors.setdefault(row, (field, f"is larger than {max_bytes} bytes"))
    for row in _deep(column, np.array(_where(sizes, 2 * MAX_DEPTH), np.int64)):
        errors.setdefault(row, (field, f"is nested deeper than {MAX_DEPTH} levels"))
    return column


def _deep(column: pa.Array, candidates: npt.NDArray[np.int64]) -> list[int]:
    """Rows that are nested too deeply, out of those that are long enough to be."""
    if not len(candidates):
        return []
    long = column.take(pa.array(candidates))
    openings = pc.add(pc.count_substring(long, "{"), pc.count_substring(long, "[")).to_numpy()
    rows = candidates[openings > MAX_DEPTH].tolist()
    return [row for row in rows if _depth(column[row].as_py().encode()) > MAX_DEPTH]


def _depth(text: bytes) -> int:
    deepest = depth = 0
    for sign in _STRING.sub(b"", text):
        if sign in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"}]":
            depth -= 1
    return deepest


def _where(sizes: npt.NDArray[np.int32], most: int) -> list[int]:
    """Rows above ``most``; none, in one pass, is the usual answer."""
    return np.flatnonzero(sizes > most).tolist() if sizes.max() > most else []


def _offsets(column: pa.Array) -> npt.NDArray[np.int32]:
    """For a column that starts at the beginning of its buffers, as every new one does."""
    return np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)


def _sizes(column: pa.Array) -> npt.NDArray[np.int32]:
    """Bytes of each string, shape ``(n,)``."""
    offsets = _offsets(column)
    return offsets[1:] - offsets[:-1]
