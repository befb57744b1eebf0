"""What pip would change in this environment, and that it leaves the host's own dependencies as they are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from analytics_core.errors import AnalyticsError
from analytics_core.host.running.children import environment

HOST: Final = "analytics-core"
"""The distribution that holds this package."""

_TOOLS: Final = frozenset({"dev"})
"""Extras of the host that it does not run with."""
_SECONDS: Final = 1800.0
_SHOWN: Final = 15
_REPORT: Final = "1"
_PIP: Final = ("-P", "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet")


class PipError(AnalyticsError):
    """pip did not do what it was asked for; the text has its last lines."""


class Asked(Struct, frozen=True):
    """What is to be installed: requirements, paths or URLs, and projects as editable ones, with options of pip."""

    requirements: tuple[str, ...] = ()
    editable: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        return [*self.options, *(f"--editable={path}" for path in self.editable), "--", *self.requirements]


class Own(Struct, frozen=True):
    """One of the host's own: the host itself, or something that it requires, if only by way of another.

    ``required`` says by whom, as ``analytics-core requires click>=8.1``.
    """

    name: str
    version: str
    required: tuple[str, ...] = ()

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


class Change(Struct, frozen=True):
    """What would become of one distribution. ``before`` is None when it is not installed yet, ``asked_by`` says who
    wants it, and ``own`` that the host itself needs it."""

    distribution: str
    before: str | None
    after: str
    kind: Literal["install", "upgrade", "downgrade", "reinstall"]
    asked_by: tuple[str, ...]
    own: bool


class Plan(Struct, frozen=True):
    """All that pip would do, and why it is not to be done: one refusal for each change of the host's own. ``breaks``
    says what else that is installed would not get any more what it requires."""

    changes: tuple[Change, ...]
    refusals: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()

    def pins(self) -> list[str]:
        return [f"{change.distribution}=={change.after}" for change in self.changes]


def own_dependencies() -> dict[str, Own]:
    """The host and all that it requires, as far as it is installed, by canonical name.

    :raises PipError: when the host is no installed distribution, so that nothing says what it requires.
    """
    if _installed(HOST) is None:
        raise PipError(f"{HOST} is not installed as a distribution; install it, so that pip knows what it requires")
    required: dict[str, set[str]] = {HOST: set()}
    waiting = [(HOST, extra) for extra in _extras(HOST)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for need in _requirements(name, extra):
            other = canonicalize_name(need.name)
            if _installed(other) is None:
                continue
            required.setdefault(other, set()).add(_requires(name, need))
            following = {(other, each) for each in ("", *need.extras)} - seen
            waiting += following
            seen |= following
    return {name: Own(name, _version(name) or "", tuple(sorted(by))) for name, by in sorted(required.items())}


def plan(asked: Asked, own: Mapping[str, Own]) -> Plan:
    """What pip would do, best without a change of what is the host's ``own``. Nothing is installed, but the build
    backend of a project or source distribution is run.

    :raises PipError: when pip finds no way at all; then the host's own are not what is in the way.
    """
    try:
        return _judged(_dry_run(asked, [each.pin for each in own.values()]), own)
    except PipError:
        free = _judged(_dry_run(asked, ()), own)
        if not free.refusals:
            raise
        return free


def clashes(requires: Iterable[str], own: Mapping[str, Own]) -> list[str]:
    """Requirements that what is the host's ``own`` does not meet as it is here, so that `plan` refuses them."""
    needs = (need for need in _parsed(requires) if need.marker is None or need.marker.evaluate({"extra": ""}))
    found = ((need, own.get(canonicalize_name(need.name))) for need in needs)
    return [
        f"{need} does not go with {other.pin}, which is the host's own"
        for need, other in found
        if other is not None and not need.specifier.contains(other.version, prereleases=True)
    ]


def install(asked: Asked, planned: Plan, own: Mapping[str, Own]) -> None:
    """Carry out a plan without refusals: nothing else than its versions, and the host's own stays.

    :raises PipError: when pip fails.
    """
    with tempfile.TemporaryDirectory(prefix="analytics-install-") as folder:
        _pip(asked, {*(each.pin for each in own.values()), *planned.pins()}, Path(folder))


class _Metadata(Struct):
    name: str
    version: str
    requires_dist: list[str] = []


class _Item(Struct):
    metadata: _Metadata
    requested: bool = False


class _Report(Struct):
    """pip's installation report (pip.pypa.io/en/stable/reference/installation-report), as far as it is needed."""

    version: str
    install: list[_Item]


def _dry_run(asked: Asked, pins: Iterable[str]) -> _Report:
    with tempfile.TemporaryDirectory(prefix="analytics-install-") as folder:
        told = Path(folder) / "report.json"
        _pip(asked, pins, Path(folder), "--dry-run", "--report", str(told))
        try:
            report = msgspec.json.decode(told.read_bytes(), type=_Report)
        except (OSError, msgspec.MsgspecError) as error:
            raise PipError(f"pip gave no report that can be read: {error}; pip 22.2 or later gives one") from error
    if report.version != _REPORT:
        raise PipError(f"pip's report is of version {report.version}; valid is {_REPORT}")
    return report


def _pip(asked: Asked, pins: Iterable[str], folder: Path, *options: str) -> None:
    """``pip install`` of this interpreter, under ``pins``."""
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in sorted(pins)), "utf-8")
    command = [sys.executable, *_PIP, "--constraint", str(constraints), *options, *asked.arguments()]
    try:
        done = subprocess.run(  # noqa: S603 - pip of this interpreter
            command,
            env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise PipError(f"pip did not end within {_SECONDS:g} s") from error
    if done.returncode:
        last = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-_SHOWN:])
        raise PipError(f"pip install ended with exit code {done.returncode}; its last lines:\n{last}")


def _judged(report: _Report, own: Mapping[str, Own]) -> Plan:
    changes = tuple(sorted(_changes(report, own), key=lambda change: (not change.own, change.distribution)))
    refusals = tuple(_refusal(change, own[change.distribution]) for change in changes if change.own)
    after = {change.distribution: change.after for change in changes}
    return Plan(changes, refusals, tuple(sorted(_breaks(after, own))))


def _changes(report: _Report, own: Mapping[str, Own]) -> Iterator[Change]:
    for item in report.install:
        name = canonicalize_name(item.metadata.name)
        before, after = _version(name), item.metadata.version
        asked = tuple(sorted(_asked_by(name, report)))
        by = ("you", *asked) if item.requested else asked
        yield Change(name, before, after, _kind(before, after), by, name in own)


def _breaks(after: Mapping[str, str], own: Mapping[str, Own]) -> Iterator[str]:
    """Requirements of what stays, and is not the host's own, that the new versions do not meet."""
    for name in {canonicalize_name(each.metadata["Name"] or "") for each in distributions()} - {*after, *own}:
        for need in _requirements(name):
            version = after.get(canonicalize_name(need.name))
            if version is not None and not need.specifier.contains(version, prereleases=True):
                yield f"{_requires(name, need)} and would get {version}"


def _kind(before: str | None, after: str) -> Literal["install", "upgrade", "downgrade", "reinstall"]:
    if before is None:
        return "install"
    if Version(after) == Version(before):
        return "reinstall"
    return "upgrade" if Version(after) > Version(before) else "downgrade"


def _asked_by(name: str, report: _Report) -> Iterator[str]:
    for item in report.install:
        for need in _parsed(item.metadata.requires_dist):
            if canonicalize_name(need.name) == name:
                yield _requires(f"{item.metadata.name} {item.metadata.version}", need)


def _refusal(change: Change, own: Own) -> str:
    becomes = f"would change from {change.before} to {change.after}"
    if change.kind == "reinstall":
        becomes = f"would be replaced by another {change.after}"
    who = "; ".join("you ask for it" if by == "you" else by for by in change.asked_by) or "nobody names it"
    why = f" ({'; '.join(own.required)})" if own.required else ""
    return f"{own.name} is the host's own and {becomes}: {who}; valid is what goes with {own.pin}{why}"


def _extras(name: str) -> list[str]:
    """Those that it may run with, and none."""
    found = _installed(name)
    given = (found.metadata.get_all("Provides-Extra") if found is not None else None) or []
    return ["", *(extra for extra in given if extra not in _TOOLS)]


def _requirements(name: str, extra: str = "") -> Iterator[Requirement]:
    """What an installed distribution requires here."""
    found = _installed(name)
    for need in _parsed((found.requires if found is not None else None) or ()):
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            yield need


def _requires(name: str, need: Requirement) -> str:
    return f"{name} requires {need.name}{f' @ {need.url}' if need.url else need.specifier}"


def _parsed(texts: Iterable[str]) -> Iterator[Requirement]:
    for text in texts:
        try:
            yield Requirement(text)
        except InvalidRequirement:  # what pip itself takes may be older than the standard
            continue


def _version(name: str) -> str | None:
    found = _installed(name)
    return found.version if found is not None else None


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
