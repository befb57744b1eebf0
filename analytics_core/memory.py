"""The memory of the process: one allocator for all of it, and what is freed given back to the system."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

LARGE_BYTES: Final = 16 << 20
"""A block of this size is mapped for itself: it costs a fault a page, and is gone when it is freed."""
SLACK_BYTES: Final = 32 << 20
"""How much the process may have grown for longer than `PAUSE_SECONDS`, and `MOST_BYTES` at any time: what is given back
costs whoever is next a fault a page."""
PAUSE_SECONDS: Final = 2.0
MOST_BYTES: Final = 128 << 20
ARENAS: Final = max(2, os.cpu_count() or 1)
"""Pools of freed memory: what is freed in one is of no use to the others."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATM: Final = Path("/proc/self/statm")
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_giving = threading.Lock()
_resident = 0
_given = 0.0


def arrange() -> None:
    """Have all of the process use the C library's allocator, and have that keep no large block which was freed.

    The allocator that Arrow brings keeps what a thread has freed to that thread, and glibc, left alone, keeps blocks of
    up to 32 MB for the next of their size, once for each of its pools. A plugin's generations live on threads of their
    own, so with either the process would grow with reloads by a multiple of a state. Where there is another C library
    this does nothing.
    """
    libc = _glibc()
    if libc is None:
        return
    pa.set_memory_pool(pa.system_memory_pool())
    libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * LARGE_BYTES)
    libc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Let the allocator return the pages that nothing uses, once the process has grown by `SLACK_BYTES` since it did
    `PAUSE_SECONDS` ago or earlier, or by `MOST_BYTES`.

    The allocator of glibc keeps a pool for each few threads, and what is freed in one is of no use to the others.
    Where there is another allocator this does nothing. Takes milliseconds, without the interpreter lock.
    """
    global _resident, _given
    libc = _glibc()
    if libc is None:
        return
    with _giving:
        now, resident = time.monotonic(), _resident_bytes()
        grown = resident - _resident
        if grown > MOST_BYTES or (grown > SLACK_BYTES and now > _given + PAUSE_SECONDS):
            libc.malloc_trim(0)
            _given, _resident = now, _resident_bytes()
        else:
            _resident = min(_resident, resident)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE


@cache
def _glibc() -> Any:
    """None where the allocator is another one."""
    try:
        libc = ctypes.CDLL(None)
        return libc if _STATM.exists() and libc.malloc_trim and libc.mallopt else None
    except (OSError, AttributeError, TypeError):
        return None
