"""``analytics users unmerge``."""

from __future__ import annotations

import click

from analytics_core.cli.asking import Server, asking_options
from analytics_core.cli.users.changing import change


@click.command("unmerge")
@click.argument("merge", type=click.IntRange(min=0), metavar="MERGE")
@asking_options("The merge, as one JSON object.")
def command(merge: int, as_json: bool, server: Server) -> None:
    """Undo MERGE, an id that `analytics users merges` shows: what it joined is parted again, and clients that go on
    linking these two ids do not join them again.

    It takes the key of an operator. The exit code is 2 when there is nothing to undo.
    """
    change(server, "DELETE", f"/{merge}", None, as_json=as_json)
