"""``analytics plugins new``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from analytics_core.cli.asking import RefusedError, show_json
from analytics_core.cli.plugins.making import plugin_files, write
from analytics_core.cli.plugins.naming import NewPluginError


@click.command("new")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the project is made; else ./NAME.")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    default=("process",),
    show_default=True,
    help="What it implements: process, enrich, insight, ingest, setup, teardown; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(name: str, folder: Path | None, hooks: tuple[str, ...], as_json: bool) -> None:
    """Make a new plugin: a package that installs, runs and passes its tests.

    NAME is small letters, digits and dashes, such as checkout-watch. The project has a pyproject.toml, a README, the
    package with plugin.yaml and plugin.py, and tests. Nothing is overwritten.
    """
    project = folder or Path(name)
    try:
        texts = plugin_files(name, hooks)
        write(project, texts)
    except NewPluginError as error:
        raise RefusedError(str(error)) from error
    if as_json:
        show_json({"name": name, "folder": project, "files": list(texts)})
        return
    for path in texts:
        click.echo(project / path)
    place = shlex.quote(str(project))
    click.echo(
        f"next: pip install -e {place} && python -m pytest {place}, then analytics plugins doctor {name}", err=True
    )
