"""The house: imports run one way, importing does nothing heavy, and rooms stay small (DESIGN §10)."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "analytics_core"

TIERS = [
    {"errors", "properties", "events", "records", "hashing", "memory", "sketches"},
    {"hookspecs", "manifest"},
    {"config"},
    {"log", "lake", "state", "bus"},
    {"lanes"},
    {"host"},
    {"metrics"},
    {"queries"},
    {"intake", "live", "alerting", "erasure"},
    {"api", "testing", "logs"},
    {"app", "importing"},
    {"cli", "demo"},
]
RANK = {room: rank for rank, tier in enumerate(TIERS) for room in tier}
WITHIN = {
    ("records", "events"),
    ("events", "errors"),
    ("events", "properties"),
    ("cli", "demo"),
    ("sketches", "events"),
}
"""Rooms of one tier that may import each other, besides a folder's own modules."""


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


@functools.cache
def imports(path: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node.lineno))
    return found


MODULES = sorted(p for p in CORE.rglob("*.py") if p != CORE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = room_of(path)
    assert here in RANK, f"{here} is no room of the house; DESIGN §10 lists them"
    for name, line in imports(path):
        if not name.startswith("analytics_core."):
            plugin = name.startswith("analytics_") and name != "analytics_core"
            assert not plugin, f"{path.name}:{line}: the core imports the plugin {name}"
            continue
        there = name.split(".")[1]
        allowed = there == here or RANK[there] < RANK[here] or (here, there) in WITHIN
        assert allowed, f"{path.relative_to(ROOT)}:{line}: {here} may not import {there}"


HOST_TIERS = [
    {"health", "intent", "restart"},
    {"installed"},
    {"code"},
    {"running"},
    {"life"},
    {"enrichment", "examining", "replaying", "views"},
    {"calls"},
    {"plugins"},
    {"caretaker", "reloader"},
]
HOST_RANK = {room: rank for rank, tier in enumerate(HOST_TIERS) for room in tier}
"""The rooms of the plugin host, from what is on the disk to what an operator does."""


@pytest.mark.parametrize("path", sorted((CORE / "host").rglob("*.py")), ids=lambda p: str(p.relative_to(CORE)))
def test_inside_the_host_imports_run_one_way_too(path: Path) -> None:
    here = path.relative_to(CORE / "host").parts[0].removesuffix(".py")
    for name, line in imports(path):
        if name.startswith("analytics_core.host."):
            there = name.split(".")[2]
            allowed = there == here or HOST_RANK[there] < HOST_RANK[here]
            assert allowed, f"{path.relative_to(ROOT)}:{line}: host/{here} may not import host/{there}"


def test_the_rule_can_fail() -> None:
    assert RANK["log"] < RANK["lanes"] < RANK["api"] < RANK["cli"]


@pytest.mark.parametrize("heavy", ["torch", "sklearn", "redis", "pymongo", "pandas", "polars"])
def test_the_core_never_imports(heavy: str) -> None:
    found = [f"{p}:{line}" for p in MODULES for name, line in imports(p) if name.split(".")[0] == heavy]
    if heavy in ("pandas", "polars"):  # named in annotations, and imported where a plugin asks for a frame
        found = [where for where in found if "events/__init__.py" not in where]
    assert not found


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, analytics_core; print([m for m in ('pyarrow', 'numpy', 'duckdb', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_room_is_called_after_nothing() -> None:
    banned = {"utils", "helpers", "common", "base", "manager", "engine"}
    assert not [p for p in MODULES if p.stem in banned]
