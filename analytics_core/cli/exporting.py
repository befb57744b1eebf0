"""``analytics export``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.progress import BarColumn, FileSizeColumn, Progress, TextColumn, TransferSpeedColumn

from analytics_core.cli.asking import MISTAKES, RefusedError, Server, asking_options
from analytics_core.cli.ending import terminable
from analytics_core.errors import AnalyticsError, NoServerError, ServerRefusedError, near

_PATH: Final = "/api/v1/events/export"
_TOTAL: Final = "X-Total-Events"
_SECONDS: Final = 330.0
"""Beyond what the server takes at most for one piece."""
_SUFFIXES: Final = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
}
_FORMATS: Final = tuple(dict.fromkeys(_SUFFIXES.values()))
_LINES: Final = ("ndjson", "csv")
_INTERRUPTED: Final = 130
_STDOUT: Final = "-"


@click.command("export")
@click.option("-o", "--output", default=_STDOUT, metavar="FILE|-", show_default=True, help="Where to; - is the output.")
@click.option("--format", "format_", type=click.Choice(_FORMATS), help="Else by the suffix of FILE; else ndjson.")
@click.option("--since", metavar="7d", help="Events of the last 7d, 24h, 30m; all of them without a range.")
@click.option("--start", metavar="TIME", help="Instead: where the range begins, a date or an ISO 8601 time.")
@click.option("--end", metavar="TIME", help="Where it ends, exclusive; else now.")
@click.option("--timezone", metavar="ZONE", help="Zone of start and end; else the tenant's.")
@click.option("--event", "events", multiple=True, metavar="NAME", help="Only events of this name; may be repeated.")
@click.option("--user", metavar="ID", help="Only events with this userId.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="As 'properties.amount>10', 'event~^cart' or 'properties.coupon exists'; may be repeated, all must hold.",
)
@click.option("--fields", metavar="a,b,c", help="Only these fields, as event,timestamp,properties.plan.")
@asking_options()
def command(output: str, format_: str | None, server: Server, **told: Any) -> None:
    """Write the events of a running server to FILE, oldest first.

    They are those of one snapshot. FILE appears when it is whole, and replaces one of that name; what is not whole is
    deleted.
    """
    file = None if output == _STDOUT else Path(output)
    format_ = format_ or _by_suffix(file)
    if file is None and format_ not in _LINES and sys.stdout.isatty():
        raise RefusedError(f"{format_} is not for a terminal; name a file with --output")
    received = _Received(format_)
    query = [
        ("format", format_),
        *((name, told[key]) for name, key in _ASKED.items() if told[key] is not None),
        *(("event", name) for name in told["events"]),
        *(("filter", condition) for condition in told["filters"]),
    ]
    with terminable(), nullcontext(sys.stdout.buffer) if file is None else _whole(file) as sink:
        try:
            chunks = server.stream(f"{_PATH}?{_encoded(query)}", _SECONDS, received.heed)
            with received.shown():
                _copy(chunks, sink, received)
        except ServerRefusedError as error:
            if error.answered not in MISTAKES:
                raise
            raise RefusedError(error.detail) from error
        except KeyboardInterrupt:
            click.echo(f"stopped after {received.bytes:,} bytes; no file was written" if file else "stopped", err=True)
            raise SystemExit(_INTERRUPTED) from None
    if file is not None:
        click.echo(f"{received.total:,} events, {received.bytes:,} bytes in {file}", err=True)


_ASKED: Final = {"timeRange": "since", **{name: name for name in ("start", "end", "timezone", "user", "fields")}}
"""Parameters of the URL, and the options that give them."""


def _by_suffix(file: Path | None) -> str:
    if file is None:
        return _FORMATS[0]
    if file.suffix.lower() not in _SUFFIXES:
        hint = near(file.suffix, _SUFFIXES)
        raise RefusedError(f"{file}: the suffix {file.suffix!r} names no format{hint} or give --format")
    return _SUFFIXES[file.suffix.lower()]


def _encoded(query: list[tuple[str, str]]) -> str:
    try:
        return urlencode(query)
    except UnicodeEncodeError:
        raise RefusedError("an option is no UTF-8") from None


def _copy(chunks: Iterator[bytes], sink: BinaryIO, received: _Received) -> None:
    while True:
        try:
            chunk = next(chunks, b"")
        except NoServerError as error:
            if not received.begun:
                raise
            raise AnalyticsError(
                f"the export broke off after {received.bytes:,} bytes: what came is not the whole, run it again"
            ) from error
        if not chunk:
            break
        sink.write(chunk)
        received.add(chunk)
    sink.flush()


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path`` that takes its name when all went well, and is deleted otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


class _Received:
    """How much has come, of how much; drawn on a terminal as it changes."""

    def __init__(self, format_: str) -> None:
        self.begun = False
        self.bytes = 0
        self.total = 0
        self._lines = format_ in _LINES
        self._events = -1 if format_ == "csv" else 0  # its first line is the header
        self._draw: Callable[[], None] = lambda: None

    def heed(self, headers: Mapping[str, str]) -> None:
        self.begun = True
        self.total = int(headers.get(_TOTAL, 0))

    def add(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self._lines:
            self._events += chunk.count(b"\n")
        self._draw()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws nothing where there is no terminal."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        columns = (BarColumn(), TextColumn("{task.fields[events]}"), FileSizeColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, events="")
            self._draw = lambda: bar.update(task, completed=self.bytes, events=self._told())
            yield

    def _told(self) -> str:
        """Of a line format how many events have come; of the others only how many there will be."""
        return f"{max(self._events, 0):,} of {self.total:,} events" if self._lines else f"{self.total:,} events"
