"""Events page by page, newest first, with a cursor that stays right while events arrive."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import chain
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta, Raw, Struct

from analytics_core.errors import ParameterError
from analytics_core.events import micros, moment
from analytics_core.metrics.filters import Field, Filter
from analytics_core.queries.notes import names_in, unknown_names, unknown_path, unlike
from analytics_core.queries.projection import ALL, Bound, Kind, Shown
from analytics_core.queries.ranges import ALL_TIME
from analytics_core.queries.reader import Reader
from analytics_core.records import TimeRange

MAX_PAGE: Final = 1_000
_Micros = Annotated[int, Meta(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]
"""What a datetime can say: the years 1 to 9999."""
_Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_KEY: Final = "timestamp, partition, seq"
_NEWEST: Final = "ORDER BY events.timestamp DESC, events.partition DESC, events.seq DESC"


class _Cursor(Struct, array_like=True):
    """Where a page ended: the key of its last row, and which query it belongs to."""

    query: bytes
    start: _Micros
    end: _Micros
    timestamp: _Micros
    partition: Annotated[int, Meta(ge=0, le=2**15 - 1)]
    seq: _Position


_cursor: Final = msgspec.msgpack.Decoder(_Cursor)  # made before there are threads, as in lanes.checkpoint


class Snapshots(Protocol):
    """`queries.history.History`, as far as pages need it."""

    def reader(self, tenant: str, range: TimeRange, filters: Sequence[Filter]) -> Reader: ...  # noqa: A002

    def event_names(self, tenant: str) -> list[str]: ...


def read_page(
    history: Snapshots,
    tenant: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    filters: Sequence[Filter] = (),
    limit: int = 100,
    cursor: str | None = None,
    names: Sequence[str] | None = None,
    fields: Sequence[Shown] = ALL,
    asked: str = "",
) -> dict[str, Any]:
    """Events newest first: ``{"rows", "next_cursor": str | None, "watermark": ISO time | None, "notes": [str]}``.

    A row has the wire's names (``event``, ``userId``, ...) or those of ``fields``, JSON as it was sent (`Raw`: it may
    hold numbers that Python does not). The cursor is the last row's key (``timestamp``, ``partition``, ``seq``), so
    that what arrives meanwhile neither repeats nor hides a row. ``names`` keeps only these events. ``asked`` is how the
    range was written ("7d"): given, it ties the cursor instead of ``start`` and ``end``, and the pages that follow keep
    the range of the first. ``notes`` say of an empty page which names in the question nobody knows.

    :raises ParameterError: for a limit outside 1..1000, and a cursor of another query.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise ParameterError("limit", f"{limit} is outside 1..{MAX_PAGE}")
    low, high = start or ALL_TIME.start, end or ALL_TIME.end
    wanted = with_names(filters, names)
    tie = _tie(tenant, asked or (start, end), wanted)
    after = _read_cursor(cursor, tie) if cursor else None
    if after is not None:
        low, high = moment(after.start), moment(after.end)
    with history.reader(tenant, TimeRange(low, high), wanted) as reader:
        rows, keys = _newest(reader, fields, after, limit + 1)
        watermark = reader.watermark
    following = _Cursor(tie, micros(low), micros(high), *keys[limit - 1]) if len(keys) > limit else None
    return {
        "rows": rows[:limit],
        "next_cursor": _write_cursor(following) if following else None,
        "watermark": watermark.isoformat() if watermark else None,
        "notes": [] if rows or after is not None else list(_unknown(history, tenant, wanted)),
    }


def with_names(filters: Sequence[Filter], names: Sequence[str] | None) -> tuple[Filter, ...]:
    """``filters``, and only events of these names when there are any given."""
    return (*filters, Filter(Field("name"), "in", tuple(names))) if names is not None else tuple(filters)


# --- rows ------------------------------------------------------------------------------------------------------------


def _newest(
    reader: Reader, fields: Sequence[Shown], after: _Cursor | None, limit: int
) -> tuple[list[dict[str, Any]], list[tuple[int, int, int]]]:
    """The rows and their keys. First the keys alone, then the rows: the wide columns are decoded for a page, not for
    all of history."""
    older, bound = "true", Bound()
    if after is not None:
        older = f"({_KEY}) < ({bound(moment(after.timestamp))}, {bound(after.partition)}, {bound(after.seq)})"
    keys = reader.sql(f"SELECT {_KEY} FROM events WHERE {older} {_NEWEST} LIMIT {limit}", bound)
    if not len(keys):
        return [], []
    at, places = keys.column("timestamp").to_pylist(), keys.column("seq").to_pylist()
    shown = ", ".join(f"{one.exact(bound)} AS c{i}" for i, one in enumerate(fields))
    found = reader.sql(
        f"SELECT {shown} FROM events WHERE timestamp BETWEEN {bound(at[-1])} AND {bound(at[0])} "
        f"AND seq IN (SELECT unnest({bound(places)})) AND {older} {_NEWEST} LIMIT {limit}",
        bound,
    )
    columns = [map(_JSON.get(one.kind, _as_it_is), found.column(i).to_pylist()) for i, one in enumerate(fields)]
    names = [one.name for one in fields]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows, list(zip(map(micros, at), keys.column("partition").to_pylist(), places, strict=True))


def _as_it_is(value: Any) -> Any:
    return value


def _raw(text: str | None) -> Raw | None:
    return None if text is None else Raw(text)


_JSON: Final[dict[Kind, Callable[[Any], Any]]] = {"time": datetime.isoformat, "object": _raw, "value": _raw}
"""How a value of DuckDB goes into JSON, by its kind."""


def _unknown(history: Snapshots, tenant: str, filters: Sequence[Filter]) -> Iterator[str]:
    """A sentence for each event, property and type of a value in the filters that the tenant has not sent."""
    strange = list(unknown_names(filters, history.event_names(tenant) if any(map(names_in, filters)) else ()))
    yield from strange
    paths = dict.fromkeys(filter_.field for filter_ in filters if filter_.field.path)
    if paths:
        meant = () if strange else tuple(filter_ for filter_ in filters if names_in(filter_))
        with history.reader(tenant, ALL_TIME, meant) as reader:
            for field in paths:
                vain = list(unknown_path(reader.sql, field))
                yield from vain
                if not vain:
                    of_field = (filter_ for filter_ in filters if filter_.field == field)
                    yield from chain.from_iterable(unlike(reader.sql, filter_) for filter_ in of_field)


# --- the cursor ------------------------------------------------------------------------------------------------------


def _tie(tenant: str, when: Any, filters: Sequence[Filter]) -> bytes:
    return blake2b(msgspec.json.encode([tenant, when, filters]), digest_size=8).digest()


def _write_cursor(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode().rstrip("=")


def _read_cursor(text: str, tie: bytes) -> _Cursor:
    try:
        cursor = _cursor.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise ParameterError("cursor", "cannot be read; give the next_cursor of an earlier answer as it came") from None
    if cursor.query != tie:
        raise ParameterError("cursor", "belongs to another query; start again without it")
    return cursor
