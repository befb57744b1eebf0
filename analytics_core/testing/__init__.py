"""What plugin authors test with.

    from analytics_core.testing import batch, check_plugin, run

    result = run(MyPlugin, [batch([{"event": "click", "user_id": "u1", "timestamp": "2025-01-01T12:00:00Z"}])])
    check_plugin(MyPlugin)

`batch` makes events of plain rows, `run` folds them, `MemoryReader` is the reader of the host over rows instead of
files, `check_plugin` holds a plugin to its contract, `record` and `replay` bring a fault of the production into a test.
None of them starts a server or a thread; `fixtures` has those of pytest, among them a host to start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from analytics_core.testing.contract import Check, Report, check_plugin
    from analytics_core.testing.faults import Faults
    from analytics_core.testing.folds import check_deterministic
    from analytics_core.testing.host import EmbeddedHost
    from analytics_core.testing.reader import MemoryReader
    from analytics_core.testing.recording import Failed, RecordingError, Replayed, differences, record, replay
    from analytics_core.testing.rows import START, Clock, Feed, Row, batch, mixed_rows
    from analytics_core.testing.running import run, started

__all__ = [
    "START",
    "Check",
    "Clock",
    "EmbeddedHost",
    "Failed",
    "Faults",
    "Feed",
    "MemoryReader",
    "RecordingError",
    "Replayed",
    "Report",
    "Row",
    "batch",
    "check_deterministic",
    "check_plugin",
    "differences",
    "mixed_rows",
    "record",
    "replay",
    "run",
    "started",
]

_HOMES: Final = {
    "contract": ("Check", "Report", "check_plugin"),
    "faults": ("Faults",),
    "folds": ("check_deterministic",),
    "host": ("EmbeddedHost",),
    "reader": ("MemoryReader",),
    "recording": ("Failed", "RecordingError", "Replayed", "differences", "record", "replay"),
    "rows": ("START", "Clock", "Feed", "Row", "batch", "mixed_rows"),
    "running": ("run", "started"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest loads `fixtures` from here in every run, and must not wait for Arrow."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
