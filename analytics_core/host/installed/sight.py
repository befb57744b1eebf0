"""What one look at the disk sees of manifests, sources and distributions: names and stamps, never contents."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

FRESH_SECONDS: Final = 2.0
"""The coarsest step in which a file system counts a file's time: a younger file may change and keep its stamp."""

Stamp = tuple[int, int, int, int, bool] | None
"""Time of contents and of change in ns, size in bytes, inode, and whether it is fresh; None for a missing file."""
Wanted = Callable[[str], bool]


class Sight:
    """Files by their stamps, and the directories to be told of, each with the names in it that matter.

    Directories go by their real paths, each with its device and inode, so that one that was replaced is another. Of
    the files in ``heard`` the system tells each change, so that they are never fresh.
    """

    def __init__(self, heard: Container[Path] = ()) -> None:
        self.stamps: dict[Path, Stamp] = {}
        self.directories: dict[Path, tuple[int, int]] = {}
        self._wanted: dict[Path, list[Wanted]] = {}
        self._heard = heard
        self._now = time.time()

    def wants(self, path: Path) -> bool:
        """Whether news of ``path`` are a reason to look again."""
        return path in self.directories or any(wanted(path.name) for wanted in self._wanted.get(path.parent, ()))

    def watch(self, directory: Path, wanted: Wanted) -> None:
        """Be told of such names in a real directory, if it may be read."""
        try:
            status = directory.stat()
        except OSError:
            return
        if os.access(directory, os.R_OK):
            self.directories[directory] = (status.st_dev, status.st_ino)
            self._wanted.setdefault(directory, []).append(wanted)

    def expect(self, path: Path) -> None:
        """Be told when ``path`` comes, goes or is replaced; while the way to it is missing, of where that begins."""
        while path != path.parent and not path.parent.is_dir():
            path = path.parent
        self.watch(_real(path.parent), path.name.__eq__)

    def stamp(self, path: Path) -> None:
        """Note a file; of a symbolic link also the file that it leads to."""
        if path.is_symlink():
            real = _real(path)
            self.stamps[real] = self._stamp(real)
            self.expect(real)
        self.stamps[path] = self._stamp(path)

    def _stamp(self, path: Path) -> Stamp:
        try:
            status = path.stat()
        except OSError:
            return None
        fresh = path not in self._heard and self._now - status.st_mtime < FRESH_SECONDS
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, fresh


def see_manifests(path: Path, heard: Container[Path] = ()) -> Sight:
    """The manifests of a deployment below the directory ``path``, which may be missing."""
    return _see(path, _is_manifest, _is_visible, heard)


def see_sources(path: Path, heard: Container[Path] = ()) -> Sight:
    """The sources of the package in the directory ``path``, or the one file ``path``; either may be missing."""
    return _see(path, _is_source, _is_package, heard)


def see_distributions(paths: Iterable[str], heard: Container[Path] = ()) -> Sight:
    """What is installed in the directories ``paths``, each without those below it."""
    sight = Sight(heard)
    for directory in dict.fromkeys(_real(Path(path)) for path in paths):
        try:
            found = [entry for entry in directory.iterdir() if _is_distribution(entry.name)]
        except OSError:  # missing, or a zip file
            continue
        sight.watch(directory, _is_distribution)
        for path in found:
            sight.stamp(path)
            if path.name.endswith("-info"):
                sight.stamp(path / "entry_points.txt")  # which ``setup.py develop`` rewrites in place
    return sight


def _see(path: Path, files: Wanted, folders: Wanted, heard: Container[Path]) -> Sight:
    sight = Sight(heard)
    path = _real(path.parent) / path.name
    root = _real(path)
    for each in {path, root}:
        sight.expect(each)
    if not root.is_dir():
        sight.stamp(path)
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if folders(name)]
        sight.watch(Path(folder), lambda name: files(name) or folders(name))
        for name in names:
            if files(name):
                sight.stamp(Path(folder, name))
    return sight


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `Path.resolve` raises for a loop of links


def _is_manifest(name: str) -> bool:
    return _is_visible(name) and name.endswith((".yaml", ".yml"))


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _is_source(name: str) -> bool:
    stem, _, suffix = name.partition(".")
    return (suffix == "py" and stem.isidentifier()) or name.endswith(tuple(EXTENSION_SUFFIXES))


def _is_package(name: str) -> bool:
    return name.isidentifier() and name != "__pycache__"


def _is_distribution(name: str) -> bool:
    """One that pip has moved aside, as ``~ame-1.dist-info``, does not count."""
    return name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth")) and not name.startswith("~")
