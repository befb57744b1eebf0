"""Processes that run code of others: what they inherit, how they are ended, and how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any, Final

_SECRETS: Final = frozenset(
    {
        "ANALYTICS_API_KEY",
        "API_KEYS",
        "DATABASE_URL",
        "JWT_SECRET",
        "MONGODB_URI",
        "MONGODB_URL",
        "REDIS_PASSWORD",
        "REDIS_URL",
    }
)
"""The host's own secrets, and that of who calls its commands."""


_BLAS_THREADS: Final = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""Where OpenBLAS looks, the first that is set."""


def environment() -> dict[str, str]:
    """What a process that runs a plugin's code inherits: the host's modules, and none of its secrets.

    numpy's linear algebra gets one thread, unless the operator has set how many: else each plugin's process would
    start as many as there are processors, for work that most never do.
    """
    given = {**without_secrets(), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    if not given.keys() & set(_BLAS_THREADS):
        given[_BLAS_THREADS[0]] = "1"
    return given


def without_secrets() -> dict[str, str]:
    """What a process inherits that runs anybody's code, such as the build of a wheel."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def end_group(process: subprocess.Popen[Any]) -> bool:
    """Kill a process that leads a session of its own, with its group; whether that had more than the process."""
    process.kill()
    process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def ending(code: int) -> str:
    """How a process ended, by its return code: ``exit code 1``, ``killed by SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"killed by signal {-code}"
