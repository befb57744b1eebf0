"""``analytics plugins list``."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_core.cli.options import address_options, key_option, manifests_option, settings, url_of
from analytics_core.errors import AnalyticsError, ConfigError, NoServerError, ServerRefusedError
from analytics_core.host.discovery import Found, discover

_STYLES: Final = {"active": "green", "degraded": "yellow", "disabled": "dim", "discovered": ""}
_COLUMNS: Final = ("name", "version", "state", "isolation", "lag", "events", "reason")
_SECONDS: Final = 2.0


@click.group("plugins")
def command() -> None:
    """What is installed, and how it does."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, in the shape of GET /api/v1/plugins.")
@click.option("--url", help="Ask this server; else the configured one, if it runs.")
@address_options
@key_option
@manifests_option
def list_plugins(
    as_json: bool, url: str | None, host: str | None, port: int | None, api_key: str, manifests: Path
) -> None:
    """Every plugin with its state, as the running server sees it; without a server, as it is installed.

    Without a server nothing is imported: the state is what can be said from plugin.yaml alone.
    """
    asked = url or url_of(settings(manifests, host=host, port=port))
    try:
        views = _live(asked.rstrip("/"), api_key)
    except NoServerError:
        if url:
            raise
        views = [_static(found) for found in discover()]
        note = f"no server answers at {asked}: this is what is installed"
    else:
        note = f"as {asked} sees them"
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"plugins": views})).decode())
        return
    Console().print(_table(views))
    click.echo(note, err=True)


def _live(url: str, api_key: str) -> list[dict[str, Any]]:
    """The server's own view. :raises NoServerError: when it does not answer within two seconds."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("--url", f"{url!r} is no address; valid is http://host:port")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_SECONDS)
    try:
        connection.request("GET", f"{parts.path}/api/v1/plugins", headers={"X-API-Key": api_key} if api_key else {})
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoServerError(url, getattr(error, "strerror", None) or str(error)) from error
    finally:
        connection.close()
    if status != 200:
        advice = "name a key with --api-key or ANALYTICS_API_KEY" if status in (401, 403) else ""
        raise ServerRefusedError(url, status, body[:200].decode(errors="replace"), advice)
    try:
        return msgspec.json.decode(body, type=dict[str, list[dict[str, Any]]])["plugins"]
    except (msgspec.MsgspecError, KeyError) as error:
        raise AnalyticsError(f"what answers at {url} is no analytics server: {error}") from error


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
