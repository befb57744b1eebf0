"""`plugins doctor`: what the tolerant host hides, each fault in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_plugins_site import Site

GOOD = """
class Plugin:
    @hookimpl
    def setup(self, context):
        assert context.settings == {"limit": 3} and context.name == "good"
    @hookimpl
    def process(self, batch): pass
"""
HEAD = """
class Plugin:
    @hookimpl
    def process(self, batch): pass
    @hookimpl
    def setup(self, context):
"""
UNCLEAN = """
import colorsys, sys, threading, time, warnings
warnings.warn("old habits", DeprecationWarning, stacklevel=1)
print("hello from the import")
import friend, slow_dependency
class Plugin:
    @hookimpl
    def process(self, batch): pass
    @hookimpl
    def setup(self, context):
        threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
        self.file = open(__file__)
        sys.kept = self
"""
CHILD = f"""
import subprocess, sys
{HEAD}        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""
NOSY = """
import os, pathlib, sys
class Plugin:
    @hookimpl
    def process(self, batch): pass
    @hookimpl
    def setup(self, context):
        assert context.settings == {"token": "s3cret"}
        print("environment", *sorted(os.environ))
        files = [path for path in pathlib.Path(sys.argv[1]).iterdir() if "s3cret" in path.read_text()]
        print("on disk", files, sys.stdin.read())
"""
LOUD = """
import os, sys
for number in range(200):
    os.write(1, b"x" * 9_999 + b"\\n")
print("kept on disk", os.fstat(1).st_size)
class Plugin:
    @hookimpl
    def process(self, batch): pass
"""
HOOKS = ["process", "setup"]
TOKEN = {"type": "object", "properties": {"token": {"type": "string", "writeOnly": True}}}
SECRETS = ("ANALYTICS_API_KEY", "API_KEYS", "DATABASE_URL", "JWT_SECRET", "REDIS_PASSWORD")
"""Of the host, in its environment."""
LIMIT = {"type": "object", "properties": {"limit": {"type": "integer", "default": 3}}}
BROKEN: dict[str, tuple[str, list[str], str, str, str]] = {
    "import-fails": ("def deep():\n    1 / 0\ndeep()", ["process"], "import", "ZeroDivisionError", "in deep"),
    "exits": ("import os; os._exit(7)", ["process"], "import", "the process ended: exit code 7", ""),
    "killed": ("import os; os.kill(os.getpid(), 35)", ["process"], "import", "ended: killed by signal 35", ""),
    "unspeakable": ("raise ValueError('\\udc80')", ["process"], "import", "\\udc80", "ValueError: \\udc80"),
    "crashes": ("import ctypes; ctypes.string_at(0)", ["process"], "import", "killed by SIGSEGV", "Segmentation fault"),
    "refused": (HEAD + "        pass", ["process"], "hooks", "'setup' is implemented and not listed", ""),
    "setup-fails": (HEAD + "        open('/no/such')", HOOKS, "setup", "FileNotFoundError", "open('/no/such')"),
    "hangs": ("import time\n" + HEAD + "        time.sleep(60)", HOOKS, "setup", "did not end within 2 s", "in setup"),
}
"""Plugin -> its code, its hooks, and the step, text and trace of its problem."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the doctor over a site of sick plugins, by name."""
    site = Site(tmp_path_factory.mktemp("doctor"))
    site.plugin("good", GOOD, hooks=HOOKS, settings=LIMIT)
    site.plugin("friend")
    site.plugin("unclean", UNCLEAN, hooks=HOOKS)
    (site.path / "slow_dependency.py").write_text("import time; time.sleep(0.2)")
    site.plugin("child", CHILD, hooks=HOOKS)
    site.plugin("unreadable", manifest=None)
    site.plugin("unfit", GOOD, hooks=HOOKS, settings=LIMIT)
    site.operator("unfit", settings={"limit": "many"})
    site.plugin("needy", requires={"plugins": {"nobody": ""}})
    site.plugin("off", "raise ValueError('still looked at')")
    site.operator("off", enabled=False)
    site.plugin("nosy", NOSY, hooks=HOOKS, settings=TOKEN)
    site.operator("nosy", settings={"token": "s3cret"})
    site.plugin("loud", LOUD)
    for name, (code, hooks, *_) in BROKEN.items():
        site.plugin(name, code, hooks=hooks)
    names = ["good", "friend", "unclean", "child", "unreadable", "unfit", "needy", "off", "nosy", "loud", *BROKEN]
    result = site.json("doctor", *names, "--seconds", "2", **dict.fromkeys(SECRETS, "s3cret"))
    return {one["plugin"]: one for one in result["plugins"]}


def test_a_good_plugin_has_no_problem(seen: dict[str, Any]) -> None:
    good = seen["good"]
    assert (good["problems"], good["warnings"], good["imported"], good["left"]) == ([], [], [], [])
    assert set(good["seconds"]) == {"import", "setup", "teardown"}


@pytest.mark.parametrize(("name", "told"), BROKEN.items())
def test_every_fault_is_shown_with_its_step_and_trace(
    seen: dict[str, Any], name: str, told: tuple[str, list[str], str, str, str]
) -> None:
    _, _, step, text, trace = told
    (problem,) = seen[name]["problems"]
    assert problem["step"] == step
    assert text in problem["text"]
    assert trace in problem["trace"]


def test_what_is_untidy_is_noted_and_no_problem(seen: dict[str, Any]) -> None:
    unclean = seen["unclean"]
    assert unclean["problems"] == []
    own = [warning for warning in unclean["warnings"] if warning["own"]]
    assert [warning["text"] for warning in own] == ["DeprecationWarning: old habits"]
    assert unclean["printed"] == "hello from the import"
    assert {key: unclean["imported"][0][key] for key in ("name", "seconds")} == {"name": "friend", "seconds": 0.0}
    assert "of the plugin 'friend'" in unclean["imported"][0]["why"]
    assert "thread 'poller' (daemon)" in unclean["left"]
    assert any(left.startswith("open file") and left.endswith("unclean/__init__.py") for left in unclean["left"])
    assert seen["child"]["left"] == ["a process that it started"]


def test_what_keeps_a_plugin_from_running_here_is_a_problem(seen: dict[str, Any]) -> None:
    first = {name: seen[name]["problems"][0] for name in ("unreadable", "unfit", "needy")}
    assert {name: problem["step"] for name, problem in first.items()} == {
        "unreadable": "installation",
        "unfit": "settings",
        "needy": "installation",
    }
    assert "cannot be read" in first["unreadable"]["text"]
    assert "is not of type 'integer'" in first["unfit"]["text"]
    assert "requires 'nobody'" in first["needy"]["text"]
    assert set(seen["unfit"]["seconds"]) == {"import"}


def test_a_disabled_plugin_is_looked_at_too(seen: dict[str, Any]) -> None:
    assert seen["off"]["state"] == "disabled"
    assert "still looked at" in seen["off"]["problems"][0]["text"]


def test_people_see_whole_tracebacks_and_the_exit_code_says_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.plugin("good")
    site.plugin("bad", "def deep():\n    raise ValueError('no [bold]')\ndeep()")
    shown = site.run("doctor", "bad", "good")
    assert shown.exit_code == 1
    assert shown.stdout.startswith("✗ bad 1.0: import ")
    assert "    Traceback (most recent call last):" in shown.stdout
    assert "    ValueError: no [bold]" in shown.stdout
    assert "\n✓ good 1.0: import " in shown.stdout
    assert site.run("doctor", "good").exit_code == 0


def test_the_code_sees_no_secret_but_its_own(seen: dict[str, Any]) -> None:
    assert seen["nosy"]["problems"] == []
    environment, on_disk = seen["nosy"]["printed"].splitlines()
    assert "PYTHONPATH" in environment
    assert not [name for name in SECRETS if name in environment.split()]
    assert on_disk == "on disk []"


def test_the_end_of_what_is_printed_is_kept_and_the_rest_is_nowhere(seen: dict[str, Any]) -> None:
    printed = seen["loud"]["printed"]
    assert len(printed) <= 20_000
    assert printed.endswith("x\nkept on disk 0")


def test_files_of_the_working_directory_do_not_stand_in_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    site.plugin("good")
    here = tmp_path / "here"
    here.mkdir()
    (here / "traceback.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(here)
    shown = site.run("doctor", "good")
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_doctor_leaves_no_process_and_no_folder_behind(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    site = Site(tmp_path)
    told = tmp_path / "told"
    os.mkfifo(told)
    site.plugin("slow", f"import time\ntold = open({str(told)!r}, 'w')\nprint('here', file=told, flush=True)\n"
                        "time.sleep(5)\nprint('survived', file=told, flush=True)")  # fmt: skip
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ = {"PYTHONPATH": str(site.path), "TMPDIR": str(temporary), "ANALYTICS_MANIFESTS_DIR": str(site.manifests)}
    doctor = subprocess.Popen(
        [sys.executable, "-m", "analytics_core.cli", "plugins", "doctor", "slow"], env={**os.environ, **environ}
    )
    with told.open() as lines:
        assert lines.readline() == "here\n"
        doctor.send_signal(number)
        assert lines.read() == "", "until the last process that has it open is gone"
    assert doctor.wait(20) == code
    assert list(temporary.iterdir()) == []
