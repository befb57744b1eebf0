"""Fields by whose values a question groups, holds or sums, as a request names them."""

from __future__ import annotations

from typing import Final

from analytics_core import ParameterError

COLUMNS: Final = {
    "event": "name",
    "name": "name",
    "source": "source",
    "userId": "user_id",
    "user_id": "user_id",
    "anonymousId": "anonymous_id",
    "anonymous_id": "anonymous_id",
    "sessionId": "session_id",
    "session_id": "session_id",
}
"""The columns of texts, by the names that a request may give them."""
_HOLDERS: Final = ("properties", "context")


def valued(field: str, parameter: str) -> str:
    """``field`` as it is. :raises ParameterError: when it is no property and no column of texts."""
    return field if field in COLUMNS else _property(field, parameter, f", context.x, {', '.join(COLUMNS)}")


def numeric(field: str, parameter: str) -> str:
    """``field`` as it is. :raises ParameterError: when it is no property, and so never a number."""
    return _property(field, parameter, " and context.x")


def _property(field: str, parameter: str, others: str) -> str:
    holder, _, path = field.partition(".")
    if holder in _HOLDERS and all(path.split(".")):
        return field
    near = "x" if "." in field or not field else field[:64]
    raise ParameterError(parameter, f"{field[:64]!r} cannot be asked for here; valid are properties.{near}{others}")
