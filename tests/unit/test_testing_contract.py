"""`check_plugin`: a right plugin passes, and each wrong one is found by the check that is there for it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import yaml

from analytics_core import (
    Answer,
    Enrichment,
    EventBatch,
    EventReader,
    Metric,
    PluginContext,
    ProcessResult,
    Question,
    Window,
    hookimpl,
)
from analytics_core.errors import HookFailedError, HookRefusedError
from analytics_core.testing import START, batch, check_plugin, folds, interpreter, mixed_rows, run, started
from analytics_core.testing.folds import Case

ROWS = [{"event": f"e{n % 3}", "user_id": f"u{n}", "timestamp": f"2025-01-01T12:{n:02}:00Z"} for n in range(9)]
FOLDING = ("hooks", "repeats", "splits", "interpreter", "replay", "reload", "first", "tenants", "export", "batches")


class Right:
    """Counts each tenant's events."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        self.seen[batch.tenant] = self.seen.get(batch.tenant, 0) + len(batch)
        return self.found(batch) if len(batch) else None

    def found(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="seen", value=self.seen[batch.tenant], window=Window(START))])

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return self.seen

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.seen = state


class Throws(Right):
    def found(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="seen", value=random.random(), window=Window(START))])


class Shares(Right):
    everybody: dict[str, int] = {}

    def __init__(self) -> None:
        self.seen = self.everybody


class CountsBatches(Right):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        self.seen["batches"] = self.seen.get("batches", 0) + 1
        return super().process(batch)


class NumbersAsKeys(Right):
    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return {n: tenant for tenant, n in self.seen.items()}  # type: ignore[misc]

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.seen = {tenant: n for n, tenant in state.items()}  # type: ignore[misc]


class Hashes(Right):
    def found(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="seen", value=hash("some name") % 100_003, window=Window(START))])


class LeavesItHere(Right):
    kept: dict[str, dict[str, int]] = {}

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        key = msgspec.json.encode(sorted(self.seen.items())).decode()
        self.kept[key] = dict(self.seen)
        return {"key": key}

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.seen = dict(self.kept[state["key"]])


class TellsTheTime(Right):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        told = Metric(name="told", value=1, window=Window(batch.watermark.replace(second=0, microsecond=0)))
        return super().process(batch) or ProcessResult([told])


class KnowsItsTenants(Right):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        if len(batch):
            return super().process(batch)
        self.seen[batch.tenant] += 0
        return None


class MixesTenants(Right):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        self.seen["all"] = self.seen.get("all", 0) + len(batch)
        return ProcessResult([Metric(name="seen", value=self.seen["all"], window=Window(START))])


class KnowsUsersOfAll(Right):
    """One set of users for all tenants: of tenants with equal events each gets what it gets alone."""

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        self.seen.update(dict.fromkeys(batch.column("user_id").to_pylist(), 1))
        return ProcessResult([Metric(name="seen", value=len(self.seen), window=Window(START))])


class KnowsUsersInItsClass(KnowsUsersOfAll):
    """The same in the class, and every start begins it anew."""

    known: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        pass

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.seen = {}

    @property
    def seen(self) -> dict[str, int]:  # type: ignore[override]
        return self.known

    @seen.setter
    def seen(self, state: dict[str, int]) -> None:
        type(self).known = state


class DropsLate(Right):
    """Goes by its batch's watermark where each event's own receipt is meant."""

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        late = batch.watermark - timedelta(minutes=3)
        self.seen["n"] = self.seen.get("n", 0) + sum(row.timestamp >= late for row in batch.rows())
        return ProcessResult([Metric(name="seen", value=self.seen["n"], window=Window(START))])


class Exits(Right):
    def found(self, batch: EventBatch) -> ProcessResult:
        raise SystemExit(3)


class ForgetsWhenExported(Right):
    @hookimpl
    def export_state(self) -> dict[str, Any]:
        seen, self.seen = self.seen, {}
        return seen


class Moves(Right):
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        found = super().process(batch)
        batch.watermark = START
        return found


class Unmarked(Right):
    def teardown(self) -> None:
        self.seen = {}


class WrongAnswer(Right):
    def found(self, batch: EventBatch) -> Any:
        return {"seen": 1}


class Stateless:
    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="one", value=1, window=Window(START))])


class Enriches:
    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.prefix = context.settings.get("prefix", "")

    @hookimpl
    def enrich(self, batch: EventBatch) -> Enrichment:
        return Enrichment([self.properties(row) for row in batch.rows()])

    def properties(self, row: Any) -> str:
        return f'{{"name": "{self.prefix}{row.event_id}"}}'


class EnrichesAtRandom(Enriches):
    def properties(self, row: Any) -> str:
        return f'{{"n": {random.random()}}}'


class Answers:
    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        return Answer([{"n": self.figure(events.sql("SELECT count(*) AS n FROM events")["n"][0].as_py())}])

    def figure(self, n: int) -> float:
        return n


class MarksAndCounts(Enriches, Right):
    """Counts in ``process`` what it has marked in ``enrich``, which another instance has done."""

    marked = 0

    @hookimpl
    def enrich(self, batch: EventBatch) -> Enrichment:
        self.marked += len(batch)
        return super().enrich(batch)

    def found(self, batch: EventBatch) -> ProcessResult:
        return ProcessResult([Metric(name="seen", value=self.marked, window=Window(START))])


class MarksForAll(MarksAndCounts):
    """The same through the class: now it depends on which of two threads is first."""

    @hookimpl
    def enrich(self, batch: EventBatch) -> Enrichment:
        type(self).marked += len(batch)
        return super(MarksAndCounts, self).enrich(batch)


class AnswersFromTheFold(Right):
    @hookimpl
    def insight(self, question: Question, events: EventReader) -> Answer:
        return Answer([{"n": sum(self.seen.values())}])


class AnswersAtRandom(Answers):
    def figure(self, n: int) -> float:
        return random.random()


def test_a_right_plugin_passes() -> None:
    report = check_plugin(Right)
    assert report.plugin == "Right"
    assert {check: report.checks[check] for check in FOLDING} == dict.fromkeys(FOLDING, "passed")
    assert report.checks["enrich"] == "skipped: it has no enrich"
    assert report.checks["instances"] == "skipped: it has neither enrich nor insight"
    assert "\n  interpreter: passed\n" in str(report)
    with pytest.raises(AttributeError):
        report.plugin = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Throws, r"check 'repeats': a second fresh instance with equal input, batch 1: Metric\(name='seen', value=0\."),
        (
            Shares,
            r"check 'repeats': .* batch 1: .*value=1\d\.0.* where the first gives Metric\(name='seen', value=1\.0",
        ),
        (Exits, "check 'repeats': Plugin 'exits': hook 'process' failed: SystemExit: 3$"),
        (CountsBatches, r"check 'splits': .*state differs from that of one batch: \['batches'\] is"),
        (DropsLate, r"check 'splits': split at \[1, 2, .*value=9\.0.* where one batch gives .*value=4\.0"),
        (NumbersAsKeys, "check 'splits': "),
        (Hashes, "check 'interpreter': the second half in a fresh interpreter: .* where one instance gives"),
        (LeavesItHere, r"check 'interpreter': the fresh interpreter ended with exit code 1:[\s\S]*KeyError"),
        (TellsTheTime, "check 'replay': live, with batches between .*'told'.* where the replay without them gives n"),
        (KnowsItsTenants, "check 'first': Plugin 'knows-its-tenants': hook 'process' failed: KeyError: 'unknown'"),
        (MixesTenants, "check 'tenants': tenant 'other' with the events of others between, batch 2: "),
        (KnowsUsersOfAll, "check 'tenants': tenant 'part' with .* where the tenant alone gives"),
        (KnowsUsersInItsClass, "check 'tenants': tenant 'part' with .* where the tenant alone gives"),
        (ForgetsWhenExported, "check 'export': exported twice: "),
        (Moves, "check 'batches': process has changed batch.watermark from "),
        (Unmarked, "check 'hooks': .*'teardown' is named like a hook and is not marked"),
        (WrongAnswer, "check 'repeats': Plugin 'wrong-answer': hook 'process' failed: returned dict; valid is"),
        (MarksAndCounts, "check 'instances': with enrich called on the instance that folds, .* process alone gives"),
        (MarksForAll, "check 'instances': with enrich called on a second instance, .* process alone gives"),
        (
            AnswersFromTheFold,
            r"check 'instances': .* that folds, .*'n': 1\D.* where an instance that folds nothing gives",
        ),
        (EnrichesAtRandom, "check 'enrich': a second instance gives "),
        (AnswersAtRandom, "check 'insight': 'answers-at-random', asked twice: "),
    ],
)
def test_a_wrong_plugin_is_found(wrong: type, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "interpreter" not in problem:
        monkeypatch.setenv(interpreter._INSIDE, "1")  # a process less to wait for
    with pytest.raises(AssertionError, match=f"^{wrong.__name__}: {problem}"):
        check_plugin(wrong, ROWS)


def test_each_plugin_is_checked_for_what_it_has() -> None:
    stateless = check_plugin(Stateless, ROWS).checks
    assert stateless["reload"] == stateless["interpreter"] == "skipped: stateless: it has no export_state"
    assert stateless["splits"] == stateless["replay"] == "passed"
    enriches = check_plugin(Enriches, ROWS, {"prefix": "x"}).checks
    assert (enriches["enrich"], enriches["batches"], enriches["splits"]) == ("passed",) * 2 + (
        "skipped: it has no process",
    )
    assert check_plugin(Answers).checks["insight"] == "passed"


def test_a_class_that_nobody_else_can_import_is_checked_without_the_interpreter() -> None:
    class Local(Right):
        pass

    assert check_plugin(Local, ROWS).checks["interpreter"].startswith("skipped: the class is made inside a function")


class Counted(Right):
    """Knows how many of its instances were set up and not torn down."""

    running: ClassVar[list[Any]] = []
    made: ClassVar[list[Any]] = []

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.running.append(self)
        self.made.append(self)

    @hookimpl
    def teardown(self) -> None:
        self.running.remove(self)


class Fails(Counted):
    def found(self, batch: EventBatch) -> ProcessResult:
        raise ValueError("no")


class RefusesItsStart(Counted):
    @hookimpl
    def setup(self, context: PluginContext) -> None:
        super().setup(context)
        raise ValueError("no")


def test_every_instance_is_torn_down_whatever_happens() -> None:
    check_plugin(Counted, ROWS)
    assert len(Counted.made) > 20
    assert not Counted.running
    for wrong, call in (
        (Fails, lambda: check_plugin(Fails, ROWS)),
        (Fails, lambda: run(Fails, [batch(ROWS)])),
        (RefusesItsStart, lambda: started(RefusesItsStart)),
    ):
        Counted.made.clear()
        with pytest.raises((AssertionError, ValueError), match=r"no$"):
            call()
        assert Counted.made, wrong
        assert not Counted.running, wrong


class Awaits(Right):
    """What it awaits belongs to the loop on which it was first waited for."""

    @hookimpl
    async def setup(self, context: PluginContext) -> None:
        self.gate = asyncio.Condition()
        self.loop = asyncio.get_running_loop()

    @hookimpl
    async def process(self, batch: EventBatch) -> ProcessResult | None:
        assert asyncio.get_running_loop() is self.loop
        async with self.gate:
            return super().process(batch)


def test_hooks_that_await_have_one_loop() -> None:
    assert {check: outcome for check, outcome in check_plugin(Awaits, ROWS).checks.items() if check in FOLDING} == (
        dict.fromkeys(FOLDING, "passed")
    )


def test_what_the_host_would_refuse_is_not_run() -> None:
    with pytest.raises(HookRefusedError, match="'teardown' is named like a hook and is not marked"):
        run(Unmarked, [batch(ROWS)])


PROGRAM = """
from analytics_core import Metric, ProcessResult, Window, hookimpl
from analytics_core.testing import START, check_plugin

with open({log!r}, "a") as log:
    log.write(__name__ + "\\n")

class Plugin:
    @hookimpl
    def process(self, batch):
        found = [Metric(name=row.event_id, value=1, window=Window(START)) for row in batch.rows()]
        return ProcessResult(found)

    @hookimpl
    def export_state(self):
        return None

    @hookimpl
    def import_state(self, state, version):
        assert state is None

print(check_plugin(Plugin, [{{"event": "a"}}, {{"event": "b"}}]).checks["interpreter"])
"""


@pytest.mark.parametrize(
    ("how", "said", "runs"),
    [
        (["program.py"], "skipped: the class is in the program itself, which would run again", ["__main__"]),
        (["-c", "import program"], "passed", ["program", "program"]),  # the second is the fresh interpreter
    ],
)
def test_a_program_that_checks_itself_without_a_guard_runs_once(
    how: list[str], said: str, runs: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (tmp_path / "program.py").write_text(PROGRAM.format(log=str(log)))
    with subprocess.Popen(
        [sys.executable, *how],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            printed, _ = program.communicate(timeout=30)
        finally:
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGKILL)  # it and all that it has started
    assert printed.startswith(said), printed
    assert log.read_text().split() == runs


def test_few_rows_are_enough() -> None:
    class Local(Right):
        pass

    for count in range(3):
        assert check_plugin(Local, ROWS[:count]).checks["splits"] == "passed"
    assert folds.interpreter(Case(Right, [], {}, 0)) == ""


def test_export_twice_is_a_check_of_its_own() -> None:
    with pytest.raises(AssertionError, match="exported twice: the exported state differs"):
        folds.export(Case(ForgetsWhenExported, ROWS, {}, 0))


def test_mixed_rows_hold_what_they_promise() -> None:
    made = batch(mixed_rows(3, 400))
    late = [row.received_at - row.timestamp for row in made.rows()]
    assert made.record_batch.equals(batch(mixed_rows(3, 400)).record_batch)
    assert min(late).total_seconds() < -60
    assert max(late).total_seconds() > 86_400
    assert any(row.user_id is row.anonymous_id is None for row in made.rows())
    assert any(not row.name.isascii() for row in made.rows())
    assert any(not row.properties for row in made.rows())
    received = made.column("received_at").to_pylist()
    assert received != sorted(received)


# --- with plugin.yaml ------------------------------------------------------------------------------------------------

COUNTING = """
from analytics_core import Metric, ProcessResult, Window, hookimpl
from analytics_core.testing import START
{head}

class Plugin:
    def __init__(self):
        self.n = {{}}

    @hookimpl
    def setup(self, context):
        self.step = context.settings["step"]

    @hookimpl
    def process(self, batch):
        self.n[batch.tenant] = self.n.get(batch.tenant, 0) + self.step * len(batch)
        return ProcessResult([Metric(name="n", value=self.n[batch.tenant], window=Window(START))])

    @hookimpl
    def export_state(self):
        return {export}

    @hookimpl
    def import_state(self, state, version):
        self.n = {restore}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., type]:
    """Writes a package with a plugin.yaml and imports its class."""

    def write(
        name: str, head: str = "", export: str = "self.n", restore: str = "state", init: str = "", **manifest: Any
    ) -> type:
        home = tmp_path / name
        (home / "inner").mkdir(parents=True)
        (home / "__init__.py").write_text(init)
        (home / "inner" / "__init__.py").touch()
        (home / "inner" / "plugin.py").write_text(COUNTING.format(head=head, export=export, restore=restore))
        declared = {
            "kind": "plugin",
            "manifest": 1,
            "name": name,
            "entry": f"{name}.inner.plugin:Plugin",
            "hooks": ["setup", "process", "export_state", "import_state"],
            "settings": {"type": "object", "properties": {"step": {"type": "integer", "default": 2}}},
        }
        (home / "plugin.yaml").write_text(yaml.safe_dump({**declared, **manifest}))
        found: type = vars(import_module(f"{name}.inner.plugin"))["Plugin"]
        return found

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_the_manifest_above_the_module_gives_settings_and_generations(package: Callable[..., type]) -> None:
    plugin = package("steps")
    assert check_plugin(plugin, ROWS).checks["reload"] == "passed"
    assert not [name for name in sys.modules if name.startswith("steps__g")]
    with pytest.raises(AssertionError, match=r"check 'hooks': Plugin 'steps': .*stride"):
        check_plugin(plugin, ROWS, {"stride": 2})


def test_state_that_stays_in_the_module_does_not_survive_a_reload(package: Callable[..., type]) -> None:
    plugin = package("stays", head="KEPT = []", export="KEPT.append(dict(self.n)) or len(KEPT)", restore="KEPT[-1]")
    with pytest.raises(HookFailedError, match="'import_state' failed: IndexError"):
        folds.reload(Case(plugin, ROWS, {}, 0))


def test_what_the_manifest_does_not_list_is_refused(package: Callable[..., type]) -> None:
    plugin = package("unlisted", hooks=["process", "export_state", "import_state"])
    with pytest.raises(AssertionError, match=r"check 'hooks': .*'setup' is implemented and not listed"):
        check_plugin(plugin, ROWS)


def test_a_class_that_the_entry_takes_from_another_module_has_its_manifest_too(package: Callable[..., type]) -> None:
    def passed_on(name: str, **wrong: Any) -> type:
        return package(name, init=f"from {name}.inner.plugin import Plugin", entry=f"{name}:Plugin", **wrong)

    assert check_plugin(passed_on("further"), ROWS).checks["reload"] == "passed"
    plugin = passed_on("unlistedtoo", hooks=["process", "export_state", "import_state"])
    with pytest.raises(AssertionError, match=r"check 'hooks': .*'setup' is implemented and not listed"):
        check_plugin(plugin, ROWS)
    kept = {"head": "KEPT = []", "export": "KEPT.append(dict(self.n)) or len(KEPT)", "restore": "KEPT[-1]"}
    with pytest.raises(HookFailedError, match="'import_state' failed: IndexError"):
        folds.reload(Case(passed_on("keeps", **kept), ROWS, {}, 0))
