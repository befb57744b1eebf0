"""One filter, two readings: a DuckDB predicate with bound values, and a mask over `Events`.

Both agree on types: text equals text and a number equals a number, never ``"5"`` and ``5``. What a property lacks or
holds in another type does not match, except under ``!=``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.errors import ParameterError, near
from analytics_core.events import TIMESTAMP, moment
from analytics_core.events.times import parse_time
from analytics_core.metrics.patterns import check_pattern
from analytics_core.properties import extract_property, has_property

Bind = Callable[[Any], str]
"""Takes a value, gives the SQL expression that stands for it."""

Kind = Literal["text", "time", "json"]

OPS: Final = ("=", "!=", "in", "contains", "regex", ">", ">=", "<", "<=", "exists")
MAX_VALUES: Final = 1_000
_COLUMNS: Final[dict[str, Kind]] = {
    "name": "text",
    "user_id": "text",
    "anonymous_id": "text",
    "session_id": "text",
    "event_id": "text",
    "source": "text",
    "timestamp": "time",
    "received_at": "time",
}
_ALIASES: Final = {
    "event": "name",
    "userId": "user_id",
    "anonymousId": "anonymous_id",
    "sessionId": "session_id",
    "messageId": "event_id",
    "receivedAt": "received_at",
}
_JSON: Final = ("properties.", "context.")
_COMPARE: Final[dict[str, Callable[..., Any]]] = {
    "=": pc.equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
}


class Events(Protocol):
    """Events as columns: an `EventBatch`, or some of its events."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> pa.Array: ...

    def property(self, name: str, type: type[str | float | int | bool]) -> pa.Array: ...  # noqa: A002


class Field(Struct, frozen=True):
    """Where a value is: a column, or a path inside one of the two JSON columns."""

    column: str
    path: str = ""

    @classmethod
    def of(cls, name: str, parameter: str = "field") -> Field:
        """``event``, ``userId`` or ``user_id``, ``timestamp``, ``properties.x``, ``context.x.y``.

        :raises ParameterError: for another name; a bare property name is told how it is written.
        """
        column = _ALIASES.get(name, name)
        if column in _COLUMNS:
            return cls(column)
        head, _, path = name.partition(".")
        if f"{head}." in _JSON and all(path.split(".")):
            return cls(head, path)
        hint = near(name, [*_COLUMNS, *_ALIASES, "properties.<name>", "context.<name>"])
        if "did you mean" not in hint and name and "." not in name:
            hint = f"; did you mean 'properties.{name[:64]}'?"
        raise ParameterError(parameter, f"{name[:64]!r} is no field{hint}")

    @property
    def name(self) -> str:
        """As it is written in a request."""
        return f"{self.column}.{self.path}" if self.path else self.column

    @property
    def kind(self) -> Kind:
        return "json" if self.path else _COLUMNS[self.column]

    def text(self, bind: Bind) -> str:
        """SQL for the value as text; for JSON any scalar is written out."""
        return f"TRY(json_extract_string({self.column}, {bind(self._pointer)}))" if self.path else self.column

    def json(self, bind: Bind) -> str:
        """SQL for the value as JSON text, NULL when there is none; for paths only."""
        return f"CAST(TRY(json_extract({self.column}, {bind(self._pointer)})) AS VARCHAR)"

    def string(self, bind: Bind) -> str:
        """SQL for the value when it is a text, else NULL: a number is not one."""
        return f"CASE WHEN {self.json_type(bind)} = 'VARCHAR' THEN {self.text(bind)} END" if self.path else self.column

    def number(self, bind: Bind) -> str:
        """SQL for the value as a finite double, else NULL."""
        if not self.path:
            return "CAST(NULL AS DOUBLE)"
        # TRY: a document that another JSON reader refuses (a lone surrogate) must not fail the whole query. A JSON
        # string keeps its quotes in the cast to VARCHAR, so that it is no number.
        raw = f"TRY_CAST({self.json(bind)} AS DOUBLE)"
        return f"nullif(nullif({raw}, 'inf'::DOUBLE), '-inf'::DOUBLE)"

    def keys(self, bind: Bind) -> str:
        """SQL for the keys of the object there, a list of texts; of the whole column without a path."""
        return f"TRY(json_keys({self.column}, {bind(self._pointer)}))"

    def json_type(self, bind: Bind) -> str:
        return f"TRY(json_type({self.column}, {bind(self._pointer)}))"

    @property
    def _pointer(self) -> str:
        """RFC 6901, which can name any key."""
        return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in self.path.split(".") if self.path)

    def column_of(self, events: Events, kind: type) -> pa.Array:
        """The value of each event as Arrow ``kind`` (str, float, bool), shape ``(len(events),)``; null when absent."""
        if self.column == "properties":
            return events.property(self.path, kind)
        if self.path:
            return extract_property(events.column(self.column), self.path, kind)
        found = events.column(self.column)
        return found.dictionary_decode() if isinstance(found, pa.DictionaryArray) else found


class Filter(Struct, frozen=True):
    """``field op value``, checked."""

    field: Field
    op: str
    value: Any = None

    def sql(self, bind: Bind) -> str:
        """A boolean SQL expression; NULL counts as false."""
        if self.op == "exists":
            return self._exists(bind) if self.value else f"NOT ({self._exists(bind)})"
        if self.op == "in":
            return self._among(bind)
        if self.op == "=":
            return _equal(self.field, self.value, bind)
        if self.op == "!=":
            return f"NOT coalesce({_equal(self.field, self.value, bind)}, false)"
        if self.op == "contains":
            return f"contains({self.field.string(bind)}, {bind(self.value)})"
        if self.op == "regex":
            return f"regexp_matches({self.field.string(bind)}, {bind(self.value)})"
        shown = self.field.number(bind) if _is_number(self.value) else self.field.string(bind)
        return f"{shown} {self.op} {bind(self.value)}"

    def _exists(self, bind: Bind) -> str:
        if not self.field.path:
            return f"{self.field.column} IS NOT NULL"
        return f"coalesce({self.field.json_type(bind)} <> 'NULL', false)"

    def _among(self, bind: Bind) -> str:
        if not self.value:
            return "false"
        if self.field.path or None in self.value:
            return "(" + " OR ".join(_equal(self.field, v, bind) for v in self.value) + ")"
        return f"{self.field.column} IN ({', '.join(map(bind, self.value))})"

    def mask(self, events: Events) -> npt.NDArray[np.bool_]:
        """Which events match, shape ``(len(events),)``."""
        if self.op == "exists":
            return self._present(events) if self.value else ~self._present(events)
        if self.op == "in":
            none = np.zeros(len(events), np.bool_)
            return _any([none, *(self._compare(events, "=", v) for v in self.value)])
        if self.op == "!=":
            return ~self._compare(events, "=", self.value)
        if self.op == "contains":
            return _plain(pc.match_substring(self.field.column_of(events, str), self.value))
        if self.op == "regex":
            return _plain(pc.match_substring_regex(self.field.column_of(events, str), self.value))
        return self._compare(events, self.op, self.value)

    def _present(self, events: Events) -> npt.NDArray[np.bool_]:
        if self.field.path:
            return has_property(events.column(self.field.column), self.field.path)
        return _plain(pc.is_valid(self.field.column_of(events, str)))

    def _compare(self, events: Events, op: str, value: Any) -> npt.NDArray[np.bool_]:
        if value is None:
            return ~self._present(events)
        kind = bool if isinstance(value, bool) else float if _is_number(value) else str
        column = self.field.column_of(events, kind)
        scalar = pa.scalar(value, TIMESTAMP) if self.field.kind == "time" else pa.scalar(kind(value))
        return _plain(_COMPARE[op](column, scalar))


def _equal(field: Field, value: Any, bind: Bind) -> str:
    if value is None:
        return Filter(field, "exists", False).sql(bind)
    if not field.path:
        return f"{field.column} = {bind(value)}"
    if isinstance(value, bool):
        return f"({field.text(bind)} = '{str(value).lower()}' AND {field.json_type(bind)} = 'BOOLEAN')"
    if _is_number(value):
        return f"{field.number(bind)} = {bind(float(value))}"
    return f"({field.text(bind)} = {bind(value)} AND {field.json_type(bind)} = 'VARCHAR')"


def _plain(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), np.bool_)


def _any(masks: list[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.logical_or.reduce(masks), np.bool_)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def make_filter(field: str, op: str, value: Any, parameter: str) -> Filter:
    """Check one filter; ``parameter`` names it in errors. :raises ParameterError: naming what would be valid."""
    if op not in OPS:
        raise ParameterError(f"{parameter}.op", f"{op[:64]!r} is no operator; valid are: {', '.join(OPS)}")
    where = Field.of(field, f"{parameter}.field")
    return Filter(where, op, _checked(where, op, value, f"{parameter}.value"))


def _checked(field: Field, op: str, value: Any, parameter: str) -> Any:
    if op == "exists":
        if value not in (None, True, False):
            raise ParameterError(parameter, "exists takes true or false")
        return value is not False
    if op == "in":
        if not isinstance(value, list | tuple) or len(value) > MAX_VALUES:
            raise ParameterError(parameter, f"in takes a list of at most {MAX_VALUES} values")
        return tuple(_scalar(field, v, parameter) for v in value)
    if op in ("contains", "regex") and (not isinstance(value, str) or field.kind == "time"):
        raise ParameterError(parameter, f"{op} takes a text, and a field that is not a time")
    if op == "regex":
        return check_pattern(value, parameter)
    if op in (">", ">=", "<", "<=") and (value is None or isinstance(value, bool)):
        raise ParameterError(parameter, f"{op} takes a number or a text")
    return _scalar(field, value, parameter)


def _scalar(field: Field, value: Any, parameter: str) -> Any:
    """One value in the type of its field; None stands for what is absent."""
    if value is None:
        return None
    if not isinstance(value, str | int | float | bool):
        raise ParameterError(parameter, f"{type(value).__name__} is no value; valid are text, numbers, true and false")
    if field.kind == "time":
        if isinstance(value, bool):
            raise ParameterError(parameter, "a time is ISO 8601 or an epoch number")
        try:
            return moment(parse_time(value))
        except (ValueError, OverflowError) as error:
            raise ParameterError(parameter, str(error)) from None
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ParameterError(parameter, "an integer has at most 64 bits")
    if field.kind == "text" and not isinstance(value, str):
        if isinstance(value, bool):
            raise ParameterError(parameter, f"{field.column} is a text")
        return str(value)  # ids may be numbers on the wire; in the columns they are text
    return value


def short_form(given: Mapping[str, Any], parameter: str) -> list[Filter]:
    """``{"properties.plan": "pro", "event": ["a", "b"], "properties.amount": {">": 10}}``: all must hold."""
    found = []
    for name, value in given.items():
        where = f"{parameter}.{name}"
        if isinstance(value, Mapping):
            found += [make_filter(name, str(op), v, where) for op, v in value.items()]
        else:
            found.append(make_filter(name, "in" if isinstance(value, list | tuple) else "=", value, where))
    return found


def conjunction(filters: Sequence[Filter], bind: Bind) -> str:
    """All of them as one SQL expression."""
    return " AND ".join(f.sql(bind) for f in filters) or "true"
