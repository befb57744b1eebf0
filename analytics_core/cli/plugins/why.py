"""``analytics plugins why``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from analytics_core.cli.options import settings, url_of
from analytics_core.cli.plugins.asking import UnknownPluginError, asking_options, live_if_any, show_json
from analytics_core.config import Settings
from analytics_core.host.judging import RUNS, advice, judge, named, normal, undeclared
from analytics_core.host.selection import Choice


class Holder(Struct, frozen=True):
    """A distribution that declares the plugin, and where the sources are."""

    distribution: str
    version: str
    directory: Path


class Verdict(Struct, frozen=True, kw_only=True):
    """The answer. ``source`` says who gave it: the server's address, or ``installed``."""

    name: str
    runs: bool
    state: str
    reason: str
    source: str
    since: str | None = None
    generation: int | None = None
    errors: int | None = None
    holders: tuple[Holder, ...] = ()
    advice: str = ""


@click.command("why")
@click.argument("name")
@asking_options("As one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    name: str,
    as_json: bool,
    url: str | None,
    host: str | None,
    port: int | None,
    api_key: str,
    manifests: Path,
) -> None:
    """Why the plugin NAME does or does not run.

    The running server is asked. Without one the answer is what a server that starts now would do, from what is
    installed, the manifests and the environment; nothing is imported. NAME may also be the name of a distribution.

    The exit code is 0 when it runs or is to run, 1 when not, 2 when nothing has this name.
    """
    configured = settings(manifests, host=host, port=port)
    asked = (url or url_of(configured)).rstrip("/")
    rows = live_if_any(asked, api_key, told=bool(url))
    verdict = _judged(name, configured) if rows is None else _told(name, rows, asked, None if url else configured)
    if as_json:
        show_json(verdict)
    else:
        _show(verdict, asked)
    ctx.exit(0 if verdict.runs else 1)


def _told(name: str, rows: list[dict[str, Any]], asked: str, here: Settings | None) -> Verdict:
    """What the server at ``asked`` says; with ``here`` also of a plugin that it does not know yet."""
    row = next((row for row in rows if normal(row["name"]) == normal(name)), None)
    if row is not None:
        hidden = "the server tells it to the key of an operator only" if row.get("reason") is None else ""
        return Verdict(
            name=row["name"],
            runs=row["state"] in RUNS,
            state=row["state"],
            reason=row.get("reason") or hidden,
            source=asked,
            since=row.get("since"),
            generation=row.get("generation"),
            errors=row.get("errors"),
        )
    if here is None:
        raise UnknownPluginError(name, (row["name"] for row in rows))
    installed = _judged(name, here, also=[row["name"] for row in rows])
    if any(row["name"] == installed.name for row in rows):
        return _told(installed.name, rows, asked, None)
    unseen = f"the server at {asked} does not know it: installed after the server's start, or for another Python"
    reason = f"{unseen}; by itself: {installed.reason}" if installed.reason else unseen
    return Verdict(
        name=installed.name, runs=False, state="unknown", reason=reason, source=asked, holders=installed.holders
    )


def _judged(name: str, configured: Settings, also: list[str] | None = None) -> Verdict:
    """What is to become of what is installed. ``also`` are further names that would have been valid."""
    choices = judge(configured, os.environ)
    found = named(name, choices)
    if found:
        chosen = next((choice for choice in found if choice.state not in RUNS), found[0])
        return _verdict(chosen, [choice for choice in found if choice.name == chosen.name])
    if not (reason := undeclared(name)):
        raise UnknownPluginError(name, {*(choice.name for choice in choices), *(also or ())})
    return Verdict(name=name, runs=False, state="undeclared", reason=reason, source="installed")


def _verdict(choice: Choice, same: list[Choice]) -> Verdict:
    founds = [each.found for each in same if each.found is not None]
    return Verdict(
        name=choice.name,
        runs=choice.state in RUNS,
        state=choice.state,
        reason=choice.reason,
        source="installed",
        holders=tuple(Holder(found.distribution, found.version, found.directory) for found in founds),
        advice=next(filter(None, map(advice, founds)), ""),
    )


def _show(verdict: Verdict, asked: str) -> None:
    by_itself = verdict.source == "installed"
    does = "runs" if verdict.runs else "does not run"
    if by_itself:
        does = "is to run" if verdict.runs else "is not to run"
    mark = click.style("✓", fg="green") if verdict.runs else click.style("✗", fg="red")
    since = f" since {verdict.since}" if verdict.since else ""
    since += f", generation {verdict.generation}" if verdict.generation else ""
    since += f", {verdict.errors} errors" if verdict.errors else ""
    click.echo(f"{mark} {verdict.name} {does}: {verdict.state}{since}")
    for line in (verdict.reason, verdict.advice):
        if line:
            click.echo(f"  {line}")
    for holder in verdict.holders:
        where = "" if holder.directory == Path() else f" in {holder.directory}"
        click.echo(f"  {holder.distribution} {holder.version}{where}")
    asked_whom = f"no server answers at {asked}: this is what one would do" if by_itself else f"as {asked} sees it"
    click.echo(asked_whom, err=True)
