"""All that can be said of one plugin from its files and the operator's, secrets hidden and nothing imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from analytics_core.config import Settings
from analytics_core.host.examining.judging import effective
from analytics_core.host.health import State
from analytics_core.host.installed.selection import Choice, Isolation
from analytics_core.manifest import DEFAULT_MEMORY_MB, Deployment, Limits, PluginManifest, masked

_BEHIND: Final[frozenset[State]] = frozenset({"rolled_back", "restart_required"})
"""States in which what runs is not what is on the disk."""


class HeldSettings(Struct, frozen=True):
    """The settings as they hold, defaults filled in, and by key what does not fit ``schema``."""

    schema: dict[str, Any]
    effective: dict[str, Any]
    problems: dict[str, str]


class Inspection(Struct, frozen=True, kw_only=True):
    """One plugin. ``manifest`` and what follows from it is null when it cannot be read; ``source`` says whose the
    ``state`` is, as in `Explanation`, and ``note`` what else runs than what is told here. ``limits`` are those that
    hold, the host's own where nobody says otherwise; null is no bound."""

    name: str
    version: str
    distribution: str
    package: str
    directory: str | None
    manifest_file: str | None
    state: str
    reason: str
    source: str = "installed"
    note: str = ""
    manifest: dict[str, Any] | None = None
    settings: HeldSettings | None = None
    isolation: str | None = None
    limits: Limits | None = None


def inspected(choice: Choice, deployment: Deployment, host: Settings) -> Inspection:
    """``choice`` with the settings of ``deployment``, under the settings of its ``host``."""
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
    isolation = choice.isolation if runs else manifest.isolation
    return msgspec.structs.replace(
        plain,
        manifest=msgspec.to_builtins(manifest),
        settings=_settings(manifest, deployment),
        isolation=isolation,
        limits=_held(choice.limits if runs else manifest.limits, isolation, host),
    )


def as_seen(inspection: Inspection, row: Mapping[str, Any], source: str) -> Inspection:
    """With what a running host says of the plugin in its ``row`` of GET /api/v1/plugins."""
    note = f"on disk; generation {row.get('generation')} runs another" if row["state"] in _BEHIND else ""
    reason = row.get("reason") or ""
    return msgspec.structs.replace(inspection, state=row["state"], reason=reason, source=source, note=note)


def _held(limits: Limits, isolation: Isolation, host: Settings) -> Limits:
    """In a thread only ``call_seconds`` holds."""
    seconds = limits.call_seconds or host.lanes.hang_seconds
    if isolation == "thread":
        return Limits(call_seconds=seconds)
    memory = limits.memory_mb or DEFAULT_MEMORY_MB
    return Limits(memory_mb=memory, cpu_seconds=limits.cpu_seconds, call_seconds=seconds)


def _settings(manifest: PluginManifest, deployment: Deployment) -> HeldSettings:
    values, problems = effective(manifest, deployment)
    return HeldSettings(manifest.settings, masked(manifest.settings, values), dict(problems))
