"""A server that is locked runs what ``plugins.lock`` has, and nothing else, whatever comes while it runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from analytics_core.config import Plugins
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.provenance import installed, locked, write_lock
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.boot_guard import BootGuard
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, House, until_state, view
from tests.flow.server_house import ROOT, ServerHouse, equals, house, until
from tests.flow.test_live_reload import LANES, figure, post, save, source, state


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


@pytest.mark.server
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


@pytest.mark.server
def test_without_a_lock_a_locked_server_does_not_start(tmp_path: Path) -> None:
    with house(tmp_path, environ={"PLUGINS_LOCKED": "true"}) as server:
        code, output = server.refuse()
        assert code == 2
        lock = tmp_path / "plugins.lock"
        assert output == f"analytics: {lock}: there is no lock; 'analytics plugins lock' writes it\n"
        assert not server.data.exists()


@pytest.mark.server
def test_a_pattern_that_matches_nothing_is_logged_and_a_denied_plugin_is_disabled(tmp_path: Path) -> None:
    with house(tmp_path, environ={"PLUGINS_DENY": "counting, acme-*"}) as server:
        server.install("counting", COUNTING, COUNTING_HOOKS)
        server.start()
        row = server.plugin("counting")
        assert (row["state"], row["reason"]) == ("disabled", "plugins.deny (PLUGINS_DENY) has 'counting'")
        told = [(line["list"], line["pattern"]) for line in server.logged("plugin_list_matches_nothing")]
        assert told == [("plugins.deny", "acme-*")]


class Between(BootGuard):
    """Does something after the lock was compared with the files and before these are read to be run."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], None] = lambda: None

    def screen(self, choices: Sequence[Choice], stands_on: Callable[[Choice], str] = lambda _: "") -> Sequence[Choice]:
        self.then()
        return super().screen(choices, stands_on)


def test_what_comes_between_the_comparison_and_the_reading_does_not_run(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.install("counting", COUNTING, COUNTING_HOOKS, isolation="thread")
    there = installed(discover([str(house.site)]))
    write_lock(tmp_path / "plugins.lock", locked(there, there))
    (origin,) = house.site.glob("*/__init__.py")
    accepted = origin.read_text()
    between = Between()
    plugins = Plugins(locked=True, lock=tmp_path / "plugins.lock")

    async def main() -> None:
        between.then = lambda: save(origin, "raise SystemExit('not accepted')")
        async with house.host(plugins=plugins, guard=between) as host:
            assert view(host, "counting").state == "invalid"
            assert "__init__.py was changed while it was compared with the lock" in view(host, "counting").reason
            between.then = lambda: None
            save(origin, accepted)
            await asyncio.to_thread(host.refresh)
            await until_state(host, "counting", "active")
            between.then = lambda: save(origin, accepted + "# not accepted\n")
            await asyncio.to_thread(host.refresh)
            assert (view(host, "counting").state, view(host, "counting").generation) == ("rolled_back", 1)

    try:
        asyncio.run(main())
    finally:
        house.close()
