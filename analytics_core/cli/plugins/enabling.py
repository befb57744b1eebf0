"""``analytics plugins enable``."""

from __future__ import annotations

import click

from analytics_core.cli.asking import Server, asking_options
from analytics_core.cli.plugins.switching import switch


@click.command("enable")
@click.argument("name")
@asking_options("What became of it, as one JSON object.")
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool, server: Server) -> None:
    """Let the plugin NAME run: its 'enabled' becomes true in the manifests.

    One line of the manifests changes, or a file with the plugin-settings is made. A running server takes it in by
    itself, and what became of it is shown. With --url the server does all of it, in its own manifests, for the key of
    an operator.

    The exit code is 0 when it runs or is to run at the next start, 1 when something keeps it from that, 2 when nothing
    has this name.
    """
    ctx.exit(switch(name, True, server, as_json=as_json))
