"""The memory of the process: one allocator for all of it, and what is freed given back to the system."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

SLACK_BYTES: Final = 128 << 20
"""How much the process may have grown since the last time: what is given back costs whoever is next a fault a page."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATM: Final = Path("/proc/self/statm")

_giving = threading.Lock()
_resident = 0


def share_allocator() -> None:
    """Have Arrow use the C library's allocator, as all else does, where that can give memory back.

    The allocator that Arrow brings keeps what each thread has freed to itself. A plugin's generations live on threads
    of their own, so the process would grow with every reload by the size of a state.
    """
    if _trim() is not None:
        pa.set_memory_pool(pa.system_memory_pool())


def give_back() -> None:
    """Let the allocator return the pages that nothing uses, once the process has grown by `SLACK_BYTES`.

    The allocator of glibc keeps a pool for each few threads, and what is freed in one is of no use to the others.
    Where there is another allocator this does nothing. Takes milliseconds, without the interpreter lock.
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
