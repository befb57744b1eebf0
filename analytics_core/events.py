"""From the wire `Event` to the `EventBatch`: the columns of DESIGN §4 and the rules of time.

An `EventBatch` is the unit of work of the whole system: many events of one tenant as Arrow columns. It is immutable,
lives in the core, and is never reloaded, so plugins of any generation may hold one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Raw, Struct

from analytics_core.properties import PROPERTY_TYPES, extract_property

if TYPE_CHECKING:
    import pandas
    import polars

_WORD = pa.dictionary(pa.int32(), pa.string())
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

SCHEMA: Final = pa.schema(
    [
        pa.field("partition", pa.int16(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("tenant", _WORD, nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("name", _WORD, nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("anonymous_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("received_at", TIMESTAMP, nullable=False),
        pa.field("source", _WORD, nullable=False),
        pa.field("properties", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
    ]
)
"""The columns of a batch, in order. ``properties`` and ``context`` hold JSON objects as text."""

UNPLACED_SCHEMA: Final = pa.schema([SCHEMA.field(i) for i in range(2, len(SCHEMA))])
"""The same before the log has given each event its ``partition`` and ``seq``."""

TENANT_PATTERN: Final = r"[a-z0-9][a-z0-9_-]{0,62}"
"""What a whole tenant id matches, everywhere."""

MINUTE: Final = 60_000_000
DAY: Final = 86_400_000_000
EARLIEST: Final = 946_684_800_000_000  # 2000-01-01 UTC, microseconds
_SKEW: Final = 10 * MINUTE
_FEW: Final = 16  # below this, reading times one by one is quicker than a cast
MAX_NAME: Final = 256
"""Characters of an event's name."""
MAX_ID: Final = 512
"""Bytes of any id."""
MAX_DEPTH: Final = 64
"""Objects and arrays inside each other in ``properties`` and ``context``: what every reader can decode."""
EMPTY_OBJECT: Final = Raw(b"{}")


class Event(Struct, kw_only=True, gc=False, rename="camel"):
    """One event on the wire. ``name`` is called ``event`` there and is the only required field.

    ``properties`` and ``context`` stay raw JSON: they are checked when decoded and parsed only by who needs them.
    """

    name: str = msgspec.field(name="event")
    properties: Raw = EMPTY_OBJECT
    user_id: str | int | None = None
    anonymous_id: str | int | None = None
    session_id: str | int | None = None
    timestamp: str | int | float | None = None
    message_id: str | None = None
    context: Raw = EMPTY_OBJECT

    @classmethod
    def of(
        cls,
        name: str,
        properties: dict[str, Any] | None = None,
        *,
        context: dict[str, Any] | None = None,
        timestamp: datetime | str | float | None = None,
        **ids: str | int | None,
    ) -> Event:
        """Build one in Python, as an ``ingest`` hook does. ``ids``: user_id, anonymous_id, session_id, message_id.

        :raises TypeError: for another name among ``ids``, or properties that JSON cannot hold.
        """
        return cls(
            name=name,
            properties=Raw(msgspec.json.encode(properties or {})),
            context=Raw(msgspec.json.encode(context or {})),
            timestamp=timestamp.isoformat() if isinstance(timestamp, datetime) else timestamp,
            **ids,  # type: ignore[arg-type]
        )


class FieldError(Struct, frozen=True):
    """Why the event at ``index`` of a request was not taken."""

    index: int
    field: str
    message: str


class Row(Struct, frozen=True, kw_only=True):
    """One event of a batch, decoded: what `EventBatch.rows` gives to simple plugins."""

    seq: int
    event_id: str
    name: str
    user_id: str | None
    anonymous_id: str | None
    session_id: str | None
    timestamp: datetime
    received_at: datetime
    source: str
    properties: dict[str, Any]
    context: dict[str, Any]


class EventBatch:
    """Many events of one ``tenant`` as Arrow columns, in log order.

    ``watermark`` is the log's clock when the last of them was committed: the only "now" that a fold may use.
    An empty batch says that time has passed for its tenant.
    """

    __slots__ = ("_properties", "record_batch", "tenant", "watermark")

    def __init__(self, record_batch: pa.RecordBatch, tenant: str, watermark: datetime) -> None:
        self.record_batch = record_batch
        self.tenant = tenant
        self.watermark = watermark
        self._properties: dict[tuple[str, type], pa.Array] = {}

    @classmethod
    def empty(cls, tenant: str, watermark: datetime) -> EventBatch:
        return cls(_EMPTY, tenant, watermark)

    @classmethod
    def concat(cls, batches: Sequence[EventBatch]) -> EventBatch:
        """Batches of one tenant in log order as one; the last watermark holds."""
        last = batches[-1]
        if len(batches) == 1:
            return last
        table = pa.Table.from_batches([b.record_batch for b in batches]).unify_dictionaries().combine_chunks()
        merged = table.to_batches()
        return cls(merged[0] if merged else _EMPTY, last.tenant, last.watermark)

    def __len__(self) -> int:
        return int(self.record_batch.num_rows)

    def __repr__(self) -> str:
        return f"<EventBatch {len(self)} events of {self.tenant!r} at {self.watermark:%Y-%m-%dT%H:%M:%SZ}>"

    def column(self, name: str) -> pa.Array:
        """One column of `SCHEMA`, shape ``(len(self),)``. :raises KeyError: for an unknown name."""
        return self.record_batch.column(name)

    def property(self, name: str, type: type[str | float | int | bool]) -> pa.Array:  # noqa: A002
        """One property out of the JSON as a column, shape ``(len(self),)``; null where absent or of another type.

        ``name`` may be a path (``cart.total``). Decoded once per batch and kept.

        :raises TypeError: for a type other than str, float, int and bool.
        """
        if type not in PROPERTY_TYPES:
            raise TypeError(f"property {name!r}: type must be str, float, int or bool, not {type!r}")
        key = (name, type)
        if key not in self._properties:
            self._properties[key] = extract_property(self.column("properties"), name, type)
        return self._properties[key]

    def rows(self) -> list[Row]:
        """The events one by one, decoded: about 5 us each, for plugins that are written for clarity."""
        return [
            Row(**{**row, "properties": _object(row["properties"]), "context": _object(row["context"])})
            for row in self.record_batch.drop_columns(["partition", "tenant"]).to_pylist()
        ]

    def filter(self, mask: pa.Array | npt.NDArray[np.bool_]) -> EventBatch:
        """The events where ``mask`` (booleans, shape ``(len(self),)``) is true."""
        kept = self.record_batch.filter(mask if isinstance(mask, pa.Array) else pa.array(mask))
        return EventBatch(kept, self.tenant, self.watermark)

    def to_pandas(self) -> pandas.DataFrame:
        return self.record_batch.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        import polars

        return polars.from_arrow(pa.Table.from_batches([self.record_batch]))


_any_object: Final = msgspec.json.Decoder(dict[str, Any])
_MOST_DIGITS: Final = 4_300
"""Python turns no longer text into an integer."""
_EMPTY = pa.RecordBatch.from_pylist([], schema=SCHEMA)


def _object(text: str) -> dict[str, Any]:
    """One JSON object. A number that Python cannot hold is an infinity: one such event must not stop a plugin."""
    try:
        return _any_object.decode(text)
    except ValueError:
        found: dict[str, Any] = json.loads(text, parse_int=_whole)
        return found


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


# --- wire -> columns -------------------------------------------------------------------------------------------------


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment(at: int) -> datetime:
    """The UTC datetime of `micros`."""
    return datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Times(Struct):
    """Checked timestamps, microseconds UTC, shape ``(n,)``, with what was changed or refused on the way."""

    at: npt.NDArray[np.int64]
    errors: dict[int, str]
    clamped: npt.NDArray[np.bool_]


def read_times(
    values: Sequence[str | int | float | None],
    received_at: npt.NDArray[np.int64],
    shift: npt.NDArray[np.int64] | None = None,
) -> Times:
    """Apply the rules of time (DESIGN §4) to ``n`` timestamps as they came.

    ``received_at`` is microseconds UTC, shape ``(n,)``. Missing takes ``received_at``; ISO 8601 without an offset is
    UTC; a number is epoch seconds, or milliseconds from 1e11 up. ``shift`` (from `clock_skew`) is added to the times
    that the client gave. Before 2000 is an error. Over 24 h in the future is clamped to ``received_at``.
    """
    at, errors = _parse(values, received_at)
    if shift is not None:
        given = np.fromiter((v is not None for v in values), np.bool_, len(values))
        at = np.where(given, at + shift, at)
    early = at < EARLIEST
    if early.any():
        for index in np.flatnonzero(early).tolist():
            errors.setdefault(index, f"{values[index]!r} is before 2000-01-01; valid are times from then on")
    clamped = at > received_at + DAY
    if clamped.any():
        at = np.where(clamped, received_at, at)
    return Times(at, errors, clamped)


def clock_skew(sent_at: int, received_at: int) -> int:
    """How far to shift a client's times, in microseconds: whole minutes, and nothing up to 10 minutes.

    A smaller correction would reorder the events of one client.
    """
    skew = received_at - sent_at
    return round(skew / MINUTE) * MINUTE if abs(skew) > _SKEW else 0


def _parse(
    values: Sequence[str | int | float | None], received_at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    kinds = set(map(type, values))
    if kinds <= {type(None)}:
        return received_at, {}
    if kinds <= {str} and len(values) > _FEW:
        column = pa.array(values, pa.string())
        for target in (TIMESTAMP, pa.timestamp("us")):
            try:
                return column.cast(target).view(pa.int64()).to_numpy(), {}
            except pa.ArrowInvalid:
                continue
    at = received_at.copy()
    errors: dict[int, str] = {}
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            at[index] = parse_time(value)
        except ValueError as error:
            errors[index] = str(error)
    return at, errors


def parse_time(value: str | int | float) -> int:
    """One timestamp as microseconds UTC. :raises ValueError: with the text for the client."""
    try:
        if isinstance(value, str):
            read = datetime.fromisoformat(value)
            return micros(read if read.tzinfo else read.replace(tzinfo=UTC))
        scale = 1_000 if abs(value) >= 1e11 else 1_000_000
        result = round(value * scale)
        if not -(2**62) < result < 2**62:
            raise ValueError("out of range")
        return result
    except (ValueError, OverflowError):
        raise ValueError(
            f"{str(value)[:64]!r} is no time; valid are ISO 8601 (2025-01-31T12:00:00Z) and epoch seconds or "
            "milliseconds"
        ) from None


def _identifiers(values: Sequence[str | int | None]) -> pa.Array:
    """User, anonymous and session ids as text; numbers are written out, the empty string is no id."""
    if values.count(None) == len(values):
        return pa.nulls(len(values), pa.string())
    if "" not in values:
        try:
            return pa.array(values, pa.string())
        except pa.ArrowTypeError:
            pass
    return pa.array([None if v is None or v == "" else str(v) for v in values], pa.string())


def word(text: str, length: int) -> pa.DictionaryArray:
    """A dictionary column of one repeated word, shape ``(length,)``."""
    return _coded(np.zeros(length, np.int32), [text])


def _words(values: Sequence[str]) -> pa.DictionaryArray:
    distinct = list(dict.fromkeys(values))
    codes = {value: code for code, value in enumerate(distinct)}
    return _coded(np.fromiter(map(codes.__getitem__, values), np.int32, len(values)), distinct)


def _coded(indices: npt.NDArray[np.int32], dictionary: list[str]) -> pa.DictionaryArray:
    codes = pa.Array.from_buffers(pa.int32(), len(indices), [None, pa.py_buffer(indices)])
    return pa.DictionaryArray.from_arrays(codes, pa.array(dictionary, pa.string()), safe=False)


def times_column(at: npt.NDArray[np.int64]) -> pa.Array:
    """Microseconds UTC, shape ``(n,)``, as a timestamp column over the same memory."""
    return pa.Array.from_buffers(TIMESTAMP, len(at), [None, pa.py_buffer(np.ascontiguousarray(at))])


def texts(values: Sequence[Raw]) -> pa.Array:
    """Raw JSON, known to be UTF-8, as a string column, shape ``(n,)``: one join and one running sum."""
    if values.count(EMPTY_OBJECT) == len(values):
        return _empty_objects(len(values))
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=offsets[1:])
    joined = b"".join(values)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(joined))


def _empty_objects(length: int) -> pa.Array:
    offsets = np.arange(0, 2 * length + 1, 2, dtype=np.int32)
    return pa.StringArray.from_buffers(length, pa.py_buffer(offsets), pa.py_buffer(b"{}" * length))


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
    """Checked events as one `UNPLACED_SCHEMA` batch, in order. ``at`` and ``received_at``: microseconds, ``(n,)``."""
    n = len(columns.name)
    return pa.RecordBatch.from_arrays(
        [
            word(tenant, n),
            event_ids,
            _words(columns.name),
            _identifiers(columns.user_id),
            _identifiers(columns.anonymous_id),
            _identifiers(columns.session_id),
            times_column(at),
            times_column(received_at),
            word(source, n),
            properties,
            context,
        ],
        schema=UNPLACED_SCHEMA,
    )


def placed(batch: pa.RecordBatch, first_seq: int, partition: int = 0) -> pa.RecordBatch:
    """An `UNPLACED_SCHEMA` batch with its position in the log: what `SCHEMA` describes."""
    n = batch.num_rows
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.full(n, partition, np.int16)),
            pa.array(np.arange(first_seq, first_seq + n, dtype=np.int64)),
            *batch.columns,
        ],
        schema=SCHEMA,
    )
