"""Blocks of columns as events on the wire: JSON texts built a column at a time, no row is touched in Python."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.importing.mapping import Mapping
from analytics_core.importing.reading import Block

_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_EPOCH: Final = r"^-?[0-9]+(\.[0-9]+)?$"
_SPECIAL: Final = r'["\\\x00-\x1f]'
_SPECIAL_BYTES: Final = bytes([*range(32), *b'"\\'])
_NO_VALUE: Final = "no value in the event column"

Kind = Literal["number", "boolean", "text"]


class Chunk(Struct, frozen=True):
    """Events that go out in one request. ``events``: JSON objects, one a line, shape ``(n,)``; ``rows``: their numbers.

    When all of it is acknowledged, every row up to ``upto`` is done with. ``bad``: (row, why) of rows left out;
    ``position`` is how far the file was read.
    """

    events: pa.StringArray
    rows: npt.NDArray[np.int64]
    bad: list[tuple[int, str]]
    upto: int
    position: int

    def body(self) -> bytes:
        """All events as NDJSON."""
        return body(self.events)


def body(events: pa.StringArray) -> bytes:
    """The lines of a string column, joined: its own data buffer."""
    if not len(events):
        return b""
    _, offsets, data = events.buffers()
    ends = np.frombuffer(offsets, np.int32, len(events) + 1, events.offset * 4)
    return bytes(memoryview(data)[ends[0] : ends[-1]])


class EventWriter:
    """Turns blocks of one file into event texts.

    What a CSV column holds (numbers, booleans, text) is decided by the first block and kept, so that a product code
    column does not change its type when the first code with a letter comes.
    """

    def __init__(self, mapping: Mapping, id_prefix: str) -> None:
        self._mapping = mapping
        self._id_prefix = id_prefix
        self._zone = ZoneInfo(mapping.timezone)
        self._kinds: dict[str, Kind] = {}

    def learn(self, block: Block) -> None:
        """Fix the kinds of text columns by these rows, which must be the first of the file."""
        for name in self._mapping.properties_of(list(block.columns)):
            column = block.columns[name]
            if block.holds == "text":
                self._kinds[name] = _kind(column)

    def write(self, block: Block) -> tuple[pa.StringArray, npt.NDArray[np.int64], list[tuple[int, str]]]:
        """Event texts, their row numbers, and (row, why) of those that have none."""
        bad = list(block.bad)
        rows, columns = block.rows, dict(block.columns)
        if not len(rows):
            return pa.array([], pa.string()), rows, bad
        names = columns.get(self._mapping.event, pa.nulls(len(rows), pa.string()))
        if names.null_count:
            bad += [(int(row), _NO_VALUE) for row in rows[np.asarray(names.is_null())]]
            keep = names.is_valid()
            rows = rows[np.asarray(keep)]
            columns = {name: column.filter(keep) for name, column in columns.items()}
        return self._events(columns, rows, block.holds == "json"), rows, sorted(bad)

    def _events(self, columns: dict[str, pa.Array], rows: npt.NDArray[np.int64], encoded: bool) -> pa.StringArray:
        made = pc.binary_join_element_wise('"' + self._id_prefix + "-", pa.array(rows).cast(pa.string()), '"', "")
        members = [_member("messageId", made)]
        for wire, name in self._mapping.fields().items():
            if name not in columns:
                continue
            if wire == "timestamp":
                values = _times(columns[name], self._zone, encoded)
            elif encoded:
                values = columns[name]
            else:
                values = _quoted(_text(columns[name]))
            if wire == "messageId":
                members[0] = _member(wire, pc.coalesce(values, made))
            else:
                members.append(_member(wire, values))
        members.append(_member("properties", self._properties(columns, len(rows), encoded)))
        members += self._context(columns, len(rows), encoded)
        inner = pc.binary_join_element_wise(*members, ",", null_handling="skip")
        return pc.binary_join_element_wise("{", inner, "}\n", "")

    def _properties(self, columns: dict[str, pa.Array], count: int, encoded: bool) -> pa.Array:
        parts = []
        for name in self._mapping.properties_of(list(columns)):
            values = columns[name] if encoded else self._values(name, columns[name])
            if encoded and name == "properties":  # a native event: its object's members, not an object in the object
                objects = pc.starts_with(values, "{")
                inner = pc.utf8_slice_codeunits(pc.utf8_trim_whitespace(values), 1, -1)
                blank = pc.equal(pc.utf8_trim_whitespace(inner), "")
                parts.append(pc.if_else(pc.and_(objects, pc.invert(blank)), inner, pa.scalar(None, pa.string())))
                values = pc.if_else(objects, pa.scalar(None, pa.string()), values)
            parts.append(_member(name, values))
        return _object(parts, count)

    def _values(self, name: str, column: pa.Array) -> pa.Array:
        kind = self._kinds.get(name)
        if kind == "number":
            numeric = pc.match_substring_regex(column, _NUMBER)
            return pc.if_else(numeric, column, _quoted(column))
        if kind == "boolean":
            lower = pc.utf8_lower(column)
            return pc.if_else(pc.is_in(lower, pa.array(["true", "false"])), lower, _quoted(column))
        return _json(column)

    def _context(self, columns: dict[str, pa.Array], count: int, encoded: bool) -> list[pa.Array]:
        own = columns["context"] if encoded and "context" in columns else pa.nulls(count, pa.string())
        if not self._mapping.source:
            return [_member("context", own)] if own.null_count < count else []
        source = '"source":' + msgspec.json.encode(self._mapping.source).decode()
        inner = pc.utf8_slice_codeunits(pc.utf8_trim_whitespace(own), 1, -1)
        inner = pc.if_else(pc.equal(inner, ""), pa.scalar(None, pa.string()), inner)
        return [_member("context", _object([inner, _repeat(source, count)], count))]


def _repeat(text: str, count: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(count, np.int8)))


def _object(parts: Sequence[pa.Array], count: int) -> pa.Array:
    """Members as an object in each row, ``{}`` where all are null."""
    if not parts:
        return _repeat("{}", count)
    if any(part.null_count == 0 for part in parts):
        inner = pc.binary_join_element_wise(*parts, ",", null_handling="skip")
    else:  # a row of nulls alone would be dropped from the join, so each begins with an empty member
        anchored = pc.binary_join_element_wise(_repeat("", count), *parts, ",", null_handling="skip")
        inner = pc.utf8_slice_codeunits(anchored, 1)
    return pc.binary_join_element_wise("{", inner, "}", "")


def _member(name: str, values: pa.Array) -> pa.Array:
    """``"name":value``, null where the value is."""
    return pc.binary_join_element_wise(msgspec.json.encode(name).decode() + ":", values, "")


def _kind(column: pa.Array) -> Kind:
    if column.null_count == len(column):
        return "text"
    if pc.all(pc.match_substring_regex(column, _NUMBER)).as_py():
        return "number"
    return (
        "boolean"
        if pc.all(pc.is_in(pc.utf8_lower(column.drop_null()), pa.array(["true", "false"]))).as_py()
        else "text"
    )


def _text(column: pa.Array) -> pa.Array:
    """Any scalar column as text, as identifiers and names need it."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _quoted(column: pa.Array) -> pa.Array:
    """Text as JSON strings. Only a value with a special letter takes the slow way."""
    plain = pc.binary_join_element_wise('"', column, '"', "")
    content = body(column)
    if len(content.translate(None, _SPECIAL_BYTES)) == len(content):
        return plain
    special = pc.fill_null(pc.match_substring_regex(column, _SPECIAL), False)
    escaped = [msgspec.json.encode(value).decode() for value in column.filter(special).to_pylist()]
    return pc.replace_with_mask(plain, special, pa.array(escaped, pa.string()))


def _json(column: pa.Array) -> pa.Array:
    """Any Arrow column as JSON texts, null where there is no value or none that JSON knows."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _json(column.cast(kind.value_type))
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        finite = pc.is_finite(column)
        return pc.if_else(finite, column, pa.scalar(None, kind)).cast(pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = column.to_pylist()
        return pa.array([None if v is None else msgspec.json.encode(v).decode() for v in values], pa.string())
    if pa.types.is_timestamp(kind):
        return _quoted(_utc(column, ZoneInfo("UTC")))
    return _quoted(column.cast(pa.string()))


# --- time ------------------------------------------------------------------------------------------------------------


def _times(column: pa.Array, zone: ZoneInfo, encoded: bool) -> pa.Array:
    """Timestamps as JSON: ISO 8601 text or epoch numbers; what is neither goes out as it is, to be refused by row."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _quoted(_utc(column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False), zone))
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return _epochs(_json(column))
    text = _text(column)
    if encoded:
        text = pc.utf8_trim(text, '"')
    numeric = pc.match_substring_regex(text, _EPOCH)
    if pc.all(numeric).as_py():
        return _epochs(text)
    return pc.if_else(numeric, _epochs(text), _quoted(_localised(text, zone)))


def _epochs(text: pa.Array) -> pa.Array:
    """Epoch numbers; microseconds (from 1e14) and nanoseconds (from 1e17) become milliseconds, as the wire has them."""
    digits = pc.utf8_length(pc.replace_substring_regex(text, r"^-|\..*$", ""))
    if not pc.any(pc.greater_equal(digits, 15)).as_py():
        return text
    whole = pc.replace_substring_regex(text, r"\..*$", "")
    millis = pc.if_else(
        pc.greater_equal(digits, 18), pc.utf8_slice_codeunits(whole, 0, -6), pc.utf8_slice_codeunits(whole, 0, -3)
    )
    return pc.if_else(pc.greater_equal(digits, 15), millis, text)


def _utc(column: pa.Array, zone: ZoneInfo) -> pa.Array:
    """Timestamps as text with ``Z``; those without a zone are in ``zone`` (of two the earlier, of none the next)."""
    if column.type.tz is None:
        column = pc.assume_timezone(column, zone.key, ambiguous="earliest", nonexistent="latest")
    return column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.string())


def _localised(text: pa.Array, zone: ZoneInfo) -> pa.Array:
    text = pc.replace_substring_regex(text, r"\s*(UTC|GMT)$", "Z")
    if zone.key == "UTC":  # what a text without a zone means on the wire
        return text
    try:
        return _utc(text.cast(pa.timestamp("us")), zone)
    except pa.ArrowInvalid:  # some have a zone, or are no time
        pass
    try:
        text.cast(pa.timestamp("us", "UTC"))
        return text
    except pa.ArrowInvalid:
        return pa.array([_localised_one(value, zone) for value in text.to_pylist()], pa.string())


def _localised_one(value: Any, zone: ZoneInfo) -> Any:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value
    if moment.tzinfo:
        return moment.astimezone(UTC).isoformat()
    return _utc(pa.array([moment], pa.timestamp("us")), zone)[0].as_py()
