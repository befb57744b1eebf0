"""A running server takes in what changes on the disk: sources, manifests, and plugins that come and go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS
from tests.flow.server_house import ServerHouse, equals, house, until

pytestmark = pytest.mark.server

TWICE = COUNTING.replace("value=self.n,", "value=2 * self.n,")
LANES = {"lanes": {"checkpoint_seconds": 0.05}}
ASKED = "/api/v1/metrics?metrics={}.events&startDate=2025-01-01&endDate=2025-01-02"


def post(server: ServerHouse, count: int) -> None:
    assert server.ask("POST", "/api/v1/events", [{"event": "x"}] * count).status == 202


def figure(server: ServerHouse, plugin: str = "counting") -> Callable[[], object]:
    def read() -> object:
        answer = server.ask("GET", ASKED.format(plugin))
        return answer.body["metrics"][0]["value"] if answer.status == 200 else answer.status

    return read


def source(server: ServerHouse, plugin: str = "counting") -> Path:
    (path,) = (path for path in server.site.glob("*/__init__.py") if plugin in path.parent.name)
    return path


def save(path: Path, text: str) -> None:
    """As editors do: a new file, renamed over the old one."""
    beside = path.with_name("4913")
    beside.write_text(text)
    beside.replace(path)


def state(server: ServerHouse, wanted: str, generation: int, plugin: str = "counting") -> None:
    def reached() -> bool:
        seen = server.plugin(plugin)
        return (seen["state"], seen["generation"]) == (wanted, generation)

    until(reached, f"{plugin} {wanted} in generation {generation}", 20.0, lambda: f"{server.plugin(plugin)}")


@pytest.mark.parametrize("watch", ["notify", "poll"])
def test_a_saved_source_is_taken_in_and_a_broken_one_is_not(tmp_path: Path, watch: str) -> None:
    with house(tmp_path, host={**LANES, "plugins": {"watch": watch}}) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS, isolation="thread")
        server.start()
        post(server, 3)
        equals(figure(server), 3, "the first figure")
        whole = source(server).read_text()
        save(source(server), whole.replace("value=self.n,", "value=2 * self.n,"))
        state(server, "active", 2)
        post(server, 1)
        equals(figure(server), 8, "twice four")
        source(server).write_text(whole[: len(whole) // 2] + "\n(")  # half a file
        state(server, "rolled_back", 2)
        assert "SyntaxError" in server.plugin("counting")["reason"]
        post(server, 1)
        equals(figure(server), 10, "the running generation goes on")
        source(server).unlink()
        save(source_of(server), whole)
        until(lambda: server.plugin("counting")["state"] == "active", "the mended source", 20.0)
        post(server, 1)
        equals(figure(server), 6, "all six, once each")


def source_of(server: ServerHouse, plugin: str = "counting") -> Path:
    (folder,) = (path for path in server.site.iterdir() if plugin in path.name and not path.name.endswith(".dist-info"))
    return folder / "__init__.py"


def test_twenty_saves_in_a_second_end_in_the_last_one(tmp_path: Path) -> None:
    with house(tmp_path, host=LANES) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS, isolation="thread")
        server.start()
        whole = source(server).read_text()
        for factor in range(10, 30):
            save(source_of(server), whole.replace("value=self.n,", f"value={factor} * self.n,"))
        sent = 0

        def multiplied() -> object:
            """By what the generation that is in just now multiplies: a figure follows the next event."""
            nonlocal sent
            sent += 1
            post(server, 1)
            factors = {sent * factor: factor for factor in (1, *range(10, 30))}
            return until(lambda: factors.get(figure(server)()), "a figure")

        until(lambda: multiplied() == 29, "the last save counts", 60.0)
        touched = server.plugin("counting")["generation"]
        os.utime(source(server))
        post(server, 1)
        equals(figure(server), 29 * (sent + 1), "one more")
        assert server.plugin("counting")["generation"] == touched, "a touched file is no change"


def test_plugins_are_installed_and_removed_and_settings_changed_without_a_restart(tmp_path: Path) -> None:
    with house(tmp_path, host=LANES) as server:
        server.start()
        post(server, 3)
        server.install("counting", COUNTING, COUNTING_HOOKS, isolation="thread")
        until(lambda: "counting" in names(server), "the installed plugin", 20.0)
        equals(figure(server), 3, "from the first event on")
        server.manifest("counting.yaml", {"kind": "plugin-settings", "name": "counting", "enabled": False})
        until(lambda: server.plugin("counting")["state"] == "disabled", "the operator's word", 20.0)
        server.manifest("counting.yaml", {"kind": "plugin-settings", "name": "counting", "enabeld": True})
        until(lambda: "manifests_refused" in server.output(), "a refusal", 20.0)
        assert server.plugin("counting")["state"] == "disabled", "a bad file changes nothing"
        (server.manifests / "counting.yaml").unlink()
        until(lambda: server.plugin("counting")["state"] == "active", "as before", 20.0)
        for path in server.site.iterdir():
            if "counting" in path.name:
                shutil.rmtree(path)
        until(lambda: "counting" not in names(server), "its end", 20.0)
        post(server, 1)


def analytics(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analytics_core.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names(server: ServerHouse) -> list[str]:
    return [plugin["name"] for plugin in server.get("/api/v1/plugins")["plugins"]]


def test_an_operator_reloads_over_rest_and_reads_the_receipts(tmp_path: Path) -> None:
    with house(tmp_path, host=LANES) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS, isolation="process")
        server.start()
        post(server, 3)
        equals(figure(server), 3, "the first figure")
        made = server.ask("POST", "/api/v1/plugins/counting/reload")
        assert made.status == 200
        assert (made.body["outcome"], made.body["before"], made.body["after"]) == ("active", 1, 2)
        assert server.get("/api/v1/plugins/counting/reloads") == {"reloads": [made.body]}
        post(server, 1)
        equals(figure(server), 4, "handed over")
        shown = analytics("plugins", "reload", "counting", "--url", server.url)
        assert (shown.returncode, shown.stdout.splitlines()[0]) == (
            0,
            "counting: generation 3 has taken over from 2",
        )
        refused = analytics("plugins", "reload", "countin", "--url", server.url)
        assert (refused.returncode, refused.stderr) == (
            2,
            "analytics: no plugin is named 'countin'; did you mean 'counting'?\n",
        )
        unknown = server.ask("POST", "/api/v1/plugins/countin/reload")
        assert unknown.status == 404
        assert "counting" in unknown.body["detail"]
