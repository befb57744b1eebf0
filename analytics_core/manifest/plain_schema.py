"""Plain JSON Schemas without jsonschema, a hundred times faster: a yes is certain, and a no says nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_ANYTHING: Final = frozenset({"default", "const"})
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_NOT_NEGATIVE: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_OF_TYPE: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("title", "description", "$comment"), (str,)),
    **dict.fromkeys(("writeOnly", "readOnly", "deprecated", "uniqueItems"), (bool,)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (int, float)),
    **dict.fromkeys(_NOT_NEGATIVE, (int,)),
    **dict.fromkeys(("enum", "examples"), (list,)),
}
_SAY_NOTHING: Final = frozenset(
    {"$comment", "$defs", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)


def plainly_good(schema: Any) -> bool:
    """Whether the metaschema holds for ``schema``, which takes 10 ms to find out itself."""
    if not isinstance(schema, dict):
        return isinstance(schema, bool)
    for key, value in schema.items():
        if key in _ANYTHING:
            continue
        if key in ("properties", "$defs"):
            good = isinstance(value, dict) and all(map(plainly_good, value.values()))
        elif key in ("items", "additionalProperties"):
            good = plainly_good(value)
        elif key == "type":
            kinds = value if isinstance(value, list) and value else [value]
            good = _distinct_words(kinds) and set(kinds) <= _TYPES.keys()
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


def plainly_fits(schema: Any, value: Any) -> bool:
    """Whether ``value`` fits ``schema``, of which the metaschema holds."""
    if not isinstance(schema, dict):
        return schema is True
    return all(_holds(key, schema, value) for key in schema)


def _holds(key: str, schema: Mapping[str, Any], value: Any) -> bool:
    """Whether ``value`` is what the one keyword wants."""
    said = schema[key]
    match key:
        case "type":
            kinds = [said] if isinstance(said, str) else said
            return any(
                isinstance(value, _TYPES[kind]) and (type(value) is not bool or kind == "boolean") for kind in kinds
            )
        case "enum":
            return isinstance(value, str) and value in said
        case "properties" | "required" | "additionalProperties":
            return not isinstance(value, dict) or _holds_inside(key, schema, value)
        case "items":
            return not isinstance(value, list) or all(plainly_fits(said, item) for item in value)
        case "pattern":
            return not isinstance(value, str) or re.search(said, value) is not None
        case "minimum" | "maximum":
            return not _is_number(value) or (value >= said if key == "minimum" else value <= said)
        case "exclusiveMinimum" | "exclusiveMaximum":
            return not _is_number(value) or (value > said if key == "exclusiveMinimum" else value < said)
        case "minLength" | "maxLength":
            return not isinstance(value, str) or (len(value) >= said if key == "minLength" else len(value) <= said)
    return key in _SAY_NOTHING


def _holds_inside(key: str, schema: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    said, named = schema[key], schema.get("properties", {})
    if key == "required":
        return value.keys() >= set(said)
    if key == "properties":
        return all(plainly_fits(part, value[name]) for name, part in said.items() if name in value)
    return all(plainly_fits(said, value[name]) for name in value.keys() - named.keys())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
