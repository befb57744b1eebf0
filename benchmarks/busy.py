"""What a plugin that burns Python does to the acknowledgement, in a thread of the host and in a process of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load import run
from benchmarks.packages import install
from benchmarks.server import ROOT, Server

_MANIFEST = """\
hooks: [process]
isolation: thread
"""

_CODE = """\
import time
from analytics_core import hookimpl

class Plugin:
    @hookimpl
    def process(self, batch):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sum(range(1000))
"""


def measure(seconds: float) -> dict[str, Any]:
    """p50 and p99 in ms at batch 100 and 20 000 events/s: without the plugin, beside it in a thread, in a process."""
    figures = {}
    for isolation in (None, "thread", "process"):
        folder = Path(tempfile.mkdtemp(prefix="analytics-busy-"))
        try:
            figures[isolation or "without"] = _one(folder, isolation, seconds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return figures


def _one(folder: Path, isolation: str | None, seconds: float) -> dict[str, float]:
    manifests = folder / "manifests"
    shutil.copytree(ROOT / "manifests", manifests)
    environ = {}
    if isolation:
        install(folder / "site", "busy", _CODE, _MANIFEST)
        environ["PYTHONPATH"] = str(folder / "site")
        settings = f"kind: plugin-settings\nname: busy\nisolation: {isolation}\n"
        (manifests / "busy.yaml").write_text(settings)
    server = Server(folder / "data", environ, manifests)
    server.start()
    try:
        asyncio.run(run(server.port, batch=100, connections=16, seconds=1, rate=20_000, seed=77))
        result = asyncio.run(run(server.port, batch=100, connections=16, seconds=seconds, rate=20_000))
    finally:
        server.kill()
    return {"p50_ms": round(result.percentile(50) * 1000, 2), "p99_ms": round(result.percentile(99) * 1000, 2)}
