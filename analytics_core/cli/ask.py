"""``analytics ask``."""

from __future__ import annotations

import csv
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final
from urllib.parse import quote

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_core.cli.ask_drawing import show_answer
from analytics_core.cli.ask_parameters import described, example, parameters
from analytics_core.cli.ask_table import clean
from analytics_core.cli.asking import MISTAKES, RefusedError, Server, asking_options, show_json
from analytics_core.errors import NotFoundError, ServerRefusedError

_SECONDS: Final = 300.0
_MOMENT: Final = 0.5
_ENDLESS: Final = 10_000
_CATALOGUE: Final = "/api/v1/analyses"
_PARAMETER: Final = "urn:analytics:problem:parameter"
_PATIENCE: Final = {"urn:analytics:problem:plugin-starting": 10.0, "urn:analytics:problem:building": 600.0}
"""Problems that say that the same question is answered later, and the seconds for which it is asked again."""
_AGAIN: Final = 0.25


@click.command("ask")
@click.argument("name", required=False)
@click.option(
    "--param", "typed", multiple=True, metavar="KEY=VALUE", help="A parameter, as JSON or text; a.b=1 is {a: {b: 1}}."
)
@click.option("--params", "file", type=click.File(encoding="utf-8"), metavar="FILE|-", help="Parameters as YAML.")
@click.option("--since", metavar="SPAN|TIME", help="The last 7d, 24h, 4w, ... or all since a date; timeRange.")
@click.option("--timezone", metavar="ZONE", help="IANA name of the zone of days and hours; else the tenant's.")
@click.option("--describe", is_flag=True, help="Show the parameters of NAME and an example; ask nothing.")
@click.option("--csv", "as_csv", is_flag=True, help="The rows alone, as CSV.")
@asking_options("The server's answer, as JSON.")
def command(
    name: str | None,
    typed: tuple[str, ...],
    file: IO[str] | None,
    since: str | None,
    timezone: str | None,
    describe: bool,
    as_csv: bool,
    as_json: bool,
    server: Server,
) -> None:
    """Ask the running server an analysis, or list what can be asked.

    On a terminal the answer is drawn: bars beside a funnel, a line for what goes over time, a shaded triangle for
    cohorts. Elsewhere it is a plain table.

    The exit code is 2 when nothing has this name or a parameter does not fit.

    \b
      analytics ask sessions --since 7d
      analytics ask funnel --param 'steps=[{"event": "cart"}, {"event": "purchase"}]' --param window=1d
      analytics ask funnel --describe
    """
    if as_csv and as_json:
        raise RefusedError("--csv and --json are two forms of one answer; keep one")
    if name is None:
        if typed or file or since or timezone or describe or as_csv:
            raise RefusedError(
                "which analysis? name one, such as 'analytics ask sessions'; without options all are listed"
            )
        _list(server, as_json=as_json)
    elif describe:
        _describe(name, server, as_json=as_json)
    else:
        asked = asked_for(since, timezone, parameters(typed, file))
        answer = question(server, f"{_CATALOGUE}/{quote(name, safe='')}", asked, f"asking {name}", more=_more(name))
        _show(answer, as_json=as_json, as_csv=as_csv)


def _more(name: str) -> str:
    return f"see 'analytics ask {name} --describe'"


def asked_for(since: str | None, timezone: str | None, typed: Mapping[str, Any]) -> dict[str, Any]:
    """``typed`` with ``timeRange`` and ``timezone`` of the options: a span ends now, as does what begins at a time.

    :raises RefusedError: when an option and a parameter say the same.
    """
    given: dict[str, Any] = {}
    if since is not None:
        given["timeRange"] = {"start": since} if "-" in since[1:] else since
    if timezone is not None:
        given["timezone"] = timezone
    for name in given.keys() & typed.keys():
        option = "--since" if name == "timeRange" else "--timezone"
        raise RefusedError(f"{option} and the parameter {name!r} say the same; keep one")
    return {**given, **typed}


def question(server: Server, path: str, body: Mapping[str, Any], doing: str, *, more: str = "") -> dict[str, Any]:
    """The server's answer, waited for while the plugin that gives it is on its way up, for ten seconds at most, or what
    it reads is being made, for ten minutes.

    :raises RefusedError: with what the server says when the question is wrong. Where a parameter does not fit and no
        near one is known, ``more`` says where to look.
    """
    began = time.monotonic()
    with _spinning(doing):
        while True:
            try:
                return server.ask("POST", path, _SECONDS, body=body)
            except ServerRefusedError as error:
                if error.answered in MISTAKES:
                    helped = not more or error.problem != _PARAMETER or "did you mean" in error.detail
                    raise RefusedError(error.detail if helped else f"{error.detail}; {more}") from error
                if time.monotonic() - began >= _PATIENCE.get(error.problem, 0):
                    raise
            time.sleep(_AGAIN)


def console() -> Console:
    """Of the standard output; elsewhere than on a terminal, lines are as long as what is in them."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_ENDLESS)


@contextmanager
def _spinning(doing: str) -> Iterator[None]:
    """Something turns on the standard error, if it is a terminal and this takes longer than a moment."""
    status = Console(stderr=True).status(f"{doing} ...") if sys.stderr.isatty() else None
    if status is None:
        yield
        return
    later = threading.Timer(_MOMENT, status.start)
    later.start()
    try:
        yield
    finally:
        later.cancel()
        later.join()
        status.stop()


def _show(answer: Mapping[str, Any], *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        show_json(answer)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer["columns"])
        writer.writerows([_cell(row.get(name)) for name in answer["columns"]] for row in answer["data"])
        for note in answer.get("notes", ()):
            click.echo(f"analytics: {clean(note)}", err=True)
    else:
        show_answer(answer, console())


def _cell(value: Any) -> Any:
    """Nothing for null, JSON for what has parts and for truth values."""
    return msgspec.json.encode(value).decode() if isinstance(value, bool | dict | list) else value


# --- what can be asked -----------------------------------------------------------------------------------------------


def _catalogue(server: Server) -> dict[str, Any]:
    return server.ask("GET", _CATALOGUE, _SECONDS)


def _list(server: Server, *, as_json: bool) -> None:
    found = _catalogue(server)
    if as_json:
        show_json(found)
        return
    shown = [(entry["name"], entry["title"], entry["plugin"]) for entry in found["analyses"]]
    _print_table(("name", "title", "plugin"), shown)


def _describe(name: str, server: Server, *, as_json: bool) -> None:
    listed = {entry["name"]: entry for entry in _catalogue(server)["analyses"]}
    if name not in listed:
        raise RefusedError(str(NotFoundError("analysis", name, listed)))
    if as_json:
        show_json(listed[name])
        return
    schema = listed[name]["parameters"]
    click.echo(f"{name}: {listed[name]['title']} ({listed[name]['plugin']})")
    _print_table(("parameter", "type", "default", "what it says"), list(described(schema)))
    click.echo(f"for example: {example(name, schema)}")


def _print_table(heads: tuple[str, ...], rows: list[Any]) -> None:
    table = Table(*heads, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)
