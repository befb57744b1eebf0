"""New generations of a plugin's code, as the host makes them when it reloads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from analytics_core.host.snapshot import Snapshot, read_sources
from analytics_core.testing.declared import declared

_numbers: Final = count(1_000)
"""Beyond those of any host in this process."""
_originals: Final[WeakKeyDictionary[type, type]] = WeakKeyDictionary()


def original(plugin_class: type) -> type:
    """The class of which this one is a generation made here; for any other class itself."""
    return _originals.get(plugin_class, plugin_class)


@contextmanager
def generations(plugin_class: type) -> Iterator[Callable[[], type]]:
    """Gives a function that makes a further generation of the class from its package's sources as they are now.

    A class that no ``plugin.yaml`` names as its entry has no sources of its own: then it is the class itself each time.
    The generations leave the interpreter's tables at the end; their instances go on to work.
    """
    found = declared(plugin_class)
    if found is None or not found.entered:
        yield lambda: plugin_class
        return
    package, single = _package(plugin_class, found.directory)
    with ExitStack() as stack:

        def following() -> type:
            sources = read_sources(package, found.directory, single=single)
            snapshot = Snapshot(package, f"{package.replace('.', '_')}__g{next(_numbers)}", sources)
            snapshot.install()
            stack.callback(snapshot.remove)
            loaded = import_module(snapshot.alias + plugin_class.__module__[len(package) :])
            made: type = vars(loaded)[plugin_class.__name__]
            _originals[made] = plugin_class
            return made

        yield following


def _package(plugin_class: type, directory: Path) -> tuple[str, bool]:
    """The package whose files are in ``directory``, and whether that is a single module."""
    file = Path(inspect.getfile(plugin_class))
    parts = plugin_class.__module__.split(".")
    packages = parts if file.name == "__init__.py" else parts[:-1]
    if not packages:
        return plugin_class.__module__, True
    below = len(file.parent.relative_to(directory).parts)
    return ".".join(packages[: len(packages) - below]), False
