"""What makes one copy of a plugin what it is: two with one fingerprint need no reload, whatever their files' times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from analytics_core.host.discovery import Found
from analytics_core.host.snapshot import ExtensionModuleError, read_sources


def places(found: Found) -> frozenset[Path]:
    """The directories and files to watch for changes of its fingerprint. Empty when nothing says where they are."""
    if found.directory == Path():
        return frozenset()
    sources = found.directory / f"{_leaf(found)}.py" if found.single else found.directory
    return frozenset({sources, found.manifest_file})


def fingerprint(found: Found) -> str:
    """32 hex digits over the bytes of its manifest and of every source file, with their names, and over its place.

    Data files are no part of it. What cannot be read goes in as the problem that it is; nothing is raised.
    """
    digest = blake2b(digest_size=16)
    for part in _parts(found):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def settled_fingerprint(found: Found, *, pause_seconds: float = 0.02, most_seconds: float = 1.0) -> str:
    """The fingerprint that two readings, a pause apart, agree on; after ``most_seconds`` of disagreement the last."""
    until = time.monotonic() + most_seconds
    last = fingerprint(found)
    while True:
        time.sleep(pause_seconds)
        before, last = last, fingerprint(found)
        if last == before or time.monotonic() > until:
            return last


def _parts(found: Found) -> Iterator[bytes]:
    yield from map(_bytes, (found.package, found.directory, found.problem or ""))
    try:
        yield found.manifest_file.read_bytes()
    except OSError as error:
        yield _bytes(error)
    try:
        sources = read_sources(found.package, found.directory, single=found.single)
    except (ExtensionModuleError, OSError) as error:
        yield _bytes(error)
        return
    for module in sources.values():
        if module.file is not None:  # a folder of no sources may be one of data
            yield _bytes(module.file.relative_to(found.directory))
            yield module.source


def _leaf(found: Found) -> str:
    return found.package.rpartition(".")[2]


def _bytes(shown: object) -> bytes:
    return str(shown).encode("utf-8", "surrogatepass")
