"""``analytics plugins lock``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_core.cli.asking import RefusedError, show_json
from analytics_core.cli.options import manifests_option, settings
from analytics_core.errors import near
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.provenance import (
    Drift,
    Installed,
    Lock,
    Locked,
    drift,
    installed,
    lock_file,
    locked,
    read_lock,
    write_lock,
)

_STYLES: Final = {"added": "green", "removed": "red", "version": "yellow", "content": "red"}


@click.command("lock")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--check", is_flag=True, help="Write nothing; say how what is installed differs.")
@click.option(
    "--json", "as_json", is_flag=True, help="As one JSON object; with --check 'ok' is false and 'drift' says how."
)
@manifests_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], check: bool, as_json: bool, manifests: Path | None) -> None:
    """Write plugins.lock: which plugin distributions are accepted, in which version, with which contents.

    What is installed now becomes what 'analytics serve --locked' lets run; with NAMEs of distributions only what is
    said of those changes, and what still differs is shown. A distribution whose files are not those of its RECORD
    cannot be locked. A running server that is locked takes in what has been accepted by itself.

    With --check the exit code is 1 when anything differs, and every file is read in full.
    """
    path = lock_file(settings(manifests))
    there = installed(discover(), most_bytes=None)
    before = read_lock(path) if check or (names and path.exists()) else None
    wanted = _wanted(names, there, before)
    if check:
        assert before is not None
        found = [one for one in drift(before, there, path) if one.distribution in wanted]
        _show(found, path, as_json=as_json)
        ctx.exit(1 if found else 0)
    lock = locked(there, wanted, before)
    write_lock(path, lock)
    had = before.distributions if before is not None else {}
    changed = sorted(name for name in wanted if had.get(name) != lock.distributions.get(name))
    left = drift(lock, there, path)
    if as_json:
        show_json({"file": path, "distributions": lock.distributions, "changed": changed, "drift": left})
        return
    for name in sorted(wanted):
        _say(name, lock.distributions.get(name), "" if name in changed else ", as before")
    click.echo(f"{path} was written", err=True)
    for one in left:
        click.echo(f"{click.style('!', fg='yellow')} {one.reason}")


def _say(name: str, entry: Locked | None, note: str) -> None:
    if entry is None:
        click.echo(f"{name}: taken out, as it is not installed")
        return
    kind = " (editable)" if entry.editable else ""
    click.echo(f"{name} {entry.version}{kind}: {', '.join(entry.plugins)}{note}")


def _wanted(names: tuple[str, ...], there: Mapping[str, Installed], before: Lock | None) -> set[str]:
    """The distributions that are spoken of: those of ``names``, else all."""
    known = {*there, *(before.distributions if before is not None else ())}
    for name in names:
        if canonicalize_name(name) not in known:
            hint = near(canonicalize_name(name), known) or "; none is installed"
            raise RefusedError(f"no distribution with plugins is named {name!r}{hint}")
    return {str(canonicalize_name(name)) for name in names} or known


def _show(found: list[Drift], path: Path, *, as_json: bool) -> None:
    if as_json:
        show_json({"file": path, "ok": not found, "drift": found})
        return
    if not found:
        click.echo(f"what is installed is what {path} has", err=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("distribution", "change", "locked", "installed"):
        table.add_column(column, overflow="fold")
    for one in found:
        change = Text(one.change, style=_STYLES[one.change])
        table.add_row(Text(one.distribution), change, Text(one.before), Text(one.now))
    Console().print(table)
    for one in found:
        click.echo(one.reason)
