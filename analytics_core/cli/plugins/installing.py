"""``analytics plugins install``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_core.cli.asking import show_json
from analytics_core.cli.options import manifests_option, settings
from analytics_core.host.examining.installing import Asked, Plan, install, own_dependencies, plan
from analytics_core.host.examining.judging import claimants, judge
from analytics_core.host.installed.provenance import lock_file
from analytics_core.host.installed.selection import Choice

_STYLES: Final = {"install": "green", "upgrade": "green", "downgrade": "yellow", "reinstall": "yellow"}


@click.command("install")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-e", "--editable", multiple=True, metavar="PATH", help="A project, as a link to its sources.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", is_flag=True, help="Do not ask before installing.")
@click.option("-U", "--upgrade", is_flag=True, help="Also when an earlier version is installed.")
@click.option("--pre", is_flag=True, help="Versions before a release, too.")
@click.option("--index-url", metavar="URL", help="Where to look instead of the index that pip is configured for.")
@click.option("--extra-index-url", multiple=True, metavar="URL", help="Where to look besides.")
@click.option("--find-links", multiple=True, metavar="PATH", help="A folder or page with wheels.")
@click.option("--no-index", is_flag=True, help="Look at --find-links alone.")
@click.option("--no-build-isolation", is_flag=True, help="Build projects with what is installed here.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="As one JSON object, with 'ok' false and plan.refusals when it is refused; needs --yes or --dry-run.",
)
@manifests_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    editable: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
    manifests: Path | None,
    **told: Any,
) -> None:
    """Install plugins with pip, unless that would change the host's own dependencies.

    NAME is what pip takes: a name, with a version such as 'shop==1.2', a wheel, a folder or a URL. What pip would do
    is shown first; it is refused, with exit code 1, when the host itself or anything that it requires would change.
    A running server takes in what was installed by itself; one that is locked does when it is in plugins.lock.
    """
    _check(names, editable, asks=not (yes or dry_run), as_json=as_json)
    configured = settings(manifests)
    judge(configured, os.environ)  # what is wrong with the manifests is said before anything is installed
    asked = Asked(names, editable, tuple(_options(told)))
    own = own_dependencies()
    if not as_json:
        click.echo("asking pip what it would do", err=True)
    planned = plan(asked, own)
    if not as_json:
        _show(planned)
    carried_out = bool(planned.changes) and not planned.refusals and not dry_run
    if carried_out:
        if not yes:
            click.confirm("Install this?", abort=True, err=True)
        install(asked, planned, own)
    brought = _brought(planned, judge(configured, os.environ)) if carried_out else []
    kept_out = _kept_out(brought, manifests) if lock_file(configured).exists() else {}
    if as_json:
        plugins = [
            {"name": each.name, "state": each.state, "reason": each.reason, "locked_out": kept_out.get(each.name, "")}
            for each in brought
        ]
        show_json({"ok": not planned.refusals, "installed": carried_out, "plan": planned, "plugins": plugins})
    elif carried_out:
        _show_brought(brought, kept_out)
    ctx.exit(1 if planned.refusals else 0)


def _check(names: tuple[str, ...], editable: tuple[str, ...], *, asks: bool, as_json: bool) -> None:
    """:raises UsageError: for what cannot be asked for."""
    if not names and not editable:
        raise click.UsageError("name what to install: NAME, or -e PATH")
    if option := next((name for name in names if name.startswith("-")), ""):
        raise click.UsageError(f"{option!r} is no requirement; options of pip that are not listed here cannot be given")
    if as_json and asks:
        raise click.UsageError("--json cannot ask; add --yes or --dry-run")


def _options(told: dict[str, Any]) -> Iterator[str]:
    """Those of pip."""
    for name, value in told.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            yield option
        elif value:
            yield from (f"{option}={each}" for each in ([value] if isinstance(value, str) else value))


def _show(planned: Plan) -> None:
    if not planned.changes:
        click.echo("nothing is to be done: it is installed already; --upgrade looks for a later version", err=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "distribution", "now", "then", "change", "asked for by"):
        table.add_column(column, no_wrap=column != "asked for by")
    for change in planned.changes:
        mark = Text("✗", style="red") if change.own else Text("✓", style="green")
        kind = Text(f"{change.kind} (the host's own)" if change.own else change.kind, style=_STYLES[change.kind])
        by = Text("; ".join(change.asked_by))
        table.add_row(mark, Text(change.distribution), Text(change.before or ""), Text(change.after), kind, by)
    Console().print(table)
    for text in planned.breaks:
        click.echo(f"{click.style('!', fg='yellow')} {text}")
    for text in planned.refusals:
        click.echo(f"{click.style('✗', fg='red')} {text}")


def _brought(planned: Plan, choices: list[Choice]) -> list[Choice]:
    """The plugins whose names are claimed by what was installed, as they are to run."""
    changed = {change.distribution for change in planned.changes}
    return [each for each in choices if not changed.isdisjoint(claimants(each))]


def _kept_out(brought: list[Choice], manifests: Path | None) -> dict[str, str]:
    """Why a server that is locked keeps plugins out, by name."""
    judged = judge(settings(manifests, locked=True), os.environ) if brought else []
    names = {choice.name for choice in brought}
    return {each.name: each.verdict.reason for each in judged if each.name in names and each.verdict.reason}


def _show_brought(brought: list[Choice], kept_out: Mapping[str, str]) -> None:
    for choice in brought:
        does = "a server that runs here, or starts, takes it in by itself"
        if choice.state != "discovered":
            does = f"no server runs it: {choice.state}{': ' if choice.reason else ''}{choice.reason}"
        click.echo(f"{choice.name} {choice.version} is installed; {does}")
        if choice.name in kept_out and choice.reason != kept_out[choice.name]:
            click.echo(f"  a server that is locked keeps it out: {kept_out[choice.name]}")
    if not brought:
        click.echo("installed, but it brings no plugin: 'analytics plugins why NAME' says more", err=True)
