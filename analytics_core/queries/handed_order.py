"""What a plugin's process is handed of the user-order cache, so that it does not read and sort all events itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from analytics_core.lake.order_files import OrderFiles, StoredRun
from analytics_core.lake.user_order import Run
from analytics_core.queries.levels import LINKS, Level, joined_level
from analytics_core.queries.snapshot import Snapshot
from analytics_core.queries.user_order import View, Words, run_of, view_of


class HandedOrder(Struct, frozen=True):
    """Some of a tenant's runs, in files below ``directory``: all events below some position. They are immutable, and
    may be deleted at any time. ``names`` are the words of their codes."""

    directory: Path
    runs: tuple[StoredRun, ...]
    names: tuple[str, ...]

    def view(self, rows: Snapshot) -> View:
        """All that ``rows`` hold: what the files do not have is read, or everything when they are of no use."""
        try:
            stored = [OrderFiles(self.directory).open(run) for run in self.runs]
        except OSError:
            return view_of(rows)
        last, names = self.runs[-1], Words(self.names)
        new = rows.since(last.upto)
        if last.seen + len(new) != rows.rows:  # retention or an erasure has taken some
            return view_of(rows)
        return View(_levels([*stored, run_of(new, names)], names, rows), names.words)


def _levels(runs: list[Run], names: Words, rows: Snapshot) -> list[Level]:
    some: Any = filter(len, runs)
    if LINKS.isdisjoint(names.words):
        return [Level(run) for run in some]
    identity = rows.identity()
    return [joined_level(run, identity) for run in some]
