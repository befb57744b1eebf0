"""A plugin looked at hard, in a process of its own: what the tolerant host hides is said, with whole tracebacks.

`examine` is the caller's side; `analytics_core.host.examiner` is what runs beside it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from analytics_core.errors import PluginSettingsError
from analytics_core.host.discovery import Found
from analytics_core.host.process import environment as worker_environment
from analytics_core.host.selection import Choice
from analytics_core.manifest import Deployment, PluginSettingsManifest, checked_settings

Step = Literal["installation", "settings", "import", "hooks", "setup", "teardown"]
SECONDS: Final = 60.0
_GRACE: Final = 5.0
"""Seconds beyond the limit before the process is killed from outside: it ends itself, and says where it hangs."""
_MOST_OUTPUT: Final = 20_000
_FAULTS: Final[frozenset[str]] = frozenset({"invalid", "incompatible", "blocked", "unresolved"})
"""States of a choice that are a problem of its own, besides what the code does."""


class Problem(Struct, frozen=True):
    """Something because of which the plugin does not run as it should. ``trace`` is a whole traceback, or empty."""

    step: Step
    text: str
    trace: str = ""


class Warned(Struct, frozen=True):
    """A Python warning; ``own`` when it comes out of the plugin's own sources."""

    text: str
    file: str
    line: int
    own: bool


class Imported(Struct, frozen=True):
    """A module outside the plugin's package that is worth a thought; ``seconds`` is what its import took."""

    name: str
    why: str
    seconds: float = 0.0


class Examination(Struct, kw_only=True):
    """What was found. ``seconds`` by step; ``doing`` is the step under way, empty at the end."""

    plugin: str
    version: str = ""
    state: str = "discovered"
    problems: list[Problem] = []
    warnings: list[Warned] = []
    imported: list[Imported] = []
    left: list[str] = []
    seconds: dict[str, float] = {}
    printed: str = ""
    doing: Step | Literal[""] = ""


class Order(Struct, frozen=True, kw_only=True):
    """What the process beside is to do. ``others`` maps the packages of other plugins to their names."""

    found: Found
    settings: dict[str, Any] | None
    """None: ``setup`` is not called."""
    others: dict[str, str]
    path: list[str]
    """Goes before ``sys.path``."""
    seconds: float


def examine_choice(
    choice: Choice, deployment: Deployment, others: Sequence[Choice] = (), seconds: float = SECONDS
) -> Examination:
    """Examine one installed plugin under the settings that it has here, whether it is to run or not."""
    problems = []
    if choice.state in _FAULTS:
        step: Step = "settings" if choice.found and choice.state == "unresolved" else "installation"
        problems.append(Problem(step, choice.reason))
    if choice.manifest is None or choice.found is None or choice.found.problem is not None:
        return Examination(plugin=choice.name, version=choice.version, state=choice.state, problems=problems)
    intent = deployment.plugins.get(choice.name, PluginSettingsManifest(name=choice.name))
    try:
        settings: dict[str, Any] | None = checked_settings(choice.manifest, intent.settings)
    except PluginSettingsError as error:
        settings = None
        if not problems:
            problems.append(Problem("settings", str(error)))
    packages = {other.found.package: other.name for other in others if other.found and other.name != choice.name}
    found = examine(choice.found, settings, others=packages, seconds=seconds)
    found.problems[:0] = problems
    found.state = choice.state
    return found


def examine(
    found: Found,
    settings: dict[str, Any] | None,
    *,
    others: dict[str, str] | None = None,
    path: Sequence[str] = (),
    seconds: float = SECONDS,
) -> Examination:
    """Load the code of ``found`` as the host does, in a process of its own; with ``settings`` also set it up.

    The process is ended after ``seconds``, together with whatever it has started.
    """
    order = Order(found=found, settings=settings, others=others or {}, path=list(path), seconds=seconds)
    with TemporaryDirectory(prefix="examination-") as folder:
        home = Path(folder)
        (home / "order").write_bytes(msgspec.json.encode(order, enc_hook=str))
        how, children = _run(home, seconds + _GRACE)
        return _read(home, found, how, children, seconds)


def _run(home: Path, seconds: float) -> tuple[str, bool]:
    """How the process ended, and whether it left processes of its own behind."""
    with (home / "output").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and the host's own module
            [sys.executable, "-m", "analytics_core.host.examiner", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=worker_environment(),
            start_new_session=True,
        )
    try:
        code = process.wait(seconds)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        how = f"it did not end within {seconds:g} s"
    children = False
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
        children = True
    return how, children


def _read(home: Path, found: Found, how: str, children: bool, seconds: float) -> Examination:
    report = home / "report"
    seen = Examination(plugin=found.name, version=found.version, doing="import")
    if report.exists():
        seen = msgspec.json.decode(report.read_bytes(), type=Examination)
    seen.printed = (home / "output").read_bytes()[-_MOST_OUTPUT:].decode("utf-8", "replace").strip()
    if seen.doing:
        trace = (home / "trace").read_text("utf-8", "replace").strip() if (home / "trace").exists() else ""
        hung = trace.startswith("Timeout")
        text = f"did not end within {seconds:g} s" if hung else f"the process ended: {how}"
        seen.problems.append(Problem(seen.doing, text, trace))
    if children:
        seen.left.append("a process that it started")
    return seen
