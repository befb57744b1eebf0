"""The files of a new plugin, made of the texts in ``template/``.

``template/hooks/HOOK.txt`` holds what one hook brings, in sections that begin with ``--- name``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Final

from packaging.version import Version

import analytics_core
from analytics_core.cli.plugins.naming import NewPluginError, check_name
from analytics_core.errors import near

HOOKS: Final = ("process", "enrich", "insight", "ingest", "setup", "teardown")
"""Hooks that the template has; some bring others along."""
_BROUGHT: Final = {"export_state": "process", "import_state": "process", "reply": "ingest"}

_TEMPLATE: Final = files("analytics_core.cli.plugins") / "template"
_TIMES: Final = ("UTC", "datetime", "timedelta")
_TESTING: Final = ("MemoryReader", "batch", "check_deterministic", "run", "started")
"""What the texts may use of ``datetime`` and of ``analytics_core.testing``, besides all of ``analytics_core``."""
_WIDTH: Final = 100


class Names:
    """What one plugin is called, as plugin, package and class."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.package = name.replace("-", "_")
        self.title = " ".join(name.split("-")).capitalize()
        words = "".join(part.capitalize() for part in name.split("-"))
        self.class_name = f"{words}Plugin" if words in (*analytics_core.__all__, *_TESTING) else words


def plugin_files(name: str, hooks: Sequence[str]) -> dict[str, str]:
    """Path inside the project -> text.

    :raises NewPluginError: for a name or a hook that is not valid.
    """
    check_name(name)
    names = Names(name)
    wanted = _checked(hooks)
    parts = [_sections(hook, names) for hook in HOOKS if hook in wanted]
    listed = ", ".join(part["hooks"] for part in parts)
    words = {**vars(names), "core": Version(analytics_core.__version__).base_version, "hooks": listed}
    spoken = {**words, "hooks": ", ".join(f"`{hook}`" for hook in listed.split(", "))}
    return {
        "pyproject.toml": _filled("pyproject.toml.txt", words),
        "README.md": _filled("README.md.txt", spoken),
        f"{names.package}/__init__.py": f'"""{names.title}: a plugin of the analytics host."""\n',
        f"{names.package}/py.typed": "",
        f"{names.package}/plugin.yaml": _filled("plugin.yaml.txt", words) + _declared(parts),
        f"{names.package}/plugin.py": _module(names, parts),
        f"tests/test_{names.package}.py": _tests(names, parts),
    }


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write the files into ``folder``, which is not there or empty.

    :raises NewPluginError: when something would be overwritten, or the folder cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise NewPluginError(f"{folder} is there and no empty folder; nothing was written; name one with --folder")
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except OSError as error:
        raise NewPluginError(f"{folder} cannot be written: {error.strerror}") from error


def _checked(hooks: Sequence[str]) -> set[str]:
    """The hooks of the template that bring ``hooks``."""
    for hook in hooks:
        if hook not in HOOKS and hook not in _BROUGHT:
            raise NewPluginError(f"the template has no hook {hook!r}{near(hook, HOOKS)}")
    return {_BROUGHT.get(hook, hook) for hook in hooks}


def _filled(file: str, words: dict[str, str]) -> str:
    return Template((_TEMPLATE / file).read_text("utf-8")).substitute(words)


def _sections(hook: str, names: Names) -> dict[str, str]:
    """What ``hook`` brings, by section."""
    text = Template((_TEMPLATE / "hooks" / f"{hook}.txt").read_text("utf-8")).substitute(vars(names))
    _, *parts = re.split(r"^--- (\w+)\n", text, flags=re.MULTILINE)
    return {section: body.strip("\n") for section, body in zip(parts[::2], parts[1::2], strict=True)}


def _gathered(parts: Sequence[dict[str, str]], section: str, between: str) -> str:
    return between.join(part[section] for part in parts if section in part)


def _declared(parts: Sequence[dict[str, str]]) -> str:
    """The end of ``plugin.yaml``."""
    plain = _gathered(parts, "manifest", "\n")
    provides = _gathered(parts, "provides", "\n")
    return (f"{plain}\n" if plain else "") + (f"provides:\n{indent(provides, '  ')}\n" if provides else "")


def _module(names: Names, parts: Sequence[dict[str, str]]) -> str:
    constants = _gathered(parts, "module", "\n\n")
    methods = _gathered(parts, "methods", "\n\n")
    init = _gathered(parts, "init", "\n")
    made = f"def __init__(self) -> None:\n{indent(init, '    ')}" if init else ""
    head = _joined(f'"""The plugin {names.name}: its hooks."""', _imports(constants, methods), constants)
    body = _joined(f'"""{names.title}."""', made, methods)
    return f"{head}\n\n\nclass {names.class_name}:\n{indent(body, '    ')}\n"


def _tests(names: Names, parts: Sequence[dict[str, str]]) -> str:
    tests = _gathered(parts, "tests", "\n\n\n")
    own = f"from {names.package}.plugin import {names.class_name}"
    head = _joined(f'"""How the plugin {names.name} behaves, without a server."""', _imports(tests, tests=True), own)
    return f"{head}\n\n{chr(10) if tests.startswith('def ') else ''}{tests}\n"


def _imports(*texts: str, tests: bool = False) -> str:
    """The imports that ``texts`` need."""
    used = set(re.findall(r"\w+", "\n".join(texts)))
    standard = ["import json"] if "json" in used else []
    standard += _import("datetime", used.intersection(_TIMES))
    core = _import("analytics_core", used.intersection(analytics_core.__all__))
    core += _import("analytics_core.testing", used.intersection(_TESTING)) if tests else []
    return _joined("from __future__ import annotations", "\n".join(standard), "\n".join(core))


def _import(module: str, names: set[str]) -> list[str]:
    """One import, on several lines when it is long; none without names."""
    ordered = sorted(names, key=lambda name: (not name.isupper(), name.islower(), name))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) > _WIDTH:
        line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"
    return [line] if ordered else []


def _joined(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block)
