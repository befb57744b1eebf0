"""A fold that goes on in a fresh interpreter, where nothing is left of the first one but the exported state.

``python -P -m analytics_core.testing.interpreter <order> <reply>`` is the other side. It imports the module of the
plugin and nothing else: never the program that was started, which would start all over again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import getfile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from msgspec import Struct

from analytics_core.events import EventBatch
from analytics_core.host.running.wire import decode, encode
from analytics_core.records import ProcessResult
from analytics_core.testing.running import fresh

_SECONDS: Final = 120.0
_INSIDE: Final = "ANALYTICS_FRESH_INTERPRETER"
"""In the environment of a fresh interpreter: a module that checks its plugin when it is imported starts no other."""
_MOST_SEED: Final = 4_294_967_295


class Order(Struct, frozen=True, kw_only=True):
    """Which class to go on with, from which state (as `Subject.export` gives it), over which batches."""

    module: str
    name: str
    file: str
    settings: dict[str, Any]
    state: bytes
    batches: list[EventBatch]


class Reply(Struct, frozen=True):
    """What each batch gave, and the state after the last one."""

    results: list[ProcessResult]
    state: bytes


def unreachable(plugin_class: type) -> str:
    """Why no other interpreter can import the class by its module and name; empty when one can."""
    if _INSIDE in os.environ:
        return "this is the fresh interpreter of another check"
    if plugin_class.__module__ == "__main__":
        return "the class is in the program itself, which would run again; put it into a module of its own"
    if "<locals>" in plugin_class.__qualname__:
        return "the class is made inside a function, so no other interpreter can import it"
    return ""


def go_on(
    plugin_class: type, settings: Mapping[str, Any], state: bytes, batches: Sequence[EventBatch], *, seed: int
) -> Reply:
    """Import ``state`` into an instance in a new interpreter and fold ``batches`` there.

    Its hashes of strings follow ``seed``, which is never that of this interpreter.

    :raises AssertionError: with the end of what it has written, when it fails.
    """
    order = Order(
        module=plugin_class.__module__,
        name=plugin_class.__qualname__,
        file=getfile(plugin_class),
        settings=dict(settings),
        state=state,
        batches=list(batches),
    )
    with TemporaryDirectory() as directory:
        asked, answered = Path(directory) / "order", Path(directory) / "reply"
        asked.write_bytes(encode(order))
        command = [sys.executable, "-P", "-m", "analytics_core.testing.interpreter", str(asked), str(answered)]
        done = subprocess.run(  # noqa: S603  this interpreter and this module
            command, env=_environment(seed), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if not answered.exists():
            last = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
            raise AssertionError(f"the fresh interpreter ended with exit code {done.returncode}:\n{last}")
        reply: Reply = decode(answered.read_bytes(), Reply)
    return reply


def _environment(seed: int) -> dict[str, str]:
    hashes = str(seed % _MOST_SEED + 1)
    if hashes == os.environ.get("PYTHONHASHSEED"):
        hashes = str((seed + 1) % _MOST_SEED + 1)
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": path, _INSIDE: "1"}


def _class_of(order: Order) -> type:
    found: Any = _module_of(order)
    for name in order.name.split("."):
        found = getattr(found, name)
    made: type = found
    return made


def _module_of(order: Order) -> ModuleType:
    """By its name; by its file when it is a test that pytest has imported from no path."""
    try:
        return import_module(order.module)
    except ModuleNotFoundError as error:
        if not f"{order.module}.".startswith(f"{error.name}."):
            raise
    spec = spec_from_file_location(order.module, order.file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[order.module] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(asked: str, answered: str) -> None:
    order: Order = decode(Path(asked).read_bytes(), Order)
    with fresh(_class_of(order), order.settings) as subject:
        subject.restore(order.state)
        results = [subject.process(each) for each in order.batches]
        state = subject.export()
    Path(answered).write_bytes(encode(Reply(results, state)))


if __name__ == "__main__":
    main(*sys.argv[1:])
