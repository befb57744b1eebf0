"""One package's sources, read once and importable under a name of their own, beside any other copy of the same package.

``importlib.reload`` and purge-and-reimport both leak and mix old and new modules. Here a generation is a fresh set of
modules named ``package__gN``, compiled from the sources in memory and never from ``.pyc``: one of the same second and
size would be taken for the new source. Imports of the package by its own name, absolute or relative, early or late,
stay inside; only ``importlib.import_module`` with the package's own name spelt out leads to the installed copy.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.resources.abc import TraversableResources
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from msgspec import Struct


class ExtensionModuleError(ImportError):
    """A C extension inside the package: a process can hold one copy of it only."""


class Module(Struct, frozen=True):
    """The source of one module. ``file`` None is a namespace package; ``directory`` None is no package."""

    source: bytes
    file: Path | None
    directory: Path | None


def read_sources(package: str, directory: Path, *, single: bool = False) -> dict[str, Module]:
    """Every module below ``package``, by its name relative to it (``""`` is the package itself).

    ``directory`` holds the package's files; with ``single`` the package is one file in it, ``package.py``.

    :raises ExtensionModuleError: naming the file, for a C extension among them.
    :raises FileNotFoundError: when there is no such package or module.
    """
    if single:
        path = directory / f"{package.rpartition('.')[2]}.py"
        return {"": Module(path.read_bytes(), path, None)}
    modules: dict[str, Module] = {}
    for folder, folders, files in os.walk(directory):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        name = ".".join(here.relative_to(directory).parts)
        init = here / "__init__.py"
        modules[name] = Module(init.read_bytes() if init.is_file() else b"", init if init.is_file() else None, here)
        for file in sorted(files):
            if file.endswith(tuple(EXTENSION_SUFFIXES)):
                raise ExtensionModuleError(str(here / file))
            stem, _, suffix = file.partition(".")
            if suffix == "py" and stem.isidentifier() and stem != "__init__":
                path = here / file
                modules.setdefault(f"{name}.{stem}" if name else stem, Module(path.read_bytes(), path, None))
    return modules


class Snapshot(MetaPathFinder, InspectLoader):
    """Finds and loads the modules of one generation. Nothing is importable before `install` and after `remove`."""

    def __init__(self, package: str, alias: str, modules: Mapping[str, Module]) -> None:
        self.package = package
        self.alias = alias
        self.modules = modules
        self._builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    def install(self) -> None:
        """:raises ValueError: when the alias is taken."""
        if self.alias in sys.modules or any(isinstance(f, Snapshot) and f.alias == self.alias for f in sys.meta_path):
            raise ValueError(f"{self.alias} is loaded already")
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Take all that belongs to it out of the interpreter's tables. Harmless when repeated."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [name for name in sys.modules.copy() if self._relative(name) is not None]:
            del sys.modules[name]

    def loaded(self) -> list[ModuleType]:
        """Its modules that have been imported so far."""
        return [module for name, module in sys.modules.copy().items() if self._relative(name) is not None]

    # finding

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        name = self._relative(fullname)
        if name is None:
            return None
        module = self.modules.get(name)
        if module is None:  # not left to other finders: they would take a newer file from the disk
            raise ModuleNotFoundError(f"No module named {f'{self.package}.{name}'!r}", name=fullname)
        spec = ModuleSpec(
            fullname, self, origin=str(module.file) if module.file else None, is_package=module.directory is not None
        )
        spec.has_location = module.file is not None
        if module.directory is not None:
            spec.submodule_search_locations = [str(module.directory)]
        return spec

    def invalidate_caches(self) -> None:
        """Nothing is cached: the sources were read once and for all."""

    # loading

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        vars(module)["__builtins__"] = self._builtins
        exec(code, vars(module))  # noqa: S102  an import does just this

    def get_code(self, fullname: str) -> CodeType:
        module = self._module(fullname)
        return compile(module.source, str(module.file or f"<{fullname}>"), "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return self._module(fullname).source.decode("utf-8", "replace")

    def is_package(self, fullname: str) -> bool:
        return self._module(fullname).directory is not None

    def get_filename(self, fullname: str) -> str:
        return str(self._module(fullname).file or "")

    def get_resource_reader(self, fullname: str) -> _Files | None:
        """For ``importlib.resources``: data files are read from the disk, as they are now."""
        directory = self._module(fullname).directory
        return _Files(directory) if directory is not None else None

    def _module(self, fullname: str) -> Module:
        name = self._relative(fullname)
        if name is None or name not in self.modules:
            raise ImportError(f"{fullname} is not part of {self.alias}", name=fullname)
        return self.modules[name]

    def _relative(self, fullname: str) -> str | None:
        if fullname == self.alias:
            return ""
        return fullname[len(self.alias) + 1 :] if fullname.startswith(f"{self.alias}.") else None

    # the __import__ of its modules

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Iterable[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        names = tuple(fromlist or ())
        inside = name == self.package or name.startswith(f"{self.package}.")
        if level or not (inside or f"{self.package}.".startswith(f"{name.partition('.')[0]}.")):
            return builtins.__import__(name, globals, locals, names, level)
        if inside and names:
            return builtins.__import__(self.alias + name[len(self.package) :], globals, locals, names, 0)
        if inside:
            import_module(self.alias + name[len(self.package) :])
            return sys.modules[self.alias] if "." not in self.package else self._parent(self.package.partition(".")[0])
        above = f"{self.package}.".startswith(f"{name}.")
        outside = tuple(n for n in names if not (above and n == self._below(name)))
        real = builtins.__import__(name, globals, locals, outside, 0)
        if names and not above:
            return real
        return self._parent(name if names else name.partition(".")[0])

    def _below(self, parent: str) -> str:
        """The next name on the way from ``parent`` down to the package."""
        return self.package[len(parent) + 1 :].partition(".")[0]

    def _parent(self, name: str) -> ModuleType:
        """A package above ours as our modules see it: the real one, but the way down leads to this generation."""
        parent = ModuleType(name)
        below = self._below(name)
        child = f"{name}.{below}"
        vars(parent)[below] = import_module(self.alias) if child == self.package else self._parent(child)
        vars(parent)["__getattr__"] = lambda attribute: _attribute(name, attribute)
        return parent


def _attribute(name: str, attribute: str) -> Any:
    return getattr(import_module(name), attribute)


class _Files(TraversableResources):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def files(self) -> Path:
        return self.directory
