"""Which plugins are installed: found by entry point and read without importing a line of them.

A distribution declares ``[project.entry-points."analytics_core.plugins"]`` with ``name = "package:plugin.yaml"``.
"""

from __future__ import annotations

import csv
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from email.message import Message
from email.parser import HeaderParser
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, EntryPoint, MetadataPathFinder, distributions
from pathlib import Path
from typing import Final, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from analytics_core.errors import IncompatibleError, ManifestError
from analytics_core.manifest import PluginManifest, read_plugin

GROUP: Final = "analytics_core.plugins"


class Found(Struct, frozen=True):
    """One installed plugin. ``problem`` says why it cannot be loaded; ``state`` is then where it ends (DESIGN §9).

    ``directory`` holds the sources of ``package`` or, when they are missing, is where they are expected; it is ``.``
    when nothing says where. Of a ``single`` module it holds the module's file. ``file`` is the manifest, relative to
    it. ``guards`` says of a manifest that cannot be read that it seems to be of a plugin without which no event may be
    stored. ``info`` is the directory of the distribution's metadata.
    """

    name: str
    distribution: str
    version: str
    package: str
    directory: Path
    manifest: PluginManifest | None = None
    problem: str | None = None
    state: Literal["discovered", "invalid", "incompatible"] = "discovered"
    guards: bool = False
    file: str = "plugin.yaml"
    single: bool = False
    info: Path = Path()

    @property
    def manifest_file(self) -> Path:
        return self.directory / self.file


class _NotFoundError(Exception):
    """Why the files of an entry point are not to be found."""


def discover(paths: Sequence[str] | None = None) -> list[Found]:
    """Every plugin that a distribution on ``paths`` (default: ``sys.path``) declares, sorted by name.

    Nothing is raised for a broken plugin: its `Found` carries the problem. Of several copies of one distribution the
    first on the path counts, as it does for imports. What was installed or removed since the process began is seen;
    an installation that is under way may be seen in part. Several distributions may claim one name.
    """
    importlib.invalidate_caches()  # they go by the time of a directory, which two changes in one tick share
    MetadataPathFinder().invalidate_caches()  # Python 3.11 leaves this one out
    searched = list(sys.path if paths is None else paths)
    found = [_found(declared, searched, hooks=paths is None) for declared in _declared(searched)]
    return sorted(found, key=lambda f: (f.name, f.distribution))


class _Declared(NamedTuple):
    dist: Distribution
    distribution: str
    version: str
    entry: EntryPoint


def _declared(paths: list[str]) -> Iterator[_Declared]:
    seen: set[str] = set()
    for dist in distributions(path=paths):
        text = _text(dist, "entry_points.txt")
        if GROUP not in text or not is_installed(dist, paths):  # the metadata of the others stays unparsed
            continue
        metadata = headers(dist)
        if "Name" not in metadata or "Version" not in metadata:  # still being written
            continue
        name, version = metadata["Name"], metadata["Version"]
        if _normal(name) in seen:
            continue
        seen.add(_normal(name))
        yield from (_Declared(dist, name, version, entry) for entry in _entries(dist, name))


def _text(dist: Distribution, file: str) -> str:
    try:
        return dist.read_text(file) or ""
    except (OSError, ValueError):
        return ""


def _entries(dist: Distribution, name: str) -> list[EntryPoint]:
    try:
        return [entry for entry in dist.entry_points if entry.group == GROUP]
    except (TypeError, ValueError):  # a line without '='
        return [EntryPoint(name, "", GROUP)]


def is_installed(dist: Distribution, paths: list[str]) -> bool:
    """Whether the metadata stands for an installation. What pip has moved aside (``~ame-1.dist-info``) does not, nor
    does the ``name.egg-info`` that setuptools writes beside the sources and nobody removes, unless a ``.egg-link``
    leads to it; an installed one bears its version, as in ``name-1-py3.11.egg-info``."""
    info = Path(str(getattr(dist, "_path", "")))
    if info.suffix != ".egg-info" or "-" in info.stem:
        return not info.name.startswith("~")
    links = (link for path in paths for link in Path(path).glob("*.egg-link"))
    return any(info.parent.resolve() == line.resolve() for link in links for line in _lines(link)[:1])


def _found(declared: _Declared, paths: list[str], *, hooks: bool) -> Found:
    dist, distribution, version, entry = declared
    package, _, file = entry.value.partition(":")
    info = Path(str(getattr(dist, "_path", "")))
    named = file.strip() or "plugin.yaml"
    found = Found(entry.name, distribution, version, package.strip(), Path(), file=named, info=info)
    if not re.fullmatch(r"\w+(\.\w+)*", found.package) or not file.strip() or not file.isprintable():
        problem = f"its entry point is {entry.value!r}; valid is 'package:plugin.yaml'"
        return replace(found, problem=problem, state="invalid")
    try:
        directory, single = _directory(found.package, dist, paths, hooks=hooks)
    except _NotFoundError as error:
        return replace(found, directory=_expected(found.package, dist), problem=str(error), state="invalid")
    found = replace(found, directory=directory, single=single)
    path = found.manifest_file
    try:
        manifest = read_plugin(path)
    except IncompatibleError as error:
        return replace(found, problem=str(error), state="incompatible", guards=_seems_to_guard(path))
    except ManifestError as error:
        return replace(found, problem=str(error), state="invalid", guards=_seems_to_guard(path))
    except ValueError as error:  # a value or a name that Python itself refuses
        return replace(found, problem=f"{path} cannot be read: {error}", state="invalid", guards=_seems_to_guard(path))
    return _checked(replace(found, manifest=manifest))


def _seems_to_guard(path: Path) -> bool:
    """Whether an unreadable manifest speaks of ``enrich`` and of an ``on_failure`` that is not plainly ``pass``: on
    its account events would be stored unmasked, which is worse than a refusal that an operator can end."""
    try:
        text = re.sub(r"(?m)(^|\s)#.*", "", path.read_text("utf-8", "replace"))
    except (OSError, ValueError):
        return False
    return "enrich" in text and re.search(r"on_failure[\"']?\s*:\s*(?![\"']?pass\b)\S", text) is not None


def _checked(found: Found) -> Found:
    assert found.manifest is not None
    if found.manifest.name != found.name:
        problem = (
            f"its entry point is named {found.name!r} and its plugin.yaml {found.manifest.name!r}; give both one name"
        )
        return replace(found, problem=problem, state="invalid")
    module = found.manifest.entry.partition(":")[0]
    if module != found.package and not module.startswith(f"{found.package}."):
        problem = f"its entry {found.manifest.entry!r} is outside the package {found.package!r} of its entry point"
        return replace(found, problem=problem, state="invalid")
    return found


def _expected(package: str, dist: Distribution) -> Path:
    """Where a package would be that is not to be found."""
    return next(iter(linked(dist)), Path(str(dist.locate_file("")))).joinpath(*package.split("."))


def _directory(package: str, dist: Distribution, paths: list[str], *, hooks: bool) -> tuple[Path, bool]:
    """Where the sources of ``package`` are, walking down from the spec of its top level, and whether it is a single
    module."""
    top, *rest = package.split(".")
    spec = _top_level(top, dist, paths, hooks=hooks)
    if spec.submodule_search_locations is None:
        if rest or spec.origin is None:
            raise _NotFoundError(f"{top!r} is a single module, so there is no {package!r}")
        return Path(spec.origin).parent, True
    locations = [Path(location) for location in spec.submodule_search_locations]
    for part in rest:
        locations = [location / part for location in locations if (location / part).is_dir()]
    if not locations:
        raise _NotFoundError(f"the package {package!r} of its entry point does not exist below {spec.name!r}")
    return locations[0], False


def _top_level(top: str, dist: Distribution, paths: list[str], *, hooks: bool) -> ModuleSpec:
    nearest = [str(directory) for directory in linked(dist)]  # first: ``sys.path`` may have those of an earlier one
    spec = PathFinder.find_spec(top, nearest) or PathFinder.find_spec(top, paths)
    if spec is None and hooks:  # editable installs by import hook; asking for a top level imports nothing
        finders = (f for f in sys.meta_path if f is not PathFinder and hasattr(f, "find_spec"))
        spec = next((s for s in (f.find_spec(top, None) for f in finders) if s is not None), None)
    if spec is not None and (spec.submodule_search_locations is not None or spec.has_location):
        return spec
    editable = _text(dist, "direct_url.json").replace(" ", "").find('"editable":true') >= 0
    raise _NotFoundError(
        f"the package {top!r} is not to be found"
        + (
            "; it is an editable install by an import hook, which is seen only by a host that starts after the "
            "installation: restart the host, or build with hatchling, which writes a .pth path"
            if editable
            else f" in {headers(dist)['Name']}; is it left out of the wheel?"
        )
    )


def headers(dist: Distribution) -> Message:
    """Its metadata without the description, which is most of them; none while they are not there yet."""
    info = Path(str(getattr(dist, "_path", "")))
    for path in (info / "METADATA", info / "PKG-INFO", info):
        try:
            return HeaderParser().parsestr(path.read_text("utf-8", "replace").partition("\n\n")[0])
        except OSError:
            continue
    return Message()


def linked(dist: Distribution) -> Iterator[Path]:
    """The directories in the ``.pth`` files of a distribution: where an editable install has its sources."""
    try:
        files = dist.files or ()
    except (OSError, ValueError, TypeError, csv.Error):  # its RECORD is garbled, or still being written
        return
    for file in files:
        if file.suffix == ".pth":
            yield from _lines(Path(str(dist.locate_file(file))))


def _lines(file: Path) -> list[Path]:
    """The paths that a ``.pth`` or ``.egg-link`` file names."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [file.parent / line for line in lines if line and not line.startswith(("#", "import ", "import\t"))]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
