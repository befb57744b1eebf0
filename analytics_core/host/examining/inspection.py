"""All that can be said of one plugin from its files and the operator's, secrets hidden and nothing imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from analytics_core.host.examining.judging import effective
from analytics_core.host.installed.selection import Choice
from analytics_core.manifest import Deployment, Limits, PluginManifest, masked


class HeldSettings(Struct, frozen=True):
    """The settings as they hold, defaults filled in, and by key what does not fit ``schema``."""

    schema: dict[str, Any]
    effective: dict[str, Any]
    problems: dict[str, str]


class Inspection(Struct, frozen=True, kw_only=True):
    """One plugin. ``manifest`` and what follows from it is null when it cannot be read; ``source`` says whose the
    ``state`` is, as in `Explanation`."""

    name: str
    version: str
    distribution: str
    package: str
    directory: str | None
    manifest_file: str | None
    state: str
    reason: str
    source: str = "installed"
    manifest: dict[str, Any] | None = None
    settings: HeldSettings | None = None
    isolation: str | None = None
    limits: Limits | None = None


def inspected(choice: Choice, deployment: Deployment) -> Inspection:
    """``choice`` with the settings of ``deployment``."""
    found, manifest = choice.found, choice.manifest
    placed = found is not None and found.directory != Path()
    plain = Inspection(
        name=choice.name,
        version=choice.version,
        distribution=found.distribution if found else "",
        package=found.package if found else "",
        directory=str(found.directory) if found and placed else None,
        manifest_file=str(found.manifest_file) if found and placed else None,
        state=choice.state,
        reason=choice.reason,
    )
    if manifest is None:
        return plain
    runs = choice.state == "discovered"
    return msgspec.structs.replace(
        plain,
        manifest=msgspec.to_builtins(manifest),
        settings=_settings(manifest, deployment),
        isolation=choice.isolation if runs else manifest.isolation,
        limits=choice.limits if runs else manifest.limits,
    )


def _settings(manifest: PluginManifest, deployment: Deployment) -> HeldSettings:
    values, problems = effective(manifest, deployment)
    return HeldSettings(manifest.settings, masked(manifest.settings, values), dict(problems))
