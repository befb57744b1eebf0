"""Generations: snapshots of a package beside each other, and every refusal before a plugin runs."""

from __future__ import annotations

import gc
import importlib
import linecache
import sys
import textwrap
import traceback
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import yaml

from analytics_core.errors import HookFailedError, HookRefusedError, PluginError
from analytics_core.events import EventBatch
from analytics_core.host.code.generation import Generation, load
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import read_plugin

BATCH = EventBatch.empty("default", datetime(2025, 1, 1, tzinfo=UTC))

PLUGIN = """
from analytics_core import Metric, ProcessResult, Window, hookimpl
from datetime import UTC, datetime

class Plugin:
    @hookimpl
    def process(self, batch):
        window = Window(datetime(2025, 1, 1, tzinfo=UTC))
        return ProcessResult([Metric(name="value", value=self.value(), window=window)])

    def value(self):
        return 1.0
"""


class Package:
    """A plugin package on disk, as discovery would give it."""

    def __init__(self, path: Path, package: str = "shop_gen") -> None:
        self.package = package
        self.directory = path.joinpath(*package.split("."))
        self.manifest: dict[str, Any] = {
            "kind": "plugin",
            "manifest": 1,
            "name": "shop",
            "entry": f"{package}.plugin:Plugin",
            "hooks": ["process"],
        }

    def write(self, **modules: str) -> Package:
        """``sub__module`` is ``sub/module.py``; packages get their ``__init__.py``."""
        for name, text in {"__init__": "", **modules}.items():
            path = self.directory.joinpath(*name.split("__")) if name != "__init__" else self.directory / name
            path = path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").write_text("", "utf-8")
            path.write_text(textwrap.dedent(text), "utf-8")
        return self

    def found(self) -> Found:
        file = self.directory / "plugin.yaml"
        file.write_text(yaml.safe_dump(self.manifest), "utf-8")
        return Found("shop", "shop", "1.0", self.package, self.directory, read_plugin(file))

    def load(self, number: int = 1) -> Generation:
        return load(self.found(), number)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    modules, finders = set(sys.modules), list(sys.meta_path)
    yield
    for finder in [f for f in sys.meta_path if f not in finders]:
        finder.remove()  # type: ignore[attr-defined]
    assert not [name for name in set(sys.modules) - modules if "shop_gen" in name or "__g" in name]


def value(generation: Generation) -> float:
    return float(generation.instance().call("process", batch=BATCH).metrics[0].value)


def with_value(expression: str, head: str = "") -> str:
    return head + PLUGIN.replace("return 1.0", f"return {expression}")


def test_a_generation_runs_its_hooks(package: Package) -> None:
    generation = package.write(plugin=PLUGIN).load()
    assert (generation.plugin, generation.number, generation.hooks) == ("shop", 1, frozenset({"process"}))
    assert value(generation) == 1.0
    assert "shop_gen" not in sys.modules
    assert "shop_gen__g1.plugin" in sys.modules
    generation.retire()


def test_two_generations_stand_side_by_side(package: Package) -> None:
    first = package.write(plugin=with_value("size.SIZE", "from shop_gen import size\n"), size="SIZE = 1.0").load(1)
    second = package.write(size="SIZE = 2.0").load(2)
    assert (value(first), value(second), value(first)) == (1.0, 2.0, 1.0)
    first.retire()
    assert value(second) == 2.0
    second.retire()


@pytest.mark.parametrize(
    ("head", "expression"),
    [
        ("from . import size\n", "size.SIZE"),
        ("from .size import SIZE\n", "SIZE"),
        ("from .deep.down import SIZE\n", "SIZE"),
        ("import shop_gen.size\n", "shop_gen.size.SIZE"),
        ("import shop_gen.size as s\n", "s.SIZE"),
        ("import shop_gen\n", "shop_gen.CONSTANT"),
        ("from shop_gen import size as s\n", "s.SIZE"),
        ("from shop_gen.size import *\n", "SIZE"),
        ("import shop_gen.deep.down\n", "shop_gen.deep.down.SIZE"),
        ("from shop_gen.deep import down\n", "down.SIZE"),
        ("", "__import__('shop_gen.size').size.SIZE"),
        ("", "eval('__import__(\"shop_gen.size\").size.SIZE')"),
        ("import importlib\n", "importlib.import_module('.size', __package__).SIZE"),
    ],
)
def test_imports_of_the_package_stay_inside_the_generation(package: Package, head: str, expression: str) -> None:
    package.write(
        __init__="CONSTANT = 7.0", plugin=with_value(expression, head), size="SIZE = 7.0",
        deep__down="from ..size import SIZE",
    )  # fmt: skip
    generation = package.load()
    package.write(__init__="", size="SIZE = 8.0")  # too late: the snapshot is taken, for lazy imports too
    assert value(generation) == 7.0
    generation.retire()


def test_a_lazy_import_finds_the_snapshot_and_no_newer_file(package: Package) -> None:
    lazy = with_value("late()").replace(
        "class Plugin", "def late():\n    import shop_gen.late as l\n    return l.V\n\nclass Plugin"
    )
    generation = package.write(plugin=lazy).load()
    package.write(late="V = 1.0")
    with pytest.raises(HookFailedError, match=r"ModuleNotFoundError: No module named 'shop_gen\.late'"):
        generation.instance().call("process", batch=BATCH)
    generation.retire()


@pytest.mark.parametrize("regular", [False, True])
@pytest.mark.parametrize(
    ("head", "expression"),
    [
        ("from . import size\n", "size.SIZE"),
        ("import company_gen.shop.size\n", "company_gen.shop.size.SIZE"),
        ("import company_gen.shop.size as s\n", "s.SIZE"),
        ("from company_gen.shop import size\n", "size.SIZE"),
        ("from company_gen import shop\nimport company_gen.shop.size\n", "shop.size.SIZE"),
        ("import company_gen.other\n", "company_gen.other.SEVEN"),
        ("from company_gen import other\n", "other.SEVEN"),
        ("import company_gen.other, company_gen.shop.size\n", "company_gen.shop.size.SIZE"),
    ],
)
def test_a_package_inside_another_keeps_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regular: bool, head: str, expression: str
) -> None:
    package = Package(tmp_path, "company_gen.shop").write(plugin=with_value(expression, head), size="SIZE = 7.0")
    (tmp_path / "company_gen" / "other.py").write_text("SEVEN = 7.0\n", "utf-8")
    if regular:
        (tmp_path / "company_gen" / "__init__.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    generation = package.load()
    assert value(generation) == 7.0
    assert "company_gen.shop" not in sys.modules
    generation.retire()
    for name in [name for name in sys.modules if name.partition(".")[0] == "company_gen"]:
        del sys.modules[name]


def test_a_package_without_init_files(package: Package) -> None:
    package.write(plugin=with_value("SIZE", "from .deep.down import SIZE\n"), deep__down="SIZE = 7.0")
    (package.directory / "__init__.py").unlink()
    (package.directory / "deep" / "__init__.py").unlink()
    generation = package.load()
    assert value(generation) == 7.0
    generation.retire()


def test_a_single_module(tmp_path: Path) -> None:
    package = Package(tmp_path)
    (tmp_path / "shop_gen.py").write_text(PLUGIN, "utf-8")
    package.manifest["entry"] = "shop_gen:Plugin"
    package.directory = tmp_path
    generation = package.load()
    assert value(generation) == 1.0
    assert "shop_gen__g1" in sys.modules
    generation.retire()


def test_resources_are_read_beside_the_code(package: Package) -> None:
    head = "from importlib.resources import files\nfrom pathlib import Path\n"
    near, inside = "Path(__file__).with_name('size.txt')", "files(__package__).joinpath('size.txt')"
    expression = f"float({inside}.read_text()) + len({near}.read_text())"
    package.write(plugin=with_value(expression, head))
    (package.directory / "size.txt").write_text("7", "utf-8")
    generation = package.load()
    assert value(generation) == 8.0
    generation.retire()


def test_what_looks_modules_up_by_name_works(package: Package) -> None:
    head = """
from __future__ import annotations
import dataclasses, pickle, typing

@dataclasses.dataclass
class Size:
    size: float = dataclasses.field(default=7.0)
    typing.get_type_hints
"""
    expression = "pickle.loads(pickle.dumps(Size())).size if typing.get_type_hints(Size)['size'] is float else 0.0"
    generation = package.write(plugin=head + with_value(expression)).load()
    assert value(generation) == 7.0
    generation.retire()


def test_a_traceback_shows_the_real_file_and_line(package: Package) -> None:
    generation = package.write(plugin=with_value("1 / 0")).load()
    with pytest.raises(HookFailedError, match="Plugin 'shop': hook 'process' failed: ZeroDivisionError") as raised:
        generation.instance().call("process", batch=BATCH)
    linecache.checkcache()
    last = traceback.extract_tb(raised.value.__cause__.__traceback__)[-1]  # type: ignore[union-attr]
    assert (last.filename, last.line) == (str(package.directory / "plugin.py"), "return 1 / 0")
    generation.retire()


def test_stale_bytecode_is_never_used(package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package.write(plugin=with_value("SIZE", "from .size import SIZE\n"), size="SIZE = 1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("shop_gen.size")  # leaves a .pyc of the same second and size
    for name in ("shop_gen", "shop_gen.size"):
        del sys.modules[name]
    package.write(size="SIZE = 2.0")
    generation = package.load()
    assert value(generation) == 2.0
    generation.retire()


# --- the end of a generation -----------------------------------------------------------------------------------------


def test_a_retired_generation_is_gone(package: Package) -> None:
    source = with_value("size.SIZE", "import shop_gen.size\nfrom . import size\nimport functools, dataclasses\n")
    generation = package.write(plugin=source, size="SIZE = 7.0").load()
    before = list(sys.meta_path)
    instance = generation.instance()
    assert instance.call("process", batch=BATCH).metrics[0].value == 7.0
    kept = [weakref.ref(sys.modules[f"shop_gen__g1{name}"]) for name in ("", ".plugin", ".size")]
    kept.append(weakref.ref(sys.modules["shop_gen__g1.plugin"].Plugin))
    generation.retire()
    generation.retire()
    assert len(sys.meta_path) == len(before) - 1
    with pytest.raises(PluginError, match="generation 1 is retired"):
        generation.instance()
    assert instance.call("process", batch=BATCH).metrics[0].value == 7.0
    instance.close()
    del instance, generation
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_a_number_is_given_once_at_a_time(package: Package) -> None:
    generation = package.write(plugin=PLUGIN).load(3)
    with pytest.raises(PluginError, match="generation 3 is loaded already"):
        package.load(3)
    assert value(generation) == 1.0
    generation.retire()
    again = package.load(3)
    again.retire()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nothing_like_this", "import failed: ModuleNotFoundError: No module named 'nothing_like_this' ("),
        ("from . import absent", "import failed: ImportError: cannot import name 'absent' from 'shop_gen' ("),
        ("import shop_gen.absent", "import failed: ModuleNotFoundError: No module named 'shop_gen.absent'"),
        ("def (", "import failed: SyntaxError: "),
        ("raise SystemExit(3)", "import failed: SystemExit: 3 ("),
        ("1 / 0", "import failed: ZeroDivisionError: division by zero ("),
        ("class Plugins: pass", "entry 'shop_gen.plugin:Plugin': the module has no class 'Plugin'; valid are: Plugins"),
        ("Plugin = 5", "entry 'shop_gen.plugin:Plugin': the module has no class 'Plugin'"),
        (PLUGIN + "    def __init__(self, size): pass", "Plugin() failed: TypeError: Plugin.__init__() missing 1"),
        (PLUGIN + "    def __init__(self): raise SystemExit", "Plugin() failed: SystemExit"),
    ],
)
def test_a_broken_one_says_why_and_leaves_nothing_behind(package: Package, source: str, expected: str) -> None:
    package.write(plugin=source)
    finders = list(sys.meta_path)
    with pytest.raises(PluginError) as raised:
        package.load()
    assert str(raised.value).startswith(f"Plugin 'shop': {expected}")
    assert sys.meta_path == finders
    assert not [name for name in sys.modules if name.startswith("shop_gen")]


def test_the_reason_names_the_innermost_line_of_the_plugin(package: Package) -> None:
    package.write(plugin="from . import size", size="\n\nimport json\njson.loads('{')")
    with pytest.raises(PluginError, match=r"JSONDecodeError: .* \(.*size\.py, line 4\)"):
        package.load()


def test_a_c_extension_inside_the_package_needs_a_restart(package: Package) -> None:
    package.write(plugin=PLUGIN)
    (package.directory / f"fast{EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")
    with pytest.raises(PluginError, match=rf".*fast{EXTENSION_SUFFIXES[0]} is a C extension"):
        package.load()


def test_what_discovery_found_broken_is_not_loaded(package: Package) -> None:
    found = Found("shop", "shop", "1", "shop_gen", package.directory, None, "it is claimed twice", "invalid")
    with pytest.raises(PluginError, match="it is claimed twice"):
        load(found, 1)


# --- refusals --------------------------------------------------------------------------------------------------------

GOOD = """
from analytics_core import hookimpl
import pluggy
foreign = pluggy.HookimplMarker("pytest")

class Plugin:
    @hookimpl
    def process(self, batch):
        return None

    @hookimpl
    def insight(self, question, events):
        return None

    @hookimpl
    def enrich(self, batch):
        return None
"""
MANIFEST = {"hooks": ["process", "insight", "enrich"], "provides": {"analyses": [{"name": "baskets"}]}}

PROCESS = "    @hookimpl\n    def process(self, batch):\n        return None\n"
ENRICH = "    @hookimpl\n    def enrich(self, batch):"
INSIGHT = "\n\n    @hookimpl\n    def insight"


def marked(option: str) -> str:
    return ENRICH.replace("hookimpl", f"hookimpl({option})")


def refused(package: Package, source: str, manifest: dict[str, Any]) -> str:
    package.write(plugin=source)
    package.manifest.update(manifest)
    with pytest.raises(HookRefusedError) as raised:
        package.load()
    assert raised.value.plugin == "shop"
    return str(raised.value)


def test_the_good_one_is_taken(package: Package) -> None:
    package.manifest.update(MANIFEST)
    package.write(plugin=GOOD).load().retire()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("def process(", "def proces(", "hook 'proces' is not specified; did you mean 'process'?"),
        ("def process(", "def on_purchase(", "hook 'on_purchase' is not specified; valid are: alert, deliver"),
        (ENRICH, marked("wrapper=True"), "hook 'enrich' is marked with wrapper=True"),
        (ENRICH, marked("hookwrapper=True"), "hook 'enrich' is marked with hookwrapper=True"),
        (ENRICH, marked("tryfirst=True"),
         "hook 'enrich' is marked with tryfirst=True; remove it: the order of plugins is told by 'after'"),
        (ENRICH, marked("optionalhook=True"), "hook 'enrich' is marked with optionalhook"),
        (ENRICH, marked("specname='alert'"), "hook 'enrich' is marked with specname='alert'"),
        ("process(self, batch)", "process(self, *, batch)", "hook 'process' takes 'batch' by keyword only"),
        ("process(self, batch)", "process(self, *args)", "hook 'process' takes *args; valid arguments are"),
        ("process(self, batch)", "process(self, **kwargs)", "hook 'process' takes **kwargs; valid arguments are"),
        ("process(self, batch)", "process(self, bach)",
         "hook 'process' takes 'bach', which the specification does not give; did you mean 'batch'?"),
        ("process(self, batch)", "process(self, batch, store)",
         "hook 'process' takes 'store', which the specification does not give; valid are: batch"),
        ("process(self, batch)", "process(self, batch=None)", "hook 'process' gives 'batch' a default"),
        ("        return None" + INSIGHT, "        yield None" + INSIGHT,
         "hook 'process' is a generator; return the result"),
        (ENRICH, ENRICH.replace("@hookimpl", "@foreign"), "method 'enrich' is marked for 'pytest'; import hookimpl"),
        (ENRICH, "    def enrich(self, batch):", "method 'enrich' is named like a hook and is not marked"),
        (ENRICH, "    @hookimpl\n    def alert(self, signals):", "hook 'enrich' is listed in plugin.yaml and not"),
        (ENRICH, "    @hookimpl\n    def teardown(self): pass\n\n" + ENRICH,
         "hook 'teardown' is implemented and not listed under 'hooks' in plugin.yaml"),
    ],
)  # fmt: skip
def test_a_class_that_does_not_fit_is_refused(package: Package, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert refused(package, GOOD.replace(old, new, 1), MANIFEST).startswith(f"Plugin 'shop': {expected}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hooks": ["process", "insigt", "enrich"]}, "hook 'insigt' in plugin.yaml is not specified; did you mean"),
        ({"hooks": ["process", "insight"]}, "hook 'enrich' is implemented and not listed under 'hooks' in plugin.yaml"),
        ({"hooks": ["process", "insight", "enrich", "alert"]}, "hook 'alert' is listed in plugin.yaml and not"),
        ({"provides": {}}, "hook 'insight' is implemented, and 'provides.analyses' in plugin.yaml is empty"),
        ({"provides": {**MANIFEST["provides"], "routes": ["POST /x"]}},  # type: ignore[dict-item]
         "'provides.routes' in plugin.yaml needs hook 'ingest', which is not implemented"),
        ({"provides": {**MANIFEST["provides"], "detectors": ["spike"]}},  # type: ignore[dict-item]
         "'provides.detectors' in plugin.yaml needs hook 'score', which is not implemented"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_is_refused(package: Package, change: dict[str, Any], expected: str) -> None:
    assert refused(package, GOOD, {**MANIFEST, **change}).startswith(f"Plugin 'shop': {expected}")


@pytest.mark.parametrize(
    ("hook", "arguments", "provides", "expected"),
    [
        ("ingest", "request", {"routes": ["POST /x"]}, "hook 'ingest' needs hook 'reply'"),
        ("reply", "request, outcome", {}, "hook 'reply' needs hook 'ingest'"),
        ("export_state", "", {}, "hook 'export_state' needs hook 'import_state'"),
        ("import_state", "state, version", {}, "hook 'import_state' needs hook 'export_state'"),
        ("train", "model, events", {}, "hook 'train' is implemented, and 'provides.model_types'"),
        ("score", "series", {}, "hook 'score' is implemented, and 'provides.detectors'"),
        ("deliver", "notification, channel", {}, "hook 'deliver' is implemented, and 'provides.channels'"),
        ("insight", "question", {"analyses": [{"name": "a"}], "metrics": [{"name": "m"}]},
         "'provides.metrics' in plugin.yaml needs hook 'process'"),
    ],
)  # fmt: skip
def test_hooks_that_need_each_other(
    package: Package, hook: str, arguments: str, provides: dict[str, Any], expected: str
) -> None:
    source = (
        f"from analytics_core import hookimpl\nclass Plugin:\n    @hookimpl\n    def {hook}(self, {arguments}): pass\n"
    )
    assert refused(package, source, {"hooks": [hook], "provides": provides}).startswith(f"Plugin 'shop': {expected}")


def test_a_refused_one_leaves_nothing_behind(package: Package) -> None:
    finders = list(sys.meta_path)
    refused(package, GOOD.replace("def process(", "def proces("), MANIFEST)
    assert sys.meta_path == finders
    assert not [name for name in sys.modules if name.startswith("shop_gen")]


def test_attributes_that_are_no_methods_may_be_named_like_hooks(package: Package) -> None:
    source = (
        PLUGIN
        + "    score: float = 0.5\n\n    @property\n    def alert(self):\n        raise RuntimeError('was run')\n"
    )
    package.write(plugin=source).load().retire()


def test_static_class_and_async_methods_and_inherited_ones_are_hooks(package: Package) -> None:
    source = """
    from analytics_core import Answer, hookimpl

    class Above:
        @hookimpl
        async def insight(self, question):
            return Answer([])

    class Plugin(Above):
        @hookimpl
        @staticmethod
        def process(batch): return None

        @hookimpl
        @classmethod
        def enrich(cls, batch): return None
    """
    package.manifest.update(MANIFEST)
    generation = package.write(plugin=source).load()
    instance = generation.instance()
    assert instance.call("process", batch=BATCH) is None
    assert instance.call("enrich", batch=BATCH) is None
    assert instance.call("insight", question=None, events=None).table == []
    instance.close()
    generation.retire()
