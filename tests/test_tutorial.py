"""The tutorial of the README, typed as it stands: every block in order, on a server that runs all the while."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.docs_house import PLACEHOLDER, Block, Command, blocks, commands, curl, prose, section
from tests.flow.server_house import ROOT, START_SECONDS, STOP_SECONDS, until

TUTORIAL = section("## Your first plugin, in ten minutes")
TITLES = re.findall(r"^### .+$", TUTORIAL, re.MULTILINE)
LOOKS = (
    "analytics plugins list",
    "analytics plugins why",
    "curl -s 'localhost",
    "curl -s localhost:4000/api/v1/plugins",
)
"""What changes nothing, so that a reader may look again until it is as shown."""
SECONDS = 30.0
MASKS = (
    (r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)", "TIME"),
    (r"127\.0\.0\.1:\d+", PLACEHOLDER),
    (r'(?<="value":)\d{2,}', "N"),
    (r"\d+(?= events folded)|(?<=position )\d+|[\d.]+(?=s$)", "N"),
    (r"(?<=thread )[ ]+\d+[ ]+[1-9]\d*", " 0 N"),
    (r"[ ]+", " "),
    (r"^[ ]|[ ]$", ""),
)
"""What is another figure each time. A value of one digit is no such figure, nor is a lane without events."""


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text, flags=re.MULTILINE)
    return text.strip()


def fits(shown: str, said: str) -> bool:
    """Whether a command has said what the README shows, where ``...`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in masked(shown).split("..."))
    return not shown or re.fullmatch(pattern, masked(said), re.DOTALL) is not None


class Reader:
    """Sits in ``folder``, a project whose environment is there, with three terminals: one for commands, one in which
    the server runs, one in which events are sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.typed: list[str] = []
        path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environ = {"PATH": path, "HOME": str(folder), "ANALYTICS_PORT": "0", "COLUMNS": "160"}
        self.environ |= {"OPENBLAS_NUM_THREADS": "1"}
        self.environ |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self._log = folder / "server.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._enough = threading.Event()
        self._sender: threading.Thread | None = None

    def follow(self, title: str) -> None:
        """One step of the tutorial."""
        text = section(title, TUTORIAL)
        if "with Ctrl-C" in prose(text):
            self.stop_sending()
        for block in blocks(text):
            match block.language:
                case "console":
                    for command in commands([block]):
                        self.typed.append(command.typed)
                        self._type(command)
                case "python":
                    (self.folder / block.path).write_text(block.body, encoding="utf-8")
                case "diff":
                    self._edit(block)
                case "text":
                    for line in block.text.splitlines():
                        until(partial(self._logged, line), line, SECONDS, self._tail)
                case _:
                    raise AssertionError(block)

    def figure(self, metric: str) -> int:
        with curl(["curl", f"{PLACEHOLDER}/api/v1/metrics?metrics={metric}"], self.port) as reply:
            return int(json.loads(reply.read())["metrics"][0]["value"])

    @property
    def sending(self) -> bool:
        return self._sender is not None and self._sender.is_alive()

    def stop_sending(self) -> None:
        if self._sender is not None:
            self._enough.set()
            self._sender.join()

    def leave(self) -> None:
        """End what runs. :raises AssertionError: when the server does not end by itself."""
        self.stop_sending()
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGTERM)
            try:
                self._server.wait(STOP_SECONDS)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(self._server.pid, signal.SIGKILL)

    # --- typing

    def _type(self, command: Command) -> None:
        loop = re.fullmatch(r"while sleep ([\d.]+); do (curl .*); done", command.typed)
        if loop:
            self._send(float(loop[1]), shlex.split(loop[2]))
        elif command.words == ["make", "serve"]:
            self._serve(command.words)
        elif command.typed.startswith(LOOKS):
            said = ""

            def as_shown() -> bool:
                nonlocal said
                said = self._said(command)
                return fits(command.output, said)

            until(as_shown, command.typed, SECONDS, lambda: f"{said}\n{self._tail()}")
        else:
            said = self._said(command)
            assert fits(command.output, said), f"{command.typed}\n{said}"

    def _said(self, command: Command) -> str:
        if command.words[0] == "curl":
            with curl(command.words, self.port) as reply:
                return reply.read().decode()
        done = subprocess.run(
            ["bash", "-c", command.typed],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command.typed}\n{done.stdout}"
        return done.stdout

    def _serve(self, words: list[str]) -> None:
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                words, cwd=self.folder, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        url = until(lambda: self._events("listening"), "the server", START_SECONDS, self._tail)[0]["url"]
        self.port = int(url.rpartition(":")[2])
        self.environ["ANALYTICS_PORT"] = str(self.port)

    def _send(self, pause: float, words: list[str]) -> None:
        def send() -> None:
            while not self._enough.wait(pause):
                curl(words, self.port).close()

        self._sender = threading.Thread(target=send, daemon=True)
        self._sender.start()

    def _edit(self, block: Block) -> None:
        """As editors save: a new file in the place of the old one."""
        before, after = (
            "".join(f"{line[1:]}\n" for line in block.body.splitlines() if line[0] in f" {sign}") for sign in "-+"
        )
        path = self.folder / block.path
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, before
        beside = path.with_name("4913")
        beside.write_text(text.replace(before, after), encoding="utf-8")
        beside.replace(path)

    # --- the log of the server

    def _logged(self, line: str) -> bool:
        """Whether one line of the log, which is JSON where no terminal is, has all that ``line`` shows."""
        level, event, *pairs = line.split()
        shown = {"level": level} | dict(pair.split("=") for pair in pairs)
        return any(shown.items() <= {key: str(said[key]) for key in said}.items() for said in self._events(event))

    def _events(self, event: str) -> list[dict[str, Any]]:
        lines = [line for line in self._log.read_text(encoding="utf-8").splitlines(keepends=True) if line[0] == "{"]
        told = [json.loads(line) for line in lines if line.endswith("\n")]
        return [said for said in told if said["event"] == event]

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-15:])


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """What `make` would have installed is there: an environment on top of the one that runs the tests."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    with (tmp_path / "manifests" / "host.yaml").open("a", encoding="utf-8") as host:
        host.write("\nlanes: {checkpoint_seconds: 0.5}\n")  # a reader waits a little longer
    environment = tmp_path / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    below = sysconfig.get_path("purelib")
    (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n", encoding="utf-8")
    for name, module in (("analytics", "analytics_core.cli"), ("pip", "pip")):
        script = environment / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{environment}/bin/python" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    (environment / ".installed").touch()
    made = Reader(tmp_path)
    try:
        yield made
    finally:
        made.leave()


@pytest.mark.server
def test_the_tutorial(reader: Reader) -> None:
    for title in TITLES:
        reader.follow(title)
        if reader.sending:
            grows(lambda: reader.figure("my-sales.events"), title)
        if "history" in title:
            equal = "my-sales.events and purchase are equal"
            until(lambda: reader.figure("my-sales.events") == reader.figure("purchase"), equal, SECONDS)
    assert len(reader.typed) == len(list(commands(blocks(TUTORIAL))))


def grows(read: Callable[[], int], title: str) -> None:
    seen = read()
    until(lambda: read() > seen, f"after '{title}' the figure grows", SECONDS)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ('"value":2,"points":[...]', '"value":0,"points":[]'),
        ("active thread 0 0", "active thread 0 3"),
        ("outcome: active ... 0", "outcome: rolled_back 1 0"),
        ("switched: generation 5 runs", "switched: generation 6 runs"),
    ],
)
def test_another_output_is_told_from_the_one_that_is_shown(shown: str, said: str) -> None:
    assert fits(shown, shown)
    assert not fits(shown, said)
