"""The boot-loop guard: which starts count as failed, who is to blame, and how safe mode comes and goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from analytics_core.host.code.fingerprint import fingerprint
from analytics_core.host.health import State, Transition
from analytics_core.host.installed.discovery import Found
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.boot_guard import LIVED_SECONDS, SETTLED_SECONDS, TURN_SECONDS, BootGuard, Journal
from analytics_core.host.life.starts import Identity, Part, Record, Start, begun

T0 = datetime(2025, 1, 1, tzinfo=UTC)
Change = Callable[["House"], None]


class House:
    """Some plugins on disk, the file of the guard, and a clock. `boot` is a start of the host that may just die."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "starts.jsonl")
        self.now = 0.0
        self.stands_on = "numpy 1"
        self.plugins: dict[str, dict[str, Any]] = {}
        self.install("good")
        self.install("bad")

    def install(self, name: str, code: str = "", **options: Any) -> None:
        directory = self.folder / name
        directory.mkdir(exist_ok=True)
        (directory / "__init__.py").write_text(code)
        self.plugins[name] = {"version": "1.0", "isolation": "thread", **self.plugins.get(name, {}), **options}

    def choices(self) -> list[Choice]:
        return [
            Choice(name=name, found=Found(name, f"dist-{name}", said["version"], name, self.folder / name), **said)
            for name, said in sorted(self.plugins.items())
        ]

    def boot(self, **options: Any) -> Boot:
        return Boot(self, **options)

    def culprits(self) -> list[str] | None:
        """Whom the next start would keep out; None when it would be an ordinary one."""
        safe = begun(self.journal.read(), T0).safe
        return sorted(safe.culprits) if safe is not None else None

    def goes_well(self, *names: str) -> None:
        boot = self.boot()
        boot.run(*names)
        boot.guard.ready()
        boot.guard.end()

    def fails(self, name: str = "bad", times: int = 3) -> None:
        for _ in range(times):
            self.boot().move(name, "loading")


class Boot:
    def __init__(self, house: House, **options: Any) -> None:
        self.house = house
        self.guard = BootGuard(house.journal, clock=lambda: house.now, **options)
        self.choices: dict[str, Choice] = {}
        self.look()

    def look(self, generation: int = 1) -> None:
        """As the host does at its start, and when something has changed on the disk."""
        self.choices = {c.name: c for c in self.guard.screen(self.house.choices(), lambda _: self.house.stands_on)}
        for choice in self.choices.values():
            if choice.state == "discovered":
                self.make(choice, generation)

    def make(self, choice: Choice, generation: int = 1) -> None:
        assert choice.found is not None
        self.guard.made(choice, generation, code=fingerprint(choice.found), stands_on=self.house.stands_on)

    def move(self, name: str, *states: State, generation: int = 1) -> None:
        for state in states:
            self.guard.observe(Transition(name, "discovered", state, "", T0, generation))

    def run(self, *names: str) -> None:
        for name in names:
            self.move(name, "loading", "starting", "active")

    def calls(self, *names: str) -> None:
        """Each is called, and does not return."""
        for name in names:
            self.guard.calls.of(name).__enter__()

    def runs(self) -> list[str]:
        return [name for name, choice in self.choices.items() if choice.state == "discovered"]

    def culprits(self) -> list[str] | None:
        safe = self.guard.safe_mode
        return sorted(safe.culprits) if safe is not None else None


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


# --- entering --------------------------------------------------------------------------------------------------------


def test_the_third_failure_in_a_row_brings_safe_mode_with_what_has_worked(house: House) -> None:
    house.goes_well("good")
    house.install("new", isolation="process")
    house.fails(times=2)
    assert house.culprits() is None
    house.fails(times=1)
    with capture_logs() as logs:
        boot = house.boot()
    assert boot.culprits() == ["bad"]
    assert boot.runs() == ["good"]
    assert boot.choices["bad"].state == boot.choices["new"].state == "blocked"
    assert boot.choices["bad"].reason.startswith("safe mode: 3 starts in a row failed while 'bad' was activating; ")
    assert "did not run like this in the last start that went well" in boot.choices["new"].reason
    (told,) = (line for line in logs if line["log_level"] == "error")
    assert (told["event"], told["culprits"], told["runs"]) == ("safe_mode", ["bad"], ["good"])


def kill(boot: Boot) -> None:
    boot.run("good", "bad")
    boot.guard.ready()


def kill_while_a_process_loads(boot: Boot) -> None:
    boot.make(Choice(name="bad", found=boot.choices["bad"].found, isolation="process"))
    boot.guard.ready()
    boot.move("bad", "loading")


def interrupt_before_it_is_ready(boot: Boot) -> None:
    boot.move("bad", "loading")
    boot.guard.end()


def interrupt_while_it_loads(boot: Boot) -> None:
    boot.guard.ready()
    boot.move("bad", "loading")
    boot.guard.end()


def refuse_to_load(boot: Boot) -> None:
    boot.guard.ready()
    boot.move("bad", "loading", "load_error")


@pytest.mark.parametrize(
    "ending", [kill, kill_while_a_process_loads, interrupt_before_it_is_ready, interrupt_while_it_loads, refuse_to_load]
)
def test_three_of_these_bring_no_safe_mode(house: House, ending: Callable[[Boot], None]) -> None:
    for _ in range(3):
        ending(house.boot())
    assert house.culprits() is None


def test_a_start_that_comes_through_breaks_the_row_and_one_that_is_broken_off_does_not(house: House) -> None:
    house.fails(times=2)
    kill(house.boot())
    house.fails(times=2)
    interrupt_while_it_loads(house.boot())
    assert house.culprits() is None
    house.fails(times=1)
    assert house.culprits() == ["bad"]


@pytest.mark.parametrize("state", ["loading", "starting"])
def test_a_plugin_is_activating_until_it_runs(house: House, state: State) -> None:
    for _ in range(3):
        boot = house.boot()
        boot.guard.ready()
        boot.run("good")
        boot.move("bad", "loading", state)
    assert house.culprits() == ["bad"]


def test_starts_that_never_get_ready_bring_safe_mode_without_a_culprit_until_one_goes_well(house: House) -> None:
    house.goes_well("good")
    for _ in range(3):
        house.boot().run("good")
    boot = house.boot()
    assert (boot.culprits(), boot.runs()) == ([], ["good"])
    assert "before the server was ready" in boot.choices["bad"].reason
    boot.guard.ready()
    boot.guard.end()
    assert house.boot().runs() == ["bad", "good"]


def dies_in_a_call(house: House) -> None:
    boot = house.boot()
    boot.run("good", "bad")
    boot.guard.ready()
    with boot.guard.calls.of("good"):
        pass
    boot.calls("bad")


def test_a_host_that_dies_in_a_call_soon_after_it_was_ready_has_failed_at_the_called(house: House) -> None:
    house.goes_well("good", "bad")
    for _ in range(3):
        assert house.culprits() is None
        dies_in_a_call(house)
    with capture_logs() as logs:
        boot = house.boot()
    assert boot.runs() == ["good"]
    assert boot.choices["bad"].reason.startswith("safe mode: 3 starts in a row failed in a call of 'bad'; ")
    assert [line["event"] for line in logs] == ["safe_mode"]


@pytest.mark.parametrize(("after", "culprits"), [(LIVED_SECONDS - 1, ["bad"]), (LIVED_SECONDS, None)])
def test_a_call_in_which_a_host_dies_later_is_no_failed_start(
    house: House, after: float, culprits: list[str] | None
) -> None:
    for _ in range(3):
        boot = house.boot()
        boot.run("bad")
        boot.guard.ready()
        house.now += after
        boot.move("good", "loading")  # it has not settled
        boot.guard.tick()
        boot.move("good", "retrying")
        boot.calls("bad")
    assert house.culprits() == culprits


def test_who_is_called_is_to_blame_and_not_who_is_on_its_way_up(house: House) -> None:
    for _ in range(3):
        boot = house.boot()
        boot.run("bad")
        boot.move("good", "loading")
        boot.calls("bad")
    assert house.culprits() == ["bad"]


def test_each_start_begins_without_the_calls_of_the_one_before(house: House) -> None:
    dies_in_a_call(house)
    for _ in range(3):
        kill(house.boot())
    assert house.culprits() is None


@pytest.mark.parametrize("step", [timedelta(days=-3650), timedelta(0), timedelta(days=36500)])
def test_jumps_of_the_wall_clock_decide_nothing(step: timedelta) -> None:
    record = Record()
    for number in range(4):
        record = begun(record, T0 + number * step)
        assert record.start is not None
    assert record.safe is not None
    assert record.safe.failures == 3


# --- whom to blame ---------------------------------------------------------------------------------------------------


def test_what_has_worked_may_run_in_safe_mode_on_newer_third_party_code_too(house: House) -> None:
    house.goes_well("good")
    house.stands_on = "numpy 2"
    house.fails()
    assert house.boot().runs() == ["good"]


def identity(code: str = "") -> Identity:
    return Identity("dist", "1.0", code, "")


def after(*suspects: str, worked: str = "") -> list[str]:
    """The culprits after starts that failed while these were activating; upper case is another copy."""
    record = Record(worked={name: identity(name) for name in worked})
    for number, names in enumerate(suspects):
        parts = {n.lower(): Part("loading", identity(n), "thread") for n in names}
        record = begun(Record(record.worked, record.failed, record.safe, Start(T0, True, parts=parts)), T0)
        assert (record.safe is None) == (number < 2)
    assert record.safe is not None
    return sorted(record.safe.culprits)


def test_the_culprit_is_who_was_activating_in_each_of_them() -> None:
    assert after("abx", "xa", "x") == ["x"]
    assert after("ab", "b", "x") == ["x"]  # nobody in each: then who did in the last


def test_a_copy_that_has_worked_is_blamed_only_when_nobody_else_is_left() -> None:
    assert after("ax", "ax", "ax", worked="a") == ["x"]
    assert after("a", "a", "a", worked="a") == ["a"]
    assert after("A", "A", "A", worked="a") == ["a"]


def in_turn(boot: Boot, name: str, called: threading.Event, go_on: threading.Event) -> threading.Thread:
    def call() -> None:
        with boot.guard.calls.of(name).in_turn(60.0):
            called.set()
            go_on.wait(5)

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_after_a_failed_start_they_are_called_one_after_another(house: House) -> None:
    house.boot().move("bad", "loading")
    boot = house.boot()
    events = {name: (threading.Event(), threading.Event()) for name in ("good", "bad")}
    (called, go_on), (other_called, other_goes_on) = events.values()
    threads = [in_turn(boot, "good", called, go_on)]
    assert called.wait(5)
    threads.append(in_turn(boot, "bad", other_called, other_goes_on))
    assert not other_called.wait(0.05)
    go_on.set()
    assert other_called.wait(5)
    other_goes_on.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("failed", [True, False])
def test_no_call_waits_in_an_ordinary_start_nor_in_one_that_ends(house: House, failed: bool) -> None:
    if failed:
        house.boot().move("bad", "loading")
    boot = house.boot()
    called, go_on, other = threading.Event(), threading.Event(), threading.Event()
    threads = [in_turn(boot, "good", called, go_on)]
    assert called.wait(5)
    began = time.monotonic()
    threads.append(in_turn(boot, "bad", other, go_on))
    if failed:
        boot.guard.end()
    assert other.wait(5)
    assert time.monotonic() - began < TURN_SECONDS / 2
    go_on.set()
    for thread in threads:
        thread.join()


def test_who_does_not_return_keeps_the_others_for_a_short_time_only(house: House) -> None:
    house.boot().move("bad", "loading")
    boot = house.boot(turn_seconds=0.01)
    called, go_on, other = threading.Event(), threading.Event(), threading.Event()
    threads = [in_turn(boot, "bad", called, go_on)]
    assert called.wait(5)
    threads.append(in_turn(boot, "good", other, go_on))
    assert other.wait(5)
    go_on.set()
    for thread in threads:
        thread.join()


def test_who_is_activating_when_safe_mode_itself_fails_stays_out_too(house: House) -> None:
    house.goes_well("good")
    house.fails()
    house.fails("good", times=1)
    boot = house.boot()
    assert boot.culprits() == ["bad", "good"]
    assert boot.runs() == []
    assert "4 starts in a row" in boot.choices["good"].reason


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_a_start_that_goes_well_in_safe_mode_does_not_bring_the_culprit_back(house: House) -> None:
    house.goes_well("good")
    house.fails()
    for _ in range(4):
        boot = house.boot()
        boot.run("good")
        boot.guard.ready()
        house.now += SETTLED_SECONDS
        boot.guard.tick()
        assert (boot.culprits(), boot.runs()) == (["bad"], ["good"])


CHANGES: dict[str, Change] = {
    "code": lambda house: house.install("bad", "mended = True"),
    "version": lambda house: house.install("bad", version="1.1"),
    "settings": lambda house: house.install("bad", settings={"careful": True}),
    "isolation": lambda house: house.install("bad", isolation="process"),
    "disabled": lambda house: house.install("bad", state="disabled"),
    "dependencies": lambda house: setattr(house, "stands_on", "numpy 2"),
    "removed": lambda house: house.plugins.pop("bad") and None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_culprit_ends_safe_mode_at_the_next_start(house: House, change: str) -> None:
    house.fails()
    assert house.boot().runs() == []
    CHANGES[change](house)
    boot = house.boot()
    assert boot.culprits() is None
    assert "good" in boot.runs()
    assert ("bad" in boot.runs()) == (change not in ("disabled", "removed"))


def test_a_changed_culprit_ends_safe_mode_in_the_running_host_and_has_three_starts_again(house: House) -> None:
    house.fails()
    boot = house.boot()
    boot.guard.ready()
    house.install("bad", "mended = 'perhaps'")
    boot.look(generation=2)
    assert boot.guard.safe_mode is None
    boot.move("bad", "loading", generation=2)  # and the host dies of it
    house.fails(times=1)
    assert house.culprits() is None
    house.fails(times=1)
    assert house.culprits() == ["bad"]


def test_the_last_version_that_worked_may_come_back(house: House) -> None:
    house.goes_well("good", "bad")
    house.install("bad", "broken")
    house.fails()
    assert house.boot().runs() == ["good"]
    house.install("bad", "")
    assert house.boot().runs() == ["bad", "good"]


def test_without_safe_mode_everything_runs_and_earlier_failures_are_forgotten(house: House) -> None:
    house.fails()
    assert house.boot(safe_mode=False).runs() == ["bad", "good"]
    house.fails(times=1)
    assert house.culprits() is None


# --- what has worked -------------------------------------------------------------------------------------------------


def worked(house: House) -> dict[str, str]:
    return {name: each.version for name, each in house.journal.read().worked.items()}


def test_plugins_have_worked_when_they_have_run_for_a_while(house: House) -> None:
    boot = house.boot()
    boot.run("good")
    house.now += SETTLED_SECONDS
    boot.guard.tick()
    assert worked(house) == {}  # not ready
    boot.guard.ready()
    house.now += SETTLED_SECONDS - 0.1
    boot.guard.tick()
    assert worked(house) == {}
    boot.move("bad", "loading")
    house.now += SETTLED_SECONDS
    boot.guard.tick()
    assert worked(house) == {}  # one is still on its way up
    boot.move("bad", "load_error")
    house.now += SETTLED_SECONDS
    boot.guard.tick()
    assert worked(house) == {"good": "1.0"}


@pytest.mark.parametrize(("state", "version"), [("active", "1.1"), ("rolled_back", "1.0")])
def test_a_reload_counts_when_it_has_come_through(house: House, state: State, version: str) -> None:
    boot = house.boot()
    boot.run("good")
    boot.guard.ready()
    house.install("good", "later", version="1.1")
    boot.look(generation=2)
    boot.move("good", "reloading")
    boot.move("good", state, generation=2 if state == "active" else 1)
    boot.guard.end()
    assert worked(house) == {"good": version}


@pytest.mark.parametrize("failures", [0, 3])
def test_nothing_is_written_while_a_settled_host_runs(house: House, failures: int) -> None:
    house.install("idle")
    house.goes_well("good", "idle")
    house.fails(times=failures)
    boot = house.boot()
    boot.run("good")
    boot.guard.ready()
    house.now += SETTLED_SECONDS
    boot.guard.tick()
    file = house.folder / "starts.jsonl"
    before = file.stat()
    for _ in range(100):
        boot.move("good", "degraded", "active")
        house.now += SETTLED_SECONDS
        boot.guard.tick()
    assert (file.stat().st_ino, file.stat().st_size) == (before.st_ino, before.st_size)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_torn_anywhere_is_read_as_far_as_it_goes(house: House) -> None:
    house.goes_well("good")
    house.boot().move("bad", "loading")
    file = house.folder / "starts.jsonl"
    whole = file.read_bytes()
    head = whole.index(b"\n")
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        record = house.journal.read()
        assert (list(record.worked) == ["good"]) == (size >= head)
        assert record.start is None or not record.start.parts


def test_a_mark_that_was_cut_short_costs_itself_alone(house: House) -> None:
    boot = house.boot()
    with (house.folder / "starts.jsonl").open("ab") as file:
        file.write(b'\n{"plugin": "go')
    boot.move("bad", "loading")
    start = house.journal.read().start
    assert start is not None
    assert list(start.parts) == ["bad"]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"[]", b'{"worked": 3}', b"\xff\xfe"])
def test_what_is_no_record_is_an_empty_one_and_is_said(house: House, content: bytes) -> None:
    (house.folder / "starts.jsonl").write_bytes(content)
    with capture_logs() as logs:
        assert house.boot().runs() == ["bad", "good"]
    assert [line["event"] for line in logs] == ["starts_unreadable"]
    assert house.journal.read().start is not None


def test_a_disk_that_takes_nothing_stops_nobody(house: House) -> None:
    house.journal = Journal(house.folder / "absent" / "starts.jsonl")
    with capture_logs() as logs:
        boot = house.boot()
        boot.run("good")
        boot.guard.ready()
        boot.guard.end()
    assert {line["event"] for line in logs} == {"start_not_recorded", "calls_not_noted"}
    assert boot.runs() == ["bad", "good"]


def test_secrets_among_the_settings_are_not_written(house: House) -> None:
    house.install("bad", settings={"token": "hunter2"})
    house.fails()
    house.boot()
    assert b"hunter2" not in (house.folder / "starts.jsonl").read_bytes()


def test_each_failed_start_is_told_at_the_next(house: House) -> None:
    house.fails(times=1)
    with capture_logs() as logs:
        house.boot()
    assert [line["event"] for line in logs] == ["start_failed"]
    assert logs[0]["reason"] == "it ended while 'bad' was activating"
