"""The fault matrix: what the host must do when a plugin does the worst it can, in each hook, in each isolation.

`MATRIX` has one entry for each fault and hook: what must be seen in a thread, and in a process, in words of `WORDS`.
In every cell besides: the neighbour counts every event, nothing that was accepted is lost, and once the fault is mended
the plugin itself has counted every event exactly once and answers again.
"""

from __future__ import annotations

from typing import Final, Literal

Fault = Literal[
    "raises",  # an Exception
    "exits",  # SystemExit
    "interrupts",  # KeyboardInterrupt, which no `except Exception` catches
    "wrong",  # another type than the hook may return
    "hangs",  # waits without end
    "spins",  # a loop of pure Python without end
    "ends",  # os._exit
    "segfaults",
    "hoards",  # takes more memory than its limit
    "holds",  # the interpreter lock: for a moment in a thread (repeatedly in `MOVES`), for ever in a process
    "leaves",  # a thread behind that runs on
]
Hook = Literal[
    "import",  # of its module
    "init",  # of its class
    "setup",
    "import_state",
    "process",
    "export_state",
    "erase",  # of users, at a tombstone
    "enrich",  # with on_failure: pass
    "guard",  # enrich with on_failure: reject
    "insight",
    "ingest",
    "reply",
    "teardown",  # of a generation that a reload has retired
]
Isolation = Literal["thread", "process"]

WORDS: Final = {
    "load_error": "shown with its reason and not tried again; a reload brings it in once it is mended",
    "start_error": "the same, for a plugin that refuses its start or its state; its checkpoint is kept",
    "retried": "tried again from its checkpoint by itself, in the same process",
    "abandoned": "its thread is given up and can write nothing more; it is retried on another",
    "restarted": "its process has died or was killed; it is retried in another",
    "failed": "who called gets HookFailedError, and its lane goes on",
    "timed_out": "who called gets HookTimeoutError, and its lane goes on",
    "died": "who called gets WorkerDiedError",
    "passed_over": "the batch is accepted as it is",
    "rejected": "the batch is refused with OverloadedError (503), so nobody takes it for accepted",
    "retired": "the next generation is in",
    "survivor": "the receipt of a reload names what is left of the generation before",
    "unseen": "no harm is done, and nothing is to be seen",
    "stalled": "all of the host stands still meanwhile, and goes on",
    "moved": "who does so again and again is given a process of its own, and the record says so",
    "gone": "cannot be survived: the host ends with it, and what it had acknowledged is there when it starts again",
    "named": "the boot guard knows in whose code the start has failed",
}

START: Final[tuple[Hook, ...]] = ("import", "init", "setup", "import_state")
CALLS: Final[tuple[Hook, ...]] = ("enrich", "guard", "insight", "ingest", "reply")
NOT_CALLED_YET: Final = frozenset({"alert", "deliver", "train", "score"})
"""Hooks that are specified and that the host calls nowhere. Whoever makes it call one owes the matrix a row of it."""

TELLING: Final = frozenset(
    {
        "load_error",
        "start_error",
        "retried",
        "abandoned",
        "restarted",
        "failed",
        "timed_out",
        "died",
        "rejected",
        "moved",
    }
)
"""Words for what comes with a text, which must be that of `TOLD`."""

_Row = dict[Hook, tuple[str, str]]

_REFUSES: Final[_Row] = {
    # hook           in a thread           in a process
    "import":       ("load_error",         "load_error"),
    "init":         ("load_error",         "load_error"),
    "setup":        ("start_error",        "start_error"),
    "import_state": ("start_error",        "start_error"),
    "process":      ("retried",            "retried"),
    "export_state": ("retried",            "retried"),
    "erase":        ("retried",            "retried"),
    "enrich":       ("passed_over",        "passed_over"),
    "guard":        ("rejected",           "rejected"),
    "insight":      ("failed",             "failed"),
    "ingest":       ("failed",             "failed"),
    "reply":        ("failed",             "failed"),
    "teardown":     ("retired",            "retired"),
}  # fmt: skip

_STICKS: Final[_Row] = {
    # hook           in a thread           in a process
    "import":       ("load_error",         "load_error"),
    "init":         ("load_error",         "load_error"),
    "setup":        ("abandoned",          "restarted"),
    "import_state": ("abandoned",          "restarted"),
    "process":      ("abandoned",          "restarted"),
    "export_state": ("abandoned",          "restarted"),
    "erase":        ("abandoned",          "restarted"),
    "enrich":       ("passed_over",        "passed_over"),
    "guard":        ("rejected",           "rejected"),
    "insight":      ("timed_out",          "timed_out"),
    "ingest":       ("timed_out",          "timed_out"),
    "reply":        ("timed_out",          "timed_out"),
    "teardown":     ("retired survivor",   "retired"),
}  # fmt: skip

_CRASHES: Final[_Row] = {
    # hook           in a thread           in a process
    "import":       ("gone named",         "restarted"),
    "init":         ("gone named",         "restarted"),
    "setup":        ("gone named",         "restarted"),
    "import_state": ("gone named",         "restarted"),
    "process":      ("gone named",         "restarted"),
    "export_state": ("gone named",         "restarted"),
    "erase":        ("gone named",         "restarted"),
    "enrich":       ("gone named",         "passed_over restarted"),
    "guard":        ("gone named",         "rejected restarted"),
    "insight":      ("gone named",         "died restarted"),
    "ingest":       ("gone named",         "died restarted"),
    "reply":        ("gone named",         "died restarted"),
    "teardown":     ("gone named",         "retired"),
}  # fmt: skip

MATRIX: Final[dict[Fault, _Row]] = {
    "raises": _REFUSES,
    "exits": _REFUSES,
    "interrupts": _REFUSES,
    "wrong": _REFUSES,
    "hangs": _STICKS,
    "spins": _STICKS,
    "ends": _CRASHES,
    "segfaults": _CRASHES,
    "hoards": {  # threads have no memory of their own to bound
        "import":       ("unseen",             "restarted"),
        "init":         ("unseen",             "restarted"),
        "setup":        ("unseen",             "restarted"),
        "import_state": ("unseen",             "restarted"),
        "process":      ("unseen",             "restarted"),
        "export_state": ("unseen",             "restarted"),
        "erase":        ("unseen",             "restarted"),
        "enrich":       ("unseen",             "passed_over restarted"),
        "guard":        ("unseen",             "rejected restarted"),
        "insight":      ("unseen",             "died restarted"),
        "ingest":       ("unseen",             "died restarted"),
        "reply":        ("unseen",             "died restarted"),
        "teardown":     ("retired",            "retired"),
    },
    "holds": {  # whatever holds the lock of the host's process for ever has ended the host; a bounded hold is survived
        "import":       ("stalled",            "load_error"),
        "init":         ("stalled",            "load_error"),
        "setup":        ("stalled",            "restarted"),
        "import_state": ("stalled",            "restarted"),
        "process":      ("stalled moved",      "restarted"),
        "export_state": ("stalled",            "restarted"),
        "erase":        ("stalled",            "restarted"),
        "enrich":       ("stalled",            "passed_over restarted"),
        "guard":        ("stalled",            "rejected restarted"),
        "insight":      ("stalled moved",      "timed_out restarted"),
        "ingest":       ("stalled",            "timed_out restarted"),
        "reply":        ("stalled",            "timed_out restarted"),
        "teardown":     ("stalled retired",    "retired"),
    },
    "leaves": {  # a process takes its threads with it
        "import":       ("survivor",           "unseen"),
        "init":         ("survivor",           "unseen"),
        "setup":        ("survivor",           "unseen"),
        "import_state": ("survivor",           "unseen"),
        "process":      ("survivor",           "unseen"),
        "export_state": ("survivor",           "unseen"),
        "erase":        ("survivor",           "unseen"),
        "enrich":       ("survivor",           "unseen"),
        "guard":        ("survivor",           "unseen"),
        "insight":      ("survivor",           "unseen"),
        "ingest":       ("survivor",           "unseen"),
        "reply":        ("survivor",           "unseen"),
        "teardown":     ("retired survivor",   "retired"),
    },
}  # fmt: skip

TOLD: Final[dict[Fault, str]] = {
    "raises": "RuntimeError: bad luck",
    "exits": "SystemExit: bad luck",
    "interrupts": "KeyboardInterrupt: bad luck",
    "wrong": "valid is|should return None|'process'",
    "hangs": "no answer within",
    "spins": "no answer within|of processor time; its limit is",
    "ends": "its process ended: exit code 3",
    "segfaults": "its process ended: killed by SIGSEGV",
    "hoards": "MB of memory; its limit is",
    "holds": "no answer within|has blocked the event loop 3 times",
}
"""What the plugin's reason or the caller's error must say, a regular expression."""
