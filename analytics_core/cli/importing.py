"""``analytics import``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from analytics_core.cli.options import address, data_option, key_option, manifests_option, settings, url_of
from analytics_core.importing import ABSENT, FileImport, Summary, Wanted
from analytics_core.importing import Progress as Record

_FIELDS: Final = ("event", "user", "anonymous", "session", "timestamp", "id")
_INTERRUPTED: Final = 130


def _column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for field in reversed(_FIELDS):
        about = (
            f"Column of the {field}{' id' if field in ('user', 'anonymous', 'session') else ''}; '{ABSENT}' for none."
        )
        command = click.option(f"--{field}-column", metavar="NAME", help=about)(command)
    return command


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_column_options
@click.option("--properties", default="all", metavar="a,b,c|all", help="Columns that become properties.")
@click.option("--timezone", default="UTC", show_default=True, help="Zone of times that name none.")
@click.option("--source", default="", help="Where the events come from; each has the word as context.source.")
@click.option("--format", "file_format", type=click.Choice(["csv", "ndjson", "parquet"]), help="Else by the suffix.")
@click.option("--encoding", default="utf8", show_default=True, help="Encoding of a CSV file.")
@click.option("--batch", type=click.IntRange(1, 100_000), default=5_000, show_default=True, help="Events in a request.")
@click.option("--url", help="Address of the server; else the configured host and port.")
@key_option
@manifests_option
@data_option
@click.option("--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Write rows that are not taken here.")
@click.option(
    "--restart",
    is_flag=True,
    help="Send all rows again; the server drops those that it remembers, and takes older ones twice.",
)
@click.option("--dry-run", is_flag=True, help="Show which column goes where and the first events; send nothing.")
def command(file: Path, **told: Any) -> None:
    """Bring the events of FILE into a running server.

    FILE is CSV with a header, NDJSON or Parquet; CSV and NDJSON also as .gz or .zst. Columns are recognised by their
    names or told. After Ctrl-C the same command goes on where it stopped, and a file that is in is not sent again.
    With --restart it is: the server drops the rows that are among its last events (10 million, or what
    storage.dedup_window in host.yaml says) and takes older ones a second time.
    """
    wanted = Wanted(
        **{field: told[f"{field}_column"] for field in _FIELDS},
        properties=None if told["properties"] == "all" else tuple(filter(None, told["properties"].split(","))),
    )
    opened = FileImport(
        file,
        wanted,
        format=told["file_format"],
        encoding=told["encoding"],
        timezone=told["timezone"],
        source=told["source"],
        batch=told["batch"],
    )
    try:
        if told["dry_run"]:
            _show_mapping(opened)
        else:
            _run(opened, told)
    finally:
        opened.close()


def _show_mapping(opened: FileImport) -> None:
    console = Console()
    table = Table(title=f"{opened.path.name}: where the columns go", title_justify="left")
    table.add_column("event field")
    table.add_column("column")
    for wire, column in opened.mapping.fields().items():
        table.add_row(wire, Text(column))
    if "id" not in opened.mapping.fields():
        table.add_row("messageId", Text("(content of the file and row number)", style="dim"))
    properties = opened.mapping.properties_of(opened.columns)
    table.add_row("properties", Text(", ".join(properties) or "(none)"))
    left = set(opened.columns) - set(properties) - set(opened.mapping.fields().values()) - {"context"}
    if left:
        table.add_row("(left out)", Text(", ".join(name for name in opened.columns if name in left)))
    console.print(table)
    for event in opened.preview():
        console.print(Text(event), soft_wrap=True)


def _run(opened: FileImport, told: dict[str, Any]) -> None:
    configured = settings(told["manifests"], data_dir=told["data_dir"])
    url = url_of(configured) if told["url"] is None else address(told["url"])
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[events]:,} events, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        console=console,
    )
    record: list[Record] = []
    with bar:
        task = bar.add_task(opened.path.name, total=opened.size or 1, events=0, rate=0.0)
        job = opened.run(
            url,
            configured.storage.data_dir,
            api_key=told["api_key"],
            restart=told["restart"],
            rejects=told["rejects"],
            report=partial(_advance, bar, task, record),
        )
        try:
            summary = asyncio.run(job)
        except KeyboardInterrupt:
            rows = record[-1].rows if record else 0
            click.echo(f"stopped after row {rows:,}; the same command goes on from there", err=True)
            raise SystemExit(_INTERRUPTED) from None
        bar.update(task, completed=opened.size or 1)
    _show(summary, told["rejects"])


def _advance(bar: Progress, task: TaskID, record: list[Record], progress: Record, position: int) -> None:
    if not record:
        bar.update(task, first=progress.rows)
    record[:] = [progress]
    elapsed = bar.tasks[task].elapsed or 1e-9
    sent = progress.rows - bar.tasks[task].fields["first"]
    bar.update(task, completed=position, events=progress.rows, rate=sent / elapsed)


def _show(summary: Summary, rejects: Path | None) -> None:
    progress = summary.progress
    if summary.skipped and summary.skipped == progress.rows:
        click.echo(
            f"all {summary.skipped:,} rows of this file were imported before ({progress.accepted:,} accepted); "
            "nothing was sent. --restart sends them again; the server drops those that it remembers"
        )
        return
    before = f", {summary.skipped:,} rows imported before" if summary.skipped else ""
    click.echo(
        f"{summary.accepted:,} accepted, {summary.duplicates:,} duplicates, {summary.rejected:,} rejected{before}"
    )
    for one in summary.first_rejected:
        click.echo(f"  row {one.row}: {one.field + ': ' if one.field else ''}{one.message}", err=True)
    if summary.rejected > len(summary.first_rejected):
        where = f"all are in {rejects}" if rejects else "--rejects FILE keeps them all"
        click.echo(f"  and {summary.rejected - len(summary.first_rejected):,} more; {where}", err=True)
