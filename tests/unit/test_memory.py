"""Freed memory goes back to the system, but not at every turn."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from analytics_core.memory import MOST_BYTES, give_back


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked")
def test_what_threads_have_freed_does_not_add_up() -> None:
    give_back()
    before = resident()

    def work() -> None:
        kept = [bytes([n % 256]) * 60_000 for n in range(2 * MOST_BYTES // 60_000)]
        ends.append(kept.pop())  # the pool of this thread cannot shrink from its end
        del kept

    ends: list[bytes] = []
    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    give_back()
    assert resident() < before + 2 * MOST_BYTES
