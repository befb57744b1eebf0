"""A real server process with a folder of its own: started, asked over HTTP, stopped, killed, started again."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec
import psutil
import socketio
import yaml

from tests.flow import plugin_house
from tests.flow.nursery import Forked, fork_server

ROOT = Path(__file__).parents[2]
EVENTS = "/api/v1/events"
START_SECONDS = 30.0
STOP_SECONDS = 30.0


class Answer(NamedTuple):
    """``body`` is decoded when it is JSON, else bytes."""

    status: int
    headers: Mapping[str, str]
    body: Any


class ServerHouse:
    """``data``, ``manifests`` (a copy of the shipped ones), ``site`` (plugins) and ``server.log`` under one folder.

    ``host`` holds sections that are laid over the shipped host.yaml, as ``{"lanes": {"checkpoint_seconds": 0.2}}``.
    The system gives the port at each start, so that houses side by side never want the same. Its servers come from the
    `nursery`, unless they are not to be ``forked``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: Mapping[str, Mapping[str, Any]] | None = None,
        environ: Mapping[str, str] | None = None,
        data: Path | None = None,
        forked: bool = True,
    ) -> None:
        self.data = data or folder / "data"
        self.manifests = folder / "manifests"
        self.site = folder / "site"
        self.site.mkdir()
        self.log_file = folder / "server.log"
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(self.site),
            "OPENBLAS_NUM_THREADS": "1",
            **(environ or {}),
        }
        self.port = 0
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._forked = forked
        self._log_start = 0
        self._orphans: list[psutil.Process] = []
        shutil.copytree(ROOT / "manifests", self.manifests)
        self.configure(host or {})

    # --- before the start

    def configure(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Lay ``sections`` over host.yaml. They hold from the next start."""
        path = self.manifests / "host.yaml"
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, keys in sections.items():
            written[section] = {**written.get(section, {}), **keys}
        path.write_text(yaml.safe_dump(written), encoding="utf-8")

    def manifest(self, name: str, *documents: Mapping[str, Any]) -> None:
        (self.manifests / name).write_text(yaml.safe_dump_all(documents), encoding="utf-8")

    def install(self, name: str, body: str, hooks: tuple[str, ...], **options: Any) -> None:
        """A plugin as pip would leave it; `plugin_house.install` has the options."""
        plugin_house.install(self.site, name, body, hooks, **options)

    # --- life

    def start(self, *options: str) -> Self:
        """Returns when the server answers and each plugin has come to something.

        :raises AssertionError: with its output, when it ends or never answers.
        """
        self._launch(*options)
        until(self._answers, "an answer of the server", START_SECONDS, self.tail)
        until(self._settled, "a state of each plugin", START_SECONDS, self.tail)
        return self

    def refuse(self, *options: str) -> tuple[int, str]:
        """A start that is to fail: exit code and output."""
        process = self._launch(*options)
        try:
            return process.wait(START_SECONDS), self.output()
        finally:
            self.end()

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(STOP_SECONDS)
        assert code == 0, f"the server ended with {code}: {self.tail()}"

    def kill(self) -> None:
        """``kill -9``, and wait until the server is gone; the processes of its plugins are to follow by themselves."""
        assert self.process is not None
        self._orphans += psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        """Whatever state it is in. :raises AssertionError: when a process of a plugin outlives its killed server."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(self._orphans, STOP_SECONDS)
        for process in alive:
            process.kill()
        assert not alive, f"processes of plugins outlive their server: {alive}"

    def output(self) -> str:
        """What the server has written since its last start."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode()

    def tail(self) -> str:
        """Its last lines, for messages."""
        return "\n".join(self.output().splitlines()[-15:])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind since the last start; not one that is still being written."""
        whole = (line for line in self.output().splitlines(keepends=True) if line.endswith("\n"))
        lines = (json.loads(line) for line in whole if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    def _launch(self, *options: str) -> subprocess.Popen[bytes] | Forked:
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        self.port = 0
        arguments = ["serve", "--port", "0", "--data-dir", str(self.data), "--manifests", str(self.manifests), *options]
        with self.log_file.open("ab") as log:
            if self._forked:
                self.process = fork_server(arguments, self.environ, log.fileno())
            else:
                command = [sys.executable, "-m", "analytics_core.cli", *arguments]
                self.process = subprocess.Popen(command, cwd=ROOT, env=self.environ, stdout=log, stderr=log)
        return self.process

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.tail()}"
        if not self.port:
            listening = self.logged("listening")
            self.port = int(listening[0]["url"].rpartition(":")[2]) if listening else 0
        try:
            return bool(self.port) and self.ask("GET", "/healthz").status == 200
        except OSError:
            return False

    def _settled(self) -> bool:
        parts = self.get("/api/analytics/health")["components"]
        states = {part["status"] for name, part in parts.items() if name.startswith("plugin:")}
        return not states & {"discovered", "loading", "starting"}

    # --- asking

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own. A body that is no bytes is sent as JSON."""
        status, given, raw = self.fetch(method, path, body, key=key, headers=headers)
        plain = re.search(r"[/+]json\b", given.get("Content-Type", ""))  # no lines of JSON
        return Answer(status, given, json.loads(raw) if plain else raw)

    def fetch(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """As `ask`, the body as its bytes."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= {"X-API-Key": key} if key else {}
        sent |= headers or {}
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            raw = reply.read()
        finally:
            connection.close()
        return Answer(reply.status, reply.headers, raw)

    def get(self, path: str, key: str | None = None) -> Any:
        """The body of a GET that must be answered 200."""
        answer = self.ask("GET", path, key=key)
        assert answer.status == 200, answer
        return answer.body

    def post(self, body: Any, *, key: str | None = None, **headers: str) -> Any:
        """Events that must be answered 202: the receipt. ``headers`` are written with underscores."""
        answer = self.ask("POST", EVENTS, body, key=key, headers={k.replace("_", "-"): v for k, v in headers.items()})
        assert answer.status == 202, answer
        return answer.body

    def query(self, key: str | None = None, **asked: Any) -> Any:
        """One page of history."""
        answer = self.ask("POST", "/api/analytics/query", asked, key=key)
        assert answer.status == 200, answer
        return answer.body

    def history(self, key: str | None = None, **asked: Any) -> list[dict[str, Any]]:
        """All events, page by page."""
        rows: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.query(key, limit=1000, **({"cursor": cursor} if cursor else {}), **asked)
            rows += page["data"]
            cursor = page["nextCursor"]
            if cursor is None:
                return rows

    def total(self, metric: str, key: str | None = None) -> float | None:
        """The figure of a metric over yesterday, today and tomorrow."""
        today = datetime.now(UTC).date()
        start, end = today - timedelta(days=1), today + timedelta(days=2)
        asked = f"/api/v1/metrics?metrics={metric}&startDate={start}&endDate={end}&interval=day"
        answer = self.ask("GET", asked, key=key)
        if answer.status == 404:  # a plugin's metric that has no point yet
            return None
        assert answer.status == 200, answer
        figure: float | None = answer.body["metrics"][0]["value"]
        return figure

    def plugin(self, name: str, key: str | None = None) -> dict[str, Any]:
        """One row of GET /api/v1/plugins."""
        return next(row for row in self.get("/api/v1/plugins", key)["plugins"] if row["name"] == name)


@contextmanager
def house(folder: Path, **options: Any) -> Iterator[ServerHouse]:
    """A `ServerHouse` that is not started yet, and whose server is gone at the end. ``options`` as it takes them."""
    made = ServerHouse(folder, **options)
    try:
        yield made
    finally:
        made.end()


def until(
    condition: Callable[[], Any], what: str, seconds: float = 30.0, explain: Callable[[], Any] = lambda: ""
) -> Any:
    """Ask ``condition`` until it is true, and give what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came within {seconds:g} s: {what}; {explain()}"
        time.sleep(0.02)
    return value


def equals(read: Callable[[], Any], expected: Any, what: str, seconds: float = 30.0) -> None:
    """Wait until ``read`` gives ``expected``, and say what it gave instead."""
    until(lambda: read() == expected, f"{what} = {expected!r}", seconds, lambda: f"it is {read()!r}")


# --- listening

Heard = tuple[str, str, Any]
"""(event, id, data): the id is empty over the socket."""


class Listener:
    """A client of live messages. ``call`` is for the socket alone."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.sio = socketio.AsyncClient(reconnection=False)
        self.sio.on("*", self._on_event)
        self.sio.on("connect_error", self._on_refusal)
        self.refused: Any = None

    async def _on_event(self, event: str, *data: Any) -> None:
        await self.heard.put((event, "", data[0] if data else None))

    async def _on_refusal(self, reason: Any) -> None:
        self.refused = reason

    async def call(self, event: str, data: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = await self.sio.call(event, data, timeout=10)
        return answer

    async def next(self, event: str, fits: Callable[[Any], bool] = lambda _: True, seconds: float = 15.0) -> Heard:
        """The next message of this kind that ``fits``; others before it are passed over."""
        seen = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    heard = await self.heard.get()
                    if heard[0] == event and fits(heard[2]):
                        return heard
                    seen.append(heard)
        except TimeoutError:
            raise AssertionError(f"no {event!r} came within {seconds:g} s; these did: {seen}") from None


@asynccontextmanager
async def socket_of(server: ServerHouse, *, auth: Any = None) -> AsyncIterator[Listener]:
    listener = Listener()
    await listener.sio.connect(server.url, transports=["websocket"], auth=auth)
    try:
        yield listener
    finally:
        await listener.sio.disconnect()


@asynccontextmanager
async def stream_of(server: ServerHouse, query: str, *, key: str = "", last_id: str = "") -> AsyncIterator[Listener]:
    """Server-Sent Events. Ready when the stream is open, so nothing that is posted after that is missed."""
    listener = Listener()
    headers = {**({"X-API-Key": key} if key else {}), **({"Last-Event-ID": last_id} if last_id else {})}
    async with (
        aiohttp.ClientSession() as http_session,
        http_session.get(f"{server.url}/api/v1/stream?{query}", headers=headers) as reply,
    ):
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"
        reading = asyncio.create_task(_read_stream(reply, listener))
        try:
            yield listener
        finally:
            reading.cancel()


async def _read_stream(reply: aiohttp.ClientResponse, listener: Listener) -> None:
    fields: dict[str, str] = {}
    async for raw in reply.content:
        name, _, value = raw.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            await listener.heard.put((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
            fields = {}
