"""The filters of a request: their written forms, checked, for `analytics_core.queries.history`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from analytics_core.errors import ParameterError, near
from analytics_core.metrics.filters import Field, Filter, make_filter, short_form

MAX_FILTERS: Final = 50
_KEYS: Final = ("field", "op", "value")
_COMPACT: Final = re.compile(
    r"(?P<field>[^=!<>~]+?)"
    r"(?:\s+(?P<exists>(?:not\s+)?exists)"
    r"|(?:\s*(?P<symbol>!=|>=|<=|[=><~])\s*|\s+(?P<word>in|contains|regex)\s+)(?P<value>.*))",
    re.DOTALL,
)


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


def parse_compact(given: Sequence[str], parameter: str = "filter") -> tuple[Filter, ...]:
    """Filters as a URL or a command line has them, one in each text; all must hold.

    ``properties.amount>10``, ``properties.plan=pro``, ``event~^cart`` (a regex), ``properties.name contains ann``,
    ``event in view,cart``, ``properties.coupon exists``, ``properties.coupon not exists``. Of a property, a value that
    reads as JSON is that (``10``, ``true``, ``null``, ``"10"``), any other is a text. A text that begins with ``{`` is
    the long form of `parse_filters`.

    :raises ParameterError: naming the filter and what would be valid.
    """
    if len(given) > MAX_FILTERS:
        raise ParameterError(parameter, f"{len(given)} filters are more than {MAX_FILTERS}")
    return tuple(_compact(text.strip(), f"{parameter}[{index}]") for index, text in enumerate(given))


def _compact(text: str, parameter: str) -> Filter:
    if text.startswith("{"):
        try:
            return _one(msgspec.json.decode(text), parameter)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise ParameterError(parameter, f"begins as JSON and is none: {error}") from None
    found = _COMPACT.fullmatch(text)
    if found is None:
        raise ParameterError(
            parameter,
            f"{text[:64]!r} is no filter; valid are such as 'properties.amount>10', 'properties.plan=pro', "
            "'event~^cart', 'event in view,cart', 'properties.coupon exists', or a JSON object",
        )
    field, exists = found["field"], found["exists"]
    if exists:
        return make_filter(field, "exists", exists == "exists", parameter)
    op, value = "regex" if found["symbol"] == "~" else found["symbol"] or found["word"], found["value"]
    typed = _literal if Field.of(field, f"{parameter}.field").kind == "json" else _unquoted
    if op == "in":
        return make_filter(field, op, _list(value, typed), parameter)
    return make_filter(field, op, value if op in ("contains", "regex") else typed(value), parameter)


def _list(text: str, typed: Callable[[str], Any]) -> list[Any]:
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[Any])
        except msgspec.DecodeError:
            pass  # then it is words, the first of which begins with a bracket
    return [typed(word.strip()) for word in text.split(",") if word.strip()]


def _literal(text: str) -> Any:
    """``10``, ``true``, ``null`` and ``"10"`` as JSON reads them; else the text."""
    try:
        return msgspec.json.decode(text, type=str | int | float | bool | None)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text


def _unquoted(text: str) -> Any:
    """For what holds texts only: ``42`` is one there, ``"42"`` the same and ``null`` nothing."""
    return _literal(text) if text[:1] == '"' or text == "null" else text
