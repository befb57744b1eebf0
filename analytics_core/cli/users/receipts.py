"""What the commands about erasures share: a receipt as it is read, followed and shown."""

from __future__ import annotations

import time
from typing import Any, Final, TypeVar

import click
import msgspec

from analytics_core.cli.asking import Server
from analytics_core.erasure.receipts import ErasureReceipt, Place
from analytics_core.errors import AnalyticsError

PATH: Final = "/api/v1/users"
SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 2.0
"""From then on it is said what is waited for."""
_MARKS: Final = {"waiting": "…", "done": "✓", "rebuild": "!", "deferred": "!", "failed": "✗"}
Told = TypeVar("Told")


def read(server: Server, answer: Any, kind: type[Told]) -> Told:
    """:raises AnalyticsError: when it cannot be read as that."""
    try:
        return msgspec.convert(answer, kind)
    except msgspec.MsgspecError as error:
        raise AnalyticsError(f"what {server.url} says of an erasure cannot be read: {error}") from error


def receipt_of(server: Server, id_: str) -> ErasureReceipt:
    return read(server, server.ask("GET", f"{PATH}/erasures/{id_}", SECONDS), ErasureReceipt)


def followed(server: Server, receipt: ErasureReceipt, *, show: bool) -> ErasureReceipt:
    """The receipt when it is no longer under way. Each place is a line once it has come to something; what is waited
    for is told after a while."""
    told: set[tuple[str, str]] = set()
    begun = time.monotonic()
    while True:
        patient = time.monotonic() - begun < _PATIENCE_SECONDS
        for entry in receipt.places if show else ():
            waits = entry.status == "waiting"
            if waits and (patient or not entry.detail):
                continue
            what = entry.place, entry.detail if waits else ""
            if what not in told:
                told.add(what)
                click.echo(line(entry), err=waits)
        if receipt.state != "running":
            return receipt
        time.sleep(_LOOK_SECONDS)
        receipt = receipt_of(server, receipt.id)


def line(entry: Place) -> str:
    """One place as text."""
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in entry.counts.items() if count)
    return f"{_MARKS[entry.status]} {entry.place}: {entry.detail}{f' ({counts})' if counts else ''}"


def end(receipt: ErasureReceipt) -> None:
    """What is said below the places: what became of it, and what is left to do."""
    if receipt.note:
        click.echo(receipt.note)
    untold = [entry.place.partition(":")[2] for entry in receipt.places if entry.status in ("deferred", "failed")]
    for plugin in untold:
        click.echo(
            f"{plugin} has still to be told; if it is not to come back: {_command(receipt)} --drop-state {plugin}"
        )
    click.echo(f"erasure {receipt.id} is {receipt.state}; its receipt: {_command(receipt)}")


def _command(receipt: ErasureReceipt) -> str:
    return f"analytics users erasures {receipt.id}"
