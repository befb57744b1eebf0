"""Registries of the process, real ones: what a generation has in them, and what they refuse to take twice."""

from __future__ import annotations

import asyncio
import builtins
import codecs
import copyreg
import fractions
import gc
import logging
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from analytics_core.errors import PluginError, RestartRequiredError
from analytics_core.host.code.generation import Generation, load
from analytics_core.host.code.registries import hindrance, refusal, registrations
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import read_plugin

MANIFEST = """
kind: plugin
manifest: 1
name: shop
entry: {package}.plugin:Plugin
hooks: [teardown]
"""
PLUGIN = """
from analytics_core import hookimpl

class Plugin:
    @hookimpl
    def teardown(self):
        undo()
"""
ARROW = """
import pyarrow as pa

class Money(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.int64(), "test.{package}.money")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls()

pa.register_extension_type(Money())

def undo():
    pa.unregister_extension_type("test.{package}.money")
"""
_numbers = count()


class Package:
    """A plugin package of a name that no other test has run. ``{package}`` in a source is that name."""

    def __init__(self, path: Path) -> None:
        self.name = f"shop_registering_{next(_numbers)}"
        self.directory = path / self.name
        self.directory.mkdir()
        (self.directory / "__init__.py").write_text("", "utf-8")
        (self.directory / "plugin.yaml").write_text(MANIFEST.format(package=self.name), "utf-8")
        self.generations: list[Generation] = []

    def load(self, source: str, number: int = 1) -> Generation:
        text = textwrap.dedent(source).replace("{package}", self.name) + PLUGIN
        (self.directory / "plugin.py").write_text(text, "utf-8")
        manifest = read_plugin(self.directory / "plugin.yaml")
        generation = load(Found("shop", "shop", "1.0", self.name, self.directory, manifest), number)
        self.generations.append(generation)
        return generation

    def module(self, number: int = 1) -> ModuleType:
        return sys.modules[f"{self.name}__g{number}.plugin"]


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Package]:
    package = Package(tmp_path)
    yield package
    for generation in package.generations:
        generation.retire()


def names(generation: Generation) -> list[str]:
    return [str(each) for each in generation.registered()]


# --- what is registered ----------------------------------------------------------------------------------------------

Undo = Callable[[ModuleType], object]
ONCE: dict[str, tuple[str, Undo, str]] = {
    "signal": (
        "import signal\ndef handle(*_): ...\nsignal.signal(signal.SIGUSR2, handle)",
        lambda _: signal.signal(signal.SIGUSR2, signal.SIG_DFL),
        "signal handler SIGUSR2",
    ),
    "excepthook": (
        "import sys\nfrom functools import partial\ndef told(*_): ...\nsys.excepthook = partial(told, 1)",
        lambda _: setattr(sys, "excepthook", sys.__excepthook__),
        "hook sys.excepthook",
    ),
    "threads": (
        "import threading\nclass Hook:\n    def told(self, *_): ...\nthreading.excepthook = Hook().told",
        lambda _: setattr(threading, "excepthook", threading.__excepthook__),
        "hook threading.excepthook",
    ),
    "builtins": (
        "import builtins\ndef translate(x): ...\nbuiltins.translate = translate",
        lambda _: delattr(builtins, "translate"),
        "hook builtins.translate",
    ),
    "policy": (
        "import asyncio\nclass Policy(asyncio.DefaultEventLoopPolicy): ...\nasyncio.set_event_loop_policy(Policy())",
        lambda _: asyncio.set_event_loop_policy(None),
        "hook asyncio event loop policy",
    ),
    "import": (
        "import sys\nclass Finder:\n    def find_spec(self, *_): ...\nsys.meta_path.append(Finder())",
        lambda _: sys.meta_path.pop(),
        "import hook Finder in sys.meta_path",
    ),
    "codec": (
        "import codecs\ndef search(name): ...\ncodecs.register(search)",
        lambda module: codecs.unregister(module.search),
        "codec search function search",
    ),
    "pickle": (
        "import copyreg, fractions\ndef reduce(x): return str(x)\ncopyreg.pickle(fractions.Fraction, reduce)",
        lambda _: copyreg.dispatch_table.pop(fractions.Fraction),
        "pickle reducer of fractions.Fraction",
    ),
    "arrow": (ARROW, lambda module: module.undo(), "Arrow extension type test.{package}.money"),
}


@pytest.mark.parametrize("case", ONCE)
def test_what_no_two_generations_can_have_is_named_until_it_is_undone(package: Package, case: str) -> None:
    source, undo, expected = ONCE[case]
    generation = package.load(source)
    module = package.module()
    try:
        assert names(generation) == [expected.replace("{package}", package.name)]
        assert expected.replace("{package}", package.name) in hindrance(generation.registered())
        assert "reload.strategy: stop_first" in hindrance(generation.registered())
    finally:
        undo(module)
    assert generation.registered() == ()
    assert hindrance(generation.registered()) == ""


@pytest.mark.parametrize(
    ("source", "undo", "expected"),
    [
        (
            "import logging\nclass Handler(logging.NullHandler): ...\nlogging.getLogger().addHandler(Handler())",
            lambda module: logging.root.removeHandler(
                next(each for each in logging.root.handlers if isinstance(each, module.Handler))
            ),
            "log handler Handler of logger 'root'",
        ),
        (
            "import gc\ndef collected(*_): ...\ngc.callbacks.append(collected)",
            lambda module: gc.callbacks.remove(module.collected),
            "gc callback collected",
        ),
    ],
)
def test_what_only_keeps_a_generation_alive_is_no_hindrance(
    package: Package, source: str, undo: Undo, expected: str
) -> None:
    generation = package.load(source)
    module = package.module()
    try:
        assert names(generation) == [expected]
        assert hindrance(generation.registered()) == ""
        generation.retire()
        assert expected in generation.survivors()
    finally:
        undo(module)


def test_fork_hooks_are_seen(package: Package) -> None:
    """In their lists for good: nobody can take one out, so that this one does nothing."""
    generation = package.load("import os\ndef forked(): ...\nos.register_at_fork(before=forked)")
    assert names(generation) == ["fork hook forked"]


def test_what_others_have_registered_is_not_the_generations(package: Package) -> None:
    package.load("class Handler: ...")
    other = Package(package.directory).load(ONCE["signal"][0])
    try:
        assert package.generations[0].registered() == ()
        assert len(other.registered()) == 1
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        other.retire()


def test_the_reducer_of_an_own_class_is_no_hindrance(package: Package) -> None:
    generation = package.load("import copyreg\nclass Size: ...\ncopyreg.pickle(Size, lambda s: 'SIZE')")
    assert generation.registered() == ()
    del copyreg.dispatch_table[package.module().Size]


def test_a_decorated_function_is_its_generations(package: Package) -> None:
    source = """
    import contextlib, sys

    @contextlib.contextmanager
    def told(*_):
        yield
    sys.displayhook = told
    """
    generation = package.load(source)
    sys.displayhook = sys.__displayhook__ if (found := names(generation)) else sys.displayhook
    assert found == ["hook sys.displayhook"]


def test_a_torch_operator_by_the_function_that_it_calls(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's table of operators, which has these two names."""
    package.load("def double(x): return 2 * x")
    operator = SimpleNamespace(_init_fn=package.module().double)
    table = SimpleNamespace(OPDEFS={"shop::double": operator, "other::op": SimpleNamespace(_init_fn=print)})
    monkeypatch.setitem(sys.modules, "torch._library.custom_ops", table)  # type: ignore[arg-type]
    assert [str(each) for each in registrations(f"{package.name}__g1")] == ["torch operator shop::double"]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_registry_that_refuses_the_next_generation_needs_a_restart(package: Package) -> None:
    first = package.load(ARROW)
    with pytest.raises(RestartRequiredError) as raised:
        package.load(ARROW, 2)
    expected = f"Arrow extension type test.{package.name}.money is registered already"
    assert expected in str(raised.value)
    assert f"{package.name}__g2" not in sys.modules
    first.instance().call("teardown")
    package.load(ARROW, 3)
    package.module(3).undo()


def test_one_that_was_left_by_a_broken_import_needs_a_restart_too(package: Package) -> None:
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        package.load(ARROW + "1 / 0\n")
    with pytest.raises(RestartRequiredError, match="is registered already"):
        package.load(ARROW, 2)
    pa.unregister_extension_type(f"test.{package.name}.money")


def test_a_clash_with_others_is_no_matter_of_a_restart(package: Package) -> None:
    for number in (1, 2):
        with pytest.raises(PluginError, match="ArrowKeyError: A type extension with name") as raised:
            package.load(ARROW + "pa.register_extension_type(Money())\n", number)
        assert not isinstance(raised.value, RestartRequiredError)
        pa.unregister_extension_type(f"test.{package.name}.money")


def test_the_function_of_an_earlier_generation_is_refused_by_arrow() -> None:
    def register() -> None:
        about = {"summary": "", "description": ""}
        pc.register_scalar_function(lambda _, x: x, "test_registries_same", about, {"x": pa.int64()}, pa.int64())

    register()
    with pytest.raises(pa.ArrowKeyError) as raised:
        register()
    assert refusal(raised.value).startswith("Arrow function test_registries_same is registered already")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("Duplicated timeseries in CollectorRegistry: {'a_created', 'a_total', 'a'}"),
         "Prometheus collector a"),
        (RuntimeError("Tried to register an operator (shop::two(Tensor x) -> Tensor) with the same name and overload "
                      "name multiple times. Each overload's schema should only be registered with a single call"),
         "torch operator shop::two(Tensor x) -> Tensor"),
        (RuntimeError("This is not allowed since there's already a kernel registered from python overriding two's "
                      "behavior for CPU dispatch key and shop namespace."), "torch operator two"),
        (RuntimeError("Only a single TORCH_LIBRARY can be used to register the namespace shop; please put all of "
                      "your definitions in a single TORCH_LIBRARY block."), "torch library shop"),
        (TypeError("Couldn't build proto file into descriptor pool: duplicate file name shop.proto"),
         "protobuf file name shop.proto"),
        (TypeError('Couldn\'t build proto file into descriptor pool!\nInvalid proto descriptor for file "shop.proto":\n'
                   "  shop.proto: A file with this name is already in the pool."), "protobuf file shop.proto"),
    ],
)  # fmt: skip
def test_the_words_of_registries_that_take_nothing_twice(error: Exception, expected: str) -> None:
    outer = PluginError("shop", "import failed")
    outer.__cause__ = error
    assert refusal(outer).startswith(f"{expected} is registered already, and a process holds one")


def test_other_errors_are_no_refusals() -> None:
    first, second = ValueError("'a' is already registered"), KeyError("shop")
    first.__cause__, second.__cause__ = second, first
    assert refusal(first) == ""


# --- prometheus ------------------------------------------------------------------------------------------------------


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real library with its real default registry, emptied of what a test leaves."""
    library = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    before = set(library.REGISTRY._collector_to_names)
    yield library
    for each in set(library.REGISTRY._collector_to_names) - before:
        library.REGISTRY.unregister(each)


@pytest.mark.parametrize(
    "source",
    [
        "COUNTER = Counter('{package}', 'x')",
        "ALL = {'counters': [Counter('{package}', 'x')]}",
        "class Metrics:\n    def __init__(self): self.orders = Counter('{package}', 'x')\nMETRICS = Metrics()",
        "class Metrics:\n    orders = Counter('{package}', 'x')",
        "def made(counter):\n    return lambda: counter\ncount = made(Counter('{package}', 'x'))",
    ],
)
def test_a_collector_that_the_generation_holds(package: Package, prometheus: Any, source: str) -> None:
    prometheus.Counter(f"others_{package.name}", "of nobody here")
    generation = package.load(f"from prometheus_client import Counter, REGISTRY\n{source}")
    assert names(generation) == [f"Prometheus collector {package.name}"]
    assert hindrance(generation.registered())
    with pytest.raises(RestartRequiredError, match=f"Prometheus collector {package.name} is registered already"):
        package.load(f"from prometheus_client import Counter, REGISTRY\n{source}", 2)
    generation.retire()
    assert f"Prometheus collector {package.name}" in generation.survivors()


def test_a_collector_of_an_own_class_and_one_in_an_object_of_the_plugin(package: Package, prometheus: Any) -> None:
    source = """
    from prometheus_client import Counter, REGISTRY

    class Own:
        def collect(self):
            return []
    REGISTRY.register(Own())

    class Orders:
        def __init__(self):
            self.counter = Counter("{package}", "x")
    """
    generation = package.load(source)
    assert names(generation) == ["Prometheus collector Own"]
    orders = package.module().Orders()
    assert names(generation) == ["Prometheus collector Own", f"Prometheus collector {package.name}"]
    del orders
