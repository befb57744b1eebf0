"""One property out of a column of JSON objects, as a typed column: sought first, decoded only where it may be."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, UnsetType

PROPERTY_TYPES: Final[dict[type | str, tuple[pa.DataType, tuple[type, ...]]]] = {
    str: (pa.string(), (str,)),
    float: (pa.float64(), (float, int)),
    int: (pa.int64(), (int,)),
    bool: (pa.bool_(), (bool,)),
}
_ESCAPABLE: Final = frozenset('"\\/')
"""What JSON may write in two ways besides the escape by code point."""


def extract_property(column: pa.Array, name: str, kind: type) -> pa.Array:
    """`EventBatch.property` for any string column of JSON objects."""
    arrow, accepted = PROPERTY_TYPES[kind]
    head, *path = name.split(".")
    if not len(column):
        return pa.array([], arrow)
    at = np.flatnonzero(_may_name(column, head))
    if not len(at):
        return pa.nulls(len(column), arrow)
    holding = column if len(at) == len(column) else column.take(pa.array(at))
    values = None if path else _decode_typed(holding, head, kind, arrow)
    if values is None:
        found = _decode_all(holding, _holders(head, Any))
        values = pa.array([_typed(_walk(one.value, path), kind, accepted) for one in found], arrow)
    if len(at) == len(column):
        return values
    places = np.zeros(len(column), np.int32)
    places[at] = np.arange(len(at), dtype=np.int32)
    absent = np.ones(len(column), np.bool_)
    absent[at] = False
    return values.take(pa.array(places, mask=absent))


def has_property(column: pa.Array, name: str) -> npt.NDArray[np.bool_]:
    """Which JSON objects of ``column`` have a value other than null at ``name``, whatever its type; shape ``(n,)``."""
    head, *path = name.split(".")
    found = np.zeros(len(column), np.bool_)
    at = np.flatnonzero(_may_name(column, head)) if len(column) else np.zeros(0, np.int64)
    if len(at):
        decoded = _decode_all(column.take(pa.array(at)), _holders(head, Any))
        found[at] = [_walk(one.value, path) is not None for one in decoded]
    return found


def _may_name(column: pa.Array, key: str) -> npt.NDArray[np.bool_]:
    """Which texts may hold ``key``: a search through the bytes is far cheaper than to decode what cannot have it."""
    if not (key.isascii() and key.isprintable()) or set(key) & _ESCAPABLE:
        return np.ones(len(column), np.bool_)
    text = _bytes(column)
    if b"\\u" in text:  # a key may be written with escapes
        return np.ones(len(column), np.bool_)
    if f'"{key}"'.encode() not in text:
        return np.zeros(len(column), np.bool_)
    mask: npt.NDArray[np.bool_] = pc.match_substring(column, f'"{key}"').to_numpy(zero_copy_only=False)
    return mask


def _bytes(column: pa.Array) -> bytes:
    """The texts end to end; of a slice its own alone."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset)
    text: bytes = data.slice(int(bounds[0]), int(bounds[-1] - bounds[0])).to_pybytes()
    return text


class _Holders(NamedTuple):
    """Decoders of objects of which one key is wanted, as ``.value``, for many in an array and for one."""

    many: msgspec.json.Decoder[list[Any]]
    one: msgspec.json.Decoder[Any]
    absent: Any


@lru_cache(256)
def _holders(key: str, kind: Any) -> _Holders:
    """Made whole before any thread can share it: a Struct type must not be inspected by two threads at once."""
    holder = msgspec.defstruct("Holder", [("value", kind, UNSET)], rename={"value": key}, gc=False)
    return _Holders(msgspec.json.Decoder(list[holder]), msgspec.json.Decoder(holder), holder())  # type: ignore[valid-type]


def _decode_typed(column: pa.Array, key: str, kind: Any, arrow: pa.DataType) -> pa.Array | None:
    """The usual case in one step: every value is absent, null or of the wanted type. None when one is not."""
    try:
        found = _holders(key, kind | UnsetType | None).many.decode(_joined(column))
        return pa.array([None if one.value is UNSET else one.value for one in found], arrow)
    except (msgspec.MsgspecError, RecursionError, OverflowError):
        return None


def _typed(value: Any, kind: type, accepted: tuple[type, ...]) -> Any:
    if type(value) not in accepted:
        return None
    if kind is int:
        return value if -(2**63) <= value < 2**63 else None
    try:
        return kind(value)
    except OverflowError:  # an integer beyond every float
        return None


def _walk(value: Any, path: list[str]) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return None if value is UNSET else value


def _decode_all(column: pa.Array, holders: _Holders) -> list[Any]:
    try:
        return holders.many.decode(_joined(column))
    except (msgspec.MsgspecError, RecursionError):  # one value that JSON allows and Python cannot hold, such as 1e999
        return [_decode_one(text, holders) for text in column.to_pylist()]


def _joined(column: pa.Array) -> bytes:
    """The texts of a column as one JSON array."""
    listed = pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column)
    inside: bytes = pc.binary_join(listed, ",")[0].as_buffer().to_pybytes()
    return b"[" + inside + b"]"


def _decode_one(text: str, holders: _Holders) -> Any:
    try:
        return holders.one.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return holders.absent
