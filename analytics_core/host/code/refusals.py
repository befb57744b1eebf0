"""Everything about a plugin class that can be refused before it runs, in the order in which an author would mend it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

from analytics_core.errors import HookRefusedError, near
from analytics_core.hookspecs import HOOKS, PROJECT, Hooks
from analytics_core.manifest import PluginManifest

_MARK: Final = f"{PROJECT}_impl"
_GIVEN: Final = {name: list(inspect.signature(getattr(Hooks, name)).parameters)[1:] for name in HOOKS}
_OPTIONS: Final = {
    "wrapper": "wrappers see other plugins' calls, and there are none here",
    "hookwrapper": "wrappers see other plugins' calls, and there are none here",
    "tryfirst": "the order of plugins is told by 'after' in plugin.yaml",
    "trylast": "the order of plugins is told by 'after' in plugin.yaml",
    "optionalhook": "every hook is specified here",
    "specname": "name the method like the hook",
}
_PAIRS: Final = (
    ("ingest", "reply", "its answer goes out through the other"),
    ("reply", "ingest", "there would be nothing to answer"),
    ("export_state", "import_state", "what is exported must be taken over again"),
    ("import_state", "export_state", "there would be nothing to import"),
)
_PROVIDES: Final = (
    ("ingest", "routes"),
    ("insight", "analyses"),
    ("deliver", "channels"),
    ("train", "model_types"),
    ("score", "detectors"),
)


def check_hooks(plugin: type, manifest: PluginManifest) -> frozenset[str]:
    """The names of the hooks that the class ``plugin`` implements.

    :raises HookRefusedError: for the first thing that does not fit the specification or the manifest.
    """
    for problem in _problems(plugin, manifest):
        raise HookRefusedError(manifest.name, problem)
    return frozenset(_marked(plugin))


def _problems(plugin: type, manifest: PluginManifest) -> Iterator[str]:
    marked = _marked(plugin)
    for name, (function, options) in marked.items():
        for option, reason in _OPTIONS.items():
            if options.get(option):
                yield f"hook {name!r} is marked with {option}={options[option]!r}; remove it: {reason}"
        if name not in HOOKS:
            yield f"hook {name!r} is not specified{near(name, HOOKS)}"
        yield from _signature(plugin, name, function)
    yield from _unmarked(plugin, marked)
    yield from _differences(marked.keys(), manifest)
    yield from _provisions(marked.keys(), manifest)


def _marked(plugin: type) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Method name -> (function, options of ``@hookimpl``), read without running any descriptor."""
    found = {}
    for name in dir(plugin):
        function = _function(plugin, name)
        options = _marks(plugin, name).get(_MARK)
        if callable(function) and isinstance(options, dict):
            found[name] = (function, options)
    return found


def _marks(plugin: type, name: str) -> dict[str, Any]:
    """All that decorators have noted on a method: on the function, or on the static or class method around it."""
    outer = inspect.getattr_static(plugin, name)
    return {**getattr(_function(plugin, name), "__dict__", {}), **getattr(outer, "__dict__", {})}


def _function(plugin: type, name: str) -> Any:
    static = inspect.getattr_static(plugin, name)
    return static.__func__ if isinstance(static, staticmethod | classmethod) else static


def _signature(plugin: type, name: str, function: Any) -> Iterator[str]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"hook {name!r} is a generator; return the result instead of yielding it"
    parameters = list(inspect.signature(function).parameters.values())
    if not isinstance(inspect.getattr_static(plugin, name), staticmethod):
        parameters = parameters[1:]
    given = ", ".join(_GIVEN[name]) or "none"
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            stars = "*" if p.kind is p.VAR_POSITIONAL else "**"
            yield f"hook {name!r} takes {stars}{p.name}; valid arguments are: {given}"
        if p.kind is p.KEYWORD_ONLY:
            yield f"hook {name!r} takes {p.name!r} by keyword only; remove the '*' before it"
        if p.name not in _GIVEN[name]:
            hint = near(p.name, _GIVEN[name]) or "; it has none"
            yield f"hook {name!r} takes {p.name!r}, which the specification does not give{hint}"
        if p.default is not p.empty:
            yield f"hook {name!r} gives {p.name!r} a default, so it would never be passed; remove the default"


def _unmarked(plugin: type, marked: dict[str, Any]) -> Iterator[str]:
    for name in dir(plugin):
        function = _function(plugin, name)
        if foreign := _foreign(_marks(plugin, name)):
            yield f"method {name!r} is marked for {foreign!r}; import hookimpl from analytics_core"
        if name in HOOKS and name not in marked and callable(function):
            yield f"method {name!r} is named like a hook and is not marked; add @hookimpl or rename it"


def _foreign(marks: dict[str, Any]) -> str:
    """The project whose pluggy marker is among ``marks``, if it is not ours."""
    for key, value in marks.items():
        if key.endswith("_impl") and key != _MARK and isinstance(value, dict) and "hookwrapper" in value:
            return str(key.removesuffix("_impl"))
    return ""


def _differences(marked: Any, manifest: PluginManifest) -> Iterator[str]:
    for name in manifest.hooks:
        if name not in HOOKS:
            yield f"hook {name!r} in plugin.yaml is not specified{near(name, HOOKS)}"
        if name not in marked:
            yield f"hook {name!r} is listed in plugin.yaml and not implemented by {manifest.entry}"
    for name in marked:
        if name not in manifest.hooks:
            yield f"hook {name!r} is implemented and not listed under 'hooks' in plugin.yaml"


def _provisions(marked: Any, manifest: PluginManifest) -> Iterator[str]:
    for hook, other, reason in _PAIRS:
        if hook in marked and other not in marked:
            yield f"hook {hook!r} needs hook {other!r}: {reason}"
    for hook, key in _PROVIDES:
        provided = getattr(manifest.provides, key)
        if hook in marked and not provided:
            yield f"hook {hook!r} is implemented, and 'provides.{key}' in plugin.yaml is empty"
        if provided and hook not in marked:
            yield f"'provides.{key}' in plugin.yaml needs hook {hook!r}, which is not implemented"
    if manifest.provides.metrics and "process" not in marked:
        yield "'provides.metrics' in plugin.yaml needs hook 'process', which is not implemented"
