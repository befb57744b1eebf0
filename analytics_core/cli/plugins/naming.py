"""What a new plugin can be called, as plugin, distribution and package."""

from __future__ import annotations

import keyword
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from analytics_core.errors import AnalyticsError
from analytics_core.host.installed.discovery import discover

_LONGEST: Final = 64
_TAKEN: Final = frozenset({"analytics_core", "conftest", "test", "tests"})
_YAML_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""What readers of YAML 1.1 or 1.2 take for something other than text."""


class NewPluginError(AnalyticsError):
    """No plugin was made; the text says what would be valid."""


def check_name(name: str) -> None:
    """:raises NewPluginError: unless a plugin, a distribution and a package can be called ``name``."""
    valid = "valid are small letters, digits and single dashes, such as 'checkout-watch'"
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        meant = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-0123456789")
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise NewPluginError(f"{name!r} is no name for a plugin; {valid}{hint}")
    if len(name) > _LONGEST:
        raise NewPluginError(f"the name is longer than {_LONGEST} characters")
    if holder := _word(name) or _installed(name):
        raise NewPluginError(f"{name!r} is taken: {holder}; add a word to it")


def _word(name: str) -> str:
    """Which language means something else by ``name``; empty when none does."""
    package = name.replace("-", "_")
    if any(map(keyword.iskeyword, (package, package.capitalize()))) or package in sys.stdlib_module_names | _TAKEN:
        return f"Python has a word or module {package!r}"
    return f"YAML reads the word {name!r} as another value than text" if name in _YAML_WORDS else ""


def _installed(name: str) -> str:
    """What has the name already in this environment; empty when nothing has. Nothing is imported."""
    try:
        return f"the distribution {name} {distribution(name).version} is installed"
    except PackageNotFoundError:
        pass
    for found in discover():
        if canonicalize_name(found.name) == name:
            return f"the distribution {found.distribution} has a plugin {found.name!r}"
    place = _place(name.replace("-", "_"))
    return f"a package of this name is installed in {place}" if place else ""


def _place(package: str) -> Path | None:
    """Where a module or a package of this name is; folders without code count in the environment only."""
    spec = PathFinder.find_spec(package)
    if spec is None or spec.has_location:
        return Path(spec.origin).parent if spec is not None and spec.origin else None
    site = sysconfig.get_path("purelib")
    return next((path for path in map(Path, spec.submodule_search_locations or ()) if path.is_relative_to(site)), None)
