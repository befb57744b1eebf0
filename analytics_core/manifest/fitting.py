"""From plain values to a Struct, with messages that name the key, what is wrong, and what would be valid.

Types are taken strictly as written, except text that came from the environment (`Filled`): that is read as the number,
truth value or list that the field asks for.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec import inspect as shape

from analytics_core.errors import near
from analytics_core.manifest.filling import Filled
from analytics_core.manifest.source import Key, Source

Model = TypeVar("Model", bound=Struct)

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


def fit(
    model: type[Model], values: dict[str, Any], source: Source, path: Key = (), ignore: Iterable[str] = ()
) -> Model:
    """``values`` as a ``model``. Top-level keys in ``ignore`` and all keys that begin with ``x-`` are left out.

    The value of a field whose type says ``Meta(extra={"secret": True})`` is in no message.

    :raises ManifestError: for the first value that does not fit.
    """
    kept = {key: value for key, value in values.items() if key not in ignore}
    fitted = _Fitting(source).value(kept, type_info(model), path)
    return msgspec.convert(fitted, model, dec_hook=_as_is)


@cache
def type_info(model: type[Struct]) -> shape.Type:
    return shape.type_info(model)


def _as_is(_: type, value: Any) -> Any:
    return value


def read_bool(text: str) -> bool | None:
    """The truth value that an environment variable says, None when it says none."""
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def read_number(text: str, kind: type[int | float]) -> int | float | None:
    """The finite number that an environment variable says, None when it says none."""
    try:
        value = kind(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_list(text: str) -> list[str]:
    """Comma-separated words without the blanks around them."""
    return [word.strip() for word in text.split(",") if word.strip()]


class _Fitting:
    def __init__(self, source: Source, *, secret: bool = False) -> None:
        self.source = source
        self.secret = secret

    def wrong(self, path: Key, value: Any, problem: str) -> Exception:
        origin = f"; it comes from {value.origin}" if isinstance(value, Filled) and value.origin else ""
        shown = "the value (hidden)" if self.secret else _shown(value)
        return self.source.error(path, f"{shown} {problem}{origin}")

    def value(self, value: Any, kind: shape.Type, path: Key) -> Any:
        match kind:
            case shape.Metadata(type=inner, extra=extra):
                return _Fitting(self.source, secret=bool(extra and extra.get("secret"))).value(value, inner, path)
            case shape.UnionType(types=types):
                return self.union(value, types, path)
            case shape.StructType():
                return self.struct(value, kind, path)
            case shape.DictType(value_type=inner):
                return {key: self.value(v, inner, (*path, key)) for key, v in self.mapping(value, path).items()}
            case shape.VarTupleType(item_type=inner) | shape.ListType(item_type=inner):
                return [self.value(v, inner, (*path, i)) for i, v in enumerate(self.items(value, kind, path))]
            case shape.LiteralType(values=words):
                return self.literal(value, words, path)
            case shape.CustomType() if kind.cls is Path:
                return Path(self.text(value, shape.StrType(min_length=1), path))
            case shape.StrType():
                return self.text(value, kind, path)
            case shape.BoolType():
                return self.truth(value, path)
            case shape.IntType() | shape.FloatType():
                return self.number(value, kind, path)
            case _:
                return value

    def union(self, value: Any, types: tuple[shape.Type, ...], path: Key) -> Any:
        others = [t for t in types if not isinstance(t, shape.NoneType)]
        if len(others) < len(types) and (value is None or (isinstance(value, Filled) and not value.strip())):
            return None
        mapped = [t for t in others if isinstance(t, shape.DictType)] if isinstance(value, dict) else []
        return self.value(value, (mapped or others)[0], path)

    def struct(self, value: Any, kind: shape.StructType, path: Key) -> dict[str, Any]:
        fields = {field.encode_name: field for field in kind.fields}
        given = {k: v for k, v in self.mapping(value, path).items() if not k.startswith("x-")}
        for key in given:
            if key not in fields:
                valid = f"; valid are: {', '.join(fields)}"
                hint = near(key, fields)
                raise self.source.error(
                    (*path, key), f"the key is not known{hint if hint.startswith('; did') else ''}{valid}"
                )
        for name, field in fields.items():
            if (
                name not in given
                and field.default is NODEFAULT
                and field.default_factory is NODEFAULT
                and field.required
            ):
                raise self.source.error(path, f"the key {name!r} is missing")
        return {key: self.value(v, fields[key].type, (*path, key)) for key, v in given.items()}

    def mapping(self, value: Any, path: Key) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(path, value, "is not a mapping")
        return value

    def items(self, value: Any, kind: shape.VarTupleType | shape.ListType, path: Key) -> list[Any]:
        found = read_list(value) if isinstance(value, Filled) else value
        if not isinstance(found, list):
            raise self.wrong(path, value, "is not a list; write [a, b]")
        least, most = kind.min_length or 0, kind.max_length
        if len(found) < least or (most is not None and len(found) > most):
            valid = f"at least {least}" if most is None else f"{least} to {most}"
            raise self.wrong(path, value, f"has {len(found)} items; valid are {valid}")
        return found

    def literal(self, value: Any, words: tuple[Any, ...], path: Key) -> Any:
        if isinstance(value, Filled):
            value = next((w for w in words if str(w).lower() == value.strip().lower()), value)
        if value not in words or isinstance(value, bool):
            raise self.wrong(path, value, f"is not valid; valid are: {', '.join(map(str, words))}")
        return value

    def text(self, value: Any, kind: shape.StrType, path: Key) -> str:
        if not isinstance(value, str):
            raise self.wrong(path, value, "is not text; put it in quotes")
        if kind.min_length and len(value) < kind.min_length:
            raise self.wrong(path, value, "is empty")
        if kind.max_length and len(value) > kind.max_length:
            raise self.wrong(path, value, f"is longer than {kind.max_length} characters")
        if kind.pattern and not re.fullmatch(kind.pattern, value):
            raise self.wrong(path, value, f"does not match {kind.pattern}")
        return str(value)

    def truth(self, value: Any, path: Key) -> bool:
        read = read_bool(value) if isinstance(value, Filled) else value
        if not isinstance(read, bool):
            raise self.wrong(path, value, "is neither true nor false")
        return read

    def number(self, value: Any, kind: shape.IntType | shape.FloatType, path: Key) -> int | float:
        whole = isinstance(kind, shape.IntType)
        read = read_number(value, int if whole else float) if isinstance(value, Filled) else value
        if isinstance(read, bool) or not isinstance(read, int if whole else int | float) or not math.isfinite(read):
            raise self.wrong(path, value, "is not a whole number" if whole else "is not a number")
        for bound, broken, words in (
            (kind.ge, operator.lt, "is less than"),
            (kind.gt, operator.le, "is not more than"),
            (kind.le, operator.gt, "is more than"),
            (kind.lt, operator.ge, "is not less than"),
        ):
            if bound is not None and broken(read, bound):
                raise self.wrong(path, value, f"{words} {bound:g}")
        return read if whole else float(read)


def _shown(value: Any) -> str:
    """Short, and in YAML's words: this is what the operator wrote."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
