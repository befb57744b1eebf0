"""What has to hold of a plugin's wheel before strangers install it, each point with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from msgspec import Struct

from analytics_core.errors import near
from analytics_core.host.examining.examination import examine
from analytics_core.host.examining.installing import PipError, clashes, own_dependencies
from analytics_core.host.examining.judging import left_out
from analytics_core.host.examining.wheels import WheelError, unpack, wheel_of
from analytics_core.host.installed.discovery import GROUP, Found, discover

_ENTRY: Final = f'[project.entry-points."{GROUP}"]'
_ENTRY_ADVICE: Final = f'add {_ENTRY} with name = "package:plugin.yaml"'


class Check(Struct, frozen=True, kw_only=True):
    """One point. ``ok`` None is advice that was not taken; ``text`` says what was found, ``advice`` what to do."""

    ok: bool | None
    what: str
    text: str = ""
    advice: str = ""
    trace: str = ""


def checklist(path: Path, seconds: float) -> list[Check]:
    """All points about the project folder or wheel at ``path``, up to the first after which no other makes sense.

    ``seconds`` bounds the loading of the code. Nothing is left in ``path`` but what its build backend leaves there.
    """
    with TemporaryDirectory(prefix="wheel-") as folder:
        home = Path(folder)
        site = home / "site"
        try:
            wheel = wheel_of(path, home / "built")
            dist = unpack(wheel.path, site)
        except WheelError as error:
            return [Check(ok=False, what="wheel", text=str(error), advice="mend the build; 'pip wheel .' shows it all")]
        first = Check(ok=True, what="wheel", text=f"{wheel.path.name}, {wheel.how}")
        project = path if path.is_dir() else None
        return [first, *(_placeless(check, site) for check in _of_site(dist, site, project, seconds))]


def _placeless(check: Check, site: Path) -> Check:
    """Without the folder that is gone when this is read."""
    texts = {name: getattr(check, name).replace(f"{site}/", "") for name in ("text", "advice", "trace")}
    return Check(ok=check.ok, what=check.what, **texts)


def _of_site(dist: Distribution, site: Path, project: Path | None, seconds: float) -> Iterator[Check]:
    """The points about ``dist``, alone in ``site`` and built of ``project``, whose other files do not count."""
    try:
        entries = list(dist.entry_points.select(group=GROUP))
    except (TypeError, ValueError) as error:  # not UTF-8, or a line without '='
        text = f"entry_points.txt cannot be read: {error}"
        yield Check(ok=False, what="entry point", text=text, advice=_ENTRY_ADVICE)
        return
    if not entries:
        yield _no_entry(dist)
        return
    named = ", ".join(f'{entry.name} = "{entry.value}"' for entry in entries)
    yield Check(ok=True, what="entry point", text=named)
    found = {one.name: one for one in discover([str(site)])}
    for entry in entries:
        if entry.name in found:
            yield from _of_plugin(entry, found[entry.name], site, project, seconds)
        else:
            text = f"the host does not take {dist.metadata['Name']} {dist.version} for an installed distribution"
            yield Check(ok=False, what="entry point", text=text, advice="mend its name, version and .dist-info folder")
    yield from _of_package(dist, found)


def _no_entry(dist: Distribution) -> Check:
    groups = {entry.group for entry in dist.entry_points}
    meant = next((group for group in sorted(groups) if near(group, [GROUP]).startswith("; did")), "")
    text = f"the group is {meant!r}, not {GROUP!r}" if meant else f"none in the group {GROUP!r}"
    return Check(ok=False, what="entry point", text=text, advice=_ENTRY_ADVICE)


def _of_plugin(entry: EntryPoint, found: Found, site: Path, project: Path | None, seconds: float) -> Iterator[Check]:
    """The points about one plugin, in the order in which an author would mend them."""
    package, _, file = (part.strip() for part in entry.value.partition(":"))
    if not file or found.directory == Path() or not found.directory.is_dir():
        right = f'write {_ENTRY} {entry.name} = "package:plugin.yaml", and have the package in the wheel'
        yield Check(ok=False, what="package", text=found.problem or "", advice=right)
        return
    yield Check(ok=True, what="package", text=package)
    if not found.manifest_file.is_file():
        yield Check(ok=False, what="plugin.yaml", text=f"{entry.value} is missing", advice=left_out(package, file))
        return
    if found.manifest is None or found.problem is not None:
        right = "'analytics schemas' writes a JSON Schema with which editors check it"
        yield Check(ok=False, what="manifest", text=found.problem or "", advice=right)
        return
    yield Check(ok=True, what="manifest", text=f"{found.manifest.name}, hooks {', '.join(found.manifest.hooks)}")
    module, _, name = found.manifest.entry.partition(":")
    parts = site.joinpath(*module.split("."))
    if not parts.with_name(f"{parts.name}.py").is_file() and not (parts / "__init__.py").is_file():
        right = "'entry' is package.module:Class; is the module left out of the wheel?"
        yield Check(ok=False, what="entry", text=f"there is no module {module!r}", advice=right)
        return
    yield Check(ok=True, what="entry", text=f"{module}:{name}")
    yield _of_code(found, site, project, seconds)


def _of_code(found: Found, site: Path, project: Path | None, seconds: float) -> Check:
    seen = examine(found, None, path=[str(site)], without=project, seconds=seconds)
    if not seen.problems:
        took = seen.seconds.get("import", 0.0)
        return Check(ok=True, what="hooks", text=f"loaded in {took:.2f} s; they fit the specification and plugin.yaml")
    problem = seen.problems[0]
    advice = "'analytics plugins doctor' shows it as it is installed, with all that it prints"
    if problem.step == "hooks":
        advice = "analytics_core/hookspecs.py has every hook with its arguments"
    elif "ModuleNotFoundError" in problem.text:
        advice = "install what it depends on beside it, or name it under 'dependencies' and take it into the wheel"
    return Check(ok=False, what=problem.step, text=problem.text, advice=advice, trace=problem.trace)


def _clashes(dist: Distribution) -> Iterator[Check]:
    """Advice: what it pins that this host has in another version."""
    try:
        own = own_dependencies()
    except PipError:  # a host that is no distribution has no say
        return
    for clash in clashes(dist.requires or (), own):
        right = "'analytics plugins install' refuses it on a host like this one; allow that version too"
        yield Check(ok=None, what="dependency", text=clash, advice=right)


def _of_package(dist: Distribution, found: dict[str, Found]) -> Iterator[Check]:
    """Advice."""
    requires = [text.split(";")[0].strip().lower().replace("_", "-") for text in dist.requires or ()]
    needs = any(text.startswith("analytics-core") for text in requires)
    yield Check(
        ok=True if needs else None,
        what="dependency",
        text="analytics-core" if needs else "analytics-core is not among the dependencies",
        advice="" if needs else "add it to 'dependencies', so that pip installs a host that fits",
    )
    yield from _clashes(dist)
    for one in found.values():
        typed = (one.directory / "py.typed").is_file()
        if one.directory.is_dir() and one.directory != Path():
            told = f"{one.package} {'has one' if typed else 'has none'}"
            advice = "" if typed else "an empty file of this name lets type checkers read the package"
            yield Check(ok=True if typed else None, what="py.typed", text=told, advice=advice)
    described = bool(str(dist.metadata.json.get("description", "")).strip())
    yield Check(
        ok=True if described else None,
        what="README",
        text="there" if described else "the wheel has no description",
        advice="" if described else 'write a README.md and add readme = "README.md" to [project]',
    )
