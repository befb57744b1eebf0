"""What becomes of each installed plugin, said without a server and without importing a line of any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any, Final

from packaging.utils import canonicalize_name

from analytics_core.config import Settings
from analytics_core.host.health import RISING, RUNNING, State
from analytics_core.host.installed.discovery import GROUP, Found, discover, headers
from analytics_core.host.installed.selection import Choice, choose
from analytics_core.manifest import Deployment, PluginManifest, fit_schema, read_deployment

RUNS: Final[frozenset[State]] = RUNNING | RISING
"""States of a plugin that runs or is on its way to; every other one needs somebody to do something."""

_LEFT_OUT: Final = (
    'hatchling takes it with the package ([tool.hatch.build.targets.wheel] packages = ["{top}"]); '
    'setuptools needs [tool.setuptools.package-data] "{package}" = ["{file}"]'
)


def judge(settings: Settings, environ: Mapping[str, str], paths: Sequence[str] | None = None) -> list[Choice]:
    """A choice for each plugin on ``paths`` (default: ``sys.path``) and each that the operator names, as the host
    would make it; sorted by name.

    :raises ManifestError: for deployment manifests that cannot be read.
    """
    return choose(discover(paths), settings, read_deployment(settings.manifests_dir, environ))


def named(name: str, choices: Iterable[Choice]) -> list[Choice]:
    """The plugins that are called ``name``, else those of the distribution ``name``; dashes and case are one."""
    wanted, listed = canonicalize_name(name), list(choices)
    same = [choice for choice in listed if canonicalize_name(choice.name) == wanted]
    return same or [each for each in listed if wanted in claimants(each)]


def claimants(choice: Choice) -> set[str]:
    """The distributions that claim the plugin's name, by their canonical names."""
    found = [choice.found, *(rival.found for rival in choice.rivals)]
    return {canonicalize_name(each.distribution) for each in found if each is not None}


def undeclared(name: str) -> str:
    """Why the installed distribution ``name`` is no plugin; empty when nothing of that name is installed."""
    dist = _distribution(name)
    if dist is None:
        return ""
    told = headers(dist)
    return (
        f"the distribution {told['Name']} {told['Version']} is installed and declares no entry point in the "
        f'group {GROUP!r}; add [project.entry-points."{GROUP}"] to its pyproject.toml and install it again'
    )


def advice(found: Found) -> str:
    """What its author can do about a manifest that is not where the entry point says; empty when it is there."""
    if not found.directory.is_dir() or found.manifest_file.is_file():
        return ""
    return left_out(found.package, found.file)


def left_out(package: str, file: str) -> str:
    """How a build backend is told to take a ``plugin.yaml`` along."""
    return _LEFT_OUT.format(top=package.partition(".")[0], package=package, file=file)


def effective(manifest: PluginManifest, deployment: Deployment) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The operator's settings of a plugin with its defaults filled in, and every (key, problem) that does not fit."""
    intent = deployment.plugins.get(manifest.name)
    return fit_schema(manifest.settings, intent.settings if intent is not None else {})


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        return None
