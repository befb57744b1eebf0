"""`plugins new`: the names, hooks and folders that it takes; what it makes is run in the flow tests."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analytics_core import cli
from tests.unit.cli_plugins_site import Site


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["plugins", "new", *arguments])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("CheckoutWatch", "did you mean 'checkout-watch'?"),
        ("checkout_watch", "did you mean 'checkout-watch'?"),
        ("1st", "did you mean 'st'?"),
        ("a--b", "did you mean 'a-b'?"),
        ("../up", "did you mean 'up'?"),
        ("two\nlines", "'two\\nlines' is no name for a plugin; valid are small letters"),
        ("", "'' is no name for a plugin; valid are small letters"),
        ("ñ", "'ñ' is no name for a plugin; valid are small letters"),
        ("$(id)", "did you mean 'id'?"),
        ("shop-", "valid are small letters, digits and single dashes"),
        ("a" * 65, "longer than 64 characters"),
        ("json", "Python has a word or module 'json'"),
        ("class", "Python has a word or module 'class'"),
        ("none", "Python has a word or module 'none'"),
        ("true", "Python has a word or module 'true'"),
        ("conftest", "Python has a word or module 'conftest'"),
        ("null", "YAML reads the word 'null'"),
        ("on", "YAML reads the word 'on'"),
        ("no", "YAML reads the word 'no'"),
        ("analytics-core", "Python has a word or module 'analytics_core'"),
        ("numpy", "the distribution numpy"),
        ("yaml", "a package of this name is installed in "),
        ("backports", "a package of this name is installed in "),
        ("user-behavior", "the distribution analytics-user-behavior has a plugin 'user-behavior'"),
    ],
)
def test_a_bad_name_is_refused_with_what_is_valid(tmp_path: Path, name: str, problem: str) -> None:
    result = run("--folder", str(tmp_path / "made"), "--", name)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert result.stderr.startswith("analytics: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_a_name_that_an_installed_plugin_has_is_taken_by_the_rules_of_names(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.plugin("Shop_Watch", "raise SystemExit('imported')", distribution="acme")
    result = site.run("new", "shop-watch", "--folder", str(tmp_path / "made"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the distribution acme has a plugin 'Shop_Watch'; add a word to it" in result.stderr


def test_an_unknown_hook_is_refused(tmp_path: Path) -> None:
    result = run("shop-watch", "--folder", str(tmp_path / "made"), "--hook", "proces")
    assert (result.exit_code, result.stderr) == (
        2,
        "analytics: the template has no hook 'proces'; did you mean 'process'?\n",
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    result = run("shop-watch", "--folder", str(tmp_path))
    assert result.exit_code == 2
    assert "is there and no empty folder; nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for folder, problem in (
        ("file", "is there and no empty folder"),
        ("file/below", "cannot be written: Not a directory"),
        ("dangling", "cannot be written: File exists"),
        ("n" * 300, "cannot be written: File name too long"),
    ):
        result = run("shop-watch", "--folder", str(tmp_path / folder))
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert problem in result.stderr


def test_the_next_steps_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with $signs"
    result = run("shop-watch", "--folder", str(folder))
    assert result.exit_code == 0
    first = result.stderr.removeprefix("next: ").partition(", then")[0]
    words = shlex.split(first)
    assert words == ["pip", "install", "-e", str(folder), "&&", "python", "-m", "pytest", str(folder)]
