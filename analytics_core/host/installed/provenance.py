"""``plugins.lock``: which plugin distributions the operator has accepted, in which version, with which contents.

`installed` says what is there, `drift` how that differs from a lock. Nothing is imported. What a plugin imports from
other distributions is not covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml
from msgspec import Meta, Struct
from packaging.utils import canonicalize_name

from analytics_core.config import Settings
from analytics_core.errors import AnalyticsError, ConfigError, ManifestError
from analytics_core.host.installed.contents import (
    VERIFIED_BYTES,
    Seal,
    altered,
    is_editable,
    read_record,
    record_digest,
    record_seal,
    source_seal,
    sources_digest,
)
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import fit, read_documents

VERSION: Final = 1
"""Of the file's form."""
COMMAND: Final = "analytics plugins lock"

_HEAD: Final = """\
# The plugin distributions that 'analytics serve --locked' lets run, as they are to be. Keep it with the manifests.
# Written by 'analytics plugins lock'; 'analytics plugins lock --check' says how what is installed differs.
"""
_SHOWN: Final = 3
_SHORT: Final = len("sha256:") + 12

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
Change = Literal[
    "added",  # installed, and not in the lock
    "removed",  # in the lock, and not installed
    "version",
    "content",  # of the same version, with other files; also files that are not those of their own RECORD
]


class Locked(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One distribution: ``record`` is a hash over its RECORD, or ``sources`` one over the files of its packages, for an
    editable installation and for one without a RECORD."""

    version: str
    plugins: tuple[str, ...]
    editable: bool = False
    record: Digest | None = None
    sources: Digest | None = None

    @property
    def contents(self) -> str:
        return self.record or self.sources or ""


class Lock(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file; distributions by their canonical name."""

    lock: int
    distributions: dict[str, Locked] = {}


class Installed(Struct, frozen=True):
    """What is there of one distribution. ``altered`` lists how its files differ from its own RECORD; ``seals`` say what
    the files of its plugins' packages were meanwhile."""

    locked: Locked
    altered: tuple[str, ...] = ()
    seals: dict[str, Seal] = {}


class Drift(Struct, frozen=True):
    """One difference. ``before`` is what the lock says and ``now`` what is there, empty for nothing; ``reason`` is the
    whole sentence, with what ends the difference."""

    distribution: str
    change: Change
    plugins: tuple[str, ...]
    before: str
    now: str
    reason: str


class LockError(ConfigError):
    """There is no lock that can be used."""


class NotLockableError(AnalyticsError):
    """What is installed cannot be locked as it is."""


def lock_file(settings: Settings) -> Path:
    """Where the lock is: as the operator says, else ``plugins.lock`` beside the manifests directory."""
    return settings.plugins.lock or settings.manifests_dir.absolute().parent / "plugins.lock"


def read_lock(path: Path) -> Lock:
    """:raises LockError: naming the file, what is wrong with it, and what writes one."""
    if not path.exists():
        raise LockError(str(path), f"there is no lock; '{COMMAND}' writes it")
    try:
        documents = read_documents(path, None)
        if len(documents) != 1:
            raise ManifestError(path, "", f"has {len(documents)} documents; a lock has exactly one")
        values, source = documents[0].values, documents[0].source
        if values.get("lock") != VERSION:
            raise source.error(
                ("lock",), f"{values.get('lock')!r} is not known to this host; valid is 'lock: {VERSION}'"
            )
        lock = fit(Lock, values, source)
    except ManifestError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise LockError(str(path), f"{problem}; restore it, or write it anew with '{COMMAND}'") from error
    return Lock(lock.lock, {canonicalize_name(name): each for name, each in lock.distributions.items()})


def check_lock(settings: Settings) -> None:
    """:raises LockError: when nothing but what is locked may run, and there is no lock that can be used."""
    if settings.plugins.locked:
        read_lock(lock_file(settings))


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file at once. :raises LockError: when it cannot be written."""
    body = yaml.safe_dump(msgspec.to_builtins(_sorted(lock)), sort_keys=False, default_flow_style=None, width=200)
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(_HEAD + body, "utf-8")
        beside.replace(path)
    except OSError as error:
        raise LockError(str(path), f"cannot be written: {error.strerror}") from error


def installed(found: Iterable[Found], *, most_bytes: int | None = VERIFIED_BYTES) -> dict[str, Installed]:
    """The distributions of these plugins by canonical name, with at most ``most_bytes`` of each read to compare its
    files with its RECORD; None reads all."""
    grouped: dict[str, list[Found]] = {}
    for one in found:
        grouped.setdefault(canonicalize_name(one.distribution), []).append(one)
    return {name: _installed(same, most_bytes) for name, same in sorted(grouped.items())}


def locked(there: Mapping[str, Installed], names: Iterable[str], before: Lock | None = None) -> Lock:
    """A lock of what is there under ``names``, and of all else as ``before`` had it.

    :raises NotLockableError: naming each distribution whose files are not those of its RECORD.
    """
    wanted = {canonicalize_name(name) for name in names}
    broken = [_alteration(name, there[name]) for name in sorted(wanted & there.keys()) if there[name].altered]
    if broken:
        raise NotLockableError(f"{'; '.join(broken)}; nothing was locked")
    kept = {} if before is None else {k: v for k, v in before.distributions.items() if k not in wanted}
    return Lock(VERSION, kept | {name: there[name].locked for name in wanted & there.keys()})


def drift(lock: Lock, there: Mapping[str, Installed], path: Path) -> list[Drift]:
    """How what is there differs from the lock at ``path``, by distribution. Empty when nothing does."""
    names = sorted({*lock.distributions, *there})
    found = (_drift(name, lock.distributions.get(name), there.get(name), path) for name in names)
    return [one for one in found if one is not None]


def _drift(name: str, before: Locked | None, now: Installed | None, path: Path) -> Drift | None:
    accept = f"accept it with '{COMMAND} {name}'"
    if now is None:
        assert before is not None
        reason = f"{path} has {name} {before.version}, which is not installed; install it, or {accept}"
        return Drift(name, "removed", before.plugins, _shown(before), "", reason)
    there = now.locked
    if before is None:
        reason = f"{name} {there.version} is not in {path}; {accept}"
        return Drift(name, "added", there.plugins, "", _shown(there), reason)
    plugins = tuple(sorted({*before.plugins, *there.plugins}))
    if now.altered:
        return Drift(name, "content", plugins, _shown(before), _shown(there), _alteration(name, now))
    if there == before:
        return None
    reason = f"{path} has {name} {_shown(before)}, installed is {_shown(there)}; {accept}"
    change: Change = "version" if there.version != before.version else "content"
    return Drift(name, change, plugins, _shown(before), _shown(there), reason)


def _installed(same: Sequence[Found], most_bytes: int | None) -> Installed:
    """Of the plugins of one distribution."""
    info, version = same[0].info, same[0].version
    plugins = tuple(sorted(one.name for one in same))
    editable = is_editable(info)
    rows = None if editable else read_record(info)
    if rows is not None:
        problems = tuple(altered(rows, info.parent, same, most_bytes))
        seals = {one.package: record_seal(rows, info.parent, one) for one in same}
        return Installed(Locked(version, plugins, record=record_digest(rows)), problems, seals)
    try:
        seals = {one.package: source_seal(one) for one in same}
    except OSError as error:
        return Installed(Locked(version, plugins, editable), (f"its sources cannot be read: {error}",))
    return Installed(Locked(version, plugins, editable, sources=sources_digest(seals)), seals=seals)


def _alteration(name: str, now: Installed) -> str:
    more = len(now.altered) - _SHOWN
    listed = ", ".join(now.altered[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if not now.locked.record:
        return f"{name} {now.locked.version} cannot be locked: {listed}"
    again = f"'pip install --force-reinstall --no-deps {name}=={now.locked.version}'"
    return f"the files of {name} {now.locked.version} are not those of its RECORD: {listed}; install it again: {again}"


def _shown(of: Locked) -> str:
    """``1.0 (sha256:0123456789ab)``."""
    kind = "editable " if of.editable else "sources " if of.sources else ""
    return f"{of.version} ({kind}{of.contents[:_SHORT] or 'unreadable'})"


def _sorted(lock: Lock) -> dict[str, Any]:
    return {"lock": lock.lock, "distributions": dict(sorted(lock.distributions.items()))}
