"""Where in history a fold has to begin so that it meets everything that was received from some moment on."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.errors import TrimmedError
from analytics_core.events import EventBatch
from analytics_core.lanes.fold import Backlog
from analytics_core.log import LogReader

_LEAST_ROWS: Final = 256
_MOST_ROWS: Final = 65_536


class Received(Struct, frozen=True):
    """An event: its position, and when it was received."""

    position: int
    at: datetime


class History:
    """All events that are kept: those of ``backlog``, then those of ``log``."""

    def __init__(self, log: LogReader, backlog: Backlog | None) -> None:
        self._log = log
        self._backlog = backlog

    def next(self, position: int) -> Received | None:
        """The first event at or after ``position``; None when there is none yet.

        :raises StorageError: when history cannot be read.
        """
        rows = _LEAST_ROWS
        while True:
            batches, after = self._read(position, rows)
            for batch in batches:
                if len(batch):
                    return _first(batch)
            if after <= position:
                return None
            position, rows = after, min(2 * rows, _MOST_ROWS)

    def since(self, moment: datetime) -> int:
        """The position of the first event that was received at ``moment`` or later; the log's end when there is none.

        Positions are taken to be in order of receipt, which holds up to the seconds that a request takes.

        :raises StorageError: when history cannot be read.
        """
        low, high = 0, self._log.durable
        while low < high:
            middle = (low + high) // 2
            found = self.next(middle)
            if found is None or found.at >= moment:
                high = middle
            else:
                low = found.position + 1
        return low

    def _read(self, position: int, rows: int) -> tuple[list[EventBatch], int]:
        try:
            return self._log.read(position, rows)
        except TrimmedError:
            if self._backlog is None:
                raise
        return self._backlog(position, rows)


def _first(batch: EventBatch) -> Received:
    return Received(batch.column("seq")[0].as_py(), pc.min(batch.column("received_at")).as_py())
