"""The wire `Event` and the `EventBatch` that events become: the columns of DESIGN §4.

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

_STRING: Final = pa.string()
_CODE: Final = pa.int32()
_WORD: Final = pa.dictionary(_CODE, _STRING)
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
    An empty batch says that time has passed for its tenant. ``erased`` are the ids of users that were erased at this
    point of the log: of such a batch only, which is empty, and else ``()``.
    """

    __slots__ = ("_properties", "erased", "record_batch", "tenant", "watermark")

    def __init__(
        self, record_batch: pa.RecordBatch, tenant: str, watermark: datetime, erased: Sequence[str] = ()
    ) -> None:
        self.record_batch = record_batch
        self.tenant = tenant
        self.watermark = watermark
        self.erased = tuple(erased)
        self._properties: dict[tuple[str, type], pa.Array] = {}

    @classmethod
    def empty(cls, tenant: str, watermark: datetime, erased: Sequence[str] = ()) -> EventBatch:
        return cls(_EMPTY, tenant, watermark, erased)

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


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment(at: int) -> datetime:
    """The UTC datetime of `micros`."""
    return datetime.fromtimestamp(at // 1_000_000, UTC).replace(microsecond=at % 1_000_000)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
