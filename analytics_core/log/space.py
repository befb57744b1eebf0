"""What a log may still take: its own limit in bytes, and the reserve of its disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from analytics_core.errors import LogFullError
from analytics_core.log.frames import Disk

_SHARE_OF_DISK: Final = 0.2
_SECONDS: Final = 0.5
"""How long the disk's own figure holds; in between, what was written is taken off it."""


class Space:
    """``held`` is what the log holds, ``limit`` what it may hold: None is 20 % of the disk. All in bytes.

    :raises OSError: when the disk cannot be asked.
    """

    def __init__(self, directory: Path, disk: Disk, limit: int | None, reserve: int) -> None:
        self._directory = directory
        self._disk = disk
        self._reserve = reserve
        self._free, self._free_until = 0, 0.0
        self.held = 0
        self.limit = int(disk.space(directory)[1] * _SHARE_OF_DISK) if limit is None else limit

    def check(self, size: int) -> None:
        """:raises LogFullError: when ``size`` more would pass the limit, or take from the reserve."""
        if self.held + size > self.limit:
            raise LogFullError(f"the log {self._directory} holds {self.held} bytes of at most {self.limit}")
        now = time.monotonic()
        if now > self._free_until or self._free - size < self._reserve:
            self._free, self._free_until = self._disk.space(self._directory)[0], now + _SECONDS
        if self._free - size < self._reserve:
            raise LogFullError(f"{self._free} bytes are free under {self._directory}, {self._reserve} stay in reserve")

    def written(self, size: int) -> None:
        self.held += size
        self._free -= size

    def freed(self, size: int) -> None:
        self.held -= size

    def look_again(self) -> None:
        """The disk has refused a write: its last figure is not to be trusted."""
        self._free_until = 0.0
