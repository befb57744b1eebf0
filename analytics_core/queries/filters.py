"""The filters of a request: their two written forms, checked, for `analytics_core.queries.history`."""

from __future__ import annotations

from typing import Any, Final

from analytics_core.errors import ParameterError, near
from analytics_core.metrics.filters import Filter, make_filter, short_form

MAX_FILTERS: Final = 50
_KEYS: Final = ("field", "op", "value")


def parse_filters(given: Any, parameter: str = "filters") -> tuple[Filter, ...]:
    """A list of ``{"field", "op", "value"}`` or the short form ``{"properties.plan": "pro"}``; all must hold.

    :raises ParameterError: naming the filter and what would be valid.
    """
    if given is None:
        return ()
    if not isinstance(given, list | dict):
        raise ParameterError(parameter, "must be a list of {field, op, value} or an object of field: value")
    if len(given) > MAX_FILTERS:
        raise ParameterError(parameter, f"{len(given)} filters are more than {MAX_FILTERS}")
    if isinstance(given, dict):
        return tuple(short_form(given, parameter))
    return tuple(_one(entry, f"{parameter}[{index}]") for index, entry in enumerate(given))


def _one(entry: Any, parameter: str) -> Filter:
    if not isinstance(entry, dict) or not isinstance(entry.get("field"), str):
        raise ParameterError(parameter, "must be an object with 'field', 'op' (default '=') and 'value'")
    for key in entry:
        if key not in _KEYS:
            raise ParameterError(parameter, f"unknown key {key!r}{near(key, _KEYS)}")
    op = entry.get("op", "=")
    if not isinstance(op, str):
        raise ParameterError(f"{parameter}.op", "must be a text")
    return make_filter(entry["field"], op, entry.get("value"), parameter)
