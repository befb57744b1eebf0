"""``analytics plugins why``."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import click
from packaging.utils import canonicalize_name

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.cli.plugins.asking import UnknownPluginError
from analytics_core.errors import NotFoundError
from analytics_core.host.examining.explanation import Explanation, explain_installed, explain_row, with_line
from analytics_core.host.health import BEGINNING, RISING

"""States in which a plugin may be that was installed or changed a moment ago."""
_PATIENCE: Final = 5.0
_STEP: Final = 0.1


@click.command("why")
@click.argument("name")
@asking_options("As one JSON object.")
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool, server: Server) -> None:
    """Why the plugin NAME does or does not run.

    The running server is asked. Without one the answer is what a server that starts now would do, from what is
    installed, the manifests and the environment; nothing is imported. NAME may also be the name of a distribution.
    As long as a server has yet to find or start the plugin, it is asked again, for 5 s at most.

    The exit code is 0 when it runs, or without a server is to run, 1 when not or not yet, 2 when nothing has this name.
    """
    try:
        told = _settled(name, server)
    except NotFoundError as error:
        raise RefusedError(str(error)) from error
    if not server.told:
        told = with_line(told, server.here, os.environ)
    if as_json:
        show_json(told)
    else:
        _show(told, server.url)
    ctx.exit(0 if told.runs else 1)


def _settled(name: str, server: Server) -> Explanation:
    """The answer when the server has come to one, or after `_PATIENCE`."""
    deadline = time.monotonic() + _PATIENCE
    while (rows := server.plugins_if_any()) is not None:
        told = _told(name, rows, server)
        if told.state not in {*BEGINNING, "unknown"} or time.monotonic() > deadline:
            return told
        time.sleep(_STEP)
    return explain_installed(name, server.here, os.environ)


def _told(name: str, rows: list[dict[str, Any]], server: Server) -> Explanation:
    """What the server says; at an address that was not told also of a plugin that it does not know yet."""
    row = next((row for row in rows if canonicalize_name(row["name"]) == canonicalize_name(name)), None)
    if row is not None:
        return explain_row(row, server.url)
    known = [row["name"] for row in rows]
    if server.told:
        raise UnknownPluginError(name, known)
    installed = explain_installed(name, server.here, os.environ, known)
    if installed.name in known:
        return _told(installed.name, rows, server)
    unseen = f"the server at {server.url} does not know it: installed after the server's start, or for another Python"
    return Explanation(
        name=installed.name,
        runs=False,
        state="unknown",
        reason=f"{unseen}; by itself: {installed.reason}" if installed.reason else unseen,
        source=server.url,
        holders=installed.holders,
    )


def _show(told: Explanation, asked: str) -> None:
    by_itself = told.source == "installed"
    does = "runs" if told.runs else "does not run"
    if by_itself:
        does = "is to run" if told.runs else "is not to run"
    mark = click.style("✓", fg="green") if told.runs else click.style("✗", fg="red")
    if not by_itself and told.state in RISING:
        mark, does = click.style("…", fg="yellow"), "is starting"
    since = f" since {told.since}" if told.since else ""
    since += f", generation {told.generation}" if told.generation else ""
    since += f", {told.errors} errors" if told.errors else ""
    click.echo(f"{mark} {told.name} {does}: {told.state}{since}")
    for line in (told.reason, told.line, told.advice):
        if line:
            click.echo(f"  {line}")
    for holder in told.holders:
        where = f" in {holder.directory}" if holder.directory else ""
        kept_out = f", which has no say in it: {holder.kept_out}" if holder.kept_out else ""
        click.echo(f"  {holder.distribution} {holder.version}{where}{kept_out}")
    asked_whom = f"no server answers at {asked}: this is what one would do" if by_itself else f"as {asked} sees it"
    click.echo(asked_whom, err=True)
