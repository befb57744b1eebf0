"""The duplicates ledger: how many duplicates each tenant has sent, by the UTC hour in which they came."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from analytics_core.errors import StorageError
from analytics_core.events import micros
from analytics_core.records import TimeRange
from analytics_core.state import StateStore

FLUSH_SECONDS: Final = 2.0
"""Duplicates that came so long before a ``kill -9`` are counted, give or take the time of a write."""
_KIND: Final = "duplicates"
_HOUR: Final = 3_600_000_000
_MOST_MONTHS: Final = 2_048
"""Of all tenants, kept in memory: up to 6 kB each, and next to nothing where none came."""
_log = structlog.get_logger("intake")

Counts = npt.NDArray[np.int64]
"""Of one month's hours, from its first to the last that has any; shape ``(0,)`` when none has."""


class Month(NamedTuple):
    """A month of one tenant; ``number`` counts months since January 1970 UTC."""

    tenant: str
    number: int

    @property
    def key(self) -> str:
        """``2025-06``"""
        return str(np.datetime64(self.number, "M"))

    @property
    def begin(self) -> int:
        """Its first hour since 1970."""
        return int(np.datetime64(self.number, "M").astype("datetime64[h]").astype(np.int64))


class DuplicateLedger:
    """Counts what intake drops as received before: a document of the state store for each tenant and month.

    A month is kept until retention has passed its last write. That it is no day lets a question about all of history
    read some hundred documents at most. `add` is cheap; `count` and `flush` block. `start` and `close` frame a thread
    that writes what is new every ``seconds``. Nobody else writes to these documents.
    """

    def __init__(
        self,
        state: StateStore,
        seconds: float = FLUSH_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state = state
        self._seconds = seconds
        self._clock = clock
        self._fresh: dict[tuple[str, int], int] = {}
        """By tenant and hour since 1970: what is not stored yet."""
        self._stored: dict[Month, Counts] = {}
        """What the store has, of the months that were read or written; the first of them are given up first."""
        self._counting = threading.Lock()
        """Over both; held no longer than a sum takes."""
        self._storing = threading.Lock()
        """Held by who reads or writes a document: what is being written is not read."""
        self._problem = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duplicates", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is left, and end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.flush()

    def add(self, tenant: str, at: int, count: int) -> None:
        """``count`` duplicates came at ``at`` (microseconds UTC)."""
        key = tenant, at // _HOUR
        with self._counting:
            self._fresh[key] = self._fresh.get(key, 0) + count

    def count(self, tenant: str, range: TimeRange) -> int:  # noqa: A002
        """How many came in the hours that ``range`` overlaps, those of this moment among them.

        :raises StorageError: when a month that is not in memory cannot be read.
        """
        start, end = micros(range.start) // _HOUR, -(-micros(range.end) // _HOUR)
        now = micros(self._clock()) // _HOUR
        numbers = np.arange(_month(start), _month(min(end - 1, now)) + 1).tolist()
        months = [Month(tenant, number) for number in numbers]
        with self._counting:
            if self._stored.keys() >= set(months):
                return self._sum(tenant, months, start, end)
        with self._storing:
            for month in months:
                self._read(month)
            with self._counting:
                found = self._sum(tenant, months, start, end)
            self._give_up()
        return found

    def flush(self) -> None:
        """Write what is new. What cannot be written waits for the next time."""
        with self._storing:
            with self._counting:
                fresh = dict(self._fresh)
            by_month: dict[Month, dict[int, int]] = defaultdict(dict)
            for (tenant, hour), count in fresh.items():
                by_month[Month(tenant, _month(hour))][hour] = count
            problem = ""
            for month, counts in by_month.items():
                try:
                    self._write(month, counts)
                except StorageError as error:
                    problem = str(error)
            self._give_up()
        if problem and not self._problem:
            _log.error("duplicates_not_stored", problem=problem)
        self._problem = problem

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            self.flush()

    # --- under the locks ---------------------------------------------------------------------------------------------

    def _sum(self, tenant: str, months: Sequence[Month], start: int, end: int) -> int:
        found = sum(n for (whose, hour), n in self._fresh.items() if whose == tenant and start <= hour < end)
        for month in months:
            counts = self._stored[month]
            if len(counts):
                begin = month.begin
                found += int(counts[max(0, start - begin) : max(0, end - begin)].sum())
        return found

    def _read(self, month: Month) -> Counts:
        if month not in self._stored:
            body = self._state.document(month.tenant, _KIND, month.key)
            counts = np.array([] if body is None else _decoded(body, month), np.int64)
            with self._counting:
                self._stored[month] = counts
        return self._stored[month]

    def _write(self, month: Month, new: Mapping[int, int]) -> None:
        """Add ``new``, by hour since 1970, to what the store has."""
        before, begin = self._read(month), month.begin
        counts = np.zeros(max(len(before), max(new) - begin + 1), np.int64)
        counts[: len(before)] = before
        for hour, count in new.items():
            counts[hour - begin] += count
        self._state.document(month.tenant, _KIND, month.key, msgspec.json.encode(counts.tolist()))
        with self._counting:
            self._stored[month] = counts
            for hour, count in new.items():
                key = month.tenant, hour
                self._fresh[key] -= count
                if not self._fresh[key]:
                    del self._fresh[key]

    def _give_up(self) -> None:
        with self._counting:
            for month in list(self._stored)[: max(0, len(self._stored) - _MOST_MONTHS)]:
                del self._stored[month]


def _month(hour: int) -> int:
    """The number of the month that ``hour`` (since 1970) is in."""
    return int(np.datetime64(hour, "h").astype("datetime64[M]").astype(np.int64))


def _decoded(body: bytes, month: Month) -> list[int]:
    try:
        return msgspec.json.decode(body, type=list[int])
    except msgspec.MsgspecError as error:
        raise StorageError(f"the duplicates of {month.tenant} in {month.key} cannot be read: {error}") from error
