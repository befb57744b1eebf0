"""What a plugin class declares: in the ``plugin.yaml`` of its package, or, without one, by the hooks that it marks."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from analytics_core.hookspecs import HOOKS, PROJECT
from analytics_core.manifest import (
    AnalysisManifest,
    ChannelManifest,
    PluginManifest,
    Provides,
    checked_settings,
    read_plugin,
)
from analytics_core.records import PluginContext


class Declared(Struct, frozen=True):
    """A manifest and the directory of its ``plugin.yaml``. ``entered``: it names this very class as its entry."""

    manifest: PluginManifest
    directory: Path
    entered: bool


def declared(plugin_class: type) -> Declared | None:
    """The ``plugin.yaml`` beside the module of the class, or in a package above it if it names the class.

    None for a class without one, as in a test file.
    """
    home = Path(inspect.getfile(plugin_class)).parent
    entry = f"{plugin_class.__module__}:{plugin_class.__qualname__}"
    for directory in [home, *home.parents][: max(1, plugin_class.__module__.count("."))]:
        path = directory / "plugin.yaml"
        if path.exists():
            manifest = read_plugin(path)
            if directory == home or manifest.entry == entry:
                return Declared(manifest, directory, manifest.entry == entry)
    return None


def context_of(plugin_class: type, settings: Mapping[str, Any]) -> tuple[PluginContext, int]:
    """What ``setup`` is given, with ``settings`` checked and filled up, and the version of the state."""
    found = declared(plugin_class)
    logger = logging.getLogger(plugin_class.__module__)
    if found is None:
        return PluginContext(name=plugin_class.__name__, settings=dict(settings), logger=logger), 1
    checked = checked_settings(found.manifest, settings)
    context = PluginContext(name=found.manifest.name, settings=checked, logger=logger)
    return context, found.manifest.reload.state_version


def manifest_of(plugin_class: type) -> PluginManifest:
    """Its ``plugin.yaml``; without one a manifest that lists the hooks that it marks and provides, for each hook that
    has to provide something, one thing of the plugin's name, which is that of the class in kebab-case.
    """
    found = declared(plugin_class)
    if found is not None:
        return found.manifest
    hooks = marked(plugin_class)
    name = plugin_name(plugin_class)
    provides = Provides(
        routes=(f"POST /{name}",) if "ingest" in hooks else (),
        analyses=(AnalysisManifest(name),) if "insight" in hooks else (),
        channels=(ChannelManifest(name),) if "deliver" in hooks else (),
        model_types=(name,) if "train" in hooks else (),
        detectors=(name,) if "score" in hooks else (),
    )
    entry = f"{plugin_class.__module__}:{plugin_class.__name__}"
    return PluginManifest(manifest=1, name=name, entry=entry, hooks=hooks, provides=provides)


def plugin_name(plugin_class: type) -> str:
    """``CountsClicks`` is ``counts-clicks``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", plugin_class.__name__).lower()
    return re.sub(r"^[^a-z]+|[^a-z0-9-]", "", words) or "plugin"


def marked(plugin_class: type) -> tuple[str, ...]:
    """The methods that carry ``@hookimpl``, and those named like a hook, in alphabetical order."""
    names = (name for name in dir(plugin_class) if callable(getattr(plugin_class, name, None)))
    return tuple(name for name in names if name in HOOKS or hasattr(getattr(plugin_class, name), f"{PROJECT}_impl"))
