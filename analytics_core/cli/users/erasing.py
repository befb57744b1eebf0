"""``analytics users erase``."""

from __future__ import annotations

import time
from typing import Any, Final

import click
import msgspec

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.erasure.receipts import ErasureReceipt, Found, Place
from analytics_core.errors import AnalyticsError, ServerRefusedError

_PATH: Final = "/api/v1/users"
_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.2
_UNPROCESSABLE: Final = 422
_MARKS: Final = {"waiting": "…", "done": "✓", "rebuild": "!", "deferred": "!", "failed": "✗"}


@click.command("erase")
@click.argument("ids", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Erase without asking.")
@asking_options("The receipt as JSON when it is complete; it goes with --yes.")
@click.pass_context
def command(ctx: click.Context, ids: tuple[str, ...], yes: bool, as_json: bool, server: Server) -> None:
    """Erase all events of the users with these IDs, user ids or anonymous ids, and what names them, for good.

    From the server's answer on nothing shows an event of theirs that was accepted before it; events that come later are
    kept. What is left to be done shows as it is done: the lake's files are written anew without them, the log's are
    deleted, plugins are told, and findings that name them are dropped. After Ctrl-C it goes on without you.

    It takes the key of an operator. The exit code is 1 when a plugin that fails keeps what it made of the events, or
    the server does not answer, and 2 for what cannot be asked for.
    """
    if as_json and not yes:
        raise RefusedError("--json asks nothing; it goes with --yes")
    if not yes:
        _confirm(_asked(server, {"ids": ids, "dryRun": True}, Found))
    receipt = _asked(server, {"ids": ids}, ErasureReceipt)
    try:
        receipt = _followed(server, receipt, show=not as_json)
    except KeyboardInterrupt:
        click.echo(f"it goes on without you; its receipt: GET {_PATH}/erasures/{receipt.id}", err=True)
        raise
    if as_json:
        show_json(receipt)
    else:
        _show_end(receipt)
    ctx.exit(1 if receipt.state == "failed" else 0)


def _asked(server: Server, body: dict[str, Any], kind: Any) -> Any:
    """:raises RefusedError: for ids that the server does not take."""
    try:
        return _read(server, server.ask("POST", f"{_PATH}/erase", _SECONDS, body=body), kind)
    except ServerRefusedError as error:
        if error.answered == _UNPROCESSABLE:
            raise RefusedError(str(error)) from error
        raise


def _read(server: Server, answer: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.MsgspecError as error:
        raise AnalyticsError(f"what {server.url} says of an erasure cannot be read: {error}") from error


def _confirm(found: Found) -> None:
    when = f", from {found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}" if found.first and found.last else ""
    click.echo(f"{found.events:,} events{when} of {', '.join(found.ids)}")
    click.confirm("erase them for good?", abort=True)


def _followed(server: Server, receipt: ErasureReceipt, *, show: bool) -> ErasureReceipt:
    """The receipt when nothing waits any more. Each place is a line once it has come to something."""
    told: set[str] = set()
    while True:
        for entry in receipt.places:
            if show and entry.status != "waiting" and entry.place not in told:
                told.add(entry.place)
                click.echo(_line(entry))
        if receipt.state != "running":
            return receipt
        time.sleep(_LOOK_SECONDS)
        answer = server.ask("GET", f"{_PATH}/erasures/{receipt.id}", _SECONDS)
        receipt = _read(server, answer, ErasureReceipt)


def _line(entry: Place) -> str:
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in entry.counts.items() if count)
    return f"{_MARKS[entry.status]} {entry.place}: {entry.detail}{f' ({counts})' if counts else ''}"


def _show_end(receipt: ErasureReceipt) -> None:
    if receipt.note:
        click.echo(receipt.note)
    click.echo(f"erasure {receipt.id} is {receipt.state}; its receipt: GET {_PATH}/erasures/{receipt.id}")
