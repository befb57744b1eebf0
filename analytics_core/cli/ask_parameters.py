"""The parameters of a question as they are typed, and as its JSON Schema describes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple

import msgspec
import yaml

from analytics_core.cli.asking import RefusedError

_WHOLE: Final = frozenset({"filters", "where"})
"""Below these a key is one word however many dots it has: ``filters.properties.plan=pro``."""
_EVERYWHERE: Final = ("timeRange", "timezone", "filters", "cohort")
_DEPTH: Final = 6


def parameters(typed: Iterable[str], file: IO[str] | None) -> dict[str, Any]:
    """What ``--params`` holds with each ``--param key=value`` over it; ``a.b=1`` is ``{"a": {"b": 1}}``.

    A value is JSON when it reads as JSON, and text otherwise.

    :raises RefusedError: for what is neither, or two values for one place.
    """
    given = {} if file is None else _read(file)
    for text in typed:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise RefusedError(f"--param {text!r} is no parameter; valid are such as window=1d or timeRange.start=...")
        _put(given, _path(key), _value(value), key)
    return given


def _read(file: IO[str]) -> dict[str, Any]:
    try:
        given = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise RefusedError(f"--params: {' '.join(str(error).split())}") from error
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise RefusedError("--params: is no mapping of parameters to values")
    return given


def _path(key: str) -> list[str]:
    words = key.split(".")
    for at, word in enumerate(words[:-1]):
        if word in _WHOLE:
            return [*words[: at + 1], ".".join(words[at + 1 :])]
    return words


def _put(given: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    place = given
    for word in path[:-1]:
        inner = place.setdefault(word, {})
        if not isinstance(inner, dict):
            raise RefusedError(f"--param {key}: {word!r} is {_json(inner)} already, which has no parts")
        place = inner
    place[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


# --- what may be asked -----------------------------------------------------------------------------------------------


class Described(NamedTuple):
    """One parameter; ``default`` is empty when it has none."""

    name: str
    type: str
    default: str
    about: str


def described(schema: Mapping[str, Any]) -> Iterator[Described]:
    """The parameters of an analysis: what is required, the others of its own, and those that all analyses have."""
    needed = set(schema.get("required", ()))
    for name, part in sorted(_parts(schema), key=lambda entry: (entry[0] in _EVERYWHERE, entry[0] not in needed)):
        default = "(required)" if name in needed else _plain(part["default"]) if "default" in part else ""
        yield Described(name, _type(part), default, str(part.get("description", "")))


def example(name: str, schema: Mapping[str, Any]) -> str:
    """A command that asks: what is required, filled in with what fits."""
    needed = schema.get("required", ())
    told = [f"--param {key}={_typed(_sample(part, key))}" for key, part in _parts(schema) if key in needed]
    return " ".join(["analytics ask", name, *told, "--since 7d"])


def _parts(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(key, part) for key, part in schema.get("properties", {}).items() if isinstance(part, dict)]


def _type(part: Mapping[str, Any]) -> str:
    """``integer 1..60``, ``day | week | null``, ``list of object``."""
    if "enum" in part:
        return " | ".join(_plain(value) for value in part["enum"])
    if "anyOf" in part or "oneOf" in part:
        return " or ".join(dict.fromkeys(_type(each) for each in part.get("anyOf", part.get("oneOf", ()))))
    kinds = part.get("type", "any")
    shown = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if kinds == "array":
        inner = part.get("items", {})
        return f"list of {_type(inner)}" if inner else "list"
    if kinds == "object" and part.get("properties"):
        return "{" + ", ".join(part["properties"]) + "}"
    low, high = part.get("minimum"), part.get("maximum")
    bounds = f" {'' if low is None else low}..{'' if high is None else high}" if low is not high else ""
    return shown + bounds


def _sample(part: Mapping[str, Any], name: str, depth: int = _DEPTH) -> Any:
    """A value that fits the schema as far as it goes: an example or default of its author's, else one for its type."""
    for key in ("examples", "enum"):
        if part.get(key):
            return part[key][0]
    if "default" in part or not depth:
        return part.get("default")
    for choice in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        return _sample(choice, name, depth - 1)
    kind = part.get("type", "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "array":
            one = _sample(part.get("items", {}), name, depth - 1)
            return [one] * max(int(part.get("minItems", 1)), 1)
        case "object":
            needed = part.get("required", ())
            return {key: _sample(inner, key, depth - 1) for key, inner in _parts(part) if key in needed}
        case "integer" | "number":
            return part.get("minimum", 1)
        case "boolean":
            return True
    return name.upper()


def _typed(value: Any) -> str:
    """As a shell takes it."""
    if isinstance(value, str):
        return value if value.isidentifier() else f"'{value}'"
    text = _json(value)
    return f"'{text}'" if any(letter in text for letter in ' "[{') else text


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
