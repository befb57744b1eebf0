"""`plugins validate` and the names that `plugins new` takes: each point of the checklist, one fault at a time."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from analytics_core import cli

FILES = {
    "shop/__init__.py": "",
    "shop/py.typed": "",
    "shop/plugin.py": "from analytics_core import hookimpl\n"
    "class Shop:\n    @hookimpl\n    def process(self, batch): pass\n",
    "shop/plugin.yaml": "kind: plugin\nmanifest: 1\nname: shop\nentry: shop.plugin:Shop\nhooks: [process]\n",
    "acme_shop-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme-shop\nVersion: 1.0\n"
    "Requires-Dist: analytics-core>=0.1\n\n# Shop\n",
    "acme_shop-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "acme_shop-1.0.dist-info/entry_points.txt": "[analytics_core.plugins]\nshop = shop:plugin.yaml\n",
}
"""A wheel without a fault."""
ENTRY = "acme_shop-1.0.dist-info/entry_points.txt"
METADATA = "acme_shop-1.0.dist-info/METADATA"
ALL = ["wheel", "entry point", "package", "manifest", "entry", "hooks", "dependency", "py.typed", "README"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["plugins", *arguments])


def wheel(folder: Path, changes: dict[str, str | None]) -> Path:
    """The good wheel with files changed, or left out."""
    path = folder / "acme_shop-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**FILES, **changes}.items():
            if text is not None:
                archive.writestr(name, text)
    return path


def checks(path: Path) -> list[dict[str, Any]]:
    told = json.loads(run("validate", str(path), "--json").stdout)
    found: list[dict[str, Any]] = told["checks"]
    assert told["ok"] == all(check["ok"] is not False for check in found)
    return found


def test_a_good_wheel_passes_all(tmp_path: Path) -> None:
    path = wheel(tmp_path, {})
    assert [(check["what"], check["ok"]) for check in checks(path)] == [(what, True) for what in ALL]
    shown = run("validate", str(path))
    assert shown.exit_code == 0
    assert shown.stdout.count("✓") == len(ALL)


@pytest.mark.parametrize(
    ("changes", "what", "text", "advice"),
    [
        ({ENTRY: None}, "entry point", "none in the group", '[project.entry-points."analytics_core.plugins"]'),
        (
            {ENTRY: "[analytics-core.plugins]\nshop = shop:plugin.yaml\n"},
            "entry point",
            "the group is 'analytics-core.plugins', not 'analytics_core.plugins'",
            "name = ",
        ),
        (
            {ENTRY: "[analytics_core.plugins]\nshop = shop.plugin\n"},
            "package",
            "valid is 'package:plugin.yaml'",
            'shop = "package:plugin.yaml"',
        ),
        (
            {ENTRY: "[analytics_core.plugins]\nshop = shp:plugin.yaml\n"},
            "package",
            "the package 'shp' is not to be found in acme-shop",
            "have the package in the wheel",
        ),
        (
            {"shop/plugin.yaml": None},
            "plugin.yaml",
            "shop:plugin.yaml is missing",
            '[tool.setuptools.package-data] "shop" = ["plugin.yaml"]',
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("hooks", "hoks")},
            "manifest",
            "shop/plugin.yaml: hoks: the key is not known; did you mean 'hooks'?",
            "analytics schemas",
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("shop.plugin:", "shop.plugn:")},
            "entry",
            "there is no module 'shop.plugn'",
            "package.module:Class",
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("[process]", "[process, alert]")},
            "hooks",
            "hook 'alert' is listed in plugin.yaml and not implemented",
            "hookspecs.py",
        ),
        ({"shop/plugin.py": "import no_such_module"}, "import", "No module named 'no_such_module'", "dependencies"),
    ],
)
def test_each_fault_is_found_with_what_to_do(
    tmp_path: Path, changes: dict[str, str | None], what: str, text: str, advice: str
) -> None:
    path = wheel(tmp_path, changes)
    (fault,) = [check for check in checks(path) if check["ok"] is False]
    assert fault["what"] == what
    assert text in fault["text"]
    assert advice in fault["advice"]
    assert "/wheel-" not in fault["text"] + fault["trace"], "a folder that is gone"
    shown = run("validate", str(path))
    assert shown.exit_code == 1
    assert f"✗ {what}: " in shown.stdout


def test_what_would_be_nice_is_advice(tmp_path: Path) -> None:
    bare = "Metadata-Version: 2.1\nName: acme-shop\nVersion: 1.0\n"
    path = wheel(tmp_path, {"shop/py.typed": None, METADATA: bare})
    advised = [check["what"] for check in checks(path) if check["ok"] is None]
    assert advised == ["dependency", "py.typed", "README"]
    assert run("validate", str(path)).exit_code == 0


def test_what_is_no_plugin_at_all_is_refused(tmp_path: Path) -> None:
    assert "has no pyproject.toml" in run("validate", str(tmp_path)).stderr
    (tmp_path / "a.txt").touch()
    assert "is no wheel" in run("validate", str(tmp_path / "a.txt")).stderr
    (tmp_path / "a.whl").write_text("no zip")
    shown = run("validate", str(tmp_path / "a.whl"))
    assert (shown.exit_code, shown.stdout.splitlines()[0][:30]) == (1, "✗ wheel: a.whl is no wheel: Fi")


def test_a_build_that_fails_shows_the_end_of_what_pip_says(tmp_path: Path) -> None:
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    (tmp_path / "pyproject.toml").write_text(f'{build}[project]\nname = "x y"\nversion = "1"\n')
    (check,) = checks(tmp_path)
    assert (check["what"], check["ok"]) == ("wheel", False)
    assert "pip wheel ended with exit code 1" in check["text"]


# --- the names of new plugins


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CheckoutWatch", "did you mean 'checkout-watch'?"),
        ("checkout_watch", "did you mean 'checkout-watch'?"),
        ("1st", "did you mean 'st'?"),
        ("a--b", "did you mean 'a-b'?"),
        ("shop-", "valid are small letters, digits and single dashes"),
        ("a" * 65, "longer than 64 characters"),
        ("json", "Python has a word or module 'json'"),
        ("class", "Python has a word or module 'class'"),
        ("analytics-core", "Python has a word or module 'analytics_core'"),
    ],
)
def test_a_bad_name_is_refused_with_what_is_valid(tmp_path: Path, name: str, problem: str) -> None:
    result = run("new", name, "--folder", str(tmp_path / "made"))
    assert result.exit_code == 2
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_an_unknown_hook_is_refused(tmp_path: Path) -> None:
    result = run("new", "shop-watch", "--folder", str(tmp_path / "made"), "--hook", "proces")
    assert (result.exit_code, result.stderr) == (
        2,
        "analytics: the template has no hook 'proces'; did you mean 'process'?\n",
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    result = run("new", "shop-watch", "--folder", str(tmp_path))
    assert result.exit_code == 2
    assert "is there and not empty; nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
