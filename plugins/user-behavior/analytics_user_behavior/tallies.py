"""How often one event followed another, and after which event sessions ended: small counts per hour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from analytics_user_behavior.clusters import stable_order
from analytics_user_behavior.columns import I64, Columns
from analytics_user_behavior.open_sessions import Joined

HOUR = 3_600_000_000
HOURS = 24
KEPT = HOURS + 3
"""The hours that a tally remembers: the one that has begun, the two before it, and a day before those."""
CODES = 256
_NO_HOUR = -KEPT


class HourlyTally:
    """Counts of small codes per hour since 1970, for the trailing `KEPT` hours.

    The counts of the trailing day are kept up as events are counted and hours pass, and so are the most frequent codes:
    reading them costs what has changed since, not what is there.
    """

    def __init__(self, hours: dict[int, dict[int, int]] | None = None) -> None:
        self.hours = hours or {}
        self._hour = _NO_HOUR
        """The last hour of the day that ``_trailing`` is of."""
        self._trailing: dict[int, int] = {}
        self._leading: list[int] = []
        self._counted: set[int] = set()
        """Codes that were counted since ``_leading`` was read."""

    def add(self, hour: int, code: int, count: int) -> None:
        """Count ``code`` (0 to 65 535) in ``hour``."""
        entry = self.hours.setdefault(hour, {})
        entry[code] = entry.get(code, 0) + count
        if self._hour - HOURS < hour <= self._hour:
            self._trailing[code] = self._trailing.get(code, 0) + count
            self._counted.add(code)

    def trim(self, hour: int) -> None:
        """Forget the hours that are not among the `KEPT` up to ``hour``."""
        for old in [h for h in self.hours if h <= hour - KEPT]:
            del self.hours[old]

    def trailing(self, hour: int) -> Mapping[int, int]:
        """Counts by code over the `HOURS` up to and with ``hour``, which never goes back. To be read at once."""
        if hour != self._hour:
            self._move_on(hour)
        return self._trailing

    def leading(self, hour: int, n: int) -> list[int]:
        """The ``n`` most frequent codes of `trailing` that are steps between named events, equally frequent by code.

        Within an hour counts only grow, so none can lead that neither led before nor was counted since. ``n`` is the
        same in every call.
        """
        moved = hour != self._hour
        counts = self.trailing(hour)
        candidates: Iterable[int] = counts if moved else {*self._leading, *self._counted}
        self._leading = ranked({code: counts[code] for code in candidates if code >= CODES and code % CODES})[:n]
        self._counted.clear()
        return self._leading

    def between(self, first: int, last: int) -> dict[int, int]:
        """Counts by code over the hours from ``first`` to ``last``, summed anew."""
        totals: dict[int, int] = {}
        for hour in range(first, last + 1):
            for code, count in self.hours.get(hour, {}).items():
                totals[code] = totals.get(code, 0) + count
        return totals

    def _move_on(self, hour: int) -> None:
        """Let the trailing day end with ``hour``: hours that leave it are still kept after a move by a few."""
        if hour - self._hour > KEPT - HOURS:
            self._trailing = self.between(hour - HOURS + 1, hour)
        else:
            for old in range(self._hour - HOURS + 1, hour - HOURS + 1):
                self._leave(self.hours.get(old, {}))
            for code, count in self.between(self._hour + 1, hour).items():
                self._trailing[code] = self._trailing.get(code, 0) + count
        self._hour = hour

    def _leave(self, counts: Mapping[int, int]) -> None:
        for code, count in counts.items():
            left = self._trailing[code] - count
            if left:
                self._trailing[code] = left
            else:
                del self._trailing[code]


ByMinute = dict[int, list[tuple[int, int]]]
"""(code, how many of it) for each minute that has some."""


def by_minute(minutes: I64, codes: I64) -> ByMinute:
    """How many there are of each code (below 2^32) in each minute; both of shape ``(n,)``."""
    found, counts = np.unique((minutes << 32) | codes, return_counts=True)
    grouped: ByMinute = {}
    for each, count in zip(found.tolist(), counts.tolist(), strict=True):
        grouped.setdefault(each >> 32, []).append((each & 0xFFFFFFFF, count))
    return grouped


def steps(joined: Joined, events: Columns, gap: int) -> tuple[I64, I64]:
    """Each step from one event of a key to the next that arrived: ``from * 256 + to``, and which of ``events`` it led
    to, both of shape ``(steps,)``.

    A step leads forward in time and, without a client's session id, over at most ``gap``. The first new event of a
    key follows the latest arrival among its open sessions.
    """
    before = joined.before
    m = len(before)
    order = np.concatenate([before["last_order"], events.order])
    code = np.concatenate([joined.owner, joined.code])
    by = stable_order(code) if (order[1:] > order[:-1]).all() else _by_arrival(code, order)
    code, at = code[by], np.concatenate([before["last_at"], events.at])[by]
    name = np.concatenate([before["last_name"], events.name])[by].astype(np.int64)
    client = np.concatenate([before["client"], events.client])[by]
    apart = np.diff(at)
    follows = (code[1:] == code[:-1]) & (by[1:] >= m) & (apart >= 0) & ((apart <= gap) | client[1:])
    codes: I64 = (name[:-1] * CODES + name[1:])[follows]
    return codes, by[1:][follows] - m


def _by_arrival(code: I64, order: I64) -> I64:
    arrival = stable_order(order)
    return arrival[stable_order(code[arrival])]


def ranked(totals: Mapping[int, int]) -> list[int]:
    """The codes, most frequent first; equally frequent ones by code."""
    return [code for _, code in sorted([(-count, code) for code, count in totals.items()])]
