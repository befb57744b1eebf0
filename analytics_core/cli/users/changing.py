"""What merging and undoing share: the request, and how a refusal is shown."""

from __future__ import annotations

from typing import Any, Final

import click

from analytics_core.cli.asking import RefusedError, Server, show_json
from analytics_core.cli.users.merges import line
from analytics_core.errors import ServerRefusedError

_SECONDS: Final = 60.0
_REFUSALS: Final = frozenset({404, 409, 422})


def change(server: Server, method: str, path: str, body: Any, *, as_json: bool) -> None:
    """Ask for it and show the merge. :raises RefusedError: when the server says that it cannot be."""
    try:
        merge = server.ask(method, f"/api/v1/users/merges{path}", _SECONDS, body=body)
    except ServerRefusedError as error:
        if error.answered in _REFUSALS:
            raise RefusedError(error.detail) from error
        raise
    if as_json:
        show_json(merge)
    else:
        click.echo(line(merge))
