"""What ``analytics plugins list`` costs without a server, with many plugins installed."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_MANIFEST = """\
kind: plugin
manifest: 1
name: {name}
title: Made up
description: One of many.
entry: {package}.plugin:Plugin
hooks: [process]
requires:
  host: ">=0.1"
provides:
  metrics:
    - {{name: seen, description: What was seen.}}
settings:
  type: object
  properties:
    limit: {{type: integer, minimum: 1, default: 10, description: How many.}}
    token: {{type: string, writeOnly: true}}
"""


def measure(plugins: int, runs: int) -> dict[str, Any]:
    """Median and maximum of the processor seconds (user and system) of ``runs`` processes, beside those of --help."""
    with tempfile.TemporaryDirectory(prefix="analytics-listing-") as folder:
        site = Path(folder) / "site"
        (Path(folder) / "manifests").mkdir()
        for number in range(plugins):
            _install(site, f"made-up-{number}")
        results = [_run(Path(folder), site, plugins) for _ in range(runs)]
    return {
        "plugins": plugins,
        "cpu_s": round(statistics.median(results), 3),
        "cpu_max_s": round(max(results), 3),
        "help_cpu_s": round(statistics.median(_cpu_seconds(["--help"], {})[0] for _ in range(runs)), 3),
    }


def _run(folder: Path, site: Path, plugins: int) -> float:
    """Processor seconds of one listing, in which every plugin is there and as good as it can be."""
    told = ["plugins", "list", "--json", "--port", "1", "--manifests", str(folder / "manifests")]
    seconds, shown = _cpu_seconds(told, {"PYTHONPATH": str(site)})
    states = [row["state"] for row in json.loads(shown)["plugins"] if row["name"].startswith("made-up-")]
    assert states == ["discovered"] * plugins, "the listing is not of what was made"
    return seconds


def _cpu_seconds(arguments: list[str], environ: dict[str, str]) -> tuple[float, bytes]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "analytics_core.cli", *arguments]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def _install(site: Path, name: str) -> None:
    """A distribution as pip leaves it, whose code nobody imports."""
    package = site / name.replace("-", "_")
    package.mkdir(parents=True)
    (package / "plugin.yaml").write_text(_MANIFEST.format(name=name, package=package.name))
    for file in ("__init__.py", "plugin.py"):
        (package / file).write_text("raise SystemExit('imported')\n")
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[analytics_core.plugins]\n{name} = {package.name}:plugin.yaml\n")
    files = [f"{package.name}/{path.name}" for path in package.iterdir()]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
