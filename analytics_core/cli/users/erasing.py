"""``analytics users erase``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.cli.users.receipts import PATH, SECONDS, Told, end, followed, read
from analytics_core.erasure.receipts import ErasureReceipt, Found
from analytics_core.errors import AnalyticsError, ServerRefusedError

_UNPROCESSABLE: Final = 422
_SHOWN: Final = 20


@click.command("erase")
@click.argument("ids", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Erase without asking.")
@asking_options("The receipt as JSON when it is complete; it goes with --yes.")
@click.pass_context
def command(ctx: click.Context, ids: tuple[str, ...], yes: bool, as_json: bool, server: Server) -> None:
    """Erase all events of the users with these IDs, user ids or anonymous ids, and what names them, for good.

    From the server's answer on nothing shows an event of theirs that was accepted before it; events that come later are
    kept. What is left to be done shows as it is done: the lake's files are written anew without them, the log's are
    deleted, plugins are told, and findings that name them are dropped. After Ctrl-C it goes on without you, and
    `analytics users erasures` shows what has become of it.

    It takes the key of an operator. The exit code is 1 when a plugin that fails keeps what it made of the events, or
    the server does not answer, and 2 for what cannot be asked for.
    """
    if as_json and not yes:
        raise RefusedError("--json asks nothing; it goes with --yes")
    if not yes:
        _confirm(_asked(server, {"ids": ids, "dryRun": True}, Found))
    receipt = _asked(server, {"ids": ids}, ErasureReceipt)
    try:
        receipt = followed(server, receipt, show=not as_json)
    except (KeyboardInterrupt, AnalyticsError):
        click.echo(f"it goes on without you; its receipt: analytics users erasures {receipt.id}", err=True)
        raise
    if as_json:
        show_json(receipt)
    else:
        end(receipt)
    ctx.exit(1 if receipt.state == "failed" else 0)


def _asked(server: Server, body: dict[str, Any], kind: type[Told]) -> Told:
    """:raises RefusedError: for ids that the server does not take."""
    try:
        return read(server, server.ask("POST", f"{PATH}/erase", SECONDS, body=body), kind)
    except ServerRefusedError as error:
        if error.answered == _UNPROCESSABLE:
            raise RefusedError(error.detail) from error
        raise


def _confirm(found: Found) -> None:
    when = f", from {found.first:%Y-%m-%d} to {found.last:%Y-%m-%d}" if found.first and found.last else ""
    click.echo(f"{found.events:,} events{when} of {_some(found.ids)}")
    named = [f"{count:,} {what}" for what, count in found.outputs.items() if count]
    if named:
        click.echo(f"beside them these name one of the ids, and go with them: {', '.join(named)}")
    elif not found.events:
        click.echo("nothing is stored under this name; an erasure looks through all places nevertheless")
    click.confirm("erase them for good?", abort=True)


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN:,} ids more" if len(ids) > _SHOWN else ""
    return f"{', '.join(ids[:_SHOWN])}{more}"
