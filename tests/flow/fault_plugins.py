"""Plugins that count, and that do the one fault they are made for in whichever hook is armed by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.flow.fault_cells import Fault, Hook, Isolation
from tests.flow.plugin_house import House

HOME: Final[dict[Hook, str]] = {
    "import": "import",
    "init": "init",
    "setup": "setup",
    "import_state": "import-state",
    "enrich": "passes",
    "export_state": "passes",
    "process": "passes",
    "erase": "passes",
    "guard": "guards",
    "ingest": "guards",
    "reply": "guards",
    "teardown": "guards",
    "insight": "guards",
}
"""Which plugin has the fault of each hook: one for each that fails in its start, two for those that run."""
BESIDE: Final = "beside"
MOVES: Final[tuple[Hook, ...]] = ("process", "insight")
"""Where a thread holds the interpreter lock again and again, and at work, not once and asleep."""
HELD_SECONDS: Final = 0.2
"""For how long it holds it at least."""

_HEAD: Final = """
import threading
FLAGS = {flags!r}
GENERATION = __name__.partition("__g")[2]
APART = {apart!r}
LEFT, HOARD = set(), []

with open(f"{{FLAGS}}.pids", "a") as pids:
    pids.write(f"{{os.getpid()}}\\n")

def armed(hook):
    try:
        return Path(f"{{FLAGS}}.{{hook}}").read_text() in ("", GENERATION)
    except OSError:
        return False

def linger(hook):
    while armed(hook):
        time.sleep(0.01)

def hold(hook, seconds):
    began = time.monotonic()
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # keeps the interpreter lock during the call
    held(hook, began)

def burn(hook, seconds):
    global PACE
    began, n = time.monotonic(), int(seconds / PACE)
    sum(range(n))  # one call in C, which lets nobody else have the interpreter
    held(hook, began)
    PACE = (time.monotonic() - began) / n

def held(hook, began):
    Path(f"{{FLAGS}}.{{hook}}.held").write_text(f"{{began}} {{time.monotonic()}}")

PACE = 1e-8

def fault(hook):
    if not armed(hook):
        return None
    done = Path(f"{{FLAGS}}.{{hook}}.done")
    again = done.exists()
    done.touch()
    return deed(hook, again)

def deed(hook, again):
"""

_BODY: Final = """
def __init__(self):
    self.n = 0
    return fault("init")

@hookimpl
def setup(self, context):
    return fault("setup")

@hookimpl
def process(self, batch):
    self.n += len(batch)
    wrong = fault("process") if len(batch) else None
    if wrong is not None:
        return wrong
    if len(batch):
        return ProcessResult([Metric(name="events", value=self.n, window=Window(DAY, 86400))])

@hookimpl
def export_state(self):
    wrong = fault("export_state")
    return {"n": self.n} if wrong is None else wrong

@hookimpl
def import_state(self, state, version):
    self.n = state["n"]
    return fault("import_state")

@hookimpl
def erase(self, tenant, ids):
    return fault("erase")

@hookimpl
def teardown(self):
    return fault("teardown")
"""

_PASSES: Final = """
@hookimpl
def enrich(self, batch):
    return fault("enrich") or Enrichment(properties=['{"by": "passes"}'] * len(batch))
"""

_GUARDS: Final = """
@hookimpl
def enrich(self, batch):
    return fault("guard")

@hookimpl
def insight(self, question, events):
    return fault("insight") or Answer([{"n": 1}])

@hookimpl
def ingest(self, request):
    return fault("ingest") or []

@hookimpl
def reply(self, request, outcome):
    return fault("reply") or Reply(200)
"""

_IMPORTED: Final = """
if fault("import"):
    del process
"""

_DEEDS: Final[dict[Fault, str]] = {
    "raises": "raise RuntimeError('bad luck')",
    "exits": "raise SystemExit('bad luck')",
    "interrupts": "raise KeyboardInterrupt('bad luck')",
    "wrong": "return object()",
    "hangs": "linger(hook)",
    "ends": "os._exit(3)",
    "segfaults": "ctypes.string_at(0)",
    "spins": "\n    if APART: os.nice(19)\n    while armed(hook):\n        for _ in range(10_000): pass",
    "leaves": (
        "\n    if hook not in LEFT:\n        LEFT.add(hook)\n"
        "        threading.Thread(target=linger, args=(hook,), name=f'leftover-{hook}').start()"
    ),
}
_DEEDS_APART: Final[dict[tuple[Fault, Isolation], str]] = {
    ("hoards", "thread"): "HOARD.append(b'x' * (24 << 20)) if not HOARD else None",
    # most hooks then wait until the host has looked
    ("hoards", "process"): (
        "HOARD.append(b'x' * (200 << 20)) if not HOARD else None\n    until = time.monotonic() + 3\n"
        "    while hook in {'process', 'export_state', 'erase', 'enrich', 'guard', 'insight', 'ingest', 'reply'} \\\n"
        "            and armed(hook) and time.monotonic() < until: time.sleep(0.01)"
    ),
    ("holds", "thread"): (
        f"\n    if hook in {MOVES!r}:\n        while armed(hook): burn(hook, 0.6); time.sleep(0.3)\n"
        f"    elif not again:\n        hold(hook, {HELD_SECONDS})"
    ),
    ("holds", "process"): "ctypes.PyDLL(None).sleep(600)",
}
_LIMITS: Final[dict[tuple[Fault, Isolation], dict[str, Any]]] = {
    ("hangs", "thread"): {"call_seconds": 0.6},
    ("hangs", "process"): {"call_seconds": 1.0},
    ("spins", "thread"): {"call_seconds": 0.6},
    ("spins", "process"): {"call_seconds": 1.5, "cpu_seconds": 0.3},
    ("holds", "process"): {"call_seconds": 0.7},
    ("hoards", "thread"): {"memory_mb": 16},
    ("hoards", "process"): {"memory_mb": 160},
}


def flags(house: House, plugin: str) -> Path:
    """The files ``<this>.<hook>`` arm a fault, for one generation alone when they hold its number."""
    return house.data / "flags" / plugin


def pids(house: House, plugin: str) -> list[str]:
    """The process of each time that the plugin was imported."""
    path = flags(house, plugin).with_name(f"{plugin}.pids")
    return path.read_text().split() if path.exists() else []


def install(house: House, plugin: str, fault: Fault, isolation: Isolation) -> None:
    """One of the plugins of `HOME`."""
    flags(house, plugin).parent.mkdir(exist_ok=True)
    hooks = ["setup", "process", "export_state", "import_state", "erase", "teardown"]
    options: dict[str, Any] = {"isolation": isolation, "limits": _LIMITS.get((fault, isolation), {"call_seconds": 20})}
    more = {"passes": _PASSES, "guards": _GUARDS}.get(plugin, "")
    if plugin == "passes":
        hooks += ["enrich"]
    elif plugin == "guards":
        hooks += ["enrich", "insight", "ingest", "reply"]
        options |= {"on_failure": "reject", "provides": {"analyses": [{"name": "q"}], "routes": ["POST /f"]}}
    deed = _DEEDS.get(fault) or _DEEDS_APART[fault, isolation]
    head = _HEAD.format(flags=str(flags(house, plugin)), apart=isolation == "process") + f"    {deed}\n"
    house.install(plugin, _BODY + more + _IMPORTED, hooks, head=head, **options)
