"""``analytics demo``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from analytics_core.cli.options import server_options, settings, url_of
from analytics_core.config import Settings
from analytics_core.demo.run import run
from analytics_core.demo.server import free_port
from analytics_core.errors import ConfigError


@click.command("demo")
@server_options
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=200.0, show_default=True, help="Events/s.")
@click.option("--seed", type=int, help="Seed of the shop; else another each time.")
@click.option("--no-screen", is_flag=True, help="Plain lines instead of the live table.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Stop after this many seconds.")
def command(rate: float, seed: int | None, no_screen: bool, duration: float | None, **told: Any) -> None:
    """The server with a simulated shop as traffic, shown as a live table.

    The shop posts page views, searches, carts, checkouts and purchases over HTTP, with a daily rhythm, campaigns and
    a checkout that slows down now and then. Ctrl-C ends both.
    """
    configured = settings(**told)
    key = _key(configured)
    told["host"] = configured.server.host
    told["port"] = free_port(configured.server.host, configured.server.port)
    url = url_of(settings(**told))
    click.echo(f"starting the server at {url}", err=True)
    began = time.monotonic()
    view = asyncio.run(
        run(
            _arguments(told),
            url,
            seed=time.time_ns() if seed is None else seed,
            rate=rate,
            api_key=key,
            screen=not no_screen,
            duration=duration,
        )
    )
    counts = f"{view.accepted:,} accepted, {view.duplicates:,} duplicates, {view.rejected:,} rejected"
    seconds = time.monotonic() - began
    click.echo(f"stopped after {seconds:.0f} s: {counts}; the data is in {configured.storage.data_dir}", err=True)


def _key(configured: Settings) -> str:
    """A key that may write, when the server asks for one. :raises ConfigError: when there is none."""
    if not configured.auth.enabled:
        return ""
    for entry in configured.auth.keys:
        if entry.role in ("writer", "operator"):
            return entry.key
    raise ConfigError("API_KEYS", "auth is enabled and no key may write; the demo needs one with the role 'writer'")


def _arguments(told: dict[str, Any]) -> list[str]:
    """The options of ``analytics serve`` that say the same."""
    arguments = ["--insecure"] if told["insecure"] else []
    for name in ("host", "port", "data_dir", "manifests", "log_level"):
        if told[name] is not None:
            arguments += [f"--{name.replace('_', '-')}", str(told[name])]
    return arguments
