"""What `analytics_core.host.examining.examination` runs: ``python -m analytics_core.host.examining.examiner FOLDER``.

The order comes by the standard input. In FOLDER ``report`` is written anew at every step, so that it is there whatever
the plugin does, and ``trace`` gets the stacks of all threads when the interpreter crashes or the time is over.
"""

from __future__ import annotations

import builtins
import faulthandler
import gc
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from analytics_core.errors import HookRefusedError
from analytics_core.host.code.generation import load
from analytics_core.host.examining.examination import Examination, Imported, Order, Problem, Step, Warned
from analytics_core.records import PluginContext

HEAVY_SECONDS: Final = 0.1
_SETTLE_SECONDS: Final = 0.5
"""How long threads that were told to end have for it."""
_DESCRIPTORS: Final = Path("/dev/fd")


class Examiner:
    """One examination of one plugin."""

    def __init__(self, order: Order, home: Path) -> None:
        self._order = order
        self._home = home
        self._seen = Examination(plugin=order.found.name, version=order.found.version)

    def run(self) -> None:
        """All steps, as far as they lead."""
        modules, threads = set(sys.modules), set(threading.enumerate())
        files = _open_files()
        costs = ImportCosts(f"{self._order.found.package.replace('.', '_')}__g")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with costs:
                self._steps()
            gc.collect()
        self._seen.warnings = list(dict.fromkeys(map(self._warned, caught)))
        self._seen.imported = list(self._imported(set(sys.modules) - modules, costs.seconds))
        self._seen.left = [*_threads_left(threads), *_files_left(files)]
        self._write()

    def _steps(self) -> None:
        with self._step("import"):
            generation = load(self._order.found, 1)
        if self._failed or self._order.settings is None:
            return
        instance = generation.instance()
        with self._step("setup"):
            instance.call("setup", context=self._context(self._order.settings))
        if not self._failed:
            with self._step("teardown"):
                instance.call("teardown")
        instance.close()
        generation.retire()

    @property
    def _failed(self) -> bool:
        return bool(self._seen.problems)

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        """Time a step and keep what it raises as a problem."""
        self._seen.doing = step
        self._write()
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:  # a plugin may raise anything
            cause = error.__cause__ or error
            refused = isinstance(error, HookRefusedError)
            trace = "" if refused else "".join(traceback.format_exception(cause))
            self._seen.problems.append(Problem("hooks" if refused else step, str(error), trace))
        self._seen.seconds[step] = time.perf_counter() - began
        self._seen.doing = ""

    def _context(self, settings: dict[str, Any]) -> PluginContext:
        name = self._order.found.name
        return PluginContext(name=name, settings=settings, logger=logging.getLogger(name))

    def _warned(self, warning: warnings.WarningMessage) -> Warned:
        own = Path(warning.filename).is_relative_to(self._order.found.directory)
        return Warned(f"{warning.category.__name__}: {warning.message}", warning.filename, warning.lineno, own)

    def _imported(self, new: set[str], seconds: dict[str, float]) -> Iterator[Imported]:
        """The new modules that are heavy, another plugin's, or the plugin's own a second time."""
        package = self._order.found.package
        if package in new:
            yield Imported(package, "its own package a second time; inside it use 'from . import x'")
        for other, plugin in self._order.others.items():
            if other in new:
                yield Imported(other, f"of the plugin {plugin!r}, which is no longer free to change")
        for name, cost in sorted(seconds.items(), key=lambda item: -item[1]):
            if cost >= HEAVY_SECONDS:
                yield Imported(name, "heavy", cost)

    def _write(self) -> None:
        draft = self._home / "report.draft"
        draft.write_bytes(msgspec.json.encode(_encodable(msgspec.to_builtins(self._seen))))
        draft.replace(self._home / "report")


class ImportCosts:
    """Seconds by top-level package that the plugin's own modules spend in imports of what is not theirs.

    ``alias`` begins the names of the plugin's own modules. What a package imports in turn is counted as its own.
    """

    def __init__(self, alias: str) -> None:
        self.seconds: dict[str, float] = {}
        self._alias = alias
        self._inside = False
        self._import = builtins.__import__

    def __enter__(self) -> None:
        builtins.__import__ = self._timed

    def __exit__(self, *_: object) -> None:
        builtins.__import__ = self._import

    def _timed(self, name: str, *arguments: Any, **named: Any) -> Any:
        level = arguments[3] if len(arguments) > 3 else named.get("level", 0)
        if self._inside or level or name.startswith(self._alias):
            return self._import(name, *arguments, **named)
        self._inside = True
        began = time.perf_counter()
        try:
            return self._import(name, *arguments, **named)
        finally:
            self._inside = False
            top = name.partition(".")[0]
            self.seconds[top] = self.seconds.get(top, 0.0) + time.perf_counter() - began


def _encodable(value: Any) -> Any:
    """``value`` with lone surrogates, which a plugin's texts may hold and UTF-8 cannot, written out (``\\udc80``)."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [_encodable(each) for each in value]
        case dict():
            return {key: _encodable(each) for key, each in value.items()}
    return value


def _threads_left(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return sorted(f"thread {thread.name!r}{' (daemon)' if thread.daemon else ''}" for thread in left)


def _open_files() -> dict[str, str]:
    """Descriptor -> what it leads to, where the system tells."""
    found = {}
    for name in os.listdir(_DESCRIPTORS) if _DESCRIPTORS.is_dir() else ():  # noqa: PTH208 - only the names
        try:
            found[name] = os.readlink(_DESCRIPTORS / name)  # noqa: PTH115 - the text, not a path
        except OSError:  # the listing's own
            continue
    return found


def _files_left(before: dict[str, str]) -> list[str]:
    return sorted(f"open file {target}" for name, target in _open_files().items() if before.get(name) != target)


def _is_left_out(entry: str, folder: str) -> bool:
    """Whether ``entry`` of ``sys.path`` is ``folder`` or inside it; the environment may be inside it and stays."""
    path = Path(entry).resolve()
    return bool(folder) and path.is_relative_to(folder) and not path.is_relative_to(Path(sys.prefix).resolve())


def main(home: Path) -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order, dec_hook=lambda kind, text: kind(text))
    sys.path[:] = [*order.path, *(entry for entry in sys.path if not _is_left_out(entry, order.without))]
    logging.basicConfig(level=logging.WARNING)
    with (home / "trace").open("w", encoding="utf-8") as trace:
        faulthandler.enable(trace)
        faulthandler.dump_traceback_later(order.seconds, exit=True, file=trace)
        Examiner(order, home).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever the plugin has left running is not waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
