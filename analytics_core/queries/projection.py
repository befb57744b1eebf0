"""Which fields of events an answer shows: the names of a request, checked, and each one's SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from analytics_core.errors import ParameterError, near
from analytics_core.events import SCHEMA
from analytics_core.metrics.filters import Bind, Field

MAX_FIELDS: Final = 200
WIRE: Final = {
    "event": "name",
    "userId": "user_id",
    "anonymousId": "anonymous_id",
    "sessionId": "session_id",
    "timestamp": "timestamp",
    "receivedAt": "received_at",
    "messageId": "event_id",
    "source": "source",
    "properties": "properties",
    "context": "context",
    "partition": "partition",
    "seq": "seq",
}
"""The fields of an event as they go over the wire, in this order, and their columns."""
_COLUMNS: Final = frozenset(SCHEMA.names) - {"tenant"}
_KINDS: Final[dict[str, Kind]] = {
    "timestamp": "time",
    "received_at": "time",
    "properties": "object",
    "context": "object",
    "partition": "number",
    "seq": "number",
}

Kind = Literal["text", "time", "number", "object", "value"]


class Shown(Struct, frozen=True):
    """One field of an answer: ``name`` as it was asked for. ``object``: a whole JSON column; ``value``: one in it."""

    name: str
    field: Field

    @property
    def kind(self) -> Kind:
        return "value" if self.field.path else _KINDS.get(self.field.column, "text")

    def plain(self, bind: Bind) -> str:
        """SQL in the column's own type; one value of a JSON column as text, since events differ in its type."""
        return self.field.text(bind)

    def exact(self, bind: Bind) -> str:
        """As `plain`, but one value of a JSON column is JSON text: a number is none in quotes."""
        return self.field.json(bind) if self.field.path else self.field.column


ALL: Final = tuple(Shown(name, Field(column)) for name, column in WIRE.items())
"""Every field, as an answer has them that names none."""


def parse_fields(given: Sequence[str] | None, parameter: str = "fields") -> tuple[Shown, ...]:
    """``["event", "timestamp", "properties.plan"]``, each once; all when None. :raises ParameterError: naming one."""
    if given is None:
        return ALL
    names = list(dict.fromkeys(given))
    if not names:
        raise ParameterError(parameter, f"is empty; valid are: {', '.join(WIRE)}, properties.<name>, context.<name>")
    if len(names) > MAX_FIELDS:
        raise ParameterError(parameter, f"{len(names)} fields are more than {MAX_FIELDS}")
    return tuple(Shown(name, _field(name, parameter)) for name in names)


def _field(name: str, parameter: str) -> Field:
    column = WIRE.get(name, name)
    if column in _COLUMNS:
        return Field(column)
    if name.startswith(("properties.", "context.")):
        return Field.of(name, parameter)
    hint = near(name, [*WIRE, "properties.<name>", "context.<name>"])
    if "did you mean" not in hint and name and "." not in name:
        hint = f"; did you mean 'properties.{name[:64]}'?"
    raise ParameterError(parameter, f"{name[:64]!r} is no field{hint}")


class Bound(dict[str, Any]):
    """The parameters of one query: call it with a value for the SQL that stands for it."""

    def __call__(self, value: Any) -> str:
        name = f"p{len(self)}"
        self[name] = value
        return f"${name}"
