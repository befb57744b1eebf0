"""The fixtures of pytest for plugin authors, found by their entry point, and what they cost when nobody asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analytics_core import EventBatch, PluginContext, hookimpl, testing
from analytics_core.testing import START, Clock, Faults, Feed, fixtures


def test_the_clock_stands_still_and_never_goes_back(analytics_clock: Clock) -> None:
    assert analytics_clock.now == START
    assert analytics_clock.advance(minutes=31) == START + timedelta(minutes=31) == analytics_clock.now
    assert analytics_clock.set(datetime(2025, 3, 1, tzinfo=UTC)) == analytics_clock.now
    with pytest.raises(ValueError, match="never goes back, here to 2025-01-01"):
        analytics_clock.set(START)
    with pytest.raises(ValueError, match="has no time zone"):
        analytics_clock.set(datetime(2026, 1, 1))  # noqa: DTZ001


def test_events_happen_now_and_positions_go_on(analytics_clock: Clock, analytics_events: Feed) -> None:
    analytics_clock.advance(hours=1)
    first = analytics_events([{"event": "a"}, {"event": "b"}])
    assert first.column("timestamp").to_pylist() == [analytics_clock.now] * 2
    later = analytics_clock.now + timedelta(hours=2)
    second = analytics_events([{"event": "c", "timestamp": START, "received_at": later}], tenant="acme")
    assert (second.tenant, second.column("seq").to_pylist()) == ("acme", [2])
    assert second.column("event_id").to_pylist() == ["e2"]
    assert second.watermark == analytics_clock.now == later
    analytics_clock.advance(seconds=1)
    third = analytics_events([{"event": "d", "timestamp": START}])
    assert third.watermark == analytics_events().watermark == later + timedelta(seconds=1)
    assert len(analytics_events()) == 0


class Counter:
    """Counts; ``setup`` is told by how much."""

    def __init__(self) -> None:
        self.n = 0

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.step = context.settings.get("step", 1)

    @hookimpl
    def process(self, batch: EventBatch) -> None:
        self.n += self.step * len(batch)

    @hookimpl
    def export_state(self) -> int:
        return self.n

    @hookimpl
    def import_state(self, state: int, version: int) -> None:
        self.n = state


def test_reload_hands_the_state_to_a_new_instance(analytics_reload: Callable[..., Any], analytics_events: Feed) -> None:
    plugin = testing.started(Counter, {"step": 3})
    plugin.process(analytics_events([{"event": "e"}]))
    again = analytics_reload(plugin, {"step": 3})
    assert again is not plugin
    assert (type(again), again.n, again.step) == (Counter, 3, 3)


HEAD = """
from analytics_core import hookimpl

class Plugin:
    word = {word!r}
    n = 0

    @hookimpl
    def process(self, batch):
        self.n += len(batch)
"""
STATE = """
    @hookimpl
    def export_state(self):
        return self.n

    @hookimpl
    def import_state(self, state, version):
        assert version == 3
        self.n = state
"""


@pytest.fixture
def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a package, and gives the file of its class."""

    def write(name: str, source: str, *hooks: str) -> Path:
        home = tmp_path / name
        home.mkdir()
        declared = {"kind": "plugin", "manifest": 1, "name": name, "entry": f"{name}:Plugin", "hooks": hooks}
        (home / "plugin.yaml").write_text(msgspec.json.encode({**declared, "reload": {"state_version": 3}}).decode())
        (home / "__init__.py").write_text(source.format(word="old"))
        return home / "__init__.py"

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_reload_takes_the_sources_as_they_are_now(
    analytics_reload: Callable[..., Any], changing: Callable[..., Path]
) -> None:
    file = changing("changing", HEAD + STATE, "process", "export_state", "import_state")
    plugin = testing.started(import_module("changing").Plugin)
    plugin.n = 7
    file.write_text((HEAD + STATE).format(word="new"))
    again = analytics_reload(plugin)
    assert (plugin.word, again.word, again.n) == ("old", "new", 7)
    third = analytics_reload(again)
    assert type(third) is not type(again)
    assert (third.word, third.n) == ("new", 7)


def test_reload_of_a_plugin_without_state_is_a_new_generation_too(
    analytics_reload: Callable[..., Any], changing: Callable[..., Path]
) -> None:
    file = changing("forgetful", HEAD, "process")
    plugin = testing.started(import_module("forgetful").Plugin)
    plugin.n = 7
    file.write_text(HEAD.format(word="new"))
    again = analytics_reload(plugin)
    assert (again.word, again.n) == ("new", 0)
    assert analytics_reload(again) is not again


def test_reload_of_a_class_beside_that_of_the_entry_is_one_of_itself(
    analytics_reload: Callable[..., Any], changing: Callable[..., Path]
) -> None:
    changing("beside", HEAD + STATE + "\n\nclass Other(Plugin):\n    pass\n", "process", "export_state", "import_state")
    other = testing.started(import_module("beside").Other)
    assert type(analytics_reload(other)).__name__ == "Other"


class Watched(Counter):
    torn_down = 0

    @hookimpl
    def teardown(self) -> None:
        self.torn_down += 1


def test_reload_tears_the_old_instance_down_once(analytics_reload: Callable[..., Any]) -> None:
    first = testing.started(Watched)
    assert first.torn_down == 0
    second = analytics_reload(first)
    third = analytics_reload(second)
    assert (first.torn_down, second.torn_down, third.torn_down) == (1, 1, 0)


def test_faults_strike_when_they_are_due_and_are_gone_afterwards(analytics_faults: Faults) -> None:
    before = Counter.process
    empty = testing.batch([])
    with analytics_faults.raises(Counter, "process", KeyError("x"), at=2) as fault:
        plugin = testing.started(Counter)
        plugin.process(empty)
        with pytest.raises(KeyError):
            plugin.process(empty)
        testing.started(Counter).process(empty)
        assert (fault.calls, fault.struck) == (3, 1)
    with analytics_faults.returns(Counter, "process", 42, times=None):
        assert [testing.started(Counter).process(empty) for _ in range(3)] == [42] * 3
    assert Counter.process is before
    with pytest.raises(TypeError, match="Counter has no method 'proces'"), analytics_faults.hangs(Counter, "proces"):
        pass


def test_every_name_is_there() -> None:
    assert {name for names in testing._HOMES.values() for name in names} == set(testing.__all__)
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'btach'"):
        testing.btach  # noqa: B018


def test_fixtures_cost_nothing_while_nobody_asks_for_one(tmp_path: Path) -> None:
    heavy = {"pyarrow", "numpy", "msgspec", "duckdb", "structlog", "yaml"}
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\n\ndef test_nothing(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('analytics_core')\n"
        f"    assert not {heavy!r} & sys.modules.keys()\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_what_needs_no_host_and_no_questions_imports_neither() -> None:
    heavy = {"aiohttp", "deltalake", "duckdb", "socketio", "structlog", "uvloop", "watchfiles"}
    program = (
        "import sys\n"
        "from analytics_core.testing import batch, check_plugin, record, run, started\n"
        f"print(*sorted({heavy!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_fixture_bears_our_prefix() -> None:
    names = [name for name, value in vars(fixtures).items() if type(value) is type(fixtures.analytics_clock)]
    assert len(names) == 5
    assert all(name.startswith("analytics_") for name in names)
