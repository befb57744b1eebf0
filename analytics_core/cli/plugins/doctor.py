"""``analytics plugins doctor``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from analytics_core.cli.asking import RefusedError, show_json
from analytics_core.cli.ending import terminable
from analytics_core.cli.options import manifests_option, settings
from analytics_core.errors import NotFoundError
from analytics_core.host.examining.doctor import examinations
from analytics_core.host.examining.examination import SECONDS, Examination

_FOREIGN_WARNINGS: Final = 5


@click.command("doctor")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=SECONDS,
    show_default=True,
    help="Time for one plugin; then it is ended, and shown where it hangs.",
)
@click.option("--locked", is_flag=True, default=None, help="Hold to plugins.lock, as 'serve --locked' does.")
@manifests_option
@click.pass_context
@terminable()
def command(
    ctx: click.Context,
    names: tuple[str, ...],
    as_json: bool,
    seconds: float,
    locked: bool | None,
    manifests: Path | None,
) -> None:
    """Load each plugin in a process of its own and show all that is wrong.

    Every installed plugin, or those named: its code is imported, its hooks are checked as the host checks them, and an
    instance is set up with its settings and torn down. Shown are whole tracebacks, Python's warnings, what it prints,
    heavy imports, and the threads, files and processes that it leaves behind. Its setup really runs: it may connect
    to what its settings name. Of a plugin that the lists of names keep out no code is run, nor with --locked or
    PLUGINS_LOCKED of one that plugins.lock keeps out.

    The exit code is 1 when any plugin has a problem.
    """
    seen = []
    try:
        found = examinations(names, settings(manifests, locked=locked), os.environ, seconds)
    except NotFoundError as error:
        raise RefusedError(str(error)) from error
    for each in found:
        seen.append(each)
        if not as_json:
            _show(each)
    if as_json:
        show_json({"plugins": seen})
    elif not seen:
        click.echo("no plugin is installed", err=True)
    ctx.exit(1 if any(one.problems for one in seen) else 0)


def _show(seen: Examination) -> None:
    mark = click.style("✗", fg="red") if seen.problems else click.style("✓", fg="green")
    took = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in seen.seconds.items())
    disabled = " (disabled)" if seen.state == "disabled" else ""
    click.echo(f"{mark} {seen.plugin} {seen.version}{disabled}{': ' if took else ''}{took}")
    for problem in seen.problems:
        click.echo(f"  {click.style(problem.step, fg='red')}: {problem.text}")
        for line in problem.trace.splitlines():
            click.echo(f"    {line}")
    for note in _notes(seen):
        click.echo(f"  {click.style('!', fg='yellow')} {note}")


def _notes(seen: Examination) -> Iterator[str]:
    """What is no problem yet."""
    if seen.kept_out:
        yield f"none of its code was run: {seen.kept_out}"
    own = [warning for warning in seen.warnings if warning.own]
    foreign = [warning for warning in seen.warnings if not warning.own]
    for warning in [*own, *foreign[:_FOREIGN_WARNINGS]]:
        yield f"{warning.text} ({warning.file}, line {warning.line})"
    if len(foreign) > _FOREIGN_WARNINGS:
        yield f"{len(foreign) - _FOREIGN_WARNINGS} more warnings of other packages; --json has them all"
    for module in seen.imported:
        yield f"imports {module.name}{f' ({module.seconds:.2f} s)' if module.seconds else ''}: {module.why}"
    for left in seen.left:
        yield f"leaves behind: {left}"
    for line in seen.printed.splitlines():
        yield f"prints: {line}"
