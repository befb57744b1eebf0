"""``analytics plugins inspect``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from analytics_core.cli.asking import Server, asking_options, show_json
from analytics_core.cli.plugins.asking import UnknownPluginError
from analytics_core.host.examining.inspection import as_seen, inspected
from analytics_core.host.examining.judging import named
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.selection import choose
from analytics_core.manifest import MASK, masked, read_deployment

_PLAIN: Final = ("title", "description", "entry", "isolation", "on_failure")
_WIDTH: Final = 16


@click.command("inspect")
@click.argument("name")
@asking_options("As one JSON object.")
def command(name: str, as_json: bool, server: Server) -> None:
    """All that the manifest of the plugin NAME says, and what became of it.

    Hooks, requirements, what it provides, its settings and limits as they hold here (secrets hidden), where its sources
    are, and its state: as the running server sees it, else as one that starts now would. Nothing is imported.
    """
    deployment = read_deployment(server.here.manifests_dir, os.environ)
    choices = choose(discover(), server.here, deployment)
    found = named(name, choices)
    if not found:
        raise UnknownPluginError(name, (choice.name for choice in choices))
    rows = {row["name"]: row for row in server.plugins_if_any() or []}
    plain = [inspected(choice, deployment, server.here) for choice in found]
    views = [
        msgspec.to_builtins(as_seen(each, rows[each.name], server.url) if each.name in rows else each) for each in plain
    ]
    if as_json:
        show_json(views[0] if len(views) == 1 else views)
        return
    for each in views:
        for key, text in _lines(each):
            click.echo(f"{click.style(f'{key:<{_WIDTH}}', bold=True)} {text}" if text else click.style(key, bold=True))


def _lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Headings and what stands beside them; a heading alone begins a block."""
    yield told["name"], ""
    yield "  state", f"{told['state']}{': ' if told['reason'] else ''}{told['reason']} ({told['source']})"
    if not told["distribution"]:
        return  # it is only named here, and not installed
    yield "  distribution", f"{told['distribution']} {told['version']}"
    yield "  sources", str(told["directory"] or "")
    note = f" ({told['note']})" if told["note"] else ""
    yield "  manifest", f"{told['manifest_file'] or ''}{note}"
    manifest = told["manifest"]
    if manifest is None:
        return
    given = {**manifest, "isolation": told["isolation"], "limits": told["limits"]}
    for key in _PLAIN:
        if given[key]:
            yield f"  {key}", str(given[key])
    for key in ("hooks", "after"):
        if given[key]:
            yield f"  {key}", ", ".join(given[key])
    for key in ("requires", "limits", "reload"):
        if text := _flat(given[key]):
            yield f"  {key}", text
    for kind, items in manifest["provides"].items():
        for item in items:
            yield f"  {kind}", _provided(item)
    yield from _setting_lines(told["settings"])


def _flat(values: dict[str, Any]) -> str:
    told = {key: value for key, value in values.items() if value not in ("", None, {})}
    return ", ".join(f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in told.items())


def _provided(item: Any) -> str:
    if isinstance(item, str):
        return item
    about = item.get("description") or item.get("title") or ""
    return f"{item.get('name') or item.get('kind')}{': ' if about else ''}{about}"


def _setting_lines(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    schema = settings["schema"]
    parts = schema.get("properties", {})
    if parts or settings["effective"]:
        yield "  settings", ""
    for key in dict.fromkeys([*parts, *settings["effective"]]):
        part = parts.get(key) if isinstance(parts.get(key), dict) else {}
        value = _shown(settings["effective"][key]) if key in settings["effective"] else "(not set)"
        default = _shown(masked(schema, {key: part["default"]}).get(key, MASK)) if "default" in part else ""
        about = f"default {default}; " if default else ""
        yield f"    {key}", f"{value}  ({about}{part.get('description') or part.get('type', '')})".replace("; )", ")")
    for key, problem in settings["problems"].items():
        yield f"    {key}", f"does not fit: {problem}"


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
