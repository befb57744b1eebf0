"""``analytics plugins disable``."""

from __future__ import annotations

import click

from analytics_core.cli.asking import Server, asking_options
from analytics_core.cli.plugins.switching import switch


@click.command("disable")
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Stands behind 'enabled: false', for whoever looks next.")
@asking_options("What became of it, as one JSON object.")
@click.pass_context
def command(ctx: click.Context, name: str, reason: str, as_json: bool, server: Server) -> None:
    """Let the plugin NAME run no more: its 'enabled' becomes false in the manifests.

    Its lane ends with a commit and its state is kept: enabled again, it goes on from there. What is changed, and where,
    is as with 'enable'.

    The exit code is 0 when it is disabled or is to be at the next start, 1 when a running server does not follow, 2
    when nothing has this name.
    """
    ctx.exit(switch(name, False, server, as_json=as_json, reason=reason))
