"""Memory that a reload has freed, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Let the allocator return the pages that nothing uses any more. Takes milliseconds, without the interpreter lock.

    A reload makes and frees a few copies of a state on threads that then end. The allocator of glibc keeps them in a
    pool of each thread, so that the process would grow with every reload though nothing is held. Others: nothing.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc
        return None
