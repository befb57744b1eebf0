"""A server that is locked runs what ``plugins.lock`` has, and nothing else, whatever comes while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS
from tests.flow.server_house import ROOT, ServerHouse, equals, house, until
from tests.flow.test_live_reload import LANES, figure, post, save, source, state

pytestmark = pytest.mark.server


def accept(server: ServerHouse, *names: str) -> None:
    environ = {**server.environ, "ANALYTICS_MANIFESTS_DIR": str(server.manifests)}
    environ["PYTHONPATH"] = os.pathsep.join([environ["PYTHONPATH"], str(ROOT)])
    command = [sys.executable, "-m", "analytics_core.cli", "plugins", "lock", *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def distribution(server: ServerHouse, plugin: str) -> str:
    return source(server, plugin).parent.name


def names(server: ServerHouse) -> list[str]:
    return [row["name"] for row in server.get("/api/v1/plugins")["plugins"]]


def test_a_locked_server_takes_in_what_was_accepted_and_nothing_else(tmp_path: Path) -> None:
    with house(tmp_path, host=LANES) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS, isolation="thread")
        accept(server)
        server.start("--locked")
        post(server, 3)
        equals(figure(server), 3, "the first figure")
        save(source(server), source(server).read_text().replace("value=self.n,", "value=2 * self.n,"))
        state(server, "rolled_back", 1)
        reason = server.plugin("counting")["reason"]
        name = distribution(server, "counting").replace("_", "-")
        assert f"{tmp_path / 'plugins.lock'} has {name} 1.0" in reason
        assert f"accept it with 'analytics plugins lock {name}'" in reason
        post(server, 1)
        equals(figure(server), 4, "the locked code goes on")
        server.install("other", COUNTING, COUNTING_HOOKS, isolation="thread")
        until(lambda: "other" in names(server), "the other plugin is seen", 20.0)
        state(server, "invalid", 0, "other")
        accept(server, distribution(server, "counting"))
        state(server, "active", 2)
        post(server, 1)
        equals(figure(server), 10, "the accepted code")
        assert server.plugin("other")["state"] == "invalid"
        accept(server, distribution(server, "other"))
        state(server, "active", 1, "other")


def test_without_a_lock_a_locked_server_does_not_start(tmp_path: Path) -> None:
    with house(tmp_path, environ={"PLUGINS_LOCKED": "true"}) as server:
        code, output = server.refuse()
        assert code == 2
        lock = tmp_path / "plugins.lock"
        assert output == f"analytics: {lock}: there is no lock; 'analytics plugins lock' writes it\n"
        assert not server.data.exists()


def test_a_pattern_that_matches_nothing_is_logged_and_a_denied_plugin_is_disabled(tmp_path: Path) -> None:
    with house(tmp_path, environ={"PLUGINS_DENY": "counting, acme-*"}) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS)
        server.start()
        row = server.plugin("counting")
        assert (row["state"], row["reason"]) == ("disabled", "plugins.deny (PLUGINS_DENY) has 'counting'")
        told = [(line["list"], line["pattern"]) for line in server.logged("plugin_list_matches_nothing")]
        assert told == [("plugins.deny", "acme-*")]
