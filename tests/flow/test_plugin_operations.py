"""The operator's commands about plugins: over REST and from the command line, on a server that is at work."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from analytics_core.config import Auth, Plugins, Server, Settings
from analytics_core.errors import NotFoundError
from analytics_core.host.caretaker import Caretaker
from analytics_core.host.examining.examination import Examination
from analytics_core.host.reloader import ManifestsView
from tests.flow.api_house import AUTH, House, StandIns, opened
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS
from tests.flow.server_house import ROOT, Answer, ServerHouse, equals, house, until

PLUGINS = "/api/v1/plugins"
OPERATIONS = [
    ("GET", f"{PLUGINS}/counting"),
    ("GET", f"{PLUGINS}/counting/why"),
    ("GET", f"{PLUGINS}/counting/reloads"),
    ("POST", f"{PLUGINS}/counting/enable"),
    ("POST", f"{PLUGINS}/counting/disable"),
    ("POST", f"{PLUGINS}/counting/reload"),
    ("POST", "/api/v1/doctor?plugins=counting"),
]


# --- over the routes, with a host that stands in ---------------------------------------------------------------------


@asynccontextmanager
async def running(manifests: Path, environ: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[House]:
    """The routes over a real `Caretaker`; ``behind.asked`` has each look that its host was told to take."""
    configured = Settings(manifests_dir=manifests, **{"auth": AUTH, **settings})

    def caretaker(behind: StandIns) -> Caretaker:
        def look() -> str:
            behind.asked.append(("look",))
            return behind.manifests.refused

        return Caretaker(behind, configured, environ or {}, look)  # type: ignore[arg-type]

    async with opened(configured, caretaker=caretaker) as made:
        yield made


async def operate(made: House, method: str, path: str, key: str = "acme-operator") -> SimpleNamespace:
    return await made.ask(method, path, key)


def test_a_switch_is_written_then_taken_in_and_answered_with_the_plugin(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            off = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable?reason=too+loud")
            path = tmp_path / "plugin-user-behavior.yaml"
            assert off.status == 200
            assert (off.body["name"], off.body["enabled"], off.body["changed"], off.body["file"]) == (
                "user-behavior",
                False,
                True,
                str(path),
            )
            assert off.body["plugin"]["name"] == "user-behavior"
            assert path.read_text().endswith(": too loud\n")
            assert "enabled: false" in path.read_text()
            again = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable")
            assert again.body["changed"] is False
            assert made.behind.asked == [("look",), ("look",)], "a hand-written word is taken in too"
            on = await operate(made, "POST", f"{PLUGINS}/user-behavior/enable")
            assert on.body["changed"] is True
            assert path.read_text().endswith("enabled: true\n")

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["user-behaviour", "User-Behavior", "..%2Fplugins"])
def test_an_unknown_plugin_is_404_with_the_nearest_name(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            for method, path in OPERATIONS:
                answer = await operate(made, method, path.replace("counting", name))
                if path.endswith(("/reload", "/why")) or "doctor" in path:
                    continue  # the host's own 404, and those that know distributions too
                assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json"), path
                assert "user-behavior" in answer.body["detail"]
            unknown = await operate(made, "POST", "/api/v1/doctor?plugins=no-such-thing-at-all")
            assert unknown.status == 404
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("text", "status", "parts"),
    [
        ("kind: metrik\n", 422, ["plugins.yaml", "did you mean 'metric'"]),
        ("{kind: plugin-settings, name: user-behavior}\n", 409, ["between braces", "by hand"]),
        ("kind: plugin-settings\nname: user-behavior\nenabled: ${ON:-true}\n", 409, ["${ON:-true}"]),
    ],
)
def test_what_cannot_be_written_is_a_problem_and_nothing_is_half_done(
    tmp_path: Path, text: str, status: int, parts: list[str]
) -> None:
    async def scenario() -> None:
        (tmp_path / "plugins.yaml").write_text(text)
        async with running(tmp_path) as made:
            answer = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable")
            assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
            assert all(part in answer.body["detail"] for part in parts), answer.body
            assert not made.behind.asked
        assert [each.read_text() for each in tmp_path.iterdir()] == [text]

    asyncio.run(scenario())


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_a_server_with_a_list_of_plugins_refuses_and_names_it(tmp_path: Path, verb: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path, plugins=Plugins(enabled=("other",))) as made:
            answer = await operate(made, "POST", f"{PLUGINS}/user-behavior/{verb}")
            assert (answer.status, answer.body["title"]) == (409, "Plugin not switched")
            assert "PLUGINS_ENABLED" in answer.body["detail"]
            assert not made.behind.asked
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://elsewhere.example", 403), ("null", 403), ("https://ours.example", 200), ("{own}", 200), (None, 200)],
)
def test_without_auth_a_page_of_somebody_else_changes_nothing(tmp_path: Path, origin: str | None, status: int) -> None:
    async def scenario() -> None:
        async with running(tmp_path, auth=Auth(), server=Server(cors_origins=("https://ours.example",))) as made:
            headers = {"Origin": origin.replace("{own}", made.url)} if origin else {}
            path = f"{PLUGINS}/user-behavior/disable"
            answer = await made.ask("POST", path, headers=headers)
            assert answer.status == status
            assert bool(list(tmp_path.iterdir())) == (status == 200)

    asyncio.run(scenario())


def test_what_is_not_to_run_is_known_and_says_why_it_is_not_reloaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            made.behind.state = "invalid"
            made.behind.fail = NotFoundError("running plugin", "user-behavior", ["other"])
            known = await operate(made, "POST", f"{PLUGINS}/user-behavior/reload")
            assert (known.status, known.body["title"]) == (503, "Plugin unavailable")
            assert known.body["detail"].endswith("nothing is to be reloaded; it is invalid: a row of globex")
            assert (await operate(made, "POST", f"{PLUGINS}/another/reload")).status == 404

    asyncio.run(scenario())


def test_what_is_written_but_not_taken_in_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            made.behind.manifests = ManifestsView(refused="host.yaml: no such key")
            off = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable")
            assert (off.status, off.body["changed"], off.body["refused"]) == (200, True, "host.yaml: no such key")
            assert off.body["plugin"]["state"] == "active"

    asyncio.run(scenario())


def test_what_the_host_has_not_seen_yet_can_be_switched_and_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            monkeypatch.setattr(made.behind, "views", list)
            off = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable")
            assert (off.status, off.body["changed"], off.body["plugin"]) == (200, True, None)
            monkeypatch.setattr(made.behind, "receipts", lambda name: pytest.fail("a plugin that nobody has seen"))
            seen = await operate(made, "GET", f"{PLUGINS}/user-behavior")
            assert (seen.status, seen.body["plugin"], seen.body["reloads"]) == (200, None, [])

    asyncio.run(scenario())


def test_a_read_only_folder_is_a_problem_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analytics_core.manifest.switching.mkstemp", refuse)

    async def scenario() -> None:
        async with running(tmp_path) as made:
            answer = await operate(made, "POST", f"{PLUGINS}/user-behavior/disable")
            assert (answer.status, answer.body["title"]) == (503, "Manifests cannot be written")
            assert answer.body["detail"].endswith("cannot be written: Read-only file system; nothing was changed")
            assert not made.behind.asked
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        (f"{PLUGINS}/user-behavior/disable?reason={'x' * 201}", "reason"),
        (f"{PLUGINS}/user-behavior/disable?reson=x", "reson"),
        (f"{PLUGINS}/user-behavior/enable?reason=x", "reason"),
        ("/api/v1/doctor?seconds=0", "seconds"),
        ("/api/v1/doctor?seconds=61", "seconds"),
        ("/api/v1/doctor?seconds=nan", "seconds"),
        ("/api/v1/doctor?plugin=x", "plugin"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(tmp_path: Path, path: str, parameter: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            answer = await operate(made, "POST", path)
            assert (answer.status, answer.body["parameter"]) == (422, parameter)
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


def test_only_one_examination_at_a_time_and_none_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def examinations(names: list[str], _: Any, __: Any, seconds: float) -> Iterator[Examination]:
        asked.append((names, seconds))
        begun.set()
        assert go_on.wait(10)
        yield Examination(plugin="user-behavior")

    monkeypatch.setattr("analytics_core.host.caretaker.examinations", examinations)

    async def scenario() -> None:
        async with running(tmp_path) as made:
            first = asyncio.create_task(operate(made, "POST", "/api/v1/doctor?plugins=a,%20b&seconds=2.5"))
            await asyncio.to_thread(begun.wait, 10)
            assert (await operate(made, "GET", PLUGINS)).status == 200, "the loop goes on"
            second = await operate(made, "POST", "/api/v1/doctor")
            assert (second.status, second.body["title"]) == (409, "Under way already")
            go_on.set()
            done = await first
            assert [plugin["plugin"] for plugin in done.body["plugins"]] == ["user-behavior"]
            assert (await operate(made, "POST", "/api/v1/doctor")).status == 200
            assert asked == [(["a", "b"], 2.5), ([], 30.0)]

    asyncio.run(scenario())


def test_a_failed_examination_does_not_lock_the_next_one_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> Any:
        raise NotFoundError("plugin", "x", [])

    monkeypatch.setattr("analytics_core.host.caretaker.examinations", unknown)

    async def scenario() -> None:
        async with running(tmp_path) as made:
            assert [(await operate(made, "POST", "/api/v1/doctor")).status for _ in range(2)] == [404, 404]

    asyncio.run(scenario())


def test_why_and_inspect_join_what_runs_with_what_is_installed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as made:
            made.behind.state = "quarantined"
            told = (await operate(made, "GET", f"{PLUGINS}/user-behavior/why")).body
            assert (told["runs"], told["state"], told["reason"], told["source"]) == (
                False,
                "quarantined",
                "a row of globex",
                "host",
            )
            assert [holder["distribution"] for holder in told["holders"]] == ["analytics-user-behavior"]
            undeclared = (await operate(made, "GET", f"{PLUGINS}/msgspec/why")).body
            assert undeclared["state"] == "undeclared"
            seen = (await operate(made, "GET", f"{PLUGINS}/user-behavior")).body
            assert (seen["declared"]["state"], seen["plugin"]["state"]) == ("quarantined", "quarantined")
            assert "process" in seen["declared"]["manifest"]["hooks"]
            assert seen["reloads"][0]["plugin"] == "user-behavior"

    asyncio.run(scenario())


# --- a real server ---------------------------------------------------------------------------------------------------

RESUMING = COUNTING.replace("self.n = 0", "self.n = self.fresh = 0").replace(
    "self.n += len(batch)", "self.n += len(batch); self.fresh += len(batch)"
)
RESUMING = RESUMING.replace(
    '[Metric(name="events"', '[Metric(name="fresh", value=self.fresh, window=Window(DAY, 86400)), Metric(name="events"'
)
"""Counts all events, and as ``fresh`` those that this instance itself has processed."""
SCHEMA = {"type": "object", "properties": {"token": {"type": "string", "writeOnly": True}}}
KEYS = {"API_KEY_ENABLED": "true", "API_KEYS": "default/reader:r,default/writer:w,default/operator:o"}


@contextmanager
def serving(folder: Path, environ: dict[str, str] | None = None, **host: Any) -> Iterator[ServerHouse]:
    """A server that takes the keys r, w and o, with the plugin ``counting`` in a process of its own."""
    told = {"lanes": {"checkpoint_seconds": 0.05}, **host}
    with house(folder, host=told, environ={**KEYS, **(environ or {})}) as server:
        server.install("counting", RESUMING, COUNTING_HOOKS, isolation="process", settings=SCHEMA)
        settings = {"token": "s3cret"}
        server.manifest(
            "counting.yaml", {"kind": "plugin-settings", "name": "counting", "enabled": True, "settings": settings}
        )
        server.start()
        until(lambda: server.plugin("counting", "o")["state"] == "active", "the plugin", explain=server.tail)
        yield server


def figure(server: ServerHouse, metric: str = "events") -> Callable[[], Any]:
    asked = f"/api/v1/metrics?metrics=counting.{metric}&startDate=2025-01-01&endDate=2025-01-02"

    def read() -> Any:
        answer = server.ask("GET", asked, key="r")
        return answer.body["metrics"][0]["value"] if answer.status == 200 else answer.status

    return read


def command(server: ServerHouse, *arguments: str, key: str = "o", **environ: str) -> subprocess.CompletedProcess[str]:
    told = {**server.environ, "PYTHONPATH": f"{ROOT}:{server.site}", "ANALYTICS_API_KEY": key, **environ}
    told["ANALYTICS_MANIFESTS_DIR"] = str(server.manifests)
    words = [sys.executable, "-m", "analytics_core.cli", "plugins", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=told, cwd=ROOT, timeout=60, check=False)


class Traffic:
    """Sends events as fast as they are taken, until the end of the block; ``sent`` are those that were acknowledged."""

    def __init__(self, server: ServerHouse) -> None:
        self._server = server
        self.sent = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            self.sent += self._server.post([{"event": "x"}] * 50, key="w")["accepted"]

    def more(self, count: int = 200) -> None:
        wanted = self.sent + count
        until(lambda: self.sent >= wanted, f"{count} more events")


def workers(server: ServerHouse) -> list[psutil.Process]:
    assert server.process is not None
    return psutil.Process(server.process.pid).children(recursive=True)


def operator(server: ServerHouse, method: str, path: str) -> Answer:
    answer = server.ask(method, f"{PLUGINS}/{path}", key="o")
    assert answer.status == 200, answer
    return answer


@pytest.mark.server
def test_disabled_and_enabled_while_events_flow_every_event_counts_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        manifest = server.manifests / "counting.yaml"
        before = manifest.read_text()
        with Traffic(server) as traffic:
            until(lambda: figure(server)() not in (None, 404), "the first figure")
            traffic.more()
            for key, status in ((None, 401), ("r", 403), ("w", 403)):
                assert [server.ask(m, path, key=key).status for m, path in OPERATIONS] == [status] * len(OPERATIONS)
            assert manifest.read_text() == before
            off = operator(server, "POST", "counting/disable?reason=floods").body
            assert (off["plugin"]["state"], off["file"]) == ("disabled", str(manifest))
            until(lambda: not workers(server), "the end of its process")
            stopped = figure(server)()
            traffic.more()
            assert figure(server)() == stopped, "a disabled plugin has no lane"
            why = operator(server, "GET", "counting/why").body
            assert (why["runs"], why["reason"]) == (False, "plugin-settings say 'enabled: false'")
            assert why["line"].startswith(f"{manifest}, line 1: enabled: false  # disabled ")
            assert why["line"].endswith(": floods")
            on = operator(server, "POST", "counting/enable").body
            assert on["plugin"]["state"] != "disabled"
            assert manifest.read_text() == before
            until(lambda: server.plugin("counting", "o")["state"] == "active", "active again")
            traffic.more()
        equals(figure(server), traffic.sent, "every event, once")
        equals(figure(server, "fresh"), traffic.sent - stopped, "it went on from its last commit")
        seen = operator(server, "GET", "counting").body
        assert seen["declared"]["settings"]["effective"] == {"token": "***"}
        assert "s3cret" not in str(seen)
        assert (seen["plugin"]["state"], [lane["name"] for lane in seen["lanes"]]) == ("active", ["counting"])
        examined = server.ask("POST", "/api/v1/doctor?plugins=counting", key="o")
        assert [(one["plugin"], one["problems"]) for one in examined.body["plugins"]] == [("counting", [])]
        assert {line["by"][:4] for line in server.logged("plugin_switched")} == {"key "}


@pytest.mark.server
def test_the_command_waits_until_the_running_server_has_followed(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        here = ["counting", "--port", str(server.port)]
        off = command(server, "disable", *here, key="r")
        assert (off.returncode, off.stdout.splitlines()[0]) == (
            0,
            f"counting is disabled in {server.manifests / 'counting.yaml'}",
        )
        assert server.plugin("counting", "o")["state"] == "disabled"
        on = command(server, "enable", *here, "--json")
        told = json.loads(on.stdout)
        assert (on.returncode, told["state"], told["changed"], told["source"]) == (0, "active", True, server.url)
        by_server = command(server, "disable", "counting", "--url", server.url, "--reason", "no")
        assert by_server.returncode == 0
        assert "# disabled" in (server.manifests / "counting.yaml").read_text()
        refused = command(server, "enable", "counting", "--url", server.url, key="r")
        assert refused.returncode == 1
        assert "403" in refused.stderr
        unknown = command(server, "enable", "countin", "--url", server.url)
        assert (unknown.returncode, unknown.stderr) == (
            2,
            "analytics: no plugin is named 'countin'; did you mean 'counting'?\n",
        )


@pytest.mark.server
def test_a_server_that_does_not_watch_takes_it_in_when_it_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path, plugins={"watch": "off"}) as server:
        assert operator(server, "POST", "counting/disable").body["plugin"]["state"] == "disabled"
        operator(server, "POST", "counting/enable")
        until(lambda: server.plugin("counting", "o")["state"] == "active", "active again")
