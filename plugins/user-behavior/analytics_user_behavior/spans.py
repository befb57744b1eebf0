"""How many minutes of the clock can be folded at once, with what one at a time would give.

Between two minutes that were looked at, sessions end. That changes what later events join in few cases only, and those
are found from each event and the arrival before it of the same key. Where one stands, a new span of minutes begins.
"""

from __future__ import annotations

import numpy as np

from analytics_user_behavior.clusters import stable_order
from analytics_user_behavior.columns import I64, MINUTE, Columns, Mask, runs
from analytics_user_behavior.open_sessions import OpenSessions, numbered

_LONG_AGO = -(1 << 62)


def spans(events: Columns, clock: I64, sessions: OpenSessions, gap: int) -> I64:
    """Where each span of events (in log order) begins, and the end, shape ``(spans + 1,)``.

    ``clock`` is the minute of each event, never falling; ``sessions`` are those open before the first; ``gap`` is in
    microseconds. A span has whole minutes, and at least one.
    """
    edges = runs(clock)
    if len(edges) <= 2:
        return edges
    begins = np.zeros(len(edges), np.bool_)
    begins[[0, -1]] = True
    kept = np.flatnonzero(events.kept)
    if len(kept):
        apart = kept[_dependent(events.take(kept), clock[kept] * MINUTE, sessions, gap)]
        begins[np.searchsorted(edges, apart, side="right") - 1] = True
    return edges[begins]


def _dependent(events: Columns, now: I64, sessions: OpenSessions, gap: int) -> Mask:
    """Events for which it may matter what has ended before their minute begins at ``now``, shape ``(n,)``.

    No event depends on it whose key has had none that could be over. Else those do that

    - join or follow the arrival before them, though its session may be over;
    - happened before an earlier arrival, or come after one of a later position, and all of their key after these;
    - are over as they arrive.
    """
    keys, code = numbered(events.key)
    by = stable_order(code)
    first = runs(code[by])[:-1]
    length = np.diff(np.append(first, len(by)))
    at, order, client, now = events.at[by], events.order[by], events.client[by], now[by]
    quiet = np.maximum(at, events.received[by])
    known, owner = sessions.of(keys)
    known_quiet = np.maximum(known["end"], known["received"])

    at_before, quiet_before, order_before = (_shifted(column) for column in (at, quiet, order))
    at_before[first] = order_before[first] = _LONG_AGO
    quiet_before[first] = -_LONG_AGO
    at_before[first[owner]] = known["end"]
    quiet_before[first[owner]] = known_quiet
    np.maximum.at(order_before, first[owner], known["last_order"])

    unordered = at < at_before
    unordered[first[np.bincount(owner, minlength=len(keys)) > 1]] = True
    least = np.minimum.reduceat(quiet, first)
    np.minimum.at(least, owner, known_quiet)
    all_open = np.repeat(least + gap >= now[first + length - 1], length)
    follows_ended = (quiet_before + gap < now) & ((at - at_before <= gap) | client)
    dependent = follows_ended | (_since(unordered, first, length) & ~client)
    dependent = (dependent & ~all_open) | _since(order < order_before, first, length) | (quiet + gap < now)
    result = np.empty(len(by), np.bool_)
    result[by] = dependent
    return result


def _shifted(values: I64) -> I64:
    """The value before each; the first has its own."""
    return np.concatenate([values[:1], values[:-1]])


def _since(flags: Mask, first: I64, length: I64) -> Mask:
    """Whether a flag has been raised up to here in the runs that begin at ``first``."""
    raised = np.cumsum(flags)
    already: I64 = raised[first] - flags[first]
    seen: Mask = raised > np.repeat(already, length)
    return seen
