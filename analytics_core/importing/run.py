"""One import from beginning to end: a file, a mapping, a server, and the record of how far it came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import aiohttp
import msgspec
from msgspec import Struct

from analytics_core.errors import ConfigError, ImportFileError
from analytics_core.importing.bodies import Chunk, EventWriter
from analytics_core.importing.mapping import Mapping, Wanted, difference, resolve
from analytics_core.importing.progress import Progress, ProgressFile, Report, fingerprint
from analytics_core.importing.reading import Format, open_table
from analytics_core.importing.sending import Receipt, Rejection, Sender

IN_FLIGHT: Final = 3
_SHOWN: Final = 10
_RECORD_SECONDS: Final = 0.5


class Summary(Struct, kw_only=True):
    """What one run did. ``skipped``: rows that an earlier run had brought in. ``first_rejected``: at most ten."""

    progress: Progress
    skipped: int
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    first_rejected: list[Rejection] = []


class FileImport:
    """A file opened for import. Construction reads its first rows and decides the mapping; nothing is sent.

    :raises ConfigError: for a mapping that does not fit the file, an unknown time zone or format.
    :raises ImportFileError: when the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        wanted: Wanted = Wanted(),  # noqa: B008  (frozen)
        *,
        format: Format | None = None,  # noqa: A002
        encoding: str = "utf8",
        timezone: str = "UTC",
        source: str = "",
        batch: int = 5_000,
    ) -> None:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError("--timezone", f"{timezone!r} is no IANA time zone, such as Europe/Berlin") from error
        self.path = path
        self.content = fingerprint(path)
        self._batch = batch
        self._table = open_table(path, format, encoding)
        self.columns = list(self._table.columns)
        self.mapping: Mapping = resolve(self.columns, wanted, where=str(path), timezone=timezone, source=source)

    @property
    def size(self) -> int:
        """What positions count up to: the file's bytes, or its rows for Parquet."""
        return self._table.position()[1]

    def close(self) -> None:
        self._table.close()

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        """The events of all rows after the first ``skip``, at most ``batch`` in each chunk."""
        writer = EventWriter(self.mapping, self.content)
        first = next(self._table.blocks(0), None)
        if first is None:
            return
        writer.learn(first)
        for block in self._table.blocks(skip):
            events, rows, bad = writer.write(block)
            position = self._table.position()[0]
            starts = range(0, len(rows), self._batch) or range(1)
            for start in starts:
                end = start + self._batch
                upto = block.upto if end >= len(rows) else int(rows[end - 1])
                before = 0 if start == 0 else int(rows[start - 1])
                here = [one for one in bad if before < one[0] <= upto]
                yield Chunk(events[start:end], rows[start:end], here, upto, position)

    def preview(self, count: int = 5) -> list[str]:
        """The first events as they would be sent, without the line ends."""
        events = (event for chunk in self.chunks() for event in chunk.events.to_pylist())
        return [event.rstrip("\n") for event in islice(events, count)]

    async def run(
        self,
        url: str,
        data_dir: Path,
        *,
        api_key: str = "",
        restart: bool = False,
        rejects: Path | None = None,
        report: Report = lambda _progress, _position: None,
        patience: float = 300.0,
    ) -> Summary:
        """Send every row that no earlier run has brought in; the record in ``data_dir`` follows each answer.

        Cancelled or failed, it may be run again and goes on. ``restart`` sends all rows again: the server drops those
        whose ``messageId`` is within its deduplication window, and takes older ones a second time. ``rejects`` takes
        one JSON line for each row that was not taken.

        :raises ConfigError: when an earlier run of the same content used another mapping.
        :raises NoServerError: when nothing answers at ``url``, or no longer.
        :raises ServerRefusedError: when the server does not take the requests.
        :raises ImportFileError: where the file cannot be read on; what came before is in.
        """
        record = ProgressFile(data_dir, self.content, url, api_key)
        progress = self._begin(record, url, restart)
        summary = Summary(progress=progress, skipped=progress.rows)
        if progress.complete:
            return summary
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            sender = Sender(session, url, api_key, patience=patience)
            await sender.check()
            report(progress, 0)
            ledger = _Ledger(record, summary, report, rejects)
            try:
                await _pump(self.chunks(progress.rows), sender, ledger)
                progress.complete = True
            finally:
                ledger.close()
        return summary

    def _begin(self, record: ProgressFile, url: str, restart: bool) -> Progress:
        earlier = None if restart else record.read()
        if earlier is None:
            return Progress(file=str(self.path), target=url, mapping=self.mapping)
        if changed := difference(earlier.mapping, self.mapping):
            raise ConfigError(
                str(self.path),
                f"{earlier.rows} rows of this file were imported with another mapping ({changed}). Events that are in "
                "stay as they are; --restart sends all rows again and adds those that are missing, and once more those "
                "that the server no longer remembers",
            )
        return earlier


class _Ledger:
    """Enters answers, in the order of the file, into the summary, the record and the rejects file."""

    def __init__(self, record: ProgressFile, summary: Summary, report: Report, rejects: Path | None) -> None:
        self._record, self._summary, self._report = record, summary, report
        self._rejects = rejects.open("ab" if summary.skipped else "wb") if rejects else None
        self._written = time.monotonic()

    def enter(self, chunk: Chunk, receipt: Receipt) -> None:
        summary, progress = self._summary, self._summary.progress
        refused = [Rejection(row, "", why) for row, why in chunk.bad]
        for index, field, message in receipt.rejected:
            refused.append(Rejection(int(chunk.rows[index]), field, message, chunk.events[index].as_py().rstrip()))
        refused.sort(key=lambda one: one.row)
        summary.first_rejected += refused[: max(0, _SHOWN - len(summary.first_rejected))]
        if self._rejects:
            self._rejects.writelines(_line(one) for one in refused)
        for counts in (summary, progress):
            counts.accepted += receipt.accepted
            counts.duplicates += receipt.duplicates
            counts.rejected += len(refused)
        progress.rows = chunk.upto
        if time.monotonic() - self._written > _RECORD_SECONDS:
            self._save()
        self._report(progress, chunk.position)

    def close(self) -> None:
        self._save()
        if self._rejects:
            self._rejects.close()

    def _save(self) -> None:
        self._record.write(self._summary.progress)
        self._written = time.monotonic()
        if self._rejects:
            self._rejects.flush()


def _line(rejection: Rejection) -> bytes:
    return msgspec.json.encode(rejection) + b"\n"


async def _pump(chunks: Iterator[Chunk], sender: Sender, ledger: _Ledger) -> None:
    """Read ahead in a thread and keep `IN_FLIGHT` requests open; answers are entered in the order of the file."""
    waiting: deque[tuple[Chunk, asyncio.Task[Receipt]]] = deque()
    broken: ImportFileError | None = None
    try:
        while True:
            try:
                chunk = await asyncio.to_thread(next, chunks, None)
            except ImportFileError as error:  # what was read before is good
                broken, chunk = error, None
            if chunk is not None:
                waiting.append((chunk, asyncio.create_task(sender.send(chunk.events))))
            while len(waiting) >= (IN_FLIGHT if chunk is not None else 1):
                ledger.enter(waiting[0][0], await waiting[0][1])
                waiting.popleft()
            if chunk is None:
                break
    finally:
        await _leave(waiting, ledger)
    if broken is not None:
        raise broken


async def _leave(waiting: deque[tuple[Chunk, asyncio.Task[Receipt]]], ledger: _Ledger) -> None:
    """After a failure or Ctrl-C: enter what was answered without a gap, give up the rest."""
    while waiting and waiting[0][1].done() and not waiting[0][1].cancelled() and not waiting[0][1].exception():
        chunk, task = waiting.popleft()
        ledger.enter(chunk, task.result())
    for _, task in waiting:
        task.cancel()
    await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
