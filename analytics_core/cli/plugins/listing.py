"""``analytics plugins list``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_core.cli.options import settings, url_of
from analytics_core.cli.plugins.asking import asking_options, live_if_any, show_json
from analytics_core.host.discovery import Found, discover

_STYLES: Final = {"active": "green", "degraded": "yellow", "disabled": "dim", "discovered": ""}
_COLUMNS: Final = ("name", "version", "state", "isolation", "lag", "events", "reason")


@click.command("list")
@asking_options("As JSON, in the shape of GET /api/v1/plugins.")
def command(as_json: bool, url: str | None, host: str | None, port: int | None, api_key: str, manifests: Path) -> None:
    """Every plugin with its state, as the running server sees it; without a server, as it is installed.

    Without a server nothing is imported: the state is what can be said from plugin.yaml alone.
    """
    asked = url or url_of(settings(manifests, host=host, port=port))
    views = live_if_any(asked.rstrip("/"), api_key, told=bool(url))
    note = f"as {asked} sees them"
    if views is None:
        views = [_static(found) for found in discover()]
        note = f"no server answers at {asked}: this is what is installed"
    if as_json:
        show_json({"plugins": views})
        return
    Console().print(_table(views))
    click.echo(note, err=True)


def _static(found: Found) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "name": found.name,
        "version": found.version,
        "state": found.state,
        "reason": found.problem or "",
        "since": None,
        "generation": 0,
        "isolation": manifest.isolation if manifest else "",
        "lag": None,
        "events_processed": None,
        "hooks": sorted(manifest.hooks) if manifest else [],
        "errors": 0,
    }


def _table(views: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in ("lag", "events") else "left", no_wrap=name != "reason")
    for view in views:
        state = str(view.get("state", ""))
        table.add_row(
            Text(str(view.get("name", ""))),
            Text(str(view.get("version", ""))),
            Text(state, style=_STYLES.get(state, "red")),
            Text(str(view.get("isolation") or "")),
            _count(view.get("lag")),
            _count(view.get("events_processed")),
            Text(str(view.get("reason") or "")),
        )
    return table


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
