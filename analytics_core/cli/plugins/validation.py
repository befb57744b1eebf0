"""``analytics plugins validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from analytics_core.cli.asking import show_json
from analytics_core.cli.ending import terminable
from analytics_core.host.examining.checklist import Check, checklist
from analytics_core.host.examining.examination import SECONDS

_MARKS: Final = {True: ("✓", "green"), False: ("✗", "red"), None: ("!", "yellow")}


@click.command("validate")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=SECONDS, show_default=True, help="Time to load it."
)
@click.pass_context
@terminable()
def command(ctx: click.Context, path: Path, as_json: bool, seconds: float) -> None:
    """Check a plugin before it is published: PATH is its project or its wheel.

    A project folder is built into a wheel first, with the build backend of this environment when it is installed
    here, else in isolation. What is checked is what the wheel holds: entry point, plugin.yaml, the module of its
    'entry', and, loaded in a process of its own, the hooks. ✗ is an error, ! is advice.

    The exit code is 1 when there is any ✗.
    """
    if path.is_dir() and not (path / "pyproject.toml").is_file():
        raise click.BadParameter(f"{path} has no pyproject.toml; name a project folder or a wheel", param_hint="PATH")
    if path.is_file() and path.suffix != ".whl":
        raise click.BadParameter(f"{path} is no wheel; name a project folder or a file *.whl", param_hint="PATH")
    checks = checklist(path, seconds)
    good = all(check.ok is not False for check in checks)
    if as_json:
        show_json({"path": path, "ok": good, "checks": checks})
    else:
        for check in checks:
            _show(check)
        click.echo(f"{path} {'can be published' if good else 'cannot be published as it is'}", err=True)
    ctx.exit(0 if good else 1)


def _show(check: Check) -> None:
    mark, color = _MARKS[check.ok]
    first, *others = check.text.splitlines() or [""]
    click.echo(f"{click.style(mark, fg=color)} {check.what}: {first}")
    for line in [*others, *check.trace.splitlines()]:
        click.echo(f"    {line}")
    if check.advice:
        click.echo(f"  {check.advice}")
