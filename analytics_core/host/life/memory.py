"""Memory that reloads have freed, given back to the system."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

SLACK_BYTES: Final = 128 << 20
"""How much the process may have grown since the last time: what is given back costs the next reload a fault a page."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATM: Final = Path("/proc/self/statm")

_giving = threading.Lock()
_resident = 0


def give_back() -> None:
    """Let the allocator return the pages that nothing uses, once the process has grown by `SLACK_BYTES`.

    A reload makes and frees a few copies of a state on threads that then end. The allocator of glibc keeps them in a
    pool of each thread, so that the process would grow with every reload though nothing is held. Where there is
    another allocator this does nothing. Takes milliseconds, without the interpreter lock.
    """
    global _resident
    trim = _trim()
    if trim is None:
        return
    with _giving:
        if _resident_bytes() > _resident + SLACK_BYTES:
            trim(0)
            _resident = _resident_bytes()


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim if _STATM.exists() else None
    except (OSError, AttributeError, TypeError):  # no glibc
        return None
