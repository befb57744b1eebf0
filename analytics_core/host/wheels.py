"""From a project folder to a wheel, as pip builds it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from packaging.requirements import InvalidRequirement, Requirement

from analytics_core.errors import AnalyticsError

_SECONDS: Final = 600.0
_SHOWN: Final = 15
_DEFAULT_REQUIRES: Final = ("setuptools",)


class WheelError(AnalyticsError):
    """There is no wheel to look into; the text says why, with the last lines of pip."""


class Wheel(Struct, frozen=True):
    """A wheel on disk, and how it came to be."""

    path: Path
    how: str


def wheel_of(path: Path, folder: Path) -> Wheel:
    """The wheel at ``path``, or one built of the project at ``path`` into ``folder``.

    :raises WheelError: when it cannot be built.
    """
    if path.is_file():
        return Wheel(path, "given")
    needed = _requires(path / "pyproject.toml")
    missing = [text for text in needed if not _is_met(text)]
    _build(path, folder, isolated=bool(missing))
    built = sorted(folder.glob("*.whl"))
    if not built:
        raise WheelError("pip has built no wheel")
    if missing:
        return Wheel(built[0], f"built in isolation, since {', '.join(missing)} is not installed here")
    return Wheel(built[0], f"built with {', '.join(needed)} of this environment")


def _build(project: Path, folder: Path, *, isolated: bool) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check"]
    command += [] if isolated else ["--no-build-isolation"]
    source = str(project.resolve())  # a bare name would be looked up in the package index
    try:
        done = subprocess.run(  # noqa: S603 - pip of this interpreter
            [*command, "--wheel-dir", str(folder), source], capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise WheelError(f"pip did not end within {_SECONDS:g} s") from error
    if done.returncode:
        last = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-_SHOWN:])
        raise WheelError(f"pip wheel ended with exit code {done.returncode}; its last lines:\n{last}")


def unpack(wheel: Path, folder: Path) -> None:
    """:raises WheelError: for a file that is no wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise WheelError(f"{wheel.name} is no wheel: {error}") from error
    if not list(folder.glob("*.dist-info/METADATA")):
        raise WheelError(f"{wheel.name} is no wheel: it has no .dist-info/METADATA")


def _requires(pyproject: Path) -> list[str]:
    """What the build needs, as the project says.

    :raises WheelError: for a ``pyproject.toml`` that cannot be read.
    """
    try:
        told: dict[str, Any] = tomllib.loads(pyproject.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WheelError(f"{pyproject.name} cannot be read: {error}") from error
    return list(told.get("build-system", {}).get("requires", _DEFAULT_REQUIRES))


def _is_met(text: str) -> bool:
    """Whether this environment meets a requirement."""
    try:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            return True
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except (InvalidRequirement, PackageNotFoundError):
        return False
