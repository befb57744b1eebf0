"""``analytics plugins list``."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import click

from analytics_core.cli.asking import Server, asking_options, show_json
from analytics_core.host.examining.judging import judge
from analytics_core.host.installed.selection import Choice

_COLORS: Final = {"active": "green", "degraded": "yellow", "disabled": "bright_black", "discovered": None}
"""Of states; every other one is red."""
_COLUMNS: Final = ("name", "version", "state", "isolation", "lag", "events")
"""Beside the reason, which comes last and may be long."""
_NUMBERS: Final = frozenset({"lag", "events"})
_NARROWEST: Final = 20


@click.command("list")
@asking_options("As JSON, in the shape of GET /api/v1/plugins.")
def command(as_json: bool, server: Server) -> None:
    """Every plugin with its state, as the running server sees it; without a server, as it is installed.

    Without a server the state is that in which one that starts now would begin with it: from what is installed, the
    manifests and the environment. Nothing is imported.
    """
    views = server.plugins_if_any()
    note = f"as {server.url} sees them"
    if views is None:
        views = [_static(choice) for choice in judge(server.here, os.environ)]
        note = f"no server answers at {server.url}: this is what one would do"
    if as_json:
        show_json({"plugins": views})
        return
    for line in _table(views, shutil.get_terminal_size((0, 0)).columns):
        click.echo(line)
    click.echo(note, err=True)


def _static(choice: Choice) -> dict[str, Any]:
    manifest = choice.manifest
    return {
        "name": choice.name,
        "version": choice.version,
        "state": choice.state,
        "reason": choice.reason,
        "since": None,
        "generation": 0,
        "isolation": choice.isolation if choice.state == "discovered" else manifest.isolation if manifest else "",
        "lag": None,
        "events_processed": None,
        "hooks": sorted(manifest.hooks) if manifest else [],
        "errors": 0,
    }


def _table(views: list[dict[str, Any]], width: int) -> Iterator[str]:
    """The rows below a heading. Lines are ``width`` characters long, for which reasons go on below; 0 is any length."""
    rows = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *map(_row, views)]
    widths = {column: max(len(row[column]) for row in rows) for column in _COLUMNS}
    indent = sum(widths.values()) + len(_COLUMNS)
    for row, reason in zip(rows, ["reason", *(str(view.get("reason") or "") for view in views)], strict=True):
        heading = row is rows[0]
        cells = [_cell(column, row[column], widths[column], heading=heading) for column in _COLUMNS]
        first, *others = _wrapped(reason, max(width - indent, _NARROWEST) if width else 0)
        yield " ".join([*cells, click.style(first, bold=heading)]).rstrip()
        yield from (" " * indent + line for line in others)


def _row(view: dict[str, Any]) -> dict[str, str]:
    return {
        "name": str(view.get("name", "")),
        "version": str(view.get("version", "")),
        "state": str(view.get("state", "")),
        "isolation": str(view.get("isolation") or ""),
        "lag": _count(view.get("lag")),
        "events": _count(view.get("events_processed")),
    }


def _cell(column: str, text: str, width: int, *, heading: bool) -> str:
    padded = f"{text:>{width}}" if column in _NUMBERS else f"{text:<{width}}"
    color = _COLORS.get(text, "red") if column == "state" and not heading else None
    return click.style(padded, fg=color, bold=heading) if color or heading else padded


def _wrapped(text: str, width: int) -> list[str]:
    words = text.split()
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""] if width else [" ".join(words)]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
