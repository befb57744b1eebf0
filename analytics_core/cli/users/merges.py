"""``analytics users merges``."""

from __future__ import annotations

from typing import Any, Final

import click

from analytics_core.cli.asking import Server, asking_options, show_json
from analytics_core.queries.identity.persons import STATES

_SECONDS: Final = 60.0
_MARKS: Final = {"active": "✓", "undone": "↶", "refused": "✗"}


@click.command("merges")
@click.option("--state", type=click.Choice(STATES), help="Only these.")
@click.option("--before", type=click.IntRange(min=0), metavar="ID", help="Only those before this one.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@asking_options("As one JSON object.")
def command(state: str | None, before: int | None, limit: int, as_json: bool, server: Server) -> None:
    """Links between ids that were made, refused or undone, the newest first: by identify and alias events, and by
    operators.
    """
    asked = {"state": state, "before": before, "limit": limit}
    given = {name: str(value) for name, value in asked.items() if value is not None}
    found = server.ask("GET", "/api/v1/users/merges", _SECONDS, **given)
    if as_json:
        show_json(found)
        return
    for merge in found["merges"]:
        click.echo(line(merge))
    if not found["merges"]:
        click.echo("none", err=True)
    elif found["next"] is not None:
        click.echo(f"for more: --before {found['next']}", err=True)


def line(merge: dict[str, Any]) -> str:
    """One merge as text."""
    how = "forced" if merge["forced"] else merge["kind"]
    why = f": {merge['reason']}" if merge["reason"] else ""
    ids = f"{merge['from']} -> {merge['into']}"
    return f"{_MARKS[merge['state']]} {merge['id']}  {merge['at'][:19]}  {ids}  ({how}, {merge['state']}{why})"
