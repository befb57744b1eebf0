"""``analytics plugins replay`` against a server that plays one replay."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from analytics_core import cli
from analytics_core.cli.plugins import replaying
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.replaying.view import ReplayState, ReplayView
from analytics_core.state.side import Change, Counted, Difference

DAY = datetime(2025, 1, 1, tzinfo=UTC)
DIFFERS = Difference(
    position=1234,
    equal=False,
    counts=[
        Counted(what="metric", name="views", equal=3000, changed=2, largest=41.5),
        Counted(what="insight", equal=5, only_old=1),
    ],
    sample=[Change(tenant="acme", name="views", start=DAY, seconds=86_400, labels={"page": "/"}, old=83.0, new=41.5)],
)
SAME = Difference(position=1234, equal=True, counts=[Counted(what="metric", name="views", equal=3002)], sample=[])


class House:
    """A server with a plugin ``shop``, whose replay is ready at the second look."""

    def __init__(self, manifests: Path) -> None:
        self.manifests = manifests
        self.asked: list[tuple[str, Any]] = []
        self.difference = DIFFERS
        self.fails = ""
        self.refuses = 0
        self.waiting: ReplayView | None = None
        self.looked: Callable[[], ReplayView | None] = lambda: self.waiting
        self.port = 0

    def view(self, state: ReplayState, **given: Any) -> ReplayView:
        figures: dict[str, Any] = {"events": 5000, "position": 1234, "progress": 1.0}
        return ReplayView(
            id="r1", plugin="shop", state=state, reason=given.pop("reason", ""), generation=2, since=None,
            kept_from=DAY, started_at=DAY, **figures, **given,
        )  # fmt: skip

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/api/v1/plugins":
            return 200, {"plugins": [{"name": "shop"}]}
        action = f"{method} {path.removeprefix('/api/v1/plugins/shop/replays')}".strip()
        if action == "GET":
            return 200, {"replays": [latest] if (latest := self.looked()) else []}
        self.asked.append((action, body))
        if action == "POST" and self.refuses:
            return self.refuses, {"detail": "no"}
        if action == "POST":
            failed = self.view("failed", reason=self.fails) if self.fails else None
            self.waiting = failed or self.view("ready", difference=self.difference)
            return 202, self.view("replaying")
        if action == "POST /r1/switch":
            receipt = ReloadReceipt("shop", 1, 2, "active", "", DAY, {}, position=1300)
            return 200, self.view("switched", difference=self.difference, receipt=receipt)
        assert action == "DELETE /r1", action
        return 200, self.view("discarded")

    def run(self, *arguments: str, **given: Any) -> Result:
        environ = {"ANALYTICS_MANIFESTS_DIR": str(self.manifests), "COLUMNS": "120"}
        command = ["plugins", "replay", *arguments, "--port", str(self.port)]
        return CliRunner(env=environ).invoke(cli.main, command, **given)

    def actions(self) -> list[str]:
        return [action for action, _ in self.asked]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(replaying, "_LOOK_SECONDS", 0.001)
    built = House(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = built.answer(self.command, self.path, json.loads(sent) if sent else None)
            answer = msgspec.json.encode(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *arguments: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    built.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield built
    server.shutdown()
    server.server_close()
    thread.join()


def test_where_nobody_can_be_asked_it_shows_the_difference_and_how_to_switch(house: House) -> None:
    done = house.run("shop", "--since", "30d")
    assert done.exit_code == 0
    assert house.asked == [("POST", {"since": "30d"})]
    for shown in ("5,000 events", "position 1234", "views", "3,000", "41.5", "insights", "page=/", "83"):
        assert shown in done.stdout, shown
    assert done.stdout.endswith("nothing is changed; to switch: analytics plugins replay shop --yes\n")


def test_yes_switches(house: House) -> None:
    done = house.run("shop", "--yes")
    assert (done.exit_code, house.actions()) == (0, ["POST", "POST /r1/switch"])
    assert "switched: generation 2 runs, from position 1300 on" in done.stdout


@pytest.mark.parametrize(("said", "then"), [("y", "POST /r1/switch"), ("n", "DELETE /r1"), ("", "DELETE /r1")])
def test_it_asks_where_somebody_can_answer(house: House, monkeypatch: pytest.MonkeyPatch, said: str, then: str) -> None:
    monkeypatch.setattr(replaying, "interactive", lambda: True)
    done = house.run("shop", input=f"{said}\n")
    assert done.exit_code == 0
    assert "switch? [y/N]" in done.stdout
    assert house.actions()[-1] == then


def test_equal_outputs_leave_nothing_to_decide(house: House) -> None:
    house.difference = SAME
    done = house.run("shop")
    assert "equal: none of 3,002 outputs differs" in done.stdout
    assert house.actions()[-1] == "DELETE /r1"


def test_json_asks_nothing_and_is_the_replay(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "interactive", lambda: True)
    done = house.run("shop", "--json")
    assert (done.exit_code, house.actions()) == (0, ["POST"])
    assert json.loads(done.stdout)["difference"]["position"] == 1234


def test_a_replay_that_waits_is_taken_up(house: House) -> None:
    house.waiting = house.view("ready", difference=DIFFERS)
    done = house.run("shop", "--yes")
    assert (done.exit_code, house.actions()) == (0, ["POST /r1/switch"])
    assert "taking up the replay that began at 2025-01-01 00:00 UTC" in done.stderr
    again = house.run("shop", "--since", "3d")
    assert again.exit_code == 2
    assert "drop it with --discard" in again.stderr
    dropped = house.run("shop", "--discard")
    assert (dropped.exit_code, house.actions()[-1]) == (0, "DELETE /r1")
    assert dropped.stdout == "shop: the replay is discarded; nothing has changed\n"


def test_a_server_that_was_started_anew_has_dropped_it(house: House) -> None:
    house.looked = lambda: None
    done = house.run("shop")
    assert done.exit_code == 1
    assert "was started anew: the replay of shop is gone, and nothing has changed" in done.stderr


def test_one_that_somebody_else_has_switched_to_is_said_to_be(house: House) -> None:
    house.waiting = house.view("switching", difference=DIFFERS)
    switched = house.view("switched", difference=DIFFERS)
    looks = iter([house.waiting])
    house.looked = lambda: next(looks, switched)
    done = house.run("shop")
    assert (done.exit_code, done.stdout) == (0, "switched: generation 2 runs\n")


def test_whoever_leaves_is_told_that_the_replay_goes_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replaying, "time", SimpleNamespace(sleep=leave))  # for nobody else
    done = house.run("shop")
    assert done.exit_code == 1
    assert "the replay goes on without you; to drop it: analytics plugins replay shop --discard" in done.stderr
    assert house.actions() == ["POST"]


def test_to_drop_and_to_switch_is_refused(house: House) -> None:
    for more in (["--yes"], ["--since", "3d"]):
        assert house.run("shop", "--discard", *more).exit_code == 2
    assert house.actions() == []


def test_without_a_replay_there_is_nothing_to_discard(house: House) -> None:
    done = house.run("shop", "--discard")
    assert (done.exit_code, done.stderr) == (2, "analytics: no replay of shop is under way\n")


def test_a_replay_that_fails_says_why(house: House) -> None:
    house.fails = "Plugin 'shop': hook 'process' failed: ValueError: odd"
    done = house.run("shop")
    assert done.exit_code == 1
    assert done.stdout == f"shop: the replay is failed: {house.fails}; nothing has changed\n"


def test_an_unknown_plugin_suggests_the_nearest(house: House) -> None:
    done = house.run("shp")
    assert (done.exit_code, done.stderr) == (2, "analytics: no plugin is named 'shp'; did you mean 'shop'?\n")


def test_it_needs_a_server(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["plugins", "replay", "shop", "--port", "1", "--manifests", str(tmp_path)])
    assert done.exit_code == 1
    assert "no server answers at http://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_what_it_waits_for_is_a_line_each_time_it_changes(house: House, more: tuple[str, ...]) -> None:
    looks = [*(["gone"] * 3), *([""] * 2)]
    last = house.view("ready", difference=DIFFERS)
    house.looked = lambda: house.view("replaying", reason=looks.pop(0)) if looks else last
    house.waiting = house.view("replaying")
    done = house.run("shop", *more)
    assert done.stderr.splitlines()[1:] == ["shop: the replay waits: gone", "shop: the replay goes on"]


@pytest.mark.parametrize(("status", "code"), [(422, 2), (409, 1)])
def test_what_the_server_does_not_understand_ends_as_other_bad_input(house: House, status: int, code: int) -> None:
    house.refuses = status
    done = house.run("shop", "--since", "banana")
    assert (done.exit_code, done.stderr.endswith(f" answered {status}: no\n")) == (code, True)


def test_why_all_is_rebuilt_is_said(house: House) -> None:
    house.waiting = house.view("ready", difference=DIFFERS, note="asked for since 2024-12-02; history begins later")
    assert "asked for since 2024-12-02; history begins later\n" in house.run("shop").stdout
