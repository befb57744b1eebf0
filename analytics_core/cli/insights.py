"""``analytics insights``."""

from __future__ import annotations

from typing import Any, Final

import click
from rich.text import Text

from analytics_core.cli.ask import asked_for, console, question
from analytics_core.cli.ask_drawing import show_findings, title
from analytics_core.cli.ask_parameters import parameters
from analytics_core.cli.ask_table import clean
from analytics_core.cli.asking import Server, asking_options, show_json

_PATH: Final = "/api/v1/insights"


@click.command("insights")
@click.option("--source", metavar="PLUGIN", help="Only what this plugin's analyses find.")
@click.option("--analysis", metavar="NAME", help="Only what this analysis finds.")
@click.option("--since", metavar="SPAN|TIME", help="The last 7d, 24h, 4w, ... or all since a date.  [default: 7d]")
@click.option("--timezone", metavar="ZONE", help="IANA name of the zone of days and hours; else the tenant's.")
@click.option("--param", "typed", multiple=True, metavar="KEY=VALUE", help="filters.FIELD=VALUE, cohort=NAME.")
@click.option("--recommendations/--no-recommendations", default=True, help="Also what to ask or do next.")
@asking_options("The server's answer, as JSON.")
def command(
    source: str | None,
    analysis: str | None,
    since: str | None,
    timezone: str | None,
    typed: tuple[str, ...],
    recommendations: bool,
    as_json: bool,
    server: Server,
) -> None:
    """What stands out in a time range, the gravest first.

    It asks the analyses that plugins mark for insights.

    \b
      analytics insights --since 28d
      analytics insights --source user-behavior --analysis changes --since 14d
    """
    asked: dict[str, Any] = {"includeRecommendations": recommendations}
    asked |= {} if source is None else {"dataSource": source}
    asked |= {} if analysis is None else {"analysisType": analysis}
    answer = question(
        server, _PATH, asked | asked_for(since, timezone, parameters(typed, None)), "looking for insights"
    )
    if as_json:
        show_json(answer)
        return
    _show(answer)
    for each in answer["analyses"]:
        if "error" in each:
            click.echo(f"analytics: {each['name']} was not answered: {clean(each['error'])}", err=True)


def _show(answer: dict[str, Any]) -> None:
    out = console()
    zone = answer["analyses"][0]["parameters"]["timezone"] if answer["analyses"] else "UTC"
    out.print(Text(title("insights", answer["timeRange"], zone), style="bold"), soft_wrap=True)
    if not answer["insights"]:
        out.print(Text("nothing that stands out"), soft_wrap=True)
    show_findings(answer, out, zone)
