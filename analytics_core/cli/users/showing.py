"""``analytics users show``."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.cli.users.merges import line
from analytics_core.errors import ServerRefusedError

_SECONDS: Final = 60.0
_SHOWN: Final = 20
_NOT_FOUND: Final = 404


@click.command("show")
@click.argument("id")
@asking_options("As one JSON object.")
def command(id: str, as_json: bool, server: Server) -> None:  # noqa: A002
    """Who the ID is: a user id, an anonymous id or a former id. Shows all ids of the person, the one that stands for
    them first, how many events there are, from when to when, and which merges have made them one.

    The exit code is 2 when no event has this id.
    """
    try:
        answer = b"".join(server.stream(f"/api/v1/users/{quote(id, safe='')}", _SECONDS))
    except ServerRefusedError as error:
        if error.answered == _NOT_FOUND:
            raise RefusedError(error.detail) from error
        raise
    person = msgspec.json.decode(answer)
    if as_json:
        show_json(person)
    else:
        _show(person)


def _show(person: dict[str, Any]) -> None:
    user, *others = person["ids"]
    when = f", from {person['firstSeen'][:19]} to {person['lastSeen'][:19]}" if person["events"] else ""
    click.echo(f"{click.style(user, bold=True)}: {person['events']:,} events{when}")
    for id_ in others[:_SHOWN]:
        click.echo(f"  also {id_}")
    if len(others) > _SHOWN:
        click.echo(f"  and {len(others) - _SHOWN:,} ids more; --json has them all")
    for merge in person["merges"][:_SHOWN]:
        click.echo(line(merge))
