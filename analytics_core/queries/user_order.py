"""A tenant's events in user order, and the questions that read them: visitors, part by part, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from threading import Thread
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.lake.user_order import BOT, EMPTY, I32, I64, LATE, U8, U64, Run, cuts, joined, keys_of, ordered
from analytics_core.properties import extract_property
from analytics_core.queries.identity import Identity
from analytics_core.queries.levels import LINKS, Level, joined_level
from analytics_core.queries.marks import PLACE, Columns, Meant, no_columns
from analytics_core.records import UserOrder

Step = TypeVar("Step")
PART: Final = 1 << 19
"""Events of one part: some megabytes a column, so that what is made of them stays in the processor's cache."""
PIECE: Final = 1 << 17
"""Events that are scanned at a time: what is made of them is about one column."""
LATE_SECONDS: Final = 3_600
"""An event is late when it is received so long after it happened."""
BOTS: Final = "bot|crawl|spider|slurp|headless|lighthouse|curl|wget|python-|http-?client"
"""What the user agent of a bot has in it, whatever the case; RE2, which DuckDB and Arrow both read."""
_NO_TIMES: Final = np.zeros(0, np.int64)
_AGENT: Final = "json_extract_string(context, '$.userAgent')"
_IS_BOT: Final = f"contains(context, 'userAgent') AND regexp_matches(TRY({_AGENT}), '(?i){BOTS}')"
_IS_LATE: Final = f"received_at - timestamp > INTERVAL {LATE_SECONDS} SECONDS"
ROWS: Final = (
    f"SELECT {PLACE} AS place, name, user_id, anonymous_id, session_id, timestamp, "
    f"CAST((CASE WHEN {_IS_LATE} THEN {LATE} ELSE 0 END) | (CASE WHEN {_IS_BOT} THEN {BOT} ELSE 0 END) AS UTINYINT) "
    "AS flags FROM ever"
)
"""SQL: the columns of which `run_of` makes a run."""


class Quality(NamedTuple):
    """What the events of a range are worth: how many, how many of them were received over an hour after they happened,
    and how many say that a bot sent them."""

    events: int = 0
    late: int = 0
    bots: int = 0


class Events(NamedTuple):
    """Some events in no order, as the columns of a `Run`, shape ``(n,)`` each; none is before ``earliest`` or after
    ``latest``. ``by_visitor`` gives for each event what a function makes of the keys of the visitors, ``(users,)``."""

    at: I64
    place: I64
    name: I32
    flags: U8
    by_visitor: Callable[[Callable[[U64], I64]], I64]
    earliest: int
    latest: int


class View(Struct, frozen=True, eq=False):
    """All events of a tenant below some position of the log. Each of ``levels`` is later in the log than those before;
    ``names`` are the words of the codes, ``columns`` gives values by log position."""

    levels: Sequence[Level]
    names: Sequence[str]
    columns: Columns = no_columns

    def parts(self) -> list[tuple[int, int]]:
        """``(low, high)``: the keys of each part, which cover all visitors; the events of nobody are in none."""
        first, *others = cuts([level.run for level in self.levels], PART)
        return list(pairwise([first + 1, *others]))

    def quality(self, start: int, end: int, threads: int = 2) -> Quality:
        """Of all events with ``start <= timestamp < end`` (microseconds)."""

        def counted(pieces: Iterable[Events]) -> list[int]:
            found = Quality()
            for piece in pieces:
                flags = piece.flags
                if piece.earliest < start or piece.latest >= end:
                    flags = flags[(piece.at >= start) & (piece.at < end)]
                late, bots = (int(np.count_nonzero((flags & bit) != 0)) for bit in (LATE, BOT))
                found = Quality(found.events + len(flags), found.late + late, found.bots + bots)
            return list(found)

        return Quality(*np.sum(self.scan(counted, threads), axis=0).tolist())

    def scan(
        self, step: Callable[[Iterator[Events]], Step], threads: int, go_on: Callable[[], None] = lambda: None
    ) -> list[Step]:
        """What ``step`` makes of all events, those of nobody too, where their order does not matter.

        They are shared out: ``step`` is called up to ``threads`` times, at least once, and each time given some of
        them, piece by piece. ``go_on`` is called before each piece, and raises when there is to be no more.
        """
        left = deque((level, first) for level in self.levels for first in range(0, len(level.run), PIECE))

        def taken() -> Iterator[Events]:
            with suppress(IndexError):  # another thread has taken the last
                while True:
                    level, first = left.popleft()
                    go_on()
                    at, place, name, flags = level.columns(("at", "place", "name", "flags"), first, first + PIECE)
                    by_visitor = partial(level.by_visitor, first=first, last=first + PIECE)
                    yield Events(at, place, name, flags, by_visitor, *level.run.time_span(first, first + PIECE))

        if len(left) <= 1 or threads <= 1:
            return [step(taken())]
        with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
            try:
                return list(pool.map(step, [taken() for _ in range(min(threads, len(left)))]))
            finally:
                left.clear()

    def part(self, low: int, high: int, meant: Meant, cohort: U64 | None) -> UserOrder | None:
        """The visitors with ``low <= key < high`` and what is meant of their events; None without any.

        ``cohort``: the keys that are asked for, ascending; None for all.
        """
        runs = [level.span(low, high) for level in self.levels]
        if cohort is not None:
            runs = [run.visitors(run.among(cohort)) for run in runs]
        run = joined([meant.select(run) for run in runs if len(run)])
        if not len(run):
            return None
        return UserOrder(
            key=run.key,
            known=(run.key & np.uint64(1)).astype(np.bool_),
            end=run.end,
            first_at=_first_at(run.key, runs) if meant.first_at else _NO_TIMES,
            at=run.at,
            seq=run.place,
            name=run.name,
            session=run.session,
            names=self.names,
            marks=meant.marks(run),
            values=meant.values(run),
            words=meant.words,
        )

    def fold(
        self,
        step: Callable[[UserOrder], Step],
        meant: Meant,
        cohort: U64 | None,
        threads: int,
        go_on: Callable[[], None],
    ) -> list[Step]:
        """What ``step`` makes of each part. ``go_on`` is called before each, and raises when there is to be no more."""

        parts = self.parts()
        turns = iter(list(enumerate(parts)))
        made: list[list[Step]] = [[] for _ in parts]
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for i, part in turns:
                    if failed:
                        return
                    go_on()
                    found = self.part(*part, meant, cohort)
                    made[i] = [] if found is None else [step(found)]
            except BaseException as error:
                failed.append(error)

        # not a pool: a step that never returns is not to keep the process from its end
        others = [Thread(target=work, name="user-order", daemon=True) for _ in range(min(threads, len(parts)) - 1)]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
        if failed:
            raise failed[0]
        return [one for some in made for one in some]


def _first_at(key: U64, runs: Sequence[Run]) -> I64:
    """When the first event of each visitor was, shape ``(len(key),)``."""
    first = np.full(len(key), np.iinfo(np.int64).max)
    for run in runs:
        if run.key is key:
            np.minimum(first, run.at[run.start], out=first)
        elif len(run):
            at = np.minimum(np.searchsorted(run.key, key), len(run.key) - 1)
            here = run.key[at] == key
            first[here] = np.minimum(first[here], run.at[run.start[at[here]]])
    return first


# --- from rows -------------------------------------------------------------------------------------------------------


class Words:
    """Codes for event names, given as they come."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        self.words = list(words)
        self._codes = {word: code for code, word in enumerate(self.words)}

    def encode(self, column: pa.Array) -> npt.NDArray[np.int32]:
        """The code of each name, shape ``(n,)``; new words are given the next ones."""
        encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
        table = np.array([self._code(word) for word in encoded.dictionary.to_pylist()], np.int32)
        indices = encoded.indices.to_numpy(zero_copy_only=False)
        return table[indices] if len(table) else np.zeros(0, np.int32)

    def _code(self, word: str) -> int:
        code = self._codes.get(word)
        if code is None:
            code = self._codes[word] = len(self.words)
            self.words.append(word)
        return code


def run_of(table: pa.Table, names: Words) -> Run:
    """A run of events with the columns ``place, name, user_id, anonymous_id, session_id, timestamp, flags``."""
    if not len(table):
        return EMPTY
    whole = table.unify_dictionaries().combine_chunks()
    column = {name: whole.column(name).chunk(0) for name in whole.column_names}
    keys = keys_of(column["user_id"], column["anonymous_id"], column["session_id"])
    at = column["timestamp"].cast(pa.int64()).to_numpy()
    flags = column["flags"].to_numpy(zero_copy_only=False).astype(np.uint8)
    return ordered(keys.key, at, column["place"].to_numpy(), names.encode(column["name"]), keys.session, flags)


def rows_of(events: pa.Table) -> pa.Table:
    """The columns of `ROWS` out of those of `events.SCHEMA`."""
    place = pc.bit_wise_or(pc.shift_left(events.column("partition").cast(pa.int64()), 48), events.column("seq"))
    after = pc.subtract(events.column("received_at").cast(pa.int64()), events.column("timestamp").cast(pa.int64()))
    late = pc.multiply(pc.greater(after, LATE_SECONDS * 1_000_000).cast(pa.uint8()), LATE)
    bots = pa.chunked_array([_bots(chunk) for chunk in events.column("context").chunks], pa.uint8())
    names = ["name", "user_id", "anonymous_id", "session_id", "timestamp"]
    return events.select(names).append_column("place", place).append_column("flags", pc.bit_wise_or(late, bots))


def _bots(context: pa.Array) -> pa.Array:
    agents = extract_property(context, "userAgent", str)
    found = pc.match_substring_regex(agents, BOTS, ignore_case=True).fill_null(False)
    return pc.multiply(found.cast(pa.uint8()), pa.scalar(BOT, pa.uint8()))


class Whole(Protocol):
    """`queries.snapshot.Snapshot`, as far as it is needed."""

    def identity(self) -> Identity: ...
    def everything(self) -> pa.Table: ...


def view_of(rows: Whole) -> View:
    """All that ``rows`` hold, read and sorted now."""
    names = Words()
    run = run_of(rows.everything(), names)
    level = Level(run) if LINKS.isdisjoint(names.words) else joined_level(run, rows.identity())
    return View((level,), names.words)
