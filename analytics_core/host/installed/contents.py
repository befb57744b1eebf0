"""What is installed of one distribution, as hashes: by its RECORD, or by its sources where that says nothing of them.

RECORD (packaging.python.org, "Recording installed projects") lists each file of an installation with its hash. That of
an editable installation lists a ``.pth`` and no source, and other tools than pip may leave none at all.
"""

from __future__ import annotations

import csv
import hashlib
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from analytics_core.host.installed.discovery import Found

VERIFIED_BYTES: Final = 64 << 20
"""How much of one distribution is read at each look; of the largest files beyond that only the size is compared."""

_INSTALLERS: Final = frozenset(
    {"INSTALLER", "RECORD", "RECORD.jws", "RECORD.p7s", "REQUESTED", "direct_url.json", "provenance_url.json"}
    | {"uv_build.json", "uv_cache.json"}
)
"""What an installer adds to a ``.dist-info``: it differs from machine to machine."""
_ALGORITHMS: Final = frozenset({"sha256", "sha384", "sha512"})
_IMPORTABLE: Final = (".py", ".pyc", *EXTENSION_SUFFIXES)
_READ_WHOLE: Final = 1 << 20


class Row(NamedTuple):
    """One file of a RECORD. ``path`` is relative to the directory of the installation, ``digest`` as ``sha256=...``
    in urlsafe base64 without padding, ``size`` in bytes or None."""

    path: str
    digest: str
    size: int | None


class Seal(Struct, frozen=True):
    """What the files of one package were when they were looked at: their digests, as in a `Row`, by their paths
    relative to the package's directory."""

    digests: dict[str, str]

    def broken(self, files: Iterable[tuple[str, bytes]]) -> Iterator[str]:
        """Those of ``files``, as (path, content), that were other ones then, or were not there."""
        for path, content in files:
            digest = self.digests.get(path, "")
            algorithm = digest.partition("=")[0]
            if algorithm not in _ALGORITHMS or _written(hashlib.new(algorithm, content)) != digest:
                yield path


def read_record(info: Path) -> list[Row] | None:
    """The files that come out of the wheel, by the RECORD in the ``.dist-info`` directory ``info``, sorted by path.

    Compiled files, scripts outside the installation and what an installer adds are left out, so that one wheel gives
    the same rows on every machine. None when there is no RECORD to be read.
    """
    try:
        lines = (info / "RECORD").read_text("utf-8").splitlines()
        given = [[*row, "", ""][:3] for row in csv.reader(lines) if row]
        rows = [Row(path.replace("\\", "/"), digest, int(size) if size else None) for path, digest, size in given]
    except (OSError, ValueError, csv.Error):
        return None
    return sorted(row for row in rows if _is_of_wheel(row.path, info.name))


def is_editable(info: Path) -> bool:
    """Whether the distribution is a link to a project (PEP 610), which may change without an installation."""
    try:
        told = msgspec.json.decode((info / "direct_url.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return info.suffix == ".egg-info" and not _is_installed_egg(info)
    about = told.get("dir_info")
    return isinstance(about, dict) and about.get("editable") is True


def record_digest(rows: Iterable[Row]) -> str:
    """``sha256:`` and 64 hex digits over the paths and hashes of `read_record`."""
    lines = "".join(f"{row.path},{row.digest}\n" for row in rows)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def record_seal(rows: Iterable[Row], root: Path, found: Found) -> Seal:
    """By the RECORD of the installation in ``root``."""
    place = _place(found.directory, root)
    if place is None:
        return Seal({})
    prefix = "" if place == Path() else f"{place.as_posix()}/"
    return Seal({row.path.removeprefix(prefix): row.digest for row in rows if row.path.startswith(prefix)})


def source_seal(found: Found) -> Seal:
    """By every file of the package, wherever it is, but those that are hidden, compiled, or backups. Of a file over
    1 MiB that cannot be imported the size stands for the digest.

    :raises OSError: for a file that cannot be read, or a package that is not there.
    """
    paths = sorted(_sources(found))
    return Seal({path.relative_to(found.directory).as_posix(): _source_digest(path) for path in paths})


def sources_digest(seals: Mapping[str, Seal]) -> str:
    """``sha256:`` and 64 hex digits over the seals of packages, by their names."""
    digest = hashlib.sha256()
    for package, seal in sorted(seals.items()):
        for path, of in seal.digests.items():
            digest.update(f"{package}/{path}\0{of}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()}"


def altered(rows: Sequence[Row], root: Path, found: Iterable[Found], most_bytes: int | None) -> Iterator[str]:
    """How the installation in ``root`` differs from its RECORD: files that were changed or removed, and what could be
    imported in the packages of its plugins, or is the manifest of one, without being listed. At most ``most_bytes`` are
    read; None reads all."""
    left = most_bytes
    for row in sorted(rows, key=lambda each: (each.size or 0, each.path)):
        left = None if left is None else left - (row.size or 0)
        if problem := _differs(row, root / row.path, read=left is None or left >= 0):
            yield f"{row.path} {problem}"
    listed = {row.path for row in rows}
    for one in found:
        place = _place(one.directory, root)
        for path in sorted(_deciding(one)):
            if place is None or (place / path.relative_to(one.directory)).as_posix() not in listed:
                yield f"{path} is not listed"


def _place(directory: Path, root: Path) -> Path | None:
    """A directory relative to that of the installation; None when it is elsewhere."""
    if directory.is_relative_to(root):
        return directory.relative_to(root)
    real, real_root = Path(os.path.realpath(directory)), Path(os.path.realpath(root))
    return real.relative_to(real_root) if real.is_relative_to(real_root) else None


def _is_of_wheel(path: str, info: str) -> bool:
    first, _, rest = path.partition("/")
    if not first or path.endswith(".pyc") or ".." in path.split("/"):
        return False
    return first != info or rest not in _INSTALLERS


def _is_installed_egg(info: Path) -> bool:
    return "-" in info.stem


def _differs(row: Row, path: Path, *, read: bool) -> str:
    """How the file differs from its row; empty when it does not."""
    algorithm = row.digest.partition("=")[0]
    try:
        if row.size is not None and path.stat().st_size != row.size:
            return "was changed"
        if not read:
            return ""
        if algorithm not in _ALGORITHMS:
            return f"has no hash that counts; valid are: {', '.join(sorted(_ALGORITHMS))}"
        with path.open("rb") as file:
            actual = _written(hashlib.file_digest(file, algorithm))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if actual == row.digest else "was changed"


def _written(digest: hashlib._Hash) -> str:
    """As a RECORD writes it."""
    return f"{digest.name}={urlsafe_b64encode(digest.digest()).rstrip(b'=').decode()}"


def _sources(found: Found) -> Iterator[Path]:
    if found.single:
        yield from {found.directory / f"{found.package}.py", found.manifest_file}
        return
    if not found.directory.is_dir() or found.directory == Path():
        raise FileNotFoundError(f"the package {found.package!r} is not to be found")
    yield from _files(found.directory)


def _deciding(found: Found) -> Iterator[Path]:
    """What says what runs: what could be imported, and the manifest."""
    if found.manifest_file.is_file():
        yield found.manifest_file
    if found.single:
        yield found.directory / f"{found.package}.py"
    elif found.directory != Path():
        yield from (path for path in _files(found.directory, compiled=True) if path.name.endswith(_IMPORTABLE))


def _files(directory: Path, *, compiled: bool = False) -> Iterator[Path]:
    """Every file below ``directory`` that is neither hidden nor a backup, nor, unless asked for, compiled."""
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if name != "__pycache__" and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith("~") and (compiled or not name.endswith(".pyc")):
                yield Path(folder, name)


def _source_digest(path: Path) -> str:
    size = path.stat().st_size
    if size > _READ_WHOLE and not path.name.endswith(_IMPORTABLE):
        return f"{size} bytes"
    with path.open("rb") as file:
        return _written(hashlib.file_digest(file, "sha256"))
