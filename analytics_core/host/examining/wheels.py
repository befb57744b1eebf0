"""From a project folder to a wheel, as pip builds it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
import zlib
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, version
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from analytics_core.errors import AnalyticsError
from analytics_core.host.running.children import end_group, ending, without_secrets

_SECONDS: Final = 600.0
_SHOWN: Final = 15
_DEFAULT_REQUIRES: Final = ("setuptools",)
_WITHOUT_WHEEL: Final = Version("70.1")
"""The first setuptools that makes a wheel without the distribution ``wheel``."""


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
        return Wheel(built[0], f"built in isolation, since this environment cannot build with {', '.join(missing)}")
    return Wheel(built[0], f"built with {', '.join(needed)} of this environment")


def _build(project: Path, folder: Path, *, isolated: bool) -> None:
    command = [sys.executable, "-P", "-m", "pip", "wheel", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += [] if isolated else ["--no-build-isolation"]
    source = str(project.resolve())  # a bare name would be looked up in the package index
    with subprocess.Popen(  # noqa: S603 - pip of this interpreter
        [*command, "--wheel-dir", str(folder), source],
        env=without_secrets(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise WheelError(f"pip did not end within {_SECONDS:g} s") from error
        finally:
            end_group(process)
    if process.returncode:
        last = "\n".join((complained.strip() or said.strip()).splitlines()[-_SHOWN:])
        raise WheelError(f"pip wheel ended with {ending(process.returncode)}; its last lines:\n{last}")


def unpack(wheel: Path, folder: Path) -> Distribution:
    """The distribution that ``wheel`` holds, unpacked into ``folder``.

    :raises WheelError: for a file that is no wheel of one distribution.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WheelError(f"{wheel.name} is no wheel: {error}") from error
    infos = sorted(folder.glob("*.dist-info"))
    if len(infos) > 1:
        raise WheelError(f"{wheel.name} is no wheel: it has {' and '.join(info.name for info in infos)}")
    if not infos or not (infos[0] / "METADATA").is_file():
        raise WheelError(f"{wheel.name} is no wheel: it has no .dist-info/METADATA")
    dist = PathDistribution(infos[0])
    if problem := _metadata_problem(dist):
        raise WheelError(f"{infos[0].name}/METADATA {problem}")
    return dist


def _metadata_problem(dist: Distribution) -> str:
    """Why the host would not take ``METADATA`` for that of a distribution; empty when it does."""
    try:
        metadata = dist.metadata
    except ValueError as error:
        return f"cannot be read: {error}"
    missing = [key for key in ("Name", "Version") if key not in metadata or not metadata[key]]
    return f"has no {' and no '.join(missing)}" if missing else ""


def _requires(pyproject: Path) -> list[str]:
    """What the build needs, as the project says.

    :raises WheelError: for a ``pyproject.toml`` that cannot be read.
    """
    try:
        told: dict[str, Any] = tomllib.loads(pyproject.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WheelError(f"{pyproject.name} cannot be read: {error}") from error
    system = told.get("build-system", {})
    if not isinstance(system, dict):
        raise WheelError(f"{pyproject.name}: build-system: {system!r} is not valid; valid is a table [build-system]")
    requires = system.get("requires", list(_DEFAULT_REQUIRES))
    if not isinstance(requires, list) or not all(isinstance(text, str) for text in requires):
        raise WheelError(f"{pyproject.name}: build-system.requires: {requires!r} is not valid; valid is a list of text")
    return requires


def _is_met(text: str) -> bool:
    """Whether this environment meets a requirement, and with it can make a wheel."""
    try:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            return True
        have = version(requirement.name)
        if canonicalize_name(requirement.name) == "setuptools" and Version(have) < _WITHOUT_WHEEL:
            version("wheel")
        return requirement.specifier.contains(have, prereleases=True)
    except (PackageNotFoundError, ValueError):  # not installed, or nothing that can be compared
        return False
