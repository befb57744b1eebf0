"""``analytics users export``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

import click

from analytics_core.cli.asking import RefusedError, Server, asking_options
from analytics_core.errors import ServerRefusedError

_SECONDS: Final = 120.0
_NOT_FOUND: Final = 404


@click.command("export")
@click.argument("id_", metavar="ID")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to FILE, which is new.")
@asking_options("What an export is anyway.")
def command(id_: str, output: Path | None, as_json: bool, server: Server) -> None:  # noqa: ARG001
    """Write all that is stored about the user ID, a user id or an anonymous id, one JSON object a line.

    The first line says which ids belong to the user, how many events there are, what else names them, and which plugins
    may hold something that they made of the events. Then comes every event in order of time.
    """
    lines = server.stream(f"/api/v1/users/{quote(id_, safe='')}/export", _SECONDS)
    try:
        some = next(lines, b"")
    except ServerRefusedError as error:
        if error.answered == _NOT_FOUND:
            raise RefusedError(f"nothing is stored about {id_!r}") from error
        raise
    if output is None:
        _write(sys.stdout.buffer, some, lines)
        return
    try:
        file = output.open("xb")
    except FileExistsError:
        raise RefusedError(f"{output} exists; name a new file with -o") from None
    except OSError as error:
        raise RefusedError(f"{output} cannot be written: {error.strerror}") from error
    try:
        with file:
            _write(file, some, lines)
    except BaseException:
        output.unlink()  # what is not whole must not look as if it were
        raise


def _write(file: BinaryIO, some: bytes, lines: Iterator[bytes]) -> None:
    while some:
        file.write(some)
        some = next(lines, b"")
    file.flush()
