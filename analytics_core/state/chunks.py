"""A lane's state in pieces whose borders its content decides, so that an insertion moves the pieces behind it whole.

Content-defined chunking (Muthitacharoen, Chen, Mazières: A Low-bandwidth Network File System, SOSP 2001). In place of a
rolling hash each window of eight bytes is hashed alone, by a multiplication: that takes a few passes over columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

LEAST: Final = 32 << 10
MOST: Final = 512 << 10
_WINDOW: Final = 8
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth, TAOCP volume 3, section 6.4)
_LIMIT: Final = np.uint64(1 << (64 - 17))  # one window in 128 Ki ends a piece


def cut(state: bytes) -> list[memoryview]:
    """Pieces of ``LEAST`` to ``MOST`` bytes each, but for the last one; together they are ``state``."""
    view, start = memoryview(state), 0
    borders = _borders(state) if len(state) > LEAST else np.empty(0, np.int64)
    pieces: list[memoryview] = []
    while start < len(view):
        at = int(borders.searchsorted(start + LEAST))
        end = min(int(borders[at]) if at < len(borders) else len(view), start + MOST, len(view))
        pieces.append(view[start:end])
        start = end
    return pieces


def _borders(state: bytes) -> npt.NDArray[np.int64]:
    """Where a piece may end, ascending."""
    found = []
    for shift in range(_WINDOW):
        words = np.frombuffer(state, "<u8", (len(state) - shift) // _WINDOW, shift)
        found.append(np.flatnonzero(words * _FACTOR < _LIMIT) * _WINDOW + shift + _WINDOW)
    return np.sort(np.concatenate(found))
