"""``analytics plugins reload``."""

from __future__ import annotations

from typing import Any, Final

import click

from analytics_core.cli.plugins.asking import Server, UnknownPluginError, asking_options, show_json

_SECONDS: Final = 90.0


@click.command("reload")
@click.argument("name")
@asking_options("The receipt as JSON.")
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool, server: Server) -> None:
    """Make a new generation of the running plugin NAME, changed or not, and hand it the state.

    The server does this by itself when the plugin's sources or settings change. It takes the key of an operator. The
    exit code is 0 when the new generation runs, 1 when the present one was kept.
    """
    known = [row["name"] for row in server.plugins()]
    if name not in known:
        raise UnknownPluginError(name, known)
    receipt = server.ask("POST", f"/api/v1/plugins/{name}/reload", _SECONDS)
    if as_json:
        show_json(receipt)
    else:
        _show(receipt)
    ctx.exit(0 if receipt["outcome"] == "active" else 1)


def _show(receipt: dict[str, Any]) -> None:
    name, before, after = receipt["plugin"], receipt["before"], receipt["after"]
    if receipt["outcome"] != "active":
        click.echo(f"{name}: generation {before} runs on; {after} was not taken in: {receipt['reason']}")
        return
    click.echo(f"{name}: generation {after} has taken over from {before}")
    if receipt["seconds"]:
        phases = ", ".join(f"{phase} {1000 * seconds:.0f} ms" for phase, seconds in receipt["seconds"].items())
        click.echo(f"  {phases}; its lane stood still for {1000 * receipt['pause']:.1f} ms; no event was lost")
    for survivor in receipt["survivors"]:
        click.echo(f"  still alive of generation {before}: {survivor}")
