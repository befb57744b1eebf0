"""``where`` of a question as SQL: properties and columns that must have one of some values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("name", "user_id", "anonymous_id", "session_id", "source", "event_id")


class Conditions:
    """Builds SQL conditions and collects the values as ``$name`` parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def all_of(self, where: Mapping[str, Any]) -> str:
        """An SQL condition; each value may be a list, of which one must hold. :raises ValueError: as `one_of`."""
        return " AND ".join(self._one_of(field, value) for field, value in where.items())

    def _one_of(self, field: str, value: Any) -> str:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"where {field}: an empty list fits no event; give one value at least")
        return "(" + " OR ".join(self._equal(field, v) for v in values) + ")"

    def _equal(self, field: str, value: Any) -> str:
        holder, _, path = field.partition(".")
        if holder not in ("properties", "context") or not path:
            if field not in COLUMNS:
                raise ValueError(f"where {field}: valid are properties.x, context.x, {', '.join(COLUMNS)}")
            return f"{field} IS NULL" if value is None else f"{field} = {self._bind(str(value))}"
        place = self._bind("$" + "".join(f'."{part}"' for part in path.replace('"', "").split(".")))
        kind, text = f"json_type({holder}, {place})", f"json_extract_string({holder}, {place})"
        if value is None:
            return f"coalesce({kind}, 'NULL') = 'NULL'"
        if isinstance(value, bool):
            return f"({kind} = 'BOOLEAN' AND {text} = '{str(value).lower()}')"
        if isinstance(value, int | float):
            numbers = "('BIGINT', 'UBIGINT', 'HUGEINT', 'DOUBLE')"
            return f"({kind} IN {numbers} AND TRY_CAST({text} AS DOUBLE) = {self._bind(float(value))})"
        return f"({kind} = 'VARCHAR' AND {text} = {self._bind(str(value))})"

    def _bind(self, value: Any) -> str:
        name = f"where{len(self.parameters)}"
        self.parameters[name] = value
        return f"${name}"
