"""A plugin looked at hard, in a process of its own: what the tolerant host hides is said, with whole tracebacks.

`examine` is the caller's side; `analytics_core.host.examining.examiner` is what runs beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from analytics_core.errors import PluginSettingsError
from analytics_core.host.installed.discovery import Found
from analytics_core.host.installed.selection import Choice
from analytics_core.host.running.children import end_group, ending, environment
from analytics_core.manifest import Deployment, PluginSettingsManifest, checked_settings

Step = Literal["installation", "settings", "import", "hooks", "setup", "teardown"]
SECONDS: Final = 60.0
_GRACE: Final = 5.0
"""Seconds beyond the limit before the process is killed from outside: it ends itself, and says where it hangs."""
_READ_SECONDS: Final = 1.0
"""How long the end of the output is waited for: a process in a session of its own may hold it open for ever."""
_MOST_OUTPUT: Final = 20_000
"""Bytes that are kept of what the code prints: the last ones."""
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
    """What was found. ``seconds`` by step; ``doing`` is the step under way, empty at the end. ``kept_out``
    says why none of its code was run."""

    plugin: str
    version: str = ""
    state: str = "discovered"
    problems: list[Problem] = []
    warnings: list[Warned] = []
    imported: list[Imported] = []
    left: list[str] = []
    seconds: dict[str, float] = {}
    printed: str = ""
    kept_out: str = ""
    doing: Step | Literal[""] = ""


class Order(Struct, frozen=True, kw_only=True):
    """What the process beside is to do. ``others`` maps the packages of other plugins to their names."""

    found: Found
    settings: dict[str, Any] | None
    """None: ``setup`` is not called."""
    others: dict[str, str]
    path: list[str]
    """Goes before ``sys.path``."""
    without: str
    """A folder that is taken off ``sys.path`` with all in it but the environment's own, or empty."""
    seconds: float


def examine_choice(
    choice: Choice, deployment: Deployment, others: Sequence[Choice] = (), seconds: float = SECONDS
) -> Examination:
    """Examine one installed plugin under the settings that it has here, whether it is to run or not. Of one that the
    lists or the lock keep out no code is run."""
    problems = []
    if choice.state in _FAULTS:
        step: Step = "settings" if choice.found and choice.state == "unresolved" else "installation"
        problems.append(Problem(step, choice.reason))
    kept_out = choice.verdict.reason
    if kept_out or choice.manifest is None or choice.found is None or choice.found.problem is not None:
        return Examination(
            plugin=choice.name, version=choice.version, state=choice.state, problems=problems, kept_out=kept_out
        )
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
    without: Path | None = None,
    seconds: float = SECONDS,
) -> Examination:
    """Load the code of ``found`` as the host does, in a process of its own; with ``settings`` also set it up.

    ``path`` goes before ``sys.path``, from which all of the folder ``without`` is taken off. Once it has read what to
    do, the process ends itself after ``seconds``. Whatever it does, it is killed `_GRACE` later, or when the caller is
    interrupted, together with what it has started, except in a session of its own.
    """
    order = Order(
        found=found,
        settings=settings,
        others=others or {},
        path=list(path),
        without=str(without.resolve()) if without is not None else "",
        seconds=seconds,
    )
    with TemporaryDirectory(prefix="examination-") as folder:
        home = Path(folder)
        return _read(home, found, _run(home, msgspec.json.encode(order, enc_hook=str), seconds + _GRACE), seconds)


class _Ended(Struct, frozen=True):
    """What is known of the process from outside; ``children``: it left processes of its own behind."""

    how: str
    children: bool
    printed: str


def _run(home: Path, order: bytes, seconds: float) -> _Ended:
    """One process from its start to its end; ``order``, which may hold secrets, goes in by its standard input."""
    reading, writing = os.pipe()
    kept = bytearray()
    reader = threading.Thread(target=_keep_last, args=(reading, kept), name="examined-output", daemon=True)
    with subprocess.Popen(  # noqa: S603 - this interpreter and the host's own module
        [sys.executable, "-P", "-m", "analytics_core.host.examining.examiner", str(home)],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.STDOUT,
        env=environment(),
        start_new_session=True,
    ) as process:
        os.close(writing)
        try:
            reader.start()
            process.communicate(order, seconds)
            how = ending(process.returncode)
        except subprocess.TimeoutExpired:
            how = f"it did not end within {seconds:g} s"
        finally:
            children = end_group(process)
    reader.join(_READ_SECONDS)
    return _Ended(how, children, kept.decode("utf-8", "replace").strip())


def _keep_last(descriptor: int, kept: bytearray) -> None:
    """Read to the end, which comes when the last process has closed its side, and keep the end of it."""
    with open(descriptor, "rb", buffering=0) as output:
        while block := output.read(65_536):
            kept += block
            del kept[:-_MOST_OUTPUT]


def _read(home: Path, found: Found, ended: _Ended, seconds: float) -> Examination:
    report = home / "report"
    seen = Examination(plugin=found.name, version=found.version, doing="import")
    if report.exists():
        seen = msgspec.json.decode(report.read_bytes(), type=Examination)
    seen.printed = ended.printed
    if seen.doing:
        trace = (home / "trace").read_text("utf-8", "replace").strip() if (home / "trace").exists() else ""
        hung = trace.startswith("Timeout")
        text = f"did not end within {seconds:g} s" if hung else f"the process ended: {ended.how}"
        seen.problems.append(Problem(seen.doing, text, trace))
    if ended.children:
        seen.left.append("a process that it started")
    return seen
