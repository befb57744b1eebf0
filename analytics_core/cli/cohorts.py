"""``analytics cohorts``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from analytics_core.cli.ask import console
from analytics_core.cli.ask_drawing import freshness, title
from analytics_core.cli.ask_table import clean, number, share
from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.errors import ServerRefusedError

_SECONDS: Final = 300.0
_PATH: Final = "/api/v1/cohorts"
_MISTAKES: Final = frozenset({404, 422})
_NUMBERS: Final[dict[str, Callable[[float | None], str]]] = {"people": number, "active": number, "share": share}


@click.command("cohorts")
@click.argument("name", required=False)
@click.option("--since", metavar="SPAN|TIME", help="Active in the last 7d, 24h, ... or since a date.  [default: 30d]")
@click.option("--timezone", metavar="ZONE", help="IANA name of the zone of dates; else the tenant's.")
@asking_options("The server's answer, as JSON.")
def command(name: str | None, since: str | None, timezone: str | None, as_json: bool, server: Server) -> None:
    """The cohorts that the manifests declare, and how many people are in each.

    Beside that stand how many of these were active, and which share that is of all who were. With NAME it is one of
    them, and how it is defined.

    The exit code is 2 when no cohort has this name.

    \b
      analytics cohorts --since 7d
      analytics ask funnel --param cohort=NAME --param 'steps=[{"event": "cart"}, {"event": "purchase"}]'
    """
    asked = {} if since is None else {"start": since} if "-" in since else {"timeRange": since}
    asked |= {} if timezone is None else {"timezone": timezone}
    try:
        found = server.ask("GET", _PATH if name is None else f"{_PATH}/{name}", _SECONDS, **asked)
    except ServerRefusedError as error:
        if error.answered in _MISTAKES:
            raise RefusedError(error.detail) from error
        raise
    if as_json:
        show_json(found)
    else:
        _show(found, found["cohorts"] if name is None else [found])
    for note in [*([found["note"]] if name is None and found["note"] else []), *found["notes"]]:
        click.echo(note, err=True)


def _show(found: Mapping[str, Any], cohorts: list[Mapping[str, Any]]) -> None:
    out = console()
    out.print(Text(title("cohorts", found["timeRange"], found["timezone"]), style="bold"), soft_wrap=True)
    table = Table("name", "title", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in _NUMBERS:
        table.add_column(head, justify="right")
    for cohort in cohorts:
        figures = [show(cohort[figure]) for figure, show in _NUMBERS.items()]
        table.add_row(*(Text(clean(text)) for text in (cohort["name"], cohort["title"], *figures)))
    out.print(table)
    if "definition" in found:
        click.echo(yaml.safe_dump(found["definition"], sort_keys=False, allow_unicode=True).rstrip())
    click.echo(freshness(found, found["timezone"]))
