"""Which values of a plugin's settings are secret: those that its JSON Schema marks as ``writeOnly``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from analytics_core.manifest.source import Key

MASK: Final = "***"

_SECRET: Final[Mapping[str, Any]] = {"writeOnly": True}
"""Stands for a ``$ref`` that leads nowhere: nobody knows what it was to say."""
_COMBINED: Final = ("allOf", "anyOf", "oneOf")
_CONDITIONAL: Final = ("if", "then", "else")
_REFERENCES: Final = ("$ref", "$dynamicRef")


def masked(schema: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with everything secret hidden, however deep inside; empty when they are secret as a whole."""
    shown = _masked(_about([schema], schema), values, schema)
    return shown if isinstance(shown, dict) else {}


def is_secret(schema: Mapping[str, Any], path: Key) -> bool:
    """Whether the value at ``path`` of the settings, or one around it, is secret."""
    about = _about([schema], schema)
    for step in path:
        if _hides(about):
            return True
        about = _inside(about, step, schema)
    return _hides(about)


def _masked(about: list[Mapping[str, Any]], value: Any, root: Mapping[str, Any]) -> Any:
    """``value``, of which all schemas in ``about`` speak."""
    if _hides(about):
        return MASK if value or value == 0 else value
    if isinstance(value, Mapping):
        return {key: _masked(_inside(about, key, root), child, root) for key, child in value.items()}
    if isinstance(value, list):
        return [_masked(_inside(about, index, root), child, root) for index, child in enumerate(value)]
    return value


def _hides(about: Iterable[Mapping[str, Any]]) -> bool:
    return any(schema.get("writeOnly") is True for schema in about)


def _inside(about: Iterable[Mapping[str, Any]], step: str | int, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas that speak of the value at ``step``: a key of a mapping or an index of a list."""
    of_step = _of_key if isinstance(step, str) else _of_index
    return _about((part for schema in about for part in of_step(schema, step)), root)


def _of_key(schema: Mapping[str, Any], key: Any) -> Iterator[Any]:
    named = schema.get("properties", {})
    if key in named:
        yield named[key]
    else:
        yield from (schema.get("additionalProperties"), schema.get("unevaluatedProperties"))
    yield from (part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, key))


def _of_index(schema: Mapping[str, Any], index: Any) -> Iterator[Any]:
    first = schema.get("prefixItems", [])
    if index < len(first):
        yield first[index]
    else:
        yield from (schema.get("items"), schema.get("unevaluatedItems"))
    yield schema.get("contains")


def _about(schemas: Iterable[Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """``schemas`` with all that they refer to and combine: everything that is said of one and the same value."""
    found: dict[int, Mapping[str, Any]] = {}
    waiting = list(schemas)
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Mapping) or id(schema) in found:
            continue
        found[id(schema)] = schema
        waiting += (part for key in _COMBINED for part in schema.get(key, ()))
        waiting += (schema[key] for key in _CONDITIONAL if key in schema)
        waiting += schema.get("dependentSchemas", {}).values()
        waiting += (_referred(root, schema[key]) for key in _REFERENCES if key in schema)
    return list(found.values())


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    # Imported here since few schemas refer to anything, and a listing of plugins is to be quick.
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    registry: Registry[Any] = Registry()
    try:
        return registry.resolver_with_root(DRAFT202012.create_resource(root)).lookup(reference).contents
    except (Unresolvable, ValueError):  # the latter of a word where a list has numbers
        return _SECRET
