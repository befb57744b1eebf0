"""Values against a plugin author's JSON Schema (draft 2020-12): defaults filled in, errors in plain words."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from analytics_core.errors import near
from analytics_core.manifest.filling import Filled
from analytics_core.manifest.fitting import read_bool, read_list, read_number
from analytics_core.manifest.source import Key, dotted

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_META: Final = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=FormatChecker(["regex"]))
_ANYTHING: Final = frozenset({"default", "const"})
_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_NOT_NEGATIVE: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_OF_TYPE: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("title", "description", "$comment"), (str,)),
    **dict.fromkeys(("writeOnly", "readOnly", "deprecated", "uniqueItems"), (bool,)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (int, float)),
    **dict.fromkeys(_NOT_NEGATIVE, (int,)),
    **dict.fromkeys(("enum", "examples"), (list,)),
}
_NO_REMOTE: Final[Registry[Any]] = Registry()
"""Without it a ``$ref`` to a URL would be fetched."""

_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
    "format": "as {}",
    "multipleOf": "a multiple of {}",
}


def schema_problem(schema: Mapping[str, Any], *, defaults: bool = False) -> tuple[Key, str] | None:
    """Where and why ``schema`` is no JSON Schema of an object; None when it is one.

    With ``defaults`` the default of each property must fit that property.
    """
    declared = schema.get("$schema", _DIALECT)
    if declared != _DIALECT:
        return ("$schema",), f"{declared!r} is not supported; valid is {_DIALECT!r}"
    found = None if _plainly_good(schema) else best_match(_META.iter_errors(schema))
    if found is not None:
        return tuple(found.absolute_path), f"is no JSON Schema: {found.message}"
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


def _plainly_good(schema: Any) -> bool:
    """Whether the metaschema holds for sure, found out a hundred times faster; False says nothing.

    The metaschema takes 10 ms for a plugin, and a host may have many.
    """
    if not isinstance(schema, dict):
        return isinstance(schema, bool)
    for key, value in schema.items():
        if key in _ANYTHING:
            continue
        if key in ("properties", "$defs"):
            good = isinstance(value, dict) and all(map(_plainly_good, value.values()))
        elif key in ("items", "additionalProperties"):
            good = _plainly_good(value)
        elif key == "type":
            kinds = value if isinstance(value, list) and value else [value]
            good = _distinct_words(kinds) and set(kinds) <= _TYPES
        elif key == "required":
            good = isinstance(value, list) and _distinct_words(value)
        elif key == "pattern":
            good = isinstance(value, str) and _is_pattern(value)
        else:
            good = key in _OF_TYPE and type(value) in _OF_TYPE[key] and (key not in _NOT_NEGATIVE or value >= 0)
        if not good:
            return False
    return True


def _distinct_words(values: list[Any]) -> bool:
    return all(type(value) is str for value in values) and len(set(values)) == len(values)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


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
    try:
        errors = list(Draft202012Validator(schema, registry=_NO_REMOTE).iter_errors(values))
    except Unresolvable as error:
        return values, [("", f"the schema's $ref {error.ref!r} leads nowhere")]
    problems += [_problem(error, schema) for error in sorted(errors, key=lambda e: list(map(str, e.absolute_path)))]
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
    """Without `Filled`: as the type that ``schema`` names, or as text where that cannot be done."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        return {key: _plain(child, parts.get(key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child, schema.get("items")) for child in value]
    if not isinstance(value, Filled):
        return value
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


def _problem(error: ValidationError, root: Mapping[str, Any]) -> tuple[str, str]:
    path: Key = tuple(error.absolute_path)
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    instance: Any = error.instance
    if error.validator == "required":
        wanted: list[str] = schema["required"]
        missing = next(name for name in wanted if name not in instance)
        return dotted((*path, missing)), f"is missing{_valid(schema.get('properties', {}).get(missing, {}))}"
    if error.validator == "additionalProperties":
        known = schema.get("properties", {})
        extra = next((name for name in instance if name not in known), "")
        return dotted((*path, extra)), f"the key is not known{near(extra, known)}"
    if _is_secret(error, root):
        return dotted(path), f"the value (hidden) does not fit{_valid(schema)}"
    if isinstance(error.instance, dict | list):  # its message would show all that is inside, secrets too
        return dotted(path), f"the value does not fit the schema's {error.validator!r}{_valid(schema)}"
    return dotted(path), f"{error.message}{_valid(schema)}"


def _is_secret(error: ValidationError, root: Any) -> bool:
    part = root
    for step in error.absolute_schema_path:
        if isinstance(part, dict) and part.get("writeOnly"):
            return True
        part = part.get(step, {}) if isinstance(part, dict) else part[step] if isinstance(step, int) else {}
    return False


def _valid(schema: Any) -> str:
    """``; valid is: integer, at least 1, at most 60``."""
    if not isinstance(schema, dict):
        return ""
    kinds = schema.get("type", ())
    words = [kinds] if isinstance(kinds, str) else [" or ".join(kinds)] if kinds else []
    if "enum" in schema:
        words = ["one of " + ", ".join(map(repr, schema["enum"]))]
    words += [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return f"; valid is: {', '.join(words)}" if words else ""
