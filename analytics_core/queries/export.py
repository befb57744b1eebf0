"""The events of one snapshot as one stream of bytes, oldest first, in bounded memory.

A reader sorts in memory and spills nothing, so the range is cut into windows of at most `WINDOW` bytes, which follow
each other in the order of the rows: by time, and by log position where one instant alone has too many events. Each
window is read, sorted and encoded before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa

from analytics_core.events import DAY, MINUTE, micros, moment
from analytics_core.queries.export_formats import Encoder, Format
from analytics_core.queries.marks import PLACE
from analytics_core.queries.projection import Bound, Shown
from analytics_core.queries.reader import Reader

WINDOW: Final = 48 << 20
"""Bytes of the events of one window, about, as they are in the lake's columns."""
WINDOW_SECONDS: Final = 300.0
"""The budget of one window. An export has no other: it ends with its client, or with the host."""
_ROW: Final = 200
"""Bytes of an event beside its JSON."""
_STEPS: Final = (60 * MINUTE, MINUTE, MINUTE // 60, 1_000, 1)
"""Microseconds. How finely a part is cut that is too large for one window; the last is one instant."""
_PLACES: Final = 1 << 12
"""Log positions that are never parted: 4,096 events of 32 kB are still no matter."""
_LAST_PLACE: Final = 2**63 - 1


class Part(NamedTuple):
    """Events with ``low <= timestamp < high`` (microseconds) and a place in ``[first, last)``."""

    low: int
    high: int
    first: int = 0
    last: int = _LAST_PLACE

    def condition(self, bound: Bound) -> str:
        found = f"timestamp >= {bound(moment(self.low))} AND timestamp < {bound(moment(self.high))}"
        if (self.first, self.last) != (0, _LAST_PLACE):
            found += f" AND {PLACE} >= {bound(self.first)} AND {PLACE} < {bound(self.last)}"
        return found


Weighed = tuple[Part, int]
"""A part, and how many bytes its events have."""


class Export:
    """All events of ``reader`` in one format. ``rows``: how many there are. ``release`` closes the reader at least."""

    def __init__(
        self,
        reader: Reader,
        fields: Sequence[Shown],
        format: Format,  # noqa: A002
        release: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._release = release
        self._encoder: Encoder = format.encoder(fields)
        self._weight = _weight({one.field.column for one in fields})
        self.format = format
        whole = Part(micros(reader.range.start), micros(reader.range.end))
        self._days = self._weighed(whole, DAY, f"count(*) * {_ROW}")
        self.rows = sum(weight for _, weight in self._days) // _ROW

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of some 100 kB, of which the last may be empty. Raises as `Reader.sql`."""
        head = self._encoder.begin(self._read(None))  # goes with what follows: the first piece proves the first window
        for window in self._windows():
            for piece in self._encoder.encode(self._read(window)):
                yield head + piece
                head = b""
        yield head + self._encoder.end()

    def close(self) -> None:
        """End what runs and release the snapshot. May be called twice, and while another thread reads."""
        release, self._release = self._release, self._reader.close
        release()

    def _read(self, window: Part | None) -> pa.Table:
        bound = Bound()
        row = self._encoder.select(bound)
        where = "false" if window is None else window.condition(bound)
        order = "events.timestamp, events.partition, events.seq"
        return self._reader.sql(f"SELECT {row} FROM events WHERE {where} ORDER BY {order}", bound)

    def _windows(self) -> Iterator[Part]:
        for part, _ in _grouped(self._days):  # by their number of rows alone, which costs no look at the JSON
            yield from self._cut(part, 0)

    def _cut(self, whole: Part, level: int) -> Iterator[Part]:
        """``whole`` in windows; where one of a step is too large still, in finer steps."""
        fine = level == len(_STEPS)
        parts = self._placed(whole) if fine else self._weighed(whole, _STEPS[level], self._weight)
        for part, size in _grouped(parts):
            if size > WINDOW and not fine:
                yield from self._cut(part, level + 1)
            else:
                yield part

    def _weighed(self, whole: Part, step: int, weight: str) -> list[Weighed]:
        """The parts of ``whole``, each one ``step`` of microseconds, that have events."""
        found = self._sums(whole, f"epoch_us(timestamp) // {step}", weight)
        return [(Part(max(at * step, whole.low), min((at + 1) * step, whole.high)), size) for at, size in found]

    def _placed(self, whole: Part) -> list[Weighed]:
        """The parts of one instant by log position."""
        found = self._sums(whole, f"{PLACE} // {_PLACES}", self._weight)
        return [(Part(whole.low, whole.high, at * _PLACES, (at + 1) * _PLACES), size) for at, size in found]

    def _sums(self, whole: Part, key: str, weight: str) -> list[tuple[int, int]]:
        bound = Bound()
        where = whole.condition(bound)
        found = self._reader.sql(
            f"SELECT {key} AS at, {weight} AS size FROM events WHERE {where} GROUP BY 1 ORDER BY 1", bound
        )
        return list(zip(found.column("at").to_pylist(), found.column("size").to_pylist(), strict=True))


def _weight(columns: Collection[str]) -> str:
    """SQL of the bytes of all events, when these columns are read."""
    wide = [f" + strlen({column})" for column in ("properties", "context") if column in columns]
    return f"CAST(sum({_ROW}{''.join(wide)}) AS BIGINT)"


def _grouped(parts: Iterable[Weighed]) -> Iterator[Weighed]:
    """Neighbours together up to `WINDOW`; a larger one stays alone."""
    held: Weighed | None = None
    for part, size in parts:
        if held is None:
            held = part, size
        elif held[1] + size <= WINDOW:
            held = held[0]._replace(high=part.high, last=part.last), held[1] + size
        else:
            yield held
            held = part, size
    if held is not None:
        yield held
