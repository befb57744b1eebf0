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


def environment() -> dict[str, str]:
    """What a process that runs a plugin's code inherits: the host's modules, and none of its secrets."""
    return {**without_secrets(), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}


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
