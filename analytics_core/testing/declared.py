"""What a plugin class declares, in the ``plugin.yaml`` of its package or by the hooks that it marks, and the
generations of its code that the host runs for it."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from analytics_core.hookspecs import HOOKS, PROJECT
from analytics_core.host.code.generation import Generation, load
from analytics_core.host.code.snapshot import Snapshot
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import (
    AnalysisManifest,
    ChannelManifest,
    PluginManifest,
    Provides,
    checked_settings,
    read_plugin,
)
from analytics_core.records import PluginContext

_numbers: Final = count(1_000)
"""Of generations made here: beyond those of any host in this process."""


class Declared(Struct, frozen=True):
    """A manifest and the directory of its ``plugin.yaml``. ``entered``: its entry leads to this very class."""

    manifest: PluginManifest
    directory: Path
    entered: bool


def declared(plugin_class: type) -> Declared | None:
    """The ``plugin.yaml`` beside the module of the class, or in a package above it if its entry leads to the class.

    None for a class without one, as in a test file.

    :raises ImportError: when the module of the entry cannot be imported.
    """
    try:
        home = Path(inspect.getfile(plugin_class)).parent
    except (TypeError, OSError):  # the class is in no file: somebody tries things out in a console
        return None
    for directory in [home, *home.parents][: max(1, plugin_class.__module__.count("."))]:
        path = directory / "plugin.yaml"
        if path.exists():
            manifest = read_plugin(path)
            entered = _leads_to(manifest.entry, plugin_class)
            if entered or directory == home:
                return Declared(manifest, directory, entered)
    return None


def _leads_to(entry: str, plugin_class: type) -> bool:
    """Whether ``entry`` names the class, in its own module or in one that takes it from there."""
    module, _, name = entry.partition(":")
    if module.partition(".")[0] != plugin_class.__module__.partition(".")[0]:
        return False
    found = vars(import_module(module)).get(name)
    return isinstance(found, type) and _path(found) == _path(plugin_class)


def _path(plugin_class: type) -> tuple[str, str]:
    return plugin_class.__module__, plugin_class.__qualname__


def context_of(plugin_class: type, settings: Mapping[str, Any]) -> PluginContext:
    """What ``setup`` is given, with ``settings`` checked and filled up.

    :raises PluginSettingsError: when they do not fit the schema in ``plugin.yaml``.
    """
    found = declared(plugin_class)
    logger = logging.getLogger(plugin_class.__module__)
    if found is None:
        return PluginContext(name=plugin_name(plugin_class), settings=dict(settings), logger=logger)
    checked = checked_settings(found.manifest, settings)
    return PluginContext(name=found.manifest.name, settings=checked, logger=logger)


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
    return PluginManifest(manifest=1, name=name, entry=_own_entry(plugin_class), hooks=hooks, provides=provides)


def _own_entry(plugin_class: type) -> str:
    return f"{plugin_class.__module__}:{plugin_class.__qualname__}"


def plugin_name(plugin_class: type) -> str:
    """``CountsClicks`` is ``counts-clicks``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", plugin_class.__name__).lower()
    return re.sub(r"^[^a-z]+|[^a-z0-9-]", "", words) or "plugin"


def marked(plugin_class: type) -> tuple[str, ...]:
    """The methods that carry ``@hookimpl``, and those named like a hook, in alphabetical order."""
    names = (name for name in dir(plugin_class) if callable(getattr(plugin_class, name, None)))
    return tuple(name for name in names if name in HOOKS or hasattr(getattr(plugin_class, name), f"{PROJECT}_impl"))


# --- generations -----------------------------------------------------------------------------------------------------


def as_it_is(plugin_class: type) -> Generation:
    """A generation that is the class itself, checked as the host checks it.

    :raises HookRefusedError: when its hooks do not fit the specification or its manifest.
    :raises PluginError: when its constructor fails.
    """
    manifest = manifest_of(plugin_class)
    return Generation(manifest, 0, Snapshot(manifest.name, f"{manifest.name}__as_it_is", {}), plugin_class)


@contextmanager
def generations(plugin_class: type) -> Iterator[Callable[[], Generation]]:
    """Gives a function that makes a further generation of the class from its package's sources as they are now.

    A class without ``plugin.yaml``, in a function or in the program itself has no sources of its own: then it is the
    class as it is each time. The generations are retired at the end; their instances go on to work.
    """
    found = _installed(plugin_class)
    if found is None:
        yield lambda: as_it_is(plugin_class)
        return
    with ExitStack() as made:

        def following() -> Generation:
            generation = load(found, next(_numbers))
            made.callback(generation.retire)
            return generation

        yield following


def _installed(plugin_class: type) -> Found | None:
    """The package of the class as the host would discover it; None when its sources cannot be loaded once more."""
    told = declared(plugin_class)
    if told is None or plugin_class.__module__ == "__main__" or "<locals>" in plugin_class.__qualname__:
        return None
    manifest = told.manifest if told.entered else replace(told.manifest, entry=_own_entry(plugin_class))
    package = _package(plugin_class, told.directory)
    return Found(manifest.name, package, "0", package, told.directory, manifest)


def _package(plugin_class: type, directory: Path) -> str:
    """The package whose files are in ``directory``; a single module is one too."""
    file = Path(inspect.getfile(plugin_class))
    parts = plugin_class.__module__.split(".")
    packages = parts if file.name == "__init__.py" else parts[:-1]
    below = len(file.parent.relative_to(directory).parts)
    return ".".join(packages[: len(packages) - below]) or plugin_class.__module__
