"""A real server process under measurement: started from nothing, its CPU and memory read from the system."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import psutil

ROOT = Path(__file__).parents[1]


class Server:
    """One ``analytics serve`` on a free port with its data under a folder of its own."""

    def __init__(self, data: Path, environ: dict[str, str] | None = None, manifests: Path = ROOT / "manifests") -> None:
        self.data = data
        self.manifests = manifests
        self.port = _free_port()
        self.environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when its plugins are up. `start_seconds` says how long it took until it first answered."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "analytics_core.cli", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.data), "--manifests", str(self.manifests), "--log-level", "WARNING"]
        with (self.data.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=log, stderr=log)
        self._wait("/healthz")
        self.start_seconds = time.perf_counter() - began
        self._wait("/readyz")

    def _wait(self, path: str) -> None:
        """Until it answers 200 there."""
        assert self.process is not None
        while not self._answers(path):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {(self.data.parent / 'server.log').read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def family(self) -> list[psutil.Process]:
        """The server, and after it its plugin processes."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of the server and its plugin processes so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self.family())

    def rss_mb(self) -> float:
        total = 0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):  # that of a generation which was just retired
                total += process.memory_info().rss
        return total / (1 << 20)

    def get(self, path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as reply:
            return msgspec.json.decode(reply.read(), type=dict[str, object])

    def lag(self) -> int:
        """Events that the slowest lane has still to process; the store writer gathers a minute by intent."""
        lanes = self.get("/api/v1/lanes")["lanes"]
        assert isinstance(lanes, list)
        return max(int(lane["lag"]) for lane in lanes if lane["name"] != "store-writer")


@contextmanager
def fresh_server(environ: dict[str, str] | None = None) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="analytics-bench-"))
    server = Server(folder / "data", environ)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
