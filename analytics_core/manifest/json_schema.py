"""Values against a plugin author's JSON Schema (draft 2020-12): defaults filled in, errors in plain words."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

from analytics_core.errors import near
from analytics_core.manifest.filling import Filled
from analytics_core.manifest.fitting import read_bool, read_list, read_number
from analytics_core.manifest.plain_schema import plainly_fits, plainly_good
from analytics_core.manifest.source import Key

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_problem(schema: Mapping[str, Any], *, defaults: bool = False) -> tuple[Key, str] | None:
    """Where and why ``schema`` is no JSON Schema of an object; None when it is one.

    With ``defaults`` the default of each property must fit that property.
    """
    declared = schema.get("$schema", _DIALECT)
    if declared != _DIALECT:
        return ("$schema",), f"{declared!r} is not supported; valid is {_DIALECT!r}"
    if not plainly_good(schema):
        from analytics_core.manifest.validator import schema_fault  # its import outweighs forty plugins

        if fault := schema_fault(schema):
            return fault
    if schema.get("type", "object") != "object":
        return ("type",), f"{schema['type']!r} is not valid here; valid is: object"
    if not defaults:
        return None
    for name, part in schema.get("properties", {}).items():
        if isinstance(part, dict) and "default" in part:
            _, problems = fit_schema({"$defs": schema.get("$defs", {}), "properties": {name: part}}, {})
            if problems:
                return ("properties", name, "default"), problems[0][1]
    return None


def fit_schema(schema: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """``given`` with defaults filled in, and every (key, problem) pair where it does not fit ``schema``.

    Keys that the schema does not name are problems unless it says otherwise (``additionalProperties``,
    ``patternProperties``). Text from the environment is read as the type that the schema asks for. Values under
    ``writeOnly`` are never shown.
    """
    values = _fill_defaults(
        schema, {key: _plain(value, schema.get("properties", {}).get(key)) for key, value in given.items()}
    )
    problems = list(_unknown(schema, given))
    if not plainly_fits(schema, values):
        from analytics_core.manifest.validator import value_faults  # as above

        problems += value_faults(schema, values)
    return values, list(dict.fromkeys(problems))


def _fill_defaults(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
    filled = dict(values)
    for name, part in schema.get("properties", {}).items():
        if not isinstance(part, dict):
            continue
        if name not in filled and "default" in part:
            filled[name] = copy.deepcopy(part["default"])
        if isinstance(filled.get(name), dict):
            filled[name] = _fill_defaults(part, filled[name])
        elif name not in filled and _has_defaults(part):
            filled[name] = _fill_defaults(part, {})
    return filled


def _has_defaults(schema: Mapping[str, Any]) -> bool:
    return not schema.get("required") and any(
        isinstance(part, dict) and ("default" in part or _has_defaults(part))
        for part in schema.get("properties", {}).values()
    )


def _plain(value: Any, schema: Any) -> Any:
    """Without `Filled`: as the type that ``schema`` names, or as text where that cannot be done. Where it names an
    integer, 5.0 becomes 5: JSON Schema takes them for the same, and what is handed on is to be one."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return {key: _plain(child, parts.get(key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child, schema.get("items")) for child in value]
    if not isinstance(value, Filled):
        whole = schema.get("type") == "integer" and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value
    kinds = schema.get("type", "string")
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        read = _read(value, kind, schema)
        if read is not None:
            return read
        if kind == "null" and not value:
            return None
    return str(value)


def _read(text: str, kind: str, schema: Mapping[str, Any]) -> Any:
    match kind:
        case "boolean":
            return read_bool(text)
        case "integer":
            return read_number(text, int)
        case "number":
            return read_number(text, float)
        case "array":
            return [_plain(Filled(word), schema.get("items")) for word in read_list(text)]
        case "string":
            return str(text)
    return None


def _unknown(schema: Mapping[str, Any], given: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The one rule that we add: silence about further keys forbids them. What the schema says itself is its own."""
    if {"additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"} & schema.keys():
        return
    valid = schema.get("properties", {})
    for key in given:
        if key not in valid:
            yield key, f"the key is not known{near(key, valid) or '; there is nothing to set'}"
