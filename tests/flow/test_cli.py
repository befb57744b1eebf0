"""The command line: quick where it must be, clear where something is wrong, and the demo from start to end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import click
import jsonschema
import pytest
from aiohttp import web
from click.testing import CliRunner
from rich.console import Console

from analytics_core import __version__, cli
from analytics_core.demo.screen import View, line, table
from analytics_core.demo.server import ServerProcess, free_port
from analytics_core.demo.shop import Shop
from analytics_core.demo.traffic import Conversation
from analytics_core.errors import ConfigError, ServerDiedError

HEAVY = {"pyarrow", "duckdb", "aiohttp", "deltalake", "socketio", "numpy", "rich", "msgspec", "asyncio"}


def imported_by(*arguments: str) -> set[str]:
    """The modules that a run of the command leaves behind."""
    code = f"""
import sys
from analytics_core.cli import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print("MODULES", *sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    return set(shown.rpartition("MODULES ")[2].split())


def invoke(*arguments: str, **environ: str) -> Any:
    return CliRunner(env={"ANALYTICS_MANIFESTS_DIR": None, **environ}).invoke(cli.main, list(arguments))


# --- quick


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("nonsense",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not imported_by(*arguments) & HEAVY


def test_a_static_plugins_list_loads_no_arrow_and_no_server(tmp_path: Path) -> None:
    loaded = imported_by("plugins", "list", "--port", str(closed_port()), "--manifests", str(tmp_path))
    assert "analytics_core.host.examining.judging" in loaded, "the command has run"
    assert not loaded & {*HEAVY - {"msgspec"}, "jsonschema", "pydantic", "structlog"}
    assert "analytics_core.app" not in loaded


@pytest.mark.parametrize("name", cli.main.list_commands(click.Context(cli.main)))
def test_each_command_says_in_the_overview_what_its_own_help_begins_with(name: str) -> None:
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.name == name
    about = (command.help or "").splitlines()[0]
    assert f"{name} {about}" in " ".join(invoke("--help").stdout.split())


def test_version() -> None:
    assert invoke("--version").stdout == f"analytics, version {__version__}\n"


# --- wrong


def test_an_unknown_command_suggests_the_nearest() -> None:
    result = invoke("imprt")
    assert result.exit_code == 2
    assert "No such command 'imprt'; did you mean 'import'?" in result.stderr


def wrong_manifests(tmp_path: Path) -> Path:
    (tmp_path / "host.yaml").write_text("kind: host\nserver:\n  prot: 1\n")
    return tmp_path


def test_a_configuration_error_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = invoke("plugins", "list", "--manifests", str(wrong_manifests(tmp_path)))
    assert result.exit_code == 2
    assert result.stderr.startswith("analytics: ")
    assert "host.yaml" in result.stderr
    assert "prot" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_manifests_may_be_named_by_the_environment(tmp_path: Path) -> None:
    assert invoke("plugins", "list", ANALYTICS_MANIFESTS_DIR=str(wrong_manifests(tmp_path))).exit_code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("serve",),
        ("plugins", "list"),
        ("plugins", "doctor"),
        ("plugins", "lock"),
        ("plugins", "why", "shop"),
        ("plugins", "disable", "shop"),
    ],
)
def test_a_folder_of_manifests_that_is_named_has_to_exist(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = tmp_path / "absent"
    by_option = invoke(*command, "--manifests", str(folder), ANALYTICS_DATA_DIR=str(tmp_path / "data"))
    by_variable = invoke(*command, ANALYTICS_MANIFESTS_DIR=str(folder), ANALYTICS_DATA_DIR=str(tmp_path / "data"))
    for result in (by_option, by_variable):
        assert result.exit_code == 2
        assert result.stderr == (
            f"analytics: {folder}: does not exist; the folder that --manifests or ANALYTICS_MANIFESTS_DIR names "
            "must exist\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_the_usual_folder_of_manifests_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("plugins", "list", "--port", str(closed_port())).exit_code == 0


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = invoke("--debug", "plugins", "list", "--manifests", str(wrong_manifests(tmp_path)))
    assert isinstance(result.exception, ConfigError)


def test_another_error_has_exit_code_1(tmp_path: Path) -> None:
    result = invoke("plugins", "list", "--url", f"http://127.0.0.1:{closed_port()}", "--manifests", str(tmp_path))
    assert result.exit_code == 1
    assert re.fullmatch(r"analytics: no server answers at http://127\.0\.0\.1:\d+ .*\n", result.stderr)


def test_the_address_of_an_import_is_checked_as_that_of_the_other_commands(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("event,timestamp\nview,2025-01-01\n")
    told = ("--manifests", str(tmp_path), "--data-dir", str(tmp_path / "data"))
    result = invoke("import", str(tmp_path / "a.csv"), "--url", "localhost:4000", *told)
    assert result.exit_code == 2
    assert result.stderr == "analytics: --url: 'localhost:4000' is no address of a server; valid is http://host:port\n"


# --- schemas


def test_schemas_are_written_and_valid(tmp_path: Path) -> None:
    result = invoke("schemas", str(tmp_path / "deep" / "schemas"))
    assert result.exit_code == 0
    written = sorted((tmp_path / "deep" / "schemas").iterdir())
    assert {str(path) for path in written} == set(result.stdout.split())
    assert {"host.json", "metric.json", "plugin.json"} <= {path.name for path in written}
    for path in written:
        schema = json.loads(path.read_bytes())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["properties"]["kind"] == {"const": path.stem}


# --- plugins list

ROW = {
    "name": "user-behavior",
    "version": "1.2.3",
    "state": "degraded",
    "reason": "slow [bold]",
    "since": "2025-01-01T00:00:00Z",
    "generation": 1,
    "isolation": "thread",
    "lag": 12345,
    "events_processed": 9876543,
    "hooks": ["process"],
    "errors": 0,
}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def plugin_server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Answers GET /api/v1/plugins with one row to who sends the key ``k``."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            allowed = self.path == "/api/v1/plugins" and self.headers.get("X-API-Key") == "k"
            body = json.dumps({"plugins": [ROW]} if allowed else {"detail": "no key"}).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_running_server_is_asked(plugin_server: tuple[str, list[dict[str, str]]], tmp_path: Path) -> None:
    url, _ = plugin_server
    port = url.rpartition(":")[2]
    told = ["--manifests", str(tmp_path), "--api-key", "k"]
    shown = invoke("plugins", "list", "--port", port, *told)
    assert shown.exit_code == 0
    header, row = (text.split() for text in shown.stdout.splitlines())
    assert header == ["name", "version", "state", "isolation", "lag", "events", "reason"]
    assert row == ["user-behavior", "1.2.3", "degraded", "thread", "12,345", "9,876,543", "slow", "[bold]"]
    as_json = invoke("plugins", "list", "--json", "--url", url, *told)
    assert json.loads(as_json.stdout) == {"plugins": [ROW]}


def test_a_server_that_asks_for_a_key_says_so(plugin_server: tuple[str, Any], tmp_path: Path) -> None:
    result = invoke("plugins", "list", "--url", plugin_server[0], "--manifests", str(tmp_path))
    assert result.exit_code == 1
    assert "answered 401" in result.stderr
    assert "--api-key" in result.stderr


def test_without_a_server_the_installed_plugins_are_read_but_not_imported(tmp_path: Path) -> None:
    package = tmp_path / "site" / "sample_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "plugin.yaml").write_text(
        "kind: plugin\nmanifest: 1\nname: sample\nentry: sample_plugin:Sample\nhooks: [process]\nisolation: thread\n"
    )
    info = tmp_path / "site" / "sample_plugin-4.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sample-plugin\nVersion: 4.5\n")
    (info / "entry_points.txt").write_text("[analytics_core.plugins]\nsample = sample_plugin:plugin.yaml\n")
    (tmp_path / "manifests").mkdir()
    told = ["plugins", "list", "--json", "--port", str(closed_port()), "--manifests", str(tmp_path / "manifests")]
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(package.parent)!r})\n"
         f"from analytics_core.cli import main\nmain({told!r})"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(shown.stdout)["plugins"]}
    assert (rows["sample"]["version"], rows["sample"]["state"], rows["sample"]["reason"]) == ("4.5", "discovered", "")
    assert rows["sample"]["hooks"] == ["process"]
    assert set(rows["sample"]) == set(ROW)


# --- the demo's parts


def test_a_port_in_use_is_told_with_the_option_to_set(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("demo", "--port", str(port), "--manifests", str(tmp_path), "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}: cannot be listened on" in result.stderr
    assert "--port or ANALYTICS_PORT" in result.stderr


def test_the_demo_asks_for_a_key_that_may_write(tmp_path: Path) -> None:
    told = ("--port", "0", "--manifests", str(tmp_path), "--data-dir", str(tmp_path))
    result = invoke("demo", *told, API_KEY_ENABLED="true", API_KEYS="default/reader:k")
    assert result.exit_code == 2
    assert "the demo needs one with the role 'writer'" in result.stderr


def test_any_free_port_is_found_for_zero() -> None:
    assert free_port("127.0.0.1", 0) > 0


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """An unknown option ends it at once, as any failure at the start does."""

    async def start() -> None:
        async with ServerProcess(["--no-such-option"]) as server, aiohttp.ClientSession() as session:
            await server.ready(session, f"http://127.0.0.1:{closed_port()}")

    with pytest.raises(ServerDiedError, match=r"exit code [12]; its last lines:\n(.*\n)*.*\w"):
        run(start())


def test_the_demo_begins_when_the_plugins_are_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.demo.server._PROBE_SECONDS", 0.001)
    answers = [503, 503, 200]

    async def readiness(request: web.Request) -> web.Response:
        return web.Response(status=answers.pop(0))

    class Alive(ServerProcess):
        async def died(self) -> None:
            await asyncio.Event().wait()

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/readyz", readiness)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as session:
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            await Alive([]).ready(session, f"http://127.0.0.1:{port}")
        await runner.cleanup()

    run(start())
    assert answers == []


def test_the_shop_is_posted_and_what_the_server_says_is_shown() -> None:
    """Over HTTP against a server that is busy once, tells its lanes, and pushes a metric and an insight."""
    received: list[dict[str, Any]] = []
    pushes = (
        ("metric", {"metric": "page_views", "value": 12.5, "window": {}, "labels": {}}),
        ("metric", {"metric": "page_views", "value": 1, "window": {}, "labels": {"path": "/"}}),
        ("insight:new", {"key": "k", "title": "Checkout is slow", "description": "p95 4 s"}),
        ("analytics:update", {"type": "metric", "data": {}}),
    )
    busy = iter([True])

    async def events(request: web.Request) -> web.Response:
        if next(busy, False):
            return web.Response(status=503, headers={"Retry-After": "0"})
        batch = await request.json()
        received.extend(batch)
        return web.json_response({"accepted": len(batch), "duplicates": 0, "rejected": []}, status=202)

    async def lanes(request: web.Request) -> web.Response:
        return web.json_response(
            {"lanes": [{"name": "store", "state": "running", "lag": 1234, "events": 5, "reason": ""}]}
        )

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 2000\n\n: heartbeat\n\n")
        for name, body in pushes:
            await response.write(f"event: {name}\nid: 1\ndata: {json.dumps(body)}\n\n".encode())
        await asyncio.Event().wait()
        return response

    async def converse() -> View:
        app = web.Application()
        app.router.add_post("/api/v1/events", events)
        app.router.add_get("/api/v1/lanes", lanes)
        app.router.add_get("/api/v1/stream", stream)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        view = View(url=url)
        async with aiohttp.ClientSession() as session:
            talk = Conversation(session, url, view)
            shop = Shop(1, datetime.now(UTC), rate=100)
            tasks = [asyncio.create_task(job) for job in (talk.post(shop), talk.watch_lanes(), talk.watch_stream())]
            while not (view.accepted and view.lanes and view.insights):
                await asyncio.wait(tasks, timeout=0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        return view

    view = run(converse())
    assert view.accepted <= len(received)
    assert view.refused == 1
    assert len({event["messageId"] for event in received}) == len(received)
    assert view.metrics == {"page_views": 12.5}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(view))
    screen = console.export_text()
    for expected in (
        "events/s",
        "store",
        "1,234",
        "page_views",
        "12.5",
        "Checkout is slow: p95 4 s",
        view.url,
        "Ctrl-C",
    ):
        assert expected in screen
    assert "store running lag 1234" in line(view)


def test_the_rate_is_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("analytics_core.demo.screen.time.monotonic", lambda: float(next(clock)))
    view = View(url="")
    assert view.rate == 0
    for count in (1_000, 10, 20, 30, 40, 50, 60):  # the first leaves the window
        view.count(count, 0, 0)
    assert view.rate == pytest.approx((20 + 30 + 40 + 50 + 60) / 5)


# --- the demo itself


@pytest.mark.server
@pytest.mark.parametrize("ended_by", ["duration", "signal"])
def test_the_demo_runs_and_ends_cleanly(tmp_path: Path, ended_by: str) -> None:
    port = closed_port()
    told = ["--port", str(port), "--data-dir", str(tmp_path / "data"), "--no-screen", "--rate", "100"]
    told += ["--duration", "6"] if ended_by == "duration" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "analytics_core.cli", "demo", *told],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    if ended_by == "signal":
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "events/s" in first
    accepted = int(re.search(r"([\d,]+) accepted, 0 duplicates, 0 rejected", said).group(1).replace(",", ""))  # type: ignore[union-attr]
    assert accepted > 0
    assert free_port("127.0.0.1", port) == port, "the server is gone"
