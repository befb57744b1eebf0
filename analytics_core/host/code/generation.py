"""One loaded copy of a plugin's code: g1, g2, ... each beside the others, each gone without a trace when retired."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import Any
from weakref import ref

from analytics_core.errors import PluginError, RestartRequiredError
from analytics_core.host.code.dispatch import Instance, is_interrupt
from analytics_core.host.code.refusals import check_hooks
from analytics_core.host.code.registries import Registration, refusal, registrations
from analytics_core.host.code.snapshot import ExtensionModuleError, Module, Snapshot, read_sources
from analytics_core.host.code.survivors import survivors
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import PluginManifest

_has_run: set[str] = set()
"""Packages of which this process has run code: what that has registered may be there still, whatever became of it."""


class Generation:
    """A plugin's class from one snapshot of its sources. Made by `load`."""

    def __init__(self, manifest: PluginManifest, number: int, snapshot: Snapshot, plugin: type) -> None:
        self.plugin = manifest.name
        self.number = number
        self.manifest = manifest
        self.hooks = check_hooks(plugin, manifest)
        self._snapshot = snapshot
        self._class: type | None = plugin
        self._spare: Instance | None = self._make(plugin)
        self._traces: list[ref[Any]] = []
        self._left: tuple[Registration, ...] = ()

    def __repr__(self) -> str:
        return f"<Generation {self.plugin} g{self.number}{'' if self._class else ' retired'}>"

    def instance(self) -> Instance:
        """A fresh object of the plugin's class. It is the caller's to close.

        :raises PluginError: when its constructor fails, or the generation is retired.
        """
        if self._class is None:
            raise PluginError(self.plugin, f"generation {self.number} is retired")
        spare, self._spare = self._spare, None
        return spare or self._make(self._class)

    def retire(self) -> None:
        """Take its modules out of the interpreter. Instances that still run go on to work; harmless when repeated."""
        if self._spare is not None:
            self._spare.close()
        if self._class is not None:
            self._left = self.registered()
            self._traces = [ref(self._class), *map(ref, self._snapshot.loaded())]
        self._class = self._spare = None
        self._snapshot.remove()

    def registered(self) -> tuple[Registration, ...]:
        """What it has in the registries of the process now, by its modules and its objects that live."""
        return registrations(self._snapshot.alias)

    def survivors(self) -> tuple[str, ...]:
        """What is still alive of a retired generation, by name, and what its teardown has left in registries."""
        return (*map(str, self._left), *survivors(self._snapshot.alias, self._traces))

    def _make(self, plugin: type) -> Instance:
        try:
            target = plugin()
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise _load_error(self.manifest, self._snapshot, error, f"{plugin.__qualname__}() failed") from error
        return Instance(self.plugin, target, self.hooks)


def load(found: Found, number: int, sources: Mapping[str, Module] | None = None) -> Generation:
    """Make generation ``number`` of ``found``, of its sources on the disk unless they were read before.

    On any error no module is left behind.

    :raises PluginError: when the code cannot be imported or its class not be made.
    :raises RestartRequiredError: for a C extension inside the package, and when a registry of the process refuses what
        it has taken from an earlier generation.
    :raises HookRefusedError: when its hooks do not fit the specification or the manifest.
    """
    if found.manifest is None or found.problem is not None:
        raise PluginError(found.name, found.problem or "its manifest was not read")
    manifest = found.manifest
    module, _, name = manifest.entry.partition(":")
    if sources is None:
        sources = _read(found, manifest)
    snapshot = Snapshot(found.package, f"{found.package.replace('.', '_')}__g{number}", sources)
    try:
        snapshot.install()
    except ValueError as error:
        raise PluginError(manifest.name, f"generation {number} is loaded already") from error
    try:
        generation = Generation(manifest, number, snapshot, _class(manifest, snapshot, module, name))
    except BaseException as error:
        snapshot.remove()
        refused = refusal(error)
        if refused and found.package in _has_run:
            raise RestartRequiredError(manifest.name, refused) from error
        if not refused:  # else it clashes with others, or with itself, which a restart does not mend
            _has_run.add(found.package)
        raise
    _has_run.add(found.package)
    return generation


def _read(found: Found, manifest: PluginManifest) -> Mapping[str, Module]:
    try:
        single = manifest.entry.partition(":")[0] == found.package and not (found.directory / "__init__.py").is_file()
        return read_sources(found.package, found.directory, single=single)
    except ExtensionModuleError as error:
        problem = f"{error} is a C extension, of which a process holds one copy; move it to a package of its own and"
        raise RestartRequiredError(manifest.name, f"{problem} import that") from error
    except OSError as error:
        raise PluginError(manifest.name, f"its sources cannot be read: {error}") from error


def _class(manifest: PluginManifest, snapshot: Snapshot, module: str, name: str) -> type:
    try:
        loaded = import_module(snapshot.alias + module[len(snapshot.package) :])
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise _load_error(manifest, snapshot, error, "import failed") from error
    plugin = vars(loaded).get(name)
    if not isinstance(plugin, type):
        classes = sorted(
            key for key, value in vars(loaded).items() if getattr(value, "__module__", "") == loaded.__name__
        )
        valid = f"; valid are: {', '.join(classes)}" if classes else ""
        raise PluginError(manifest.name, f"entry {manifest.entry!r}: the module has no class {name!r}{valid}")
    return plugin


def _load_error(manifest: PluginManifest, snapshot: Snapshot, error: BaseException, what: str) -> PluginError:
    where = _where(snapshot, error.__traceback__)
    shown = f"{type(error).__name__}: {error}".replace(snapshot.alias, snapshot.package)
    return PluginError(manifest.name, f"{what}: {shown}{where}")


def _where(snapshot: Snapshot, trace: TracebackType | None) -> str:
    """The innermost line of the plugin's own code."""
    files = {str(module.file) for module in snapshot.modules.values()}
    lines = [frame for frame in traceback.extract_tb(trace) if frame.filename in files]
    return f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
