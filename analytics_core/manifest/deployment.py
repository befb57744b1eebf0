"""The operator's intent: every document of the manifests directory, checked, each name once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from analytics_core.errors import ManifestError, near
from analytics_core.manifest.cohorts import CohortManifest
from analytics_core.manifest.fitting import fit
from analytics_core.manifest.models import (
    HostManifest,
    Manifest,
    MetricManifest,
    PluginSettingsManifest,
    TenantManifest,
)
from analytics_core.manifest.package import plugin_manifest
from analytics_core.manifest.source import Document, Source, read_documents

_DEPLOYED: Final[dict[str, type[CohortManifest | MetricManifest | PluginSettingsManifest | TenantManifest]]] = {
    "cohort": CohortManifest,
    "metric": MetricManifest,
    "plugin-settings": PluginSettingsManifest,
    "tenant": TenantManifest,
}
KINDS: Final = ("cohort", "host", "metric", "plugin", "plugin-settings", "tenant")


class Deployment(Struct, frozen=True):
    """All documents of a manifests directory, by name. ``host`` is kept as written; `config` makes settings of it.

    ``sources`` tells where each is written, by kind and name.
    """

    host: dict[str, Any] = {}
    metrics: dict[str, MetricManifest] = {}
    plugins: dict[str, PluginSettingsManifest] = {}
    tenants: dict[str, TenantManifest] = {}
    cohorts: dict[str, CohortManifest] = {}
    sources: dict[tuple[str, str], Source] = {}


def read_file(path: Path, environ: Mapping[str, str] | None) -> list[Manifest]:
    """Every manifest of one file, in order.

    ``environ`` fills in references; documents of ``kind: plugin`` are taken as they are.

    :raises ManifestError: for the first thing that is wrong.
    """
    return [_manifest(document) for document in read_documents(path, environ)]


def read_deployment(directory: Path, environ: Mapping[str, str]) -> Deployment:
    """All ``*.yaml`` and ``*.yml`` files under ``directory``; a directory that does not exist is an empty deployment.

    Files and folders whose name begins with a dot are left out.

    :raises ManifestError: for the first thing that is wrong, and for a name that two documents of one kind take.
    """
    holders: dict[tuple[str, str], str] = {}
    sources: dict[tuple[str, str], Source] = {}
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS if kind != "plugin"}
    for path in manifest_files(directory):
        for document in read_documents(path, environ):
            manifest = _manifest(document)
            kind = document.values["kind"]
            name = getattr(manifest, "name", "")
            where = f"{document.source.path} (line {document.source.first_line})"
            if kind == "plugin":
                raise document.source.error(
                    ("kind",), "'plugin' belongs into a plugin's package; 'plugin-settings' is for the operator"
                )
            if kind == "host" and path != directory / "host.yaml":
                raise document.source.error(("kind",), f"'host' is read from {directory / 'host.yaml'} alone")
            if earlier := holders.get((kind, name)):
                called = f"{kind} {name!r}" if name else kind
                raise document.source.error((), f"{called} is declared already in {earlier}; rename or remove one")
            holders[kind, name] = where
            sources[kind, name] = document.source
            found[kind][name] = manifest.values if isinstance(manifest, HostManifest) else manifest
    return Deployment(
        host=found["host"].get("", {}),
        metrics=found["metric"],
        plugins=found["plugin-settings"],
        tenants=found["tenant"],
        cohorts=found["cohort"],
        sources=sources,
    )


def manifest_files(directory: Path) -> list[Path]:
    """The files that `read_deployment` reads, sorted.

    :raises ManifestError: when ``directory`` is a file, or cannot be read.
    """
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise ManifestError(directory, "", "is no directory; name the one that holds the manifests") from None
    except OSError as error:
        raise ManifestError(directory, "", f"cannot be read: {error.strerror}") from error
    found = [*directory.rglob("*.yaml"), *directory.rglob("*.yml")]
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(directory).parts))
    return sorted(path for path in visible if path.is_file())


def _manifest(document: Document) -> Manifest:
    values, source = document.values, document.source
    kind = values.get("kind")
    if kind is None:
        raise source.error((), f"the key 'kind' is missing; valid kinds are: {', '.join(KINDS)}")
    if kind == "plugin":
        return plugin_manifest(document)
    if kind == "host":
        return HostManifest({key: value for key, value in values.items() if key != "kind"})
    if not isinstance(kind, str) or kind not in _DEPLOYED:
        hint = near(str(kind), KINDS)
        listed = hint if hint.startswith("; valid") else f"{hint} valid are: {', '.join(KINDS)}"
        raise source.error(("kind",), f"{kind!r} is not known{listed}")
    manifest = fit(_DEPLOYED[kind], values, source, ignore=("kind",))
    for path, problem in manifest.problems():
        raise source.error(path, problem)
    return manifest
