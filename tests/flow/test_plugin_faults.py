"""Plugins that raise, hang, exit, crash and leak: their own lane stops, everything else goes on, and counts stay exact.

Each faulty plugin does it once, or while a file is there, so that what follows can be seen too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from analytics_core.errors import HookFailedError, HookTimeoutError, MalformedBodyError, PluginError, WorkerDiedError
from analytics_core.events import EventBatch
from analytics_core.host.health import TRANSITIONS, Health, State
from analytics_core.host.life.budget import RestartPolicy
from analytics_core.host.plugins import PluginHost
from analytics_core.log.reading import SUFFIX
from analytics_core.records import Question, Request, TimeRange
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, T0, House, captured_logs, until, until_state, view

FAULTY = COUNTING.replace("self.n += len(batch)", "self.n += len(batch)\n    if len(batch): fault()")
SETUP = "@hookimpl\ndef setup(self, context): "
PATIENT = RestartPolicy(backoff=0.01, backoff_most=0.02, failures=50, hangs=50)


def once(house: House, deed: str) -> str:
    """Code of a `fault` that does ``deed`` the first time it is reached, in whatever process."""
    mark = house.data / "fault-done"
    return f"MARK = Path({str(mark)!r})\ndef fault():\n    if MARK.exists(): return\n    MARK.touch()\n    {deed}\n"


def always(deed: str) -> str:
    return f"def fault():\n    {deed}\n"


def neighbours(house: House) -> None:
    house.install("beside", isolation="thread")


async def neighbours_go_on(house: House, host: PluginHost, expected: int) -> None:
    await until(lambda: house.value("beside") == expected, f"the neighbour's {expected}")
    assert view(host, "beside").state == "active"
    assert view(host, "beside").errors == 0


CRASHES = {
    "raises": ("raise ValueError('bad luck')", "hook 'process' failed: ValueError: bad luck"),
    "sys.exit": ("sys.exit(3)", "hook 'process' failed: SystemExit: 3"),
    "os._exit": ("os._exit(3)", "its process ended: exit code 3 (during 'process')"),
    "segfault": ("ctypes.string_at(0)", "its process ended: killed by SIGSEGV (during 'process')"),
    "leak": (
        "hoard = []\n    while True: hoard.append(os.urandom(1 << 16) * 64); time.sleep(0.005)",
        "MB of memory; its limit is 160 MB",
    ),
    "spin": ("while True: pass", "s of processor time; its limit is 0.3 s"),
    "hang": ("time.sleep(600)", "'process' failed: no answer within 1 s"),
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_process_plugin_goes_on_from_its_checkpoint(house: House, crash: str) -> None:
    deed, reason = CRASHES[crash]
    neighbours(house)
    limits = {"memory_mb": 160, "call_seconds": 1.0 if crash == "hang" else 20.0}
    if crash == "spin":
        limits["cpu_seconds"] = 0.3
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=once(house, deed), isolation="process", limits=limits)

    async def main() -> None:
        async with house.host(restarts=PATIENT, forked=crash != "segfault") as host:
            await until_state(host, "faulty", "active")
            house.add(3)
            await neighbours_go_on(house, host, 3)
            failed = await until(lambda: view(host, "faulty").errors and view(host, "faulty"), "the fault")
            house.add(4)
            await neighbours_go_on(house, host, 7)
            assert house.log.durable == 7
            await until(lambda: house.value("faulty") == 7, "the exact count")
            assert (await until_state(host, "faulty", "active")).events_processed == 7
            assert failed.errors == 1
        assert house.states("faulty")[-2:] == ["degraded", "active"]
        reasons = [m.body.decode() for m in house.pushed if b"degraded" in m.body]
        assert reason in reasons[0]

    asyncio.run(main())


@pytest.mark.parametrize("crash", ["raises", "sys.exit"])
def test_a_thread_plugin_goes_on_from_its_checkpoint(house: House, crash: str) -> None:
    deed, reason = CRASHES[crash]
    neighbours(house)
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=once(house, deed), isolation="thread")

    async def main() -> None:
        async with house.host(restarts=PATIENT) as host:
            house.add(3)
            await until(lambda: house.value("faulty") == 3, "the exact count")
            await neighbours_go_on(house, host, 3)
            await until_state(host, "faulty", "active")
        assert any(reason in m.body.decode() for m in house.pushed)

    asyncio.run(main())


def test_a_hung_thread_is_abandoned_and_can_write_nothing_more(house: House) -> None:
    gate = house.data / "gate"
    deed = f"gate = Path({str(gate)!r})\n    while not gate.exists(): time.sleep(0.01)"
    neighbours(house)
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=once(house, deed), isolation="thread")

    async def main() -> None:
        async with house.host(restarts=PATIENT, hang_seconds=0.2) as host:
            house.add(3)
            await until(lambda: house.value("faulty") == 3, "the count of the second lane")
            await neighbours_go_on(house, host, 3)
            assert any(b"'process' failed: no answer within 0.2 s" in m.body for m in house.pushed)
            gate.touch()  # the first thread wakes with its own count, and has no right to write it
            house.add(2)
            await until(lambda: house.value("faulty") == 5, "the count goes on")
            assert (await until_state(host, "faulty", "active")).events_processed == 5

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_plugin_that_always_fails_rests_and_skips_nothing(house: House, isolation: str) -> None:
    neighbours(house)
    flag = house.data / "broken"
    flag.touch()
    head = f"def fault():\n    if Path({str(flag)!r}).exists(): raise ValueError('still broken')\n"
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=head, isolation=isolation)
    policy = RestartPolicy(
        backoff=0.01, backoff_most=0.02, failures=3, refill=3600.0, cool_down=0.5, cool_down_most=0.5
    )

    async def main() -> None:
        async with house.host(restarts=policy) as host:
            house.add(3)
            resting = await until_state(host, "faulty", "quarantined")
            assert "hook 'process' failed: ValueError: still broken" in resting.reason
            assert "failure 3 in a row, it rests for 0.5 s" in resting.reason
            assert resting.lag > 0
            await until(lambda: house.states("faulty").count("quarantined") == 2, "the attempt after the rest")
            await neighbours_go_on(house, host, 3)
            flag.unlink()
            await until_state(host, "faulty", "active")
            assert house.value("faulty") == 3
        states = house.states("faulty")
        assert states[:6] == ["loading", "starting", "active", "degraded", "degraded", "quarantined"]
        assert states[-2:] == ["half_open", "active"]

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("head", "body", "state", "reason"),
    [
        (
            "import nowhere_to_be_found",
            COUNTING,
            "load_error",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("raise SystemExit(2)", COUNTING, "load_error", "SystemExit: 2"),
        (
            "",
            COUNTING.replace("def __init__(self):", "def __init__(self):\n    1 / 0"),
            "load_error",
            "ZeroDivisionError",
        ),
        ("", COUNTING.replace("def process", "def proces"), "load_error", "proces"),
        (
            "",
            "@hookimpl\ndef setup(self, context): raise OSError('no model')\n" + COUNTING,
            "start_error",
            "OSError: no model",
        ),
        ("", "@hookimpl\ndef setup(self, context): sys.exit('no')\n" + COUNTING, "start_error", "SystemExit: no"),
    ],
)
def test_a_plugin_that_does_not_start_is_shown_with_its_reason(
    house: House, isolation: str, head: str, body: str, state: str, reason: str
) -> None:
    neighbours(house)
    hooks = (*COUNTING_HOOKS, *(["setup"] if "def setup" in body else []))
    house.install("faulty", body, hooks, head=head, isolation=isolation)

    async def main() -> None:
        async with house.host() as host:
            assert reason in (await until_state(host, "faulty", state)).reason
            house.add(2)
            await neighbours_go_on(house, host, 2)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("head", "how"), [("os._exit(4)", "exit code 4"), ("ctypes.string_at(0)", "killed by SIGSEGV")]
)
def test_a_process_that_dies_while_loading_is_tried_again_and_then_rests(house: House, head: str, how: str) -> None:
    neighbours(house)
    house.install("faulty", head=head, isolation="process")

    async def main() -> None:
        async with house.host() as host:
            assert how in (await until_state(host, "faulty", "quarantined")).reason
            house.add(2)
            await neighbours_go_on(house, host, 2)
        assert house.states("faulty")[:3] == ["loading", "retrying", "loading"]

    asyncio.run(main())


def test_a_setup_that_hangs_is_given_up(house: House) -> None:
    neighbours(house)
    body = "@hookimpl\ndef setup(self, context): time.sleep(600)\n" + COUNTING
    for isolation in ("thread", "process"):
        hooks = (*COUNTING_HOOKS, "setup")
        house.install(f"hangs-{isolation}", body, hooks, isolation=isolation, limits={"call_seconds": 1.0})

    async def main() -> None:
        async with house.host() as host:
            for isolation in ("thread", "process"):
                await until(lambda n=f"hangs-{isolation}": "retrying" in house.states(n), "a retry")  # type: ignore[misc]
            house.add(2)
            await neighbours_go_on(house, host, 2)
        assert any(b"hook 'setup' failed: no answer within 1 s" in m.body for m in house.pushed)

    asyncio.run(main())


def test_a_state_that_the_plugin_refuses_is_kept(house: House) -> None:
    house.install("faulty", isolation="thread")

    async def first() -> None:
        async with house.host():
            house.add(3)
            await until(lambda: house.value("faulty") == 3, "the count")

    asyncio.run(first())
    kept = house.state.claim("faulty").state
    site = house.site
    house.site = site.parent / "other"
    house.site.mkdir()
    body = COUNTING.replace('self.n = state["n"]', "raise ValueError('of another shape')")
    house.install("faulty", body, isolation="thread")

    async def second() -> None:
        async with house.host() as host:
            assert "hook 'import_state' failed: ValueError" in (await until_state(host, "faulty", "start_error")).reason

    asyncio.run(second())
    assert house.state.claim("faulty").state == kept


def test_export_and_teardown_that_raise(house: House) -> None:
    flag = house.data / "broken"
    flag.touch()
    fails = f"if Path({str(flag)!r}).exists(): raise ValueError('not now')"
    body = COUNTING.replace('return {"n": self.n}', f'{fails}\n    return {{"n": self.n}}')
    body += "\n@hookimpl\ndef teardown(self): raise ValueError('never')\n"
    house.install("faulty", body, (*COUNTING_HOOKS, "teardown"), isolation="thread")

    async def main() -> None:
        async with house.host(restarts=PATIENT) as host:
            house.add(3)
            await until(lambda: view(host, "faulty").errors >= 2, "failing exports")
            assert "'export_state' failed: ValueError: not now" in view(host, "faulty").reason
            assert house.value("faulty") is None
            flag.unlink()
            await until(lambda: house.value("faulty") == 3, "the exact count")

    asyncio.run(main())


RAISING = """
@hookimpl
def insight(self, question, events): {deed}

@hookimpl
def ingest(self, request): {deed}

@hookimpl
def reply(self, request, outcome): {deed}

@hookimpl
def enrich(self, batch): {deed}

@hookimpl
def process(self, batch): pass
"""


class Spec:
    def to_spec(self) -> Spec:
        return self

    def open(self) -> Spec:
        return self


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("deed", ["raise ValueError('bad luck')", "sys.exit(1)", "return 17"])
def test_concurrent_hooks_that_fail_are_named_and_harm_no_lane(house: House, isolation: str, deed: str) -> None:
    provides = {"analyses": [{"name": "q"}], "routes": ["POST /f"]}
    hooks = ["insight", "ingest", "reply", "enrich", "process"]
    house.install("faulty", RAISING.format(deed=deed), hooks, provides=provides, isolation=isolation)
    question = Question(analysis="q", tenant="a", range=TimeRange(T0, T0))
    request = Request(method="POST", path="/f", headers={}, query={}, body=b"", tenant="a")

    async def main() -> None:
        async with house.host() as host:
            with pytest.raises(HookFailedError, match="Plugin 'faulty': hook 'insight' failed: "):
                await host.calls.insight(question, Spec())
            malformed = "ValueError" in deed  # so an adapter refuses what its client has sent
            with pytest.raises(MalformedBodyError if malformed else HookFailedError):
                await host.calls.ingest("faulty", request)
            assert view(host, "faulty").errors == (1 if malformed else 2)
            house.add(2)
            await until(lambda: view(host, "faulty").events_processed == 2, "the lane")
            assert view(host, "faulty").state == "active"

    asyncio.run(main())


@pytest.mark.parametrize("hooks", [["insight"], ["insight", "process"]])
def test_a_call_that_kills_its_process_fails_and_the_next_is_answered(house: House, hooks: list[str]) -> None:
    body = """
    @hookimpl
    def insight(self, question, events):
        if question.parameters.get("die"):
            os.kill(os.getpid(), 9)
        return Answer([{"n": 1}])

    @hookimpl
    def process(self, batch): pass
    """
    if "process" not in hooks:
        body = dedent(body).partition("@hookimpl\ndef process")[0]
    house.install("faulty", body, hooks, provides={"analyses": [{"name": "q"}]}, isolation="process")

    async def main() -> None:
        async with house.host(restarts=PATIENT) as host:
            await until_state(host, "faulty", "active")
            ask = Question(analysis="q", tenant="a", range=TimeRange(T0, T0), parameters={"die": True})
            with pytest.raises(WorkerDiedError, match=r"killed by SIGKILL \(during 'insight'\)"):
                await host.calls.insight(ask, Spec())
            house.add(1)
            await until(lambda: "degraded" in house.states("faulty"), "the death was seen")
            assert any(b"(during 'insight')" in message.body for message in house.pushed)
            await until_state(host, "faulty", "active")
            ask = Question(analysis="q", tenant="a", range=TimeRange(T0, T0))
            assert (await host.calls.insight(ask, Spec())).table == [{"n": 1}]

    asyncio.run(main())


SENT = {
    "a frame of 4294967295 bytes; the limit is 1073741824": "b'\\xff' * 4",
    "what is no frame": "b'\\0\\0\\0\\x01\\xc1'",
}


@pytest.mark.parametrize("problem", SENT)
def test_a_process_that_sends_no_frame_or_a_giant_is_ended(house: House, problem: str) -> None:
    neighbours(house)
    body = f"""
    @hookimpl
    def insight(self, question, events):
        os.write(int(sys.argv[2]), {SENT[problem]})
        time.sleep(600)
    """
    head = once(house, f"os.write(int(sys.argv[1]), {SENT[problem]}); time.sleep(600)")
    house.install(
        "faulty",
        FAULTY + dedent(body),
        (*COUNTING_HOOKS, "insight"),
        head=head,
        provides={"analyses": [{"name": "q"}]},
        isolation="process",
    )
    ask = Question(analysis="q", tenant="a", range=TimeRange(T0, T0))

    async def main() -> None:
        async with house.host(restarts=PATIENT) as host:
            await until_state(host, "faulty", "active")
            house.add(3)
            await until(lambda: f"it sent {problem}" in view(host, "faulty").reason, "the reason")
            await until(lambda: house.value("faulty") == 3, "the exact count")
            await until_state(host, "faulty", "active")
            with pytest.raises(WorkerDiedError, match=f"it sent {problem}"):
                await host.calls.insight(ask, Spec())
            await neighbours_go_on(house, host, 3)

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_damaged_log_is_not_the_plugins_fault_and_is_not_tried_again(house: House, isolation: str) -> None:
    house.add(3)
    house.add(3)
    house.add(0)  # on a quiet log every read is one of the file
    path = next((house.data).rglob(f"*{SUFFIX}"))
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xa5" * 8)
    house.install("counting", isolation=isolation)

    async def main() -> None:
        async with house.host() as host:
            seen = await until_state(host, "counting", "degraded")
            (lane,) = host.lanes()
            assert (lane.state, seen.errors) == ("failed", 0)
            for reason in (lane.reason, seen.reason):
                assert f"{path}: bad frame at byte 0" in reason
            assert "not tried again, since the log is damaged" in seen.reason
        assert house.states("counting") == ["loading", "starting", "active", "degraded"]

    asyncio.run(main())


def test_one_plugin_that_cannot_be_looked_after_ends_no_supervision(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "lane:cursed" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    house.install("cursed", isolation="thread")
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=once(house, "raise ValueError"), isolation="thread")

    async def main() -> None:
        house.add(3)
        async with house.host(restarts=PATIENT):
            await until(lambda: house.value("faulty") == house.value("cursed") == 3, "both counts")

    asyncio.run(main())
    assert refused


@pytest.mark.parametrize(
    ("head", "setup", "state"),
    [("import nowhere", "pass", "load_error"), ("", "raise OSError('no model')", "start_error")],
)
def test_a_process_that_is_of_no_use_is_ended(house: House, head: str, setup: str, state: str) -> None:
    mark = house.data / "pid"
    head = f"Path({str(mark)!r}).write_text(str(os.getpid()))\n{head}"
    house.install("useless", SETUP + setup, ["setup"], head=head, isolation="process")

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "useless", state)
            pid = int(mark.read_text())
            await until(lambda: not psutil.pid_exists(pid), "the end of its process")
            assert view(host, "useless").state == state

    asyncio.run(main())


def test_folds_that_hang_leave_no_more_than_so_many_threads(house: House) -> None:
    gate = house.data / "gate"
    body = f"@hookimpl\ndef process(self, batch):\n    while not Path({str(gate)!r}).exists(): time.sleep(0.01)"
    house.install("hangs", body, ["process"], isolation="thread", limits={"call_seconds": 0.5})

    async def main() -> None:
        async with house.host(restarts=PATIENT) as host:
            await until_state(host, "hangs", "active")
            one = EventBatch.empty("a", T0)
            ended = await asyncio.gather(
                *(host.calls.fold_once("hangs", [one]) for _ in range(8)), return_exceptions=True
            )
            assert {type(error) for error in ended} == {HookTimeoutError}
            with pytest.raises(HookFailedError, match="8 earlier folds hang; the plugin needs a restart"):
                await host.calls.fold_once("hangs", [one])
            gate.touch()
            await until(lambda: not any(t.name == "fold:hangs" for t in threading.enumerate()), "the threads' end")
            assert (await host.calls.fold_once("hangs", [one])).metrics == []

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_log_has_the_trace_of_what_a_hook_raises_and_the_reason_its_line(house: House, isolation: str) -> None:
    house.install("faulty", FAULTY, COUNTING_HOOKS, head=once(house, "{}['missing']"), isolation=isolation)

    async def main() -> None:
        async with house.host(restarts=PATIENT):
            house.add(3)
            await until(lambda: house.value("faulty") == 3, "the exact count")

    with captured_logs() as logs:
        asyncio.run(main())
    (failed,) = (line for line in logs if line["event"] == "plugin_failed")
    (source,) = house.site.glob("plugin_faulty_*/__init__.py")
    number = source.read_text().splitlines().index("    {}['missing']") + 1
    trace = "".join(traceback.format_exception(failed["exc_info"]))
    assert f'File "{source}", line {number}, in fault\n' in trace
    assert "KeyError: 'missing'" in trace
    assert f"hook 'process' failed: KeyError: 'missing' ({source}, line {number})" in failed["problem"]
    assert any(f"({source}, line {number})" in message.body.decode() for message in house.pushed)


def test_signals_to_the_whole_group_are_for_the_host_and_for_what_a_plugin_starts(house: House, tmp_path: Path) -> None:
    body = COUNTING.replace(
        "    if len(batch):\n",
        f"""    if len(batch):
        Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        child = os.fork()
        if not child: time.sleep(60), os._exit(1)
        os.kill(child, 15)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 15
""",
    )
    house.install("counting", body, isolation="process")

    async def main() -> None:
        async with house.host() as host:
            house.add(3)
            await until(lambda: house.value("counting") == 3, "the first events")
            pid = int((tmp_path / "pid").read_text())
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
            house.add(4)
            await until(lambda: house.value("counting") == 7, "it goes on")
            assert int((tmp_path / "pid").read_text()) == pid
            assert view(host, "counting").errors == 0

    asyncio.run(main())


def test_what_a_process_prints_is_logged_under_its_name(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    body = (
        "@hookimpl\ndef setup(self, context):\n    print('to stdout')\n    context.logger.warning('by logger', gap=3)\n"
        "    print('rich' in sys.modules, __import__('rich').__name__)\n"
    )
    house.install("chatty", body + COUNTING, (*COUNTING_HOOKS, "setup"), isolation="process")

    async def main() -> None:
        async with house.host(forked=False) as host:
            await until_state(host, "chatty", "active")

    asyncio.run(main())
    lines = [line for line in capsys.readouterr().out.splitlines() if "chatty" in line]
    assert any("plugin_output" in line and "to stdout" in line for line in lines)
    assert any("plugin_log" in line and "by logger" in line and "warning" in line for line in lines)
    assert any("False rich" in line for line in lines), "a worker has imported rich, or a plugin cannot"


def test_a_worker_does_not_inherit_the_hosts_secrets(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "s3cret")
    monkeypatch.setenv("PLUGIN_MAY_SEE", "yes")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    body = """
    @hookimpl
    def setup(self, context):
        names = "JWT_SECRET", "PLUGIN_MAY_SEE", "OPENBLAS_NUM_THREADS"
        raise ValueError(" ".join(str(os.environ.get(name)) for name in names))
    """
    house.install("nosy", body, ["setup"], isolation="process")

    async def main() -> None:
        async with house.host(forked=False) as host:
            assert "None yes 1" in (await until_state(host, "nosy", "start_error")).reason

    asyncio.run(main())


@pytest.mark.server
def test_workers_end_with_a_host_that_is_killed_even_in_plugin_code(house: House) -> None:
    """The plugin holds the interpreter in C when its host dies."""
    pid_file = house.data / "pid"
    # PyDLL keeps the interpreter lock during the call
    deed = f"Path({str(pid_file)!r}).write_text(str(os.getpid())); ctypes.PyDLL(None).sleep(600)"
    house.install("stuck", FAULTY, COUNTING_HOOKS, head=always(deed), isolation="process")
    house.add(1)
    house.close()
    script = f"""
    import asyncio
    from pathlib import Path
    from tests.flow.plugin_house import House

    async def main():
        async with House(Path({str(house.site.parent)!r})).host(forked=False):
            await asyncio.Event().wait()

    asyncio.run(main())
    """
    host = subprocess.Popen(
        [sys.executable, "-c", dedent(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        _wait(lambda: pid_file.exists() and pid_file.read_text(), "the plugin in C")
        worker = int(pid_file.read_text())
        assert _running(worker)
        host.send_signal(signal.SIGKILL)
        _wait(lambda: not _running(worker), "the end of the worker")
    finally:
        host.kill()
        host.wait()


def _running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _wait(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.01)


_RACE = """
import sys, threading
import msgspec
from analytics_core.host.running import wire

sys.setswitchinterval(1e-6)
for _ in range(100):
    inner = msgspec.defstruct("Inner", [(f"field{n}", dict[str, list[int]], {}) for n in range(20)])
    outer = msgspec.defstruct("Outer", [("inner", list[inner])])
    body, gate = wire.encode(outer([inner()])), threading.Barrier(4)
    def decode():
        gate.wait()
        assert wire.decode(body, outer).inner == [inner()]
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_lanes_that_meet_a_type_for_the_first_time_together_do_no_harm() -> None:
    """msgspec alone ends the process with a segmentation fault here; so ended the host with several process plugins."""
    done = subprocess.run([sys.executable, "-c", _RACE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- states ----------------------------------------------------------------------------------------------------------


def test_only_the_transitions_of_the_table_are_possible() -> None:
    for before, allowed in TRANSITIONS.items():
        for after in TRANSITIONS:
            health = Health("p")
            health.state = before
            if after in allowed or after == before:
                health.move(after, "new reason")
                assert health.state == after
            else:
                with pytest.raises(PluginError, match=f"'{after}' cannot follow '{before}'; valid are: "):
                    health.move(after)


def test_nothing_but_the_operator_ends_disabled() -> None:
    looked_at_again = {"discovered", "invalid", "incompatible", "blocked", "disabled", "unresolved"}
    assert TRANSITIONS["disabled"] == looked_at_again, "what a fresh look decides; no running, failing or healing"


def test_every_transition_is_told_once() -> None:
    told: list[tuple[State, State, str]] = []
    health = Health("p", lambda t: told.append((t.before, t.state, t.reason)))
    health.move("loading")
    health.move("loading")
    health.move("load_error", "why")
    assert told == [("discovered", "loading", ""), ("loading", "load_error", "why")]
