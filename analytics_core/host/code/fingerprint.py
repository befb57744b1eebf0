"""What makes one copy of a plugin what it is: two with one fingerprint need no reload, whatever their files' times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import msgspec
from msgspec import Struct

from analytics_core.host.code.snapshot import ExtensionModuleError, Module, read_sources
from analytics_core.host.installed.discovery import Found


def places(found: Found) -> frozenset[Path]:
    """The directories and files to watch for changes of its fingerprint. Empty when nothing says where they are."""
    if found.directory == Path():
        return frozenset()
    sources = found.directory / f"{_leaf(found)}.py" if found.single else found.directory
    return frozenset({sources, found.manifest_file})


class Copy(Struct, frozen=True):
    """A plugin as it was on the disk at one moment. Its generations are made of this, whatever the disk has by then.

    ``sources`` is None when they could not be read, which loading it then says. Two copies with one ``fingerprint`` (32
    hex digits) are the same: it goes over the bytes of the manifest and of every source file, with their names, and
    over their place. Data files are no part of it.
    """

    found: Found
    sources: dict[str, Module] | None
    fingerprint: str

    @property
    def files(self) -> list[tuple[str, bytes]] | None:
        """Its sources by their paths in the package."""
        if self.sources is None:
            return None
        found = [(module.file, module.source) for module in self.sources.values() if module.file is not None]
        return [(file.relative_to(self.found.directory).as_posix(), source) for file, source in found]


def read_copy(found: Found) -> Copy:
    """What cannot be read goes into the fingerprint as the problem that it is; nothing is raised."""
    sources: dict[str, Module] | None = None
    parts = [*map(_bytes, (found.package, found.directory, found.problem or "")), *_manifest(found)]
    try:
        sources = read_sources(found.package, found.directory, single=found.single)
        parts.extend(_sources(sources, found.directory))
    except (ExtensionModuleError, OSError) as error:
        parts.append(_bytes(error))
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return Copy(found, sources, digest.hexdigest())


def fingerprint(found: Found) -> str:
    """That of the copy that is on the disk now."""
    return read_copy(found).fingerprint


def _manifest(found: Found) -> Iterator[bytes]:
    """As it was read, and as it is: a file that was saved in between makes another copy at the next look."""
    yield msgspec.json.encode(found.manifest)
    try:
        yield found.manifest_file.read_bytes()
    except OSError as error:
        yield _bytes(error)


def _sources(modules: Mapping[str, Module], directory: Path) -> Iterator[bytes]:
    for module in modules.values():
        if module.file is not None:  # a folder of no sources may be one of data
            yield _bytes(module.file.relative_to(directory))
            yield module.source


def _leaf(found: Found) -> str:
    return found.package.rpartition(".")[2]


def _bytes(shown: object) -> bytes:
    return str(shown).encode("utf-8", "surrogatepass")
