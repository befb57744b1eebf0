"""``analytics schemas``."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from analytics_core.config import schemas


@click.command("schemas")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("schemas"))
def command(folder: Path) -> None:
    """Write the JSON Schemas of all manifest kinds to FOLDER.

    An editor completes and checks a manifest whose first line names one of them, as
    `# yaml-language-server: $schema=schemas/metric.json`. FOLDER is ./schemas when it is not told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for kind, schema in sorted(schemas().items()):
        path = folder / f"{kind}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(schema)) + b"\n")
        click.echo(path)
