"""The operator's word whether a plugin runs, written into the manifests: one line changes, every other byte stays."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Final, NamedTuple

import yaml
from msgspec import Struct

from analytics_core.errors import ManifestError, ManifestNotWrittenError, NotSwitchedError
from analytics_core.manifest.deployment import manifest_files, read_deployment
from analytics_core.manifest.filling import Filled
from analytics_core.manifest.models import PLUGIN
from analytics_core.manifest.source import Document, parse_documents

_TRUTH: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_COLON: Final = re.compile(r"[ \t]*:[ \t]+")
_LINE: Final = re.compile(r"[^\r\n]*")
_BREAK: Final = re.compile(r"\r\n|\r|\n")
_REASON: Final = re.compile(r"[ \t]+# disabled \d{4}-\d\d-\d\d: .*")
"""The comment that a reason becomes; enabling takes it away again."""
_NEW: Final = "# What the operator wants of this plugin; 'analytics plugins enable | disable {name}' changes it.\n"
_MODE: Final = 0o644


class Switched(Struct, frozen=True):
    """What was done. ``file`` holds the operator's word, None when no manifest speaks of the plugin."""

    name: str
    enabled: bool
    changed: bool
    file: str | None


class _Place(NamedTuple):
    """Where the plugin-settings of a plugin are: ``number`` counts the documents of the file, ``text`` is all of it."""

    path: Path
    text: str
    documents: list[Document]
    number: int


def switch(
    directory: Path, name: str, enabled: bool, environ: Mapping[str, str], *, otherwise: bool = True, reason: str = ""
) -> Switched:
    """Let the plugin-settings of ``name`` say ``enabled``, in the file that has them or in a new one.

    ``otherwise``: whether a plugin that no manifest speaks of runs. ``reason`` stands behind ``enabled: false`` as a
    comment with the day. The new text is read and compared with the old one before it replaces it, whole or not at
    all; what else switches in ``directory`` waits meanwhile.

    :raises ManifestError: when the manifests cannot be read as they are, so that no server would take a change in.
    :raises NotSwitchedError: for what only a person can edit; it says what to do by hand.
    :raises ManifestNotWrittenError: when the system refuses; nothing has changed then.
    """
    if not directory.is_dir():
        missing = f"{directory}, where the manifests belong, does not exist; make it, or name another with --manifests"
        raise NotSwitchedError(name, missing)
    with _alone(directory):
        told = read_deployment(directory, environ).plugins.get(name)
        place = _find(directory, name, environ) if told is not None else None
        if (told.enabled if told is not None else otherwise) == enabled:
            return Switched(name, enabled, False, str(place.path) if place else None)
        path, text = _edited(place, name, enabled, reason) if place else _new(directory, name, enabled, reason)
        _check(place, path, text, name, enabled, environ)
        _write(path, text.encode())
    return Switched(name, enabled, True, str(path))


def line_that_disables(directory: Path, name: str, environ: Mapping[str, str]) -> str:
    """The line that disables the plugin, with its place and the comment that may say why; empty when there is none.

    :raises ManifestError: when the manifests cannot be read.
    """
    place = _find(directory, name, environ)
    if place is None or read_deployment(directory, environ).plugins[name].enabled:
        return ""
    line = place.documents[place.number].source.line(("enabled",))
    return f"{place.path}, line {line}: {place.text.splitlines()[line - 1].strip()}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One at a time, in all processes."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ManifestNotWrittenError(directory, error) from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _find(directory: Path, name: str, environ: Mapping[str, str]) -> _Place | None:
    for path in manifest_files(directory):
        text = path.read_bytes().decode()
        documents = parse_documents(text, path, environ)
        for number, document in enumerate(documents):
            if document.values.get("kind") == "plugin-settings" and document.values.get("name") == name:
                return _Place(path, text, documents, number)
    return None


# --- the text --------------------------------------------------------------------------------------------------------


def _new(directory: Path, name: str, enabled: bool, reason: str) -> tuple[Path, str]:
    path = directory / f"plugin-{name}.yaml"
    said = f"kind: plugin-settings\nname: {name}\nenabled: {_line(enabled, reason)}\n"
    if not re.search(PLUGIN, name):
        raise NotSwitchedError(name, f"its name does not match {PLUGIN}, so plugin-settings cannot name it")
    if os.path.lexists(path):
        by_hand = "; ".join(said.splitlines())
        raise NotSwitchedError(name, f"{path} is there and says nothing of it; add a document by hand: {by_hand}")
    return path, _NEW.format(name=name) + said


def _edited(place: _Place, name: str, enabled: bool, reason: str) -> tuple[Path, str]:
    """The file with the one line changed, or with one line more when its document has no ``enabled``."""
    node = _node(place, name)
    own = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    if "enabled" not in own:
        return place.path, _with_line(place, name, own, f"enabled: {_line(enabled, reason)}")
    key, value = own["enabled"]
    start, end = value.start_mark.index, value.end_mark.index
    if not _COLON.fullmatch(place.text[key.end_mark.index : start]) or not _TRUTH.fullmatch(place.text[start:end]):
        raise _by_hand(place, name, enabled, value)
    rest = _rest_of_line(place.text, end)
    kept = place.text[end : rest.start()] + _REASON.sub("", rest[0])
    return place.path, f"{place.text[:start]}{_line(enabled, reason, kept)}{place.text[rest.end() :]}"


def _node(place: _Place, name: str) -> yaml.MappingNode:
    """The document in block style, with the marks of all that it holds."""
    source = place.documents[place.number].source
    for node in yaml.compose_all(place.text, Loader=yaml.SafeLoader):
        if isinstance(node, yaml.MappingNode) and node.start_mark.line + 1 == source.first_line:
            if node.flow_style:
                where = f"{source.path} (line {source.first_line})"
                raise NotSwitchedError(name, f"{where} is written between braces; change 'enabled' there by hand")
            return node
    raise NotSwitchedError(name, f"{source.path} has no place for 'enabled' that is plain; change it there by hand")


def _with_line(place: _Place, name: str, own: Mapping[str, tuple[Any, Any]], line: str) -> str:
    """``line`` goes below the name."""
    if "name" not in own:
        raise NotSwitchedError(name, f"add a line to its plugin-settings in {place.path} by hand: {line}")
    key, value = own["name"]
    end = _rest_of_line(place.text, value.end_mark.index).end()
    newline = _BREAK.search(place.text)
    return (
        f"{place.text[:end]}{newline[0] if newline else chr(10)}{' ' * key.start_mark.column}{line}{place.text[end:]}"
    )


def _rest_of_line(text: str, position: int) -> re.Match[str]:
    rest = _LINE.match(text, position)
    assert rest is not None
    return rest


def _line(enabled: bool, reason: str, kept: str = "") -> str:
    """The value with what stands behind it."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in reason).split())
    said = f"  # disabled {datetime.now(UTC):%Y-%m-%d}: {words}" if words and not enabled else ""
    return f"{'true' if enabled else 'false'}{kept}{said}"


def _by_hand(place: _Place, name: str, enabled: bool, node: yaml.Node) -> NotSwitchedError:
    document, wanted = place.documents[place.number], "true" if enabled else "false"
    where = f"its 'enabled' in {place.path} (line {document.source.line(('enabled',))})"
    if isinstance(document.values["enabled"], Filled):
        return NotSwitchedError(name, f"{where} is {node.value}; let that be {wanted}, or write {wanted} there by hand")
    return NotSwitchedError(name, f"{where} is no plain true or false; write {wanted} there by hand")


# --- the file --------------------------------------------------------------------------------------------------------


def _check(place: _Place | None, path: Path, text: str, name: str, enabled: bool, environ: Mapping[str, str]) -> None:
    """:raises NotSwitchedError: unless ``text`` says what the file said before but for this one word."""
    if place is None:
        expected = [{"kind": "plugin-settings", "name": name, "enabled": enabled}]
    else:
        expected = [document.values for document in place.documents]
        expected[place.number] = {**expected[place.number], "enabled": enabled}
    try:
        good = [document.values for document in parse_documents(text, path, environ)] == expected
    except ManifestError:
        good = False
    if not good:
        wanted = "true" if enabled else "false"
        raise NotSwitchedError(name, f"{path} cannot be edited safely; write 'enabled: {wanted}' there by hand")


def _write(path: Path, content: bytes) -> None:
    """Durable, and whole at every moment. A symbolic link stays one; its file keeps its mode and owner."""
    real = Path(os.path.realpath(path))
    try:
        if real.exists() and not os.access(real, os.W_OK):
            raise PermissionError(0, "it is read-only")
        descriptor, draft = mkstemp(prefix=".switching-", dir=real.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _be_like(real, descriptor)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            Path(draft).replace(real)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ManifestNotWrittenError(path, error) from error
    with suppress(OSError):  # the name is in its place: what is left is when the disk knows
        _sync(real.parent)


def _be_like(real: Path, descriptor: int) -> None:
    if not real.exists():
        os.fchmod(descriptor, _MODE)
        return
    status = real.stat()
    os.fchmod(descriptor, status.st_mode & 0o7777)
    with suppress(PermissionError):  # whoever may write here need not own what is here
        os.fchown(descriptor, status.st_uid, status.st_gid)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
