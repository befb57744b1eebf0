"""`plugins why` and `plugins inspect`: the exact reason, everything that is declared, and nothing imported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from analytics_core import cli
from analytics_core.cli.plugins import command as plugins
from analytics_core.cli.plugins import why
from analytics_core.manifest import MASK
from tests.unit.cli_plugins_site import NOBODY, Site, answering


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("name", plugins.list_commands(click.Context(plugins)))
def test_each_command_says_in_the_overview_what_its_own_help_begins_with(name: str) -> None:
    command = plugins.get_command(click.Context(plugins), name)
    assert command is not None
    assert command.name == name
    about = " ".join((command.help or "").partition("\n\n")[0].split())
    shown = " ".join(CliRunner().invoke(cli.main, ["plugins", "--help"]).stdout.split())
    assert f"{name} {about}" in shown


def test_an_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(cli.main, ["plugins", "wy"])
    assert result.exit_code == 2
    assert "No such command 'wy'; did you mean 'why'?" in result.stderr


# --- why, without a server


IMPORTED = "__import__('pathlib').Path(__file__).with_name('imported').touch()"
"""A module that leaves a trace."""


def nothing(site: Site) -> dict[str, str]:
    return {}


def settings_that_do_not_fit(site: Site) -> dict[str, str]:
    site.operator("shop", settings={"limit": "many"})
    return {}


def disabled(site: Site) -> dict[str, str]:
    site.operator("shop", enabled=False)
    return {}


LIMIT = {"settings": {"type": "object", "properties": {"limit": {"type": "integer", "default": 3}}}}


@pytest.mark.parametrize(
    ("manifest", "prepare", "state", "reason"),
    [
        ({}, nothing, "discovered", r""),
        ({"manifest": None}, nothing, "invalid", r"plugin\.yaml: cannot be read: No such file"),
        ({"hoks": []}, nothing, "invalid", r"hoks: the key is not known; did you mean 'hooks'\?"),
        ({"requires": {"host": ">=99"}}, nothing, "incompatible", r"requires\.host: needs '>=99', this is host"),
        ({"requires": {"python": "<3"}}, nothing, "incompatible", r"requires\.python: needs '<3', this is python"),
        ({"requires": {"plugins": {"shp": ""}}}, nothing, "blocked", r"requires 'shp', which is not installed"),
        ({}, disabled, "disabled", r"plugin-settings say 'enabled: false'"),
        ({}, lambda _: {"PLUGINS_ENABLED": "other"}, "disabled", r"PLUGINS_ENABLED does not list it"),
        ({}, lambda _: {"PLUGINS_AUTO_LOAD": "false"}, "disabled", r"PLUGINS_AUTO_LOAD is off"),
        (LIMIT, settings_that_do_not_fit, "unresolved", r"settings\.limit: 'many' is not of type 'integer'"),
    ],
)
def test_why_says_the_exact_reason(
    site: Site, manifest: dict[str, Any], prepare: Callable[[Site], dict[str, str]], state: str, reason: str
) -> None:
    home = site.plugin("shop", IMPORTED, **manifest)
    environ = prepare(site)
    told = site.json("why", "shop", *NOBODY, **environ)
    assert (told["state"], told["runs"], told["source"]) == (state, not reason, "installed")
    assert re.search(reason, told["reason"]) if reason else told["reason"] == ""
    holder = {"distribution": "dist-shop", "version": "1.0", "directory": str(home), "kept_out": ""}
    assert told["holders"] == [holder]
    shown = site.run("why", "shop", *NOBODY, **environ)
    assert shown.exit_code == (1 if reason else 0)
    assert shown.stdout.startswith(f"✗ shop is not to run: {state}\n" if reason else "✓ shop is to run: discovered\n")
    assert told["reason"] in shown.stdout
    (listed,) = [row for row in site.json("list", *NOBODY, **environ)["plugins"] if row["name"] == "shop"]
    assert {key: listed[key] for key in ("state", "reason")} == {key: told[key] for key in ("state", "reason")}
    assert not (home / "imported").exists()


def test_a_manifest_that_was_left_out_comes_with_what_to_do(site: Site) -> None:
    site.plugin("shop", manifest=None)
    advice = site.json("why", "shop", *NOBODY)["advice"]
    assert '[tool.hatch.build.targets.wheel] packages = ["shop"]' in advice
    assert '[tool.setuptools.package-data] "shop" = ["plugin.yaml"]' in advice


def test_a_cycle_of_requirements_is_shown_whole(site: Site) -> None:
    for name, needed in (("one", "two"), ("two", "three"), ("three", "one")):
        site.plugin(name, requires={"plugins": {needed: ""}})
    told = site.json("why", "two", *NOBODY)
    assert told["state"] == "blocked"
    assert re.search(r"(\w+) -> \w+ -> \w+ -> \1", told["reason"])


def test_one_name_of_two_distributions_shows_both(site: Site) -> None:
    site.plugin("shop", distribution="first")
    site.plugin("shop", distribution="second", version="2.0")
    told = site.json("why", "shop", *NOBODY)
    assert "claimed by first 1.0 and second 2.0" in told["reason"]
    assert [holder["distribution"] for holder in told["holders"]] == ["first", "second"]


def test_a_distribution_may_be_named_too(site: Site) -> None:
    site.plugin("shop", distribution="Acme-Shop")
    assert site.json("why", "acme_shop", *NOBODY)["name"] == "shop"
    site.distribution("acme-tools", "a = b:c", group="console_scripts")
    shown = site.run("why", "acme-tools", *NOBODY)
    assert shown.exit_code == 1
    assert "declares no entry point in the group 'analytics_core.plugins'" in shown.stdout


@pytest.mark.parametrize("command", ["why", "inspect", "doctor"])
def test_an_unknown_name_suggests_the_nearest(site: Site, command: str) -> None:
    site.plugin("checkout-watch")
    shown = site.run(command, "checkout-wach", *(() if command == "doctor" else NOBODY))
    assert shown.exit_code == 2
    assert shown.stderr == "analytics: no plugin is named 'checkout-wach'; did you mean 'checkout-watch'?\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("why", "nobody", *NOBODY),
        ("inspect", "nobody", *NOBODY),
        ("list", "--url", "http://127.0.0.1:1"),
        ("doctor", "nobody"),
        ("validate", "/no/such"),
        ("new", "Shop"),
        ("lock", "--check"),
        ("install", "--dry-run"),
        ("install", "zz-nobody", "--dry-run", "--no-such-option"),
    ],
    ids=" ".join,
)
def test_a_failure_is_one_json_object_too(site: Site, arguments: tuple[str, ...]) -> None:
    site.plugin("shop")
    plain, told = site.run(*arguments), site.run(*arguments, "--json")
    assert plain.stdout == ""
    assert told.exit_code == plain.exit_code != 0
    assert list(json.loads(told.stdout)) == ["error"]
    assert json.loads(told.stdout)["error"] in told.stderr


# --- why, with a server


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers GET /api/v1/plugins with the rows in the list."""
    rows: list[dict[str, Any]] = []
    with answering(lambda request, headers: (200, json.dumps({"plugins": rows}).encode())) as port:
        yield port, rows


def row(name: str, state: str, reason: str | None = "") -> dict[str, Any]:
    since = "2025-01-01T00:00:00+00:00"
    return {"name": name, "state": state, "reason": reason, "since": since, "generation": 2, "errors": 3}


@pytest.mark.parametrize(
    ("state", "code"),
    [("active", 0), ("half_open", 0), ("quarantined", 1), ("start_error", 1), ("invalid", 1)],
)
def test_a_running_server_is_believed(site: Site, server: tuple[str, Any], state: str, code: int) -> None:
    port, rows = server
    rows.append(row("shop", state, "because"))
    site.plugin("shop", manifest=None)
    shown = site.run("why", "shop", "--port", port)
    assert shown.exit_code == code
    expected = f"{'✗ shop does not run' if code else '✓ shop runs'}: {state} since 2025-01-01T00:00:00+00:00"
    assert shown.stdout == f"{expected}, generation 2, 3 errors\n  because\n"
    told = site.json("why", "shop", "--port", port)
    assert (told["source"], told["generation"], told["errors"]) == (f"http://127.0.0.1:{port}", 2, 3)


def test_who_may_not_see_the_reason_is_told_so(site: Site, server: tuple[str, Any]) -> None:
    port, rows = server
    rows.append(row("shop", "degraded", None))
    assert "to the key of an operator only" in site.run("why", "shop", "--port", port).stdout


def test_a_plugin_that_the_server_does_not_know_yet(
    site: Site, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(why, "_PATIENCE", 0.0)
    port, rows = server
    rows.append(row("other", "active"))
    site.plugin("shop", requires={"plugins": {"missing": ""}})
    told = site.json("why", "shop", "--port", port)
    assert not told["runs"]
    assert "does not know it" in told["reason"]
    assert "by itself: requires 'missing'" in told["reason"]
    told_url = site.run("why", "othr", "--url", f"http://127.0.0.1:{port}")
    assert (told_url.exit_code, told_url.stderr) == (2, "analytics: no plugin is named 'othr'; did you mean 'other'?\n")


@pytest.mark.parametrize("state", ["discovered", "loading", "starting", "retrying"])
def test_one_that_is_starting_does_not_run_yet(
    site: Site, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(why, "_PATIENCE", 0.0)
    port, rows = server
    rows.append(row("shop", state))
    shown = site.run("why", "shop", "--port", port)
    assert (shown.exit_code, shown.stdout.startswith(f"… shop is starting: {state} since ")) == (1, True)
    assert site.json("why", "shop", "--port", port)["runs"] is False


def test_the_end_of_a_start_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(why, "_STEP", 0.0)
    site.plugin("shop")
    looks = iter([[], [row("shop", "discovered")], [row("shop", "loading")]])

    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        return 200, json.dumps({"plugins": next(looks, [row("shop", "active")])}).encode()

    with answering(reply) as port:
        shown = site.run("why", "shop", "--port", port)
    assert (shown.exit_code, shown.stdout.startswith("✓ shop runs: active since ")) == (0, True)


# --- inspect

SCHEMA = {
    "type": "object",
    "properties": {
        "limit": {"type": "integer", "default": 3, "description": "How many."},
        "token": {"type": "string", "writeOnly": True, "default": "public"},
        "servers": {
            "type": "array",
            "items": {"type": "object", "properties": {"key": {"$ref": "#/$defs/key"}, "host": {"type": "string"}}},
        },
    },
    "$defs": {"key": {"type": "string", "writeOnly": True}},
}


def test_inspect_shows_all_that_is_declared_and_hides_secrets(site: Site) -> None:
    home = site.plugin(
        "shop",
        IMPORTED,
        settings=SCHEMA,
        requires={"plugins": {"other": ">=1"}},
        provides={"metrics": [{"name": "sales", "description": "What was sold."}]},
        limits={"call_seconds": 2.5},
    )
    site.plugin("other")
    site.operator("shop", settings={"token": "s3cret", "servers": [{"key": "s3cret", "host": "a"}]}, isolation="thread")
    told = site.json("inspect", "shop", *NOBODY)
    assert (told["distribution"], told["version"], told["state"]) == ("dist-shop", "1.0", "discovered")
    assert (told["directory"], told["manifest_file"]) == (str(home), str(home / "plugin.yaml"))
    assert told["manifest"]["hooks"] == ["process"]
    assert told["settings"]["schema"] == SCHEMA
    assert told["settings"]["effective"] == {"limit": 3, "token": MASK, "servers": [{"key": MASK, "host": "a"}]}
    assert (told["isolation"], told["limits"]["call_seconds"]) == ("thread", 2.5)
    shown = site.run("inspect", "shop", *NOBODY)
    assert shown.exit_code == 0
    for line in ("other >=1", "sales: What was sold.", "call_seconds 2.5", "3  (default 3; How many.)", '"***"'):
        assert line in shown.stdout
    assert "s3cret" not in shown.stdout + json.dumps(told)
    assert not (home / "imported").exists()


def test_inspect_shows_settings_that_do_not_fit_without_their_secret(site: Site) -> None:
    site.plugin("shop", settings=SCHEMA)
    site.operator("shop", settings={"token": 12345})
    shown = site.run("inspect", "shop", *NOBODY)
    assert "does not fit: the value (hidden) does not fit; valid is: string" in shown.stdout
    assert "12345" not in shown.stdout


def test_inspect_shows_what_cannot_be_read(site: Site) -> None:
    home = site.plugin("shop", manifest=None)
    told = site.json("inspect", "shop", *NOBODY)
    assert (told["state"], told["manifest"]) == ("invalid", None)
    assert told["manifest_file"] == str(home / "plugin.yaml")


def test_inspect_shows_nothing_of_what_is_only_named(site: Site) -> None:
    site.operator("shop", limits={"call_seconds": 9})
    shown = site.run("inspect", "shop", *NOBODY)
    name, state = shown.stdout.splitlines()
    assert name == "shop"
    assert "unresolved: a plugin-settings manifest names it, but it is not installed" in state


def test_inspect_takes_the_state_from_the_server(site: Site, server: tuple[str, Any]) -> None:
    port, rows = server
    rows.append(row("shop", "quarantined", "too often"))
    site.plugin("shop")
    told = site.json("inspect", "shop", "--port", port)
    assert (told["state"], told["reason"], told["source"]) == ("quarantined", "too often", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("isolation", "limits", "held"),
    [
        ("process", {}, {"memory_mb": 1024, "cpu_seconds": None, "call_seconds": 30.0}),
        ("process", {"memory_mb": 64, "cpu_seconds": 2}, {"memory_mb": 64, "cpu_seconds": 2.0, "call_seconds": 30.0}),
        ("thread", {"memory_mb": 64}, {"memory_mb": None, "cpu_seconds": None, "call_seconds": 30.0}),
    ],
)
def test_inspect_shows_the_limits_that_hold(
    site: Site, isolation: str, limits: dict[str, Any], held: dict[str, Any]
) -> None:
    site.plugin("shop", isolation=isolation, limits=limits)
    assert site.json("inspect", "shop", *NOBODY)["limits"] == held
    (line,) = [line for line in site.run("inspect", "shop", *NOBODY).stdout.splitlines() if "  limits" in line]
    assert "call_seconds 30.0" in line


@pytest.mark.parametrize(("state", "marked"), [("rolled_back", True), ("restart_required", True), ("active", False)])
def test_inspect_marks_a_manifest_that_is_not_what_runs(
    site: Site, server: tuple[str, Any], state: str, marked: bool
) -> None:
    port, rows = server
    rows.append(row("shop", state, "because"))
    home = site.plugin("shop")
    note = "on disk; generation 2 runs another" if marked else ""
    assert site.json("inspect", "shop", "--port", port)["note"] == note
    shown = site.run("inspect", "shop", "--port", port).stdout
    assert f"{home / 'plugin.yaml'}{f' ({note})' if note else ''}\n" in shown
