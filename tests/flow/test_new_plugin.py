"""`plugins new`: what it makes passes its own tests, is a wheel without a fault, and runs in the host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from analytics_core import cli
from analytics_core.cli.plugins.making import HOOKS, plugin_files
from tests.flow.plugin_house import House, until, until_state


def new(folder: Path, name: str, *hooks: str) -> Path:
    told = [word for hook in hooks for word in ("--hook", hook)]
    result = CliRunner().invoke(cli.main, ["plugins", "new", name, "--folder", str(folder), *told])
    assert result.exit_code == 0, result.stderr
    made = {path for path in folder.rglob("*") if path.is_file()}
    assert {Path(line) for line in result.stdout.splitlines()} == made
    assert folder / "pyproject.toml" in made
    return folder


def done(*command: str, cwd: Path) -> str:
    """What a command says that has to succeed."""
    run = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("hooks", [(), HOOKS], ids=["plain", "all-hooks"])
def test_a_new_plugin_passes_its_tests_and_every_check(tmp_path: Path, hooks: tuple[str, ...]) -> None:
    project = new(tmp_path / "checkout-watch", "checkout-watch", *hooks)
    assert " passed" in done("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    shown = done("-m", "analytics_core.cli", "plugins", "validate", "checkout-watch", cwd=tmp_path)
    assert "✗" not in shown
    assert "!" not in shown
    assert "✓ hooks: loaded in" in shown
    assert "of this environment" in shown, "built without another download of the backend"
    done("-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP", "--line-length", "120", ".", cwd=project)
    done("-m", "ruff", "format", "--isolated", "--check", "--line-length", "120", ".", cwd=project)


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "process"])
def test_each_hook_alone_makes_a_module_that_fits_its_manifest(tmp_path: Path, hook: str) -> None:
    project = new(tmp_path / "shop-watch", "shop-watch", hook)
    result = CliRunner().invoke(cli.main, ["plugins", "validate", str(project)])
    assert result.exit_code == 0, result.output
    assert "✓ hooks: loaded in" in result.stdout
    assert "✗" not in result.stdout


@pytest.mark.parametrize("name", ["metric", "memory-reader"])
def test_a_class_is_not_called_like_what_it_or_its_tests_import(name: str) -> None:
    texts = plugin_files(name, ["insight"])
    made = "".join(word.capitalize() for word in name.split("-")) + "Plugin"
    package = name.replace("-", "_")
    assert f"class {made}:" in texts[f"{package}/plugin.py"]
    assert f"import {made}\n" in texts[f"tests/test_{package}.py"]


def test_a_new_plugin_runs_in_the_host(tmp_path: Path) -> None:
    project = new(tmp_path / "shop-watch", "shop-watch")
    house = House(tmp_path)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target")
    done(*install, str(house.site), str(project), cwd=tmp_path)

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "shop-watch", "active")
            house.add(5)
            await until(lambda: (house.value("shop-watch") or 0) >= 5, "five events")
            assert house.value("shop-watch") == 5

    try:
        asyncio.run(main())
    finally:
        house.close()
