"""From a YAML file to plain values that know their lines.

The subset of YAML 1.2 that JSON people expect: ``no`` and ``2025-01-01`` are text, duplicates are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from msgspec import Struct

from analytics_core.errors import ManifestError
from analytics_core.manifest.filling import FillError, fill

Key = tuple[str | int, ...]
"""Where a value is inside a document: mapping keys and list indices from the top."""

_MAX_DEPTH: Final = 64
_MAX_VALUES: Final = 100_000
_SHALLOW: Final = 8_192
"""A text of so few characters cannot nest deeper than the parser's own stack."""


def dotted(path: Key) -> str:
    """``("provides", "routes", 0)`` as ``provides.routes[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Source(Struct, frozen=True):
    """Where a document came from: the file as the operator named it, and the line of every key."""

    path: str
    lines: dict[Key, int] = {}
    first_line: int = 1

    def line(self, path: Key) -> int:
        """The line of the key, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.first_line)

    def error(self, path: Key, problem: str, kind: type[ManifestError] = ManifestError) -> ManifestError:
        """The error to raise about the value at ``path``."""
        return kind(self.path, dotted(path), f"{problem} (line {self.line(path)})")


class Document(Struct, frozen=True):
    """One YAML document: its keys and values as written, with the environment filled in where that was asked for."""

    values: dict[str, Any]
    source: Source


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Safe, with the scalars of YAML's core schema only."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_documents(path: Path, environ: Mapping[str, str] | None) -> list[Document]:
    """All documents of a file; empty ones are left out.

    ``environ`` fills in ``${NAME:-default}`` and ``${file:path}``, except in documents of ``kind: plugin``; with None
    nothing is filled in.

    :raises ManifestError: for a file that cannot be read as such, naming the line.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ManifestError(path, "", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(path, "", f"is not UTF-8 text: byte {error.start} cannot be decoded") from error
    return parse_documents(text, path, environ)


def parse_documents(text: str, path: Path, environ: Mapping[str, str] | None) -> list[Document]:
    """As `read_documents`, of a file that has, or is to have, this ``text``."""
    loader = _Loader(text)
    documents = []
    try:
        if len(text) > _SHALLOW:
            _check_depth(text, path)
        while loader.check_node():
            node = loader.get_node()
            if not isinstance(node, yaml.ScalarNode) or node.value:
                documents.append(_Reading(loader, path, environ).document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark else ""
        raise ManifestError(path, "", f"is not YAML: {error.problem or error.context}{where}") from error
    except yaml.YAMLError as error:
        raise ManifestError(path, "", f"is not YAML: {error}") from error
    finally:
        loader.dispose()
    return documents


def _check_depth(text: str, path: Path) -> None:
    """The parser makes the nodes of a document by calling itself, in C, which ends the process when it is too deep."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            where = f" (line {event.start_mark.line + 1})" if event.start_mark else ""
            raise ManifestError(path, "", f"has over {_MAX_VALUES} values or {_MAX_DEPTH} levels{where}")


class _Reading:
    """One walk over the nodes of one document."""

    def __init__(self, loader: Any, path: Path, environ: Mapping[str, str] | None) -> None:
        self.loader = loader
        self.directory = path.parent
        self.environ = environ
        self.source = Source(str(path))
        self.left = _MAX_VALUES

    def document(self, node: yaml.Node) -> Document:
        self.source = Source(self.source.path, {}, node.start_mark.line + 1)
        if not isinstance(node, yaml.MappingNode):
            raise self.source.error((), "a manifest is a mapping that starts with 'kind:'")
        if any(key.value == "kind" and value.value == "plugin" for key, value in node.value):
            self.environ = None
        return Document(self.value(node, ()), self.source)

    def value(self, node: yaml.Node, path: Key) -> Any:
        self.left -= 1
        if self.left < 0 or len(path) > _MAX_DEPTH:
            raise self.source.error(path[:1], f"has over {_MAX_VALUES} values or {_MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(child, (*path, key)) for key, child in self.items(node, path)}
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.source.lines[(*path, index)] = child.start_mark.line + 1
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        value = self.loader.construct_object(node)
        if self.environ is None or not isinstance(value, str) or "${" not in value:
            return value
        try:
            return fill(value, self.environ, self.directory)
        except FillError as error:
            raise self.source.error(path, str(error)) from None

    def items(self, node: yaml.MappingNode, path: Key) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not (
                key.tag.endswith((":str", ":merge")) or key.value.lower() == "null"
            ):
                raise self.source.error(path, f"the key {key.value!r} in line {line} is not text; put it in quotes")
            if key.value in seen:
                raise self.source.error(
                    path, f"the key {key.value!r} is given twice, in lines {seen[key.value]} and {line}"
                )
            seen[key.value] = line
        self.loader.flatten_mapping(node)
        merged = {key.value: (key, child) for key, child in node.value}
        for name, (key, child) in merged.items():
            self.source.lines[(*path, name)] = key.start_mark.line + 1
            yield name, child
