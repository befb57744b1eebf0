"""What each event must keep to, checked over whole columns. ``errors`` collects (field, message) by row; first wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Raw

from analytics_core.events import EMPTY_OBJECT, MAX_DEPTH, MAX_ID, MAX_NAME
from analytics_core.events.columns import Columns, Texts, all_are, empty_objects, identifiers, words

Errors = dict[int, tuple[str, str]]

_IDS: Final = ("messageId", "userId", "anonymousId", "sessionId")
_OPENING: Final = ord("{")
_SQUARE: Final = ord("{") ^ ord("[")  # the one bit in which they differ
_NULL: Final = b"null"
_KINDS: Final = {"[": "an array", '"': "a string", "t": "true", "f": "false"}
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def name_words(values: Sequence[str], errors: Errors) -> pa.DictionaryArray:
    """The column of the events' names; one that is empty or too long is an error of its rows."""
    column, distinct = words(values)
    for code, name in enumerate(distinct):
        if name and len(name) <= MAX_NAME:
            continue
        problem = f"is longer than {MAX_NAME} characters" if name else "is empty"
        for row in np.flatnonzero(column.indices.to_numpy() == code).tolist():
            errors.setdefault(row, ("event", problem))
    return column


def id_texts(columns: Columns, errors: Errors) -> list[pa.Array]:
    """The columns of the ids, in the order of ``_IDS``; one that is too long is an error of its row."""
    ids, whole = identifiers(columns.message_id, columns.user_id, columns.anonymous_id, columns.session_id)
    if _sizes(whole).max() > MAX_ID:
        for column, field in zip(ids, _IDS, strict=True):
            for row in np.flatnonzero(_sizes(column) > MAX_ID).tolist():
                errors.setdefault(row, (field, f"is longer than {MAX_ID} bytes"))
    return ids


def json_objects(field: str, values: Sequence[Raw], max_bytes: int, errors: Errors) -> pa.Array:
    """Raw JSON values as a string column of objects: null is the empty object, any other kind an error of its row."""
    if all_are(values, EMPTY_OBJECT):
        return empty_objects(len(values))
    found = Texts.of(values)
    first = np.frombuffer(found.joined, np.uint8)[found.offsets[:-1]]
    strange = first != _OPENING
    if np.count_nonzero(strange):
        replaced = list(values)
        for row in np.flatnonzero(strange).tolist():
            if bytes(values[row]) != _NULL:
                kind = _KINDS.get(chr(first[row]), "a number")
                errors.setdefault(row, (field, f"must be a JSON object, not {kind}"))
            replaced[row] = EMPTY_OBJECT
        return json_objects(field, replaced, max_bytes, errors)
    column = found.column()
    longest = found.sizes.max()
    if longest > max_bytes:
        for row in np.flatnonzero(found.sizes > max_bytes).tolist():
            errors.setdefault(row, (field, f"is larger than {max_bytes} bytes"))
    if longest > 2 * MAX_DEPTH:
        for row in _deep(column, found):
            errors.setdefault(row, (field, f"is nested deeper than {MAX_DEPTH} levels"))
    return column


def _deep(column: pa.Array, found: Texts) -> list[int]:
    """Rows that are nested too deeply, out of those that open so many objects and arrays.

    There are none when all open too few for it, less the one that each begins with.
    """
    if found.joined.count(b"{") + found.joined.count(b"[") - len(column) < MAX_DEPTH:
        return []
    opens = np.frombuffer(found.joined, np.uint8) | _SQUARE == _OPENING
    counts = np.add.reduceat(opens, found.offsets[:-1], dtype=np.int32)
    rows = np.flatnonzero(counts > MAX_DEPTH).tolist()
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


def _sizes(column: pa.Array) -> npt.NDArray[np.int32]:
    """Bytes of each string, shape ``(n,)``."""
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, 4 * column.offset)
    return offsets[1:] - offsets[:-1]
