"""``plugin.yaml``, the author's contract: read, checked for compatibility first, then for its form."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from packaging.specifiers import SpecifierSet

from analytics_core import __version__
from analytics_core.errors import IncompatibleError, ManifestError, PluginSettingsError
from analytics_core.manifest.fitting import fit
from analytics_core.manifest.json_schema import fit_schema
from analytics_core.manifest.models import PluginManifest, specifier_problem
from analytics_core.manifest.source import Document, read_documents

VERSIONS: Final = (1,)
"""The versions of ``plugin.yaml`` that this host reads."""


def read_plugin(path: Path) -> PluginManifest:
    """The one manifest in a ``plugin.yaml``. Nothing is filled in from the environment.

    :raises IncompatibleError: when it is written for another host, manifest version or Python; checked first, so that
        keys of a later version are not called unknown.
    :raises ManifestError: for anything else that is wrong.
    """
    documents = read_documents(path, None)
    if len(documents) != 1:
        raise ManifestError(path, "", f"has {len(documents)} documents; a plugin.yaml has exactly one")
    kind = documents[0].values.get("kind")
    if kind != "plugin":
        raise documents[0].source.error(("kind",), f"{kind!r} is not valid in a package; valid is: plugin")
    return plugin_manifest(documents[0])


def plugin_manifest(document: Document) -> PluginManifest:
    """A document of ``kind: plugin`` as its model. Raises as `read_plugin` does."""
    _check_compatible(document)
    manifest = fit(PluginManifest, document.values, document.source, ignore=("kind",))
    for path, problem in manifest.problems():
        raise document.source.error(path, problem)
    return manifest


def _check_compatible(document: Document) -> None:
    values, source = document.values, document.source
    version = values.get("manifest")
    if version is None:
        raise source.error((), "the key 'manifest' is missing; write 'manifest: 1'")
    if version not in VERSIONS or isinstance(version, bool):
        known = ", ".join(map(str, VERSIONS))
        raise source.error(
            ("manifest",), f"version {version!r} is not known to this host; valid is: {known}", IncompatibleError
        )
    requires = values.get("requires")
    for key, actual in (("host", __version__), ("python", platform.python_version())):
        wanted = requires.get(key, "") if isinstance(requires, dict) else ""
        if not isinstance(wanted, str):
            continue  # the model says what is wrong with it
        if problem := specifier_problem(wanted):
            raise source.error(("requires", key), problem)
        if not SpecifierSet(wanted).contains(actual, prereleases=True):
            raise source.error(("requires", key), f"needs {wanted!r}, this is {key} {actual}", IncompatibleError)


def checked_settings(manifest: PluginManifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """The operator's settings of a plugin with the defaults of its JSON Schema filled in.

    :raises PluginSettingsError: naming each key that does not fit, what is wrong, and what is valid.
    """
    values, problems = fit_schema(manifest.settings, given)
    if problems:
        listed = (f"settings{'.' if key else ''}{key}: {text}" for key, text in problems)
        raise PluginSettingsError(manifest.name, "; ".join(listed))
    return values
