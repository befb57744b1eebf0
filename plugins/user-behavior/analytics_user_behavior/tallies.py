"""How often one event followed another, and after which event sessions ended: small counts per hour."""

from __future__ import annotations

import numpy as np

from analytics_user_behavior.clusters import stable_order
from analytics_user_behavior.columns import I64, Columns
from analytics_user_behavior.open_sessions import Joined

HOUR = 3_600_000_000
HOURS = 24
KEPT = HOURS + 3
"""The hours that a tally remembers: the one that has begun, the two before it, and a day before those."""
CODES = 256


class HourlyTally:
    """Counts of small codes per hour since 1970, for the trailing `KEPT` hours."""

    def __init__(self, hours: dict[int, dict[int, int]] | None = None) -> None:
        self.hours = hours or {}

    def add(self, hour: int, codes: I64) -> None:
        """Count each of ``codes`` (0 to 65 535, shape ``(n,)``) in ``hour``."""
        counts = np.bincount(codes)
        found = np.flatnonzero(counts)
        entry = self.hours.setdefault(hour, {})
        for code, count in zip(found.tolist(), counts[found].tolist(), strict=True):
            entry[code] = entry.get(code, 0) + count

    def trim(self, hour: int) -> None:
        """Forget the hours that are not among the `KEPT` up to ``hour``."""
        for old in [h for h in self.hours if h <= hour - KEPT]:
            del self.hours[old]

    def total(self, hour: int, hours: int = HOURS) -> dict[int, int]:
        """Counts by code over the ``hours`` up to and with ``hour``."""
        totals: dict[int, int] = {}
        for each, entry in self.hours.items():
            if hour - hours < each <= hour:
                for code, count in entry.items():
                    totals[code] = totals.get(code, 0) + count
        return totals


def steps(joined: Joined, events: Columns, gap: int) -> I64:
    """Each step from one event of a key to the next that arrived, as ``from * 256 + to``, shape ``(steps,)``.

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
    return codes


def _by_arrival(code: I64, order: I64) -> I64:
    arrival = stable_order(order)
    return arrival[stable_order(code[arrival])]


def ranked(totals: dict[int, int]) -> list[tuple[int, int]]:
    """(code, count), most frequent first; equal counts by code."""
    return sorted(totals.items(), key=lambda item: (-item[1], item[0]))
