"""What becomes of each installed plugin, said without a server and without importing a line of any of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any, Final

from analytics_core.config import Settings
from analytics_core.host.discovery import GROUP, Found, discover
from analytics_core.host.health import RUNNING, State
from analytics_core.host.selection import Choice, choose
from analytics_core.manifest import Deployment, PluginManifest, fit_schema, read_deployment

RUNS: Final[frozenset[State]] = RUNNING | {"discovered", "loading", "starting", "retrying"}
"""States of a plugin that runs or is on its way to; every other one needs somebody to do something."""
MASK: Final = "***"

_LEFT_OUT: Final = (
    'hatchling takes it with the package ([tool.hatch.build.targets.wheel] packages = ["{top}"]); '
    'setuptools needs [tool.setuptools.package-data] "{package}" = ["{file}"]'
)


def judge(settings: Settings, environ: Mapping[str, str], paths: Sequence[str] | None = None) -> list[Choice]:
    """A choice for each plugin on ``paths`` (default: ``sys.path``) and each that the operator names, as the host
    would make it; sorted by name.

    :raises ManifestError: for deployment manifests that cannot be read.
    """
    return choose(discover(paths), settings, read_deployment(settings.manifests_dir, environ))


def named(name: str, choices: Iterable[Choice]) -> list[Choice]:
    """The plugins that are called ``name``, else those of the distribution ``name``; dashes and case are one."""
    wanted, listed = normal(name), list(choices)
    same = [choice for choice in listed if normal(choice.name) == wanted]
    return same or [choice for choice in listed if choice.found and normal(choice.found.distribution) == wanted]


def undeclared(name: str) -> str:
    """Why the installed distribution ``name`` is no plugin; empty when nothing of that name is installed."""
    dist = _distribution(name)
    if dist is None:
        return ""
    return (
        f"the distribution {dist.metadata['Name']} {dist.version} is installed and declares no entry point in the "
        f'group {GROUP!r}; add [project.entry-points."{GROUP}"] to its pyproject.toml and install it again'
    )


def advice(found: Found) -> str:
    """What its author can do about a manifest that is not where the entry point says; empty when it is there."""
    if not found.directory.is_dir() or found.manifest_file.is_file():
        return ""
    return left_out(found.package, found.file)


def left_out(package: str, file: str) -> str:
    """How a build backend is told to take a ``plugin.yaml`` along."""
    return _LEFT_OUT.format(top=package.partition(".")[0], package=package, file=file)


def effective(manifest: PluginManifest, deployment: Deployment) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The operator's settings of a plugin with its defaults filled in, and every (key, problem) that does not fit."""
    intent = deployment.plugins.get(manifest.name)
    return fit_schema(manifest.settings, intent.settings if intent is not None else {})


def masked(schema: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with everything that ``schema`` marks as ``writeOnly`` hidden, however deep inside."""
    shown = _masked([schema], values, schema)
    return shown if isinstance(shown, dict) else {}


def _masked(about: Iterable[Any], value: Any, root: Mapping[str, Any]) -> Any:
    """``value``, which all schemas in ``about`` speak of."""
    schemas = [part for schema in about for part in _parts(schema, root, 8)]
    if any(schema.get("writeOnly") for schema in schemas):
        return MASK if value or value == 0 else value
    if isinstance(value, Mapping):
        return {key: _masked([s for part in schemas for s in _of_key(part, key)], v, root) for key, v in value.items()}
    if isinstance(value, list):
        about = [s for part in schemas for s in (part.get("items"), *part.get("prefixItems", ()))]
        return [_masked(about, item, root) for item in value]
    return value


def _parts(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """A schema with all that it refers to and combines, so many steps deep."""
    if not isinstance(schema, Mapping) or not depth:
        return
    yield schema
    inner = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())]
    inner += [schema[key] for key in ("if", "then", "else") if key in schema]
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        inner.append(root.get("$defs", {}).get(reference.removeprefix("#/$defs/")))
    for part in inner:
        yield from _parts(part, root, depth - 1)


def _of_key(schema: Mapping[str, Any], key: str) -> Iterator[Any]:
    if key in schema.get("properties", {}):
        yield schema["properties"][key]
    else:
        yield schema.get("additionalProperties")
    yield from (part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, key))


def normal(name: str) -> str:
    """A name by the rules of distribution names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        return None
