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
    from analytics_core.testing.clock import START, Clock
    from analytics_core.testing.contract import Check, Report, check_plugin
    from analytics_core.testing.faults import Faults
    from analytics_core.testing.host import EmbeddedHost
    from analytics_core.testing.mixed import mixed_rows
    from analytics_core.testing.reader import MemoryReader
    from analytics_core.testing.recording import RecordingError, record
    from analytics_core.testing.replaying import Failed, Replayed, differences, replay
    from analytics_core.testing.rows import Feed, Row, batch
    from analytics_core.testing.running import run, started
    from analytics_core.testing.splitting import check_deterministic

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
    "clock": ("START", "Clock"),
    "contract": ("Check", "Report", "check_plugin"),
    "faults": ("Faults",),
    "host": ("EmbeddedHost",),
    "mixed": ("mixed_rows",),
    "reader": ("MemoryReader",),
    "recording": ("RecordingError", "record"),
    "replaying": ("Failed", "Replayed", "differences", "replay"),
    "rows": ("Feed", "Row", "batch"),
    "running": ("run", "started"),
    "splitting": ("check_deterministic",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest loads `fixtures` from here in every run, and must not wait for Arrow."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
