"""What jsonschema says of a plugin author's JSON Schema and of values that do not fit it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from analytics_core.errors import near
from analytics_core.manifest.secrets import is_secret
from analytics_core.manifest.source import Key, dotted

_META: Final = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=FormatChecker(["regex"]))
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


def schema_fault(schema: Mapping[str, Any]) -> tuple[Key, str] | None:
    """Where and why the metaschema does not hold for ``schema``; None when it does."""
    found = best_match(_META.iter_errors(schema))
    return None if found is None else (tuple(found.absolute_path), f"is no JSON Schema: {found.message}")


def value_faults(schema: Mapping[str, Any], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every (key, problem) pair where ``values`` do not fit ``schema``, sorted by key; nothing secret is shown."""
    try:
        errors = list(Draft202012Validator(schema, registry=_NO_REMOTE).iter_errors(values))
    except Unresolvable as error:
        return [("", f"the schema's $ref {error.ref!r} leads nowhere")]
    except RecursionError:
        return [("", "the schema's $ref leads to itself")]
    return [_problem(error, schema) for error in sorted(errors, key=lambda e: list(map(str, e.absolute_path)))]


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
    if is_secret(root, path):
        return dotted(path), f"the value (hidden) does not fit{_valid(schema)}"
    if isinstance(instance, list) and error.validator in ("minItems", "maxItems"):
        return dotted(path), f"has {len(instance)} items{_valid(schema)}"
    if isinstance(error.instance, dict | list):  # its message would show all that is inside, secrets too
        return dotted(path), f"the value does not fit the schema's {error.validator!r}{_valid(schema)}"
    return dotted(path), f"{error.message}{_valid(schema)}"


def _valid(schema: Any) -> str:
    """``; valid is: integer, at least 1, at most 60, such as 5``."""
    if not isinstance(schema, dict):
        return ""
    kinds = schema.get("type", ())
    words = [kinds] if isinstance(kinds, str) else [" or ".join(kinds)] if kinds else []
    if "enum" in schema:
        words = ["one of " + ", ".join(map(repr, schema["enum"]))]
    words += [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    default = schema.get("default")
    if words and "enum" not in schema and isinstance(default, str | int | float) and not isinstance(default, bool):
        words.append(f"such as {default!r}")
    return f"; valid is: {', '.join(words)}" if words else ""
