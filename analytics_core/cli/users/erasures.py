"""``analytics users erasures``."""

from __future__ import annotations

import time
from typing import Final

import click

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.cli.users.receipts import PATH, SECONDS, end, line, read, receipt_of
from analytics_core.erasure.receipts import ErasureReceipt
from analytics_core.errors import ServerRefusedError

_MISTAKES: Final = frozenset({404, 409})
_LOOK_SECONDS: Final = 0.1
_PATIENCE_SECONDS: Final = 10.0


@click.command("erasures")
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--drop-state", "plugin", metavar="PLUGIN", help="Drop what this plugin has stored: it cannot be told.")
@click.option("--yes", is_flag=True, help="Drop without asking.")
@asking_options("As one JSON object.")
def command(id_: str | None, plugin: str | None, yes: bool, as_json: bool, server: Server) -> None:
    """The receipts of all erasures, the newest first; with ID each place of one, and what has become of it there.

    An erasure keeps the ids until every plugin is told. One that is uninstalled, or stays disabled, is not: then drop
    what it has stored with --drop-state. Should it come back it works through all history anew.

    It takes the key of an operator. The exit code is 2 when there is no such erasure, or the plugin might yet be told.
    """
    if plugin is not None and id_ is None:
        raise RefusedError("--drop-state goes with the ID of an erasure that waits for the plugin")
    if as_json and plugin is not None and not yes:
        raise RefusedError("--json asks nothing; --drop-state goes with --yes then")
    try:
        if id_ is None:
            _list(server, as_json=as_json)
            return
        receipt = receipt_of(server, id_) if plugin is None else _dropped(server, id_, plugin, yes=yes)
    except ServerRefusedError as error:
        if error.answered in _MISTAKES:
            raise RefusedError(error.detail) from error
        raise
    if as_json:
        show_json(receipt)
        return
    for entry in receipt.places:
        click.echo(line(entry))
    end(receipt)


def _list(server: Server, *, as_json: bool) -> None:
    found = server.ask("GET", f"{PATH}/erasures", SECONDS)
    if as_json:
        show_json(found)
        return
    receipts = read(server, found.get("erasures"), list[ErasureReceipt])
    for receipt in receipts:
        events = "events not counted" if receipt.events is None else f"{receipt.events:,} events"
        open_ = [entry.place for entry in receipt.places if entry.status not in ("done", "rebuild")]
        waits = f", waits for {' and '.join(open_)}" if open_ else ""
        click.echo(f"{receipt.id}  {receipt.asked_at:%Y-%m-%d %H:%M}  {receipt.state}, {events}{waits}")
    if not receipts:
        click.echo("none", err=True)


def _dropped(server: Server, id_: str, plugin: str, *, yes: bool) -> ErasureReceipt:
    """The receipt once it says so."""
    if not yes:
        click.confirm(f"drop all that {plugin} has stored of its state, for all tenants?", abort=True)
    answer = server.ask("DELETE", f"{PATH}/erasures/{id_}/plugins/{plugin}", SECONDS)
    receipt = read(server, answer, ErasureReceipt)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while receipt.at(f"plugin:{plugin}").status != "done" and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        receipt = receipt_of(server, id_)
    return receipt
