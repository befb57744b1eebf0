"""Fingerprints: contents decide, and only those that make a loaded copy what it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import msgspec
import pytest

from analytics_core.host.code.fingerprint import fingerprint, places, read_copy
from analytics_core.host.installed.discovery import Found


@pytest.fixture
def found(tmp_path: Path) -> Found:
    home = tmp_path / "shop_watch"
    (home / "inner").mkdir(parents=True)
    for file, text in {
        "__init__.py": "",
        "plugin.py": "a = 1",
        "inner/__init__.py": "",
        "inner/deep.py": "b = 1",
    }.items():
        (home / file).write_text(text, "utf-8")
    (home / "plugin.yaml").write_text("kind: plugin", "utf-8")
    return Found("shop", "shop", "1", "shop_watch", home)


def edit(file: str, text: str) -> Callable[[Path], object]:
    return lambda home: (home / file).write_text(text, "utf-8")


@pytest.mark.parametrize(
    "change",
    [
        edit("plugin.py", "a = 2"),
        edit("inner/deep.py", "b = 2"),
        edit("plugin.py", "a = ("),
        edit("new.py", ""),
        edit("plugin.yaml", "kind: metric"),
        lambda home: (home / "plugin.py").rename(home / "plugins.py"),
        lambda home: (home / "inner/deep.py").unlink(),
        lambda home: (home / "inner/__init__.py").unlink(),
        lambda home: (home / "plugin.yaml").unlink(),
        lambda home: (home / f"fast{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF"),
        lambda home: shutil.rmtree(home),
    ],
)
def test_what_changes_it(found: Found, change: Callable[[Path], object]) -> None:
    before = fingerprint(found)
    assert fingerprint(found) == before
    change(found.directory)
    assert fingerprint(found) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda home: os.utime(home / "plugin.py", (1, 1)),
        lambda home: (home / "plugin.py").chmod(0o600),
        edit("plugin.py", "a = 1"),
        edit("data.csv", "1,2"),
        edit("plugin.py~", "a = 2"),
        edit(".#plugin.py", "a = 2"),
        lambda home: (home / "cache").mkdir(),
        lambda home: (home / "__pycache__").mkdir(),
    ],
)
def test_what_does_not(found: Found, change: Callable[[Path], object]) -> None:
    before = fingerprint(found)
    change(found.directory)
    assert fingerprint(found) == before


def test_an_edit_of_the_same_size_and_time_is_another(found: Found) -> None:
    before = fingerprint(found)
    path = found.directory / "plugin.py"
    times = path.stat()
    path.write_text("a = 9", "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(found) != before


def test_a_module_and_a_package_of_one_name_differ(found: Found) -> None:
    (found.directory / "part.py").write_text("", "utf-8")
    module = fingerprint(found)
    (found.directory / "part.py").unlink()
    (found.directory / "part").mkdir()
    (found.directory / "part/__init__.py").write_text("", "utf-8")
    assert fingerprint(found) != module


def test_another_place_is_another_copy(found: Found, tmp_path: Path) -> None:
    moved = shutil.copytree(found.directory, tmp_path / "elsewhere" / "shop_watch")
    assert fingerprint(msgspec.structs.replace(found, directory=moved)) != fingerprint(found)


def test_a_problem_is_part_of_it(found: Found) -> None:
    assert fingerprint(msgspec.structs.replace(found, problem="claimed twice")) != fingerprint(found)


def test_a_single_module_and_its_manifest(found: Found, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("a = 1", "utf-8")
    (tmp_path / "tiny.yaml").write_text("kind: plugin", "utf-8")
    tiny = Found("tiny", "tiny", "1", "tiny", tmp_path, file="tiny.yaml", single=True)
    prints = [fingerprint(tiny)]
    for file in ("tiny.py", "tiny.yaml", "other.py"):
        (tmp_path / file).write_text("b = 2", "utf-8")
        prints.append(fingerprint(tiny))
    assert len(set(prints)) == 3
    assert prints[2] == prints[3]


def test_where_to_watch(found: Found, tmp_path: Path) -> None:
    assert places(found) == {found.directory, found.directory / "plugin.yaml"}
    tiny = Found("tiny", "tiny", "1", "tiny", tmp_path, file="tiny.yaml", single=True)
    assert places(tiny) == {tmp_path / "tiny.py", tmp_path / "tiny.yaml"}
    assert places(Found("lost", "lost", "1", "?", Path(), problem="nothing says where")) == frozenset()


@pytest.mark.parametrize("directory", [Path("/nowhere/shop"), Path()])
def test_what_cannot_be_read_has_one_too(directory: Path) -> None:
    lost = Found("lost", "lost", "1", "lost_shop", directory, problem="not to be found", single=True)
    assert fingerprint(lost) == fingerprint(lost)


def test_a_copy_holds_what_it_was_made_of_whatever_the_disk_has_by_then(found: Found) -> None:
    copy = read_copy(found)
    (found.directory / "plugin.py").write_text("a = 2", "utf-8")
    assert copy.sources is not None
    assert copy.sources["plugin"].source == b"a = 1"
    assert copy.fingerprint != read_copy(found).fingerprint


def test_a_copy_whose_sources_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert read_copy(Found("lost", "lost", "1", "lost_shop", tmp_path, single=True)).sources is None
