"""What an `EmbeddedHost` runs: classes as they are, and installed plugins by their name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from analytics_core.errors import NotFoundError
from analytics_core.host.discovery import Found, discover
from analytics_core.testing.declared import manifest_of

_given: Final[dict[str, type]] = {}
"""The classes that packages made here stand for, by package."""
_numbers: Final = count(1)
_SOURCE: Final = '''"""Stands for a class that a test has given."""

from analytics_core.testing.subjects import given

Plugin = given({package!r})
'''


def given(package: str) -> type:
    """The class for which a package made here stands."""
    return _given[package]


@contextmanager
def found(plugins: Sequence[type | str], site: Path) -> Iterator[list[Found]]:
    """Each plugin as the host discovers it. A name is what is installed under it; a class is that very object, under
    its own ``plugin.yaml`` if it has one, in a package that is written below ``site``.

    :raises NotFoundError: for a name under which nothing is installed.
    """
    packages: list[str] = []
    try:
        made = []
        for plugin in plugins:
            if isinstance(plugin, str):
                made.append(_installed(plugin))
            else:
                packages.append(f"analytics_given_{next(_numbers)}")
                made.append(_standing_for(plugin, packages[-1], site))
        yield made
    finally:
        for package in packages:
            _given.pop(package, None)


def _installed(name: str) -> Found:
    installed = {each.name: each for each in discover()}
    if name not in installed:
        raise NotFoundError("installed plugin", name, installed)
    return installed[name]


def _standing_for(plugin_class: type, package: str, site: Path) -> Found:
    directory = site / package
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text(_SOURCE.format(package=package), encoding="utf-8")
    _given[package] = plugin_class
    manifest = replace(manifest_of(plugin_class), entry=f"{package}:Plugin")
    return Found(manifest.name, package, "0", package, directory, manifest)
