"""The third-party code that plugins stand on: what this process has imported of it, against what is installed now.

A process keeps what it has imported. Once another version is installed, a plugin that is loaded anew would run on old
modules, and on new ones where an import comes late: only a restart takes the change in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution, MetadataPathFinder, distributions
from pathlib import Path
from typing import Final

from msgspec import Struct
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from analytics_core.host.installed.contents import Row, read_record, record_digest
from analytics_core.host.installed.discovery import Found, headers, is_installed, linked
from analytics_core.host.installed.selection import Isolation

HOST: Final = "analytics-core"
_STAMPED: Final = ("METADATA", "PKG-INFO", "RECORD")
_MODULES: Final = (".py", *EXTENSION_SUFFIXES)


class Drift(Struct, frozen=True, order=True):
    """A distribution that is imported in version ``had`` while ``now`` is installed; the two may be equal."""

    distribution: str
    had: str
    now: str

    def __str__(self) -> str:
        if self.had == self.now:
            return f"{self.distribution} {self.had} has been installed with other files, and is imported already"
        return f"{self.distribution} {self.had} -> {self.now}, of which {self.had} is imported already"


class _Copy(Struct, frozen=True):
    """One distribution as it was installed at one time.

    ``roots`` are the modules by which all its others are imported, each with the hash of its files: ``editable`` and
    the version where the files are elsewhere, empty where no ``RECORD`` tells. ``needs`` caches what each extra adds.
    """

    name: str
    version: str
    roots: dict[str, str]
    requires: tuple[Requirement, ...]
    extras: tuple[str, ...]
    needs: dict[str, tuple[tuple[str, str], ...]] = {}

    def needed(self, extra: str) -> tuple[tuple[str, str], ...]:
        """The distributions that it requires here, by normalised name, each without and with each extra asked for."""
        if extra not in self.needs:
            here = [each for each in self.requires if each.marker is None or each.marker.evaluate({"extra": extra})]
            pairs = ((canonicalize_name(each.name), one) for each in here for one in ("", *sorted(each.extras)))
            self.needs[extra] = tuple(pairs)
        return self.needs[extra]

    def imported(self) -> set[str]:
        return {root for root in self.roots if root in sys.modules}

    def differs(self, other: _Copy, root: str) -> bool:
        mine, theirs = self.roots.get(root), other.roots.get(root)
        return mine != theirs if mine and theirs else self.version != other.version


class Dependencies:
    """What every plugin's distribution requires, by whatever way, and what the host does, with which each one runs.

    Made when the host starts; `look` goes before each round of questions. A distribution counts from the time that it
    is first seen to be required, the host's from the start. Of an editable one only the version counts, not its
    sources. What is missing does not count: it is being installed just now, or what is imported of it goes on. Of a
    plugin all extras count, as far as they are installed. For one thread at a time.
    """

    def __init__(self, paths: Sequence[str] | None = None) -> None:
        self._paths = paths
        self._installed: dict[str, tuple[Distribution, Path]] = {}
        self._read: dict[str, tuple[object, _Copy | None]] = {}
        self._copies: dict[str, _Copy | None] = {}
        self._latest: dict[str, _Copy] = {}
        self._had: dict[str, _Copy] = {}
        self.look()
        for name in self._reached(HOST):
            self._drifted(name)

    def look(self) -> None:
        """See what is installed now."""
        MetadataPathFinder().invalidate_caches()
        paths = list(sys.path if self._paths is None else self._paths)
        self._installed, self._copies = {}, {}
        for dist in distributions(path=paths):
            info = Path(str(getattr(dist, "_path", "")))
            name = canonicalize_name(info.stem.partition("-")[0])
            if name not in self._installed and is_installed(dist, paths):
                self._installed[name] = dist, info

    def changed(self, found: Found, isolation: Isolation = "thread") -> tuple[Drift, ...]:
        """Of which distributions a new generation of ``found`` would get another copy than is installed.

        With ``isolation`` ``process`` everything is imported anew but the host, which is to be the same on both sides.
        Other packages of the plugin's own distribution count as a dependency does, its own package does not.
        """
        names = {HOST} if isolation == "process" else self._reached(HOST, found.distribution)
        own = canonicalize_name(found.distribution)
        drifts = (self._drifted(name, found.package if name == own else "") for name in names)
        return tuple(sorted(drift for drift in drifts if drift is not None))

    def identity(self, found: Found) -> str:
        """32 hex digits over everything installed that a process of its own would import; what is missing is taken
        for what it was."""
        digest = blake2b(digest_size=16)
        for name in sorted(self._reached(HOST, found.distribution)):
            copy = self._latest[name]
            roots = {r: h for r, h in copy.roots.items() if not _related(r, found.package)}
            digest.update(f"{name} {copy.version if roots else ''} {sorted(roots.items())}\n".encode())
        return digest.hexdigest()

    def _drifted(self, name: str, package: str = "") -> Drift | None:
        """How the distribution differs from what is imported of it, ``package`` left out. When nothing is, the next
        import takes what is installed now."""
        now, had = self._copy(name), self._had.get(name)
        if now is None:
            return None
        if had is None or not had.imported():
            self._had[name] = now
            return None
        roots = (root for root in had.imported() if not _related(root, package))
        return Drift(now.name, had.version, now.version) if any(had.differs(now, root) for root in roots) else None

    def _reached(self, host: str, plugin: str = "") -> set[str]:
        """Both, the plugin's distribution with all its extras, and all that they require that is or was installed."""
        reached: set[tuple[str, str]] = set()
        found: set[str] = set()
        waiting: list[tuple[str, str]] = [(host, ""), (canonicalize_name(plugin), "*")]
        while waiting:
            name, extra = each = waiting.pop()
            copy = None if each in reached else self._copy(name) or self._latest.get(name)
            reached.add(each)
            if copy is not None:
                found.add(name)
                for one in ("", *copy.extras) if extra == "*" else (extra,):
                    waiting.extend(copy.needed(one))
        return found

    def _copy(self, name: str) -> _Copy | None:
        """As it is installed; None when it is not, or its metadata are still being written."""
        if name not in self._copies:
            self._copies[name] = copy = self._read_anew(name) if name in self._installed else None
            if copy is not None:
                self._latest[name] = copy
        return self._copies[name]

    def _read_anew(self, name: str) -> _Copy | None:
        dist, info = self._installed[name]
        stamp = (info, *(_stamp(info / file) for file in _STAMPED)) if info.is_dir() else (info, _stamp(info))
        if name not in self._read or self._read[name][0] != stamp:
            self._read[name] = stamp, _read(dist, info)
        return self._read[name][1]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(dist: Distribution, info: Path) -> _Copy | None:
    try:
        metadata = headers(dist)
        if "Name" not in metadata or "Version" not in metadata:  # still being written
            return None
        name, version = metadata["Name"], metadata["Version"]
        told = metadata.get_all("Requires-Dist") or (dist.requires if info.suffix == ".egg-info" else ())
        roots = _roots(dist, info, name, version)
    except (OSError, ValueError):  # garbled, or going away
        return None
    extras = metadata.get_all("Provides-Extra") or ()
    return _Copy(name, version, roots, tuple(_requirements(told or ())), tuple(extras))


def _requirements(lines: Iterable[str]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:  # of old; pip passes it over too
            continue


def _roots(dist: Distribution, info: Path, name: str, version: str) -> dict[str, str]:
    rows = read_record(info)
    if hashed := _hashed(rows or ()):
        return hashed
    told = (dist.read_text("top_level.txt") or "").split() or list(_beside(linked(dist)))
    places = told or [canonicalize_name(name).replace("-", "_")]
    return dict.fromkeys(places, f"editable {version}" if rows is not None else "")


def _hashed(rows: Iterable[Row]) -> dict[str, str]:
    """The root modules of the files of a ``RECORD``, each with a hash over all that is below it.

    In a namespace package, which other distributions share, they are those below it.
    """
    files = [(row.path.split("/"), row) for row in rows]
    packages = {tuple(parts[:-1]) for parts, _ in files if parts[-1].startswith("__init__.")}
    below: dict[str, list[Row]] = {}
    for parts, row in files:
        if root := _root(parts, packages):
            below.setdefault(root, []).append(row)
    return {root: record_digest(own) if all(row.digest for row in own) else "" for root, own in below.items()}


def _root(parts: list[str], packages: set[tuple[str, ...]]) -> str:
    """The module that is imported before any other on the way to a file; empty for one that is of no module."""
    for length in range(1, len(parts)):
        if tuple(parts[:length]) in packages:
            return ".".join(parts[:length])
    stem = parts[-1].partition(".")[0]
    names = [*parts[:-1], stem]
    is_module = parts[-1].endswith(_MODULES) and all(name.isidentifier() for name in names)
    return ".".join(names) if is_module and not stem.startswith("__editable__") else ""


def _beside(directories: Iterable[Path]) -> Iterator[str]:
    """The packages and modules in the source directories of an editable distribution."""
    for directory in directories:
        yield from (path.parent.name for path in directory.glob("*/__init__.py"))
        yield from (path.stem for path in directory.glob("*.py") if path.stem.isidentifier())


def _related(root: str, package: str) -> bool:
    """Whether one of the two modules is the other or above it."""
    return bool(package) and (f"{root}.".startswith(f"{package}.") or f"{package}.".startswith(f"{root}."))
