"""The analysis ``paths``: which way users go, step by step as the edges of a Sankey diagram, or from event to event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, UserOrder
from analytics_user_behavior.columns import I64
from analytics_user_behavior.counts import OTHER, Counted, added, counted, looked_up, quantiles, sums, top
from analytics_user_behavior.figures import F64, ratio, shown
from analytics_user_behavior.path_findings import Way, findings, missing
from analytics_user_behavior.transitions import ENTRY, EXIT, transitions
from analytics_user_behavior.walks import WALKED, Cut, cut_by, walks

DEPTH: Final = 5
LIMIT: Final = 10
_SECOND = 1e6
_THREADS: Final = 2


class _Level(NamedTuple):
    """The edges of one depth. ``edges`` are counted by ``near * size + far``, where ``size - 1`` stands for outside of
    the path. ``of`` and ``micros``, in pieces of shape ``(any,)``, are the codes of those inside, one by one, and how
    long they take."""

    edges: Counted
    of: Sequence[npt.NDArray[np.integer[Any]]]
    micros: Sequence[I64]


class _Flow(NamedTuple):
    levels: Sequence[_Level]
    names: Sequence[str]


class _Nodes(NamedTuple):
    """What is shown at each depth: the codes of the named events, and of each code (depths, names + 1) its place among
    them, ``limit`` for the rest and ``limit + 1`` for what lies outside of the path."""

    named: Sequence[I64]
    place: I64
    limit: int


class _Edges(NamedTuple):
    """Edges between places of `_Nodes`, shape ``(edges,)``: ``near`` is where the reading comes from. ``depth`` counts
    from 0, ``reached`` are the paths at ``near``."""

    depth: I64
    near: I64
    far: I64
    paths: I64
    reached: I64
    seconds: F64


def paths(events: EventReader, given: Mapping[str, Any], gap_minutes: int) -> Answer:
    """One row per edge: how many paths go on from one event to another.

    A path is what a session (``by: session``; as in `sessions`) or a user over the whole range (``by: user``; persons
    only) did one after the other, in the order (timestamp, partition, seq). With ``start`` it begins at the first event
    that is meant and with ``end`` it ends at the last one, each a name or ``{"event", "where"}``; where that is not
    there is no path. With both it runs from the first ``start`` to the last ``end`` after it. ``collapse`` (default):
    an event that follows one of its name counts as one with it, at the time of the first.

    ``mode: steps`` (default) reads each path from its begin, with ``end`` alone backwards from its end. Depth 1 is
    where the reading begins; an edge of depth d leads between the steps d and d + 1 and is there for d < ``depth``.
    ``from`` is always the earlier event. At each depth the ``limit`` events with most paths are named, the rest is
    ``(other)``; a path that is over leads to ``(exit)``, read backwards one that had not begun comes from
    ``(entry)``. ``paths`` counts paths; ``share`` is of those that are at the edge's step of depth d;
    ``median_seconds`` is between the two events, null for entry and exit. ``from_node`` and ``to_node`` name the nodes
    of a Sankey diagram, which is why they have the depth in front.
    Columns: depth, from, to, from_node, to_node, paths, share, median_seconds.

    ``mode: transitions`` counts every step from an event to the next inside the paths, whatever the depth, with
    ``(entry)`` before the first and ``(exit)`` after the last event: ``share`` is of all steps from ``from``, and the
    ``limit`` events that occur most are named.
    Columns: from, to, transitions, share, mean_seconds (null for entry and exit).
    """
    cut, marks = cut_by(given, gap_minutes)
    limit = given.get("limit", LIMIT)
    if given.get("mode", "steps") == "transitions":
        return transitions(events, cut, marks, limit)
    depth, backwards = given.get("depth", DEPTH), cut.end and not cut.start
    parts = events.in_user_order(lambda part: _flow(part, cut, depth, backwards), marks=marks, columns=WALKED)
    flow = _joined(parts, depth)
    nodes = _nodes([level.edges for level in flow.levels], flow.names, limit)
    edges = _grouped(flow, nodes)
    table = _table(edges, nodes, flow.names, backwards)
    if not len(edges.paths):
        return Answer(table, missing({mark: given[mark] for mark in marks}, flow.names))
    ways = [Way(row["depth"], row["from"], row["to"], row["paths"], row["share"]) for row in table.to_pylist()]
    insights, advice = ([], []) if backwards else findings(ways)
    return Answer(table, insights, advice, Chart(kind="sankey", x="from_node", y=("paths",), series="to_node"))


def _flow(part: UserOrder, cut: Cut, depth: int, backwards: bool) -> _Flow:
    found = walks(part, cut)
    size, outside = len(part.names) + 1, len(part.names)
    kind = np.int32 if size * size < 1 << 31 else np.int64
    place, bound = (found.before(found.end), found.begin) if backwards else (found.begin, found.end)
    name, at = found.name.take(place), found.at.take(place)
    levels = []
    for _ in range(depth - 1):
        further = found.before(place) if backwards else found.after(place)
        goes_on = further >= bound if backwards else further < bound
        on, over = np.flatnonzero(goes_on), np.flatnonzero(~goes_on)
        place, bound = further.take(on), bound.take(on)
        code, left = np.multiply(name, size, dtype=kind), at.take(on)
        name, at = found.name.take(place), found.at.take(place)
        of = code.take(on) + name
        edges = counted(np.concatenate([of, code.take(over) + outside]), size * size)
        levels.append(_Level(edges, [of], [np.abs(at - left)]))
    return _Flow(levels, part.names)


def _joined(parts: Sequence[_Flow], depth: int) -> _Flow:
    if not parts:
        none = [np.zeros(0, np.int64)]
        return _Flow([_Level(added([]), none, none)] * (depth - 1), ())
    levels = []
    for level in range(depth - 1):
        edges, of, micros = zip(*(part.levels[level] for part in parts), strict=True)
        levels.append(_Level(added(edges), list(chain(*of)), list(chain(*micros))))
    return _Flow(levels, parts[0].names)


def _nodes(levels: Sequence[Counted], names: Sequence[str], limit: int) -> _Nodes:
    size = len(names) + 1
    place = np.full((len(levels) + 1, size), limit)
    place[:, size - 1] = limit + 1
    named = []
    for depth in range(len(levels) + 1):
        last = depth == len(levels)
        edges = levels[depth - last]
        count = sums(edges.code % size if last else edges.code // size, edges.times, size)
        count[size - 1] = 0
        chosen = top(count, names, limit)
        place[depth, chosen] = np.arange(len(chosen))
        named.append(chosen)
    return _Nodes(named, place, limit)


def _grouped(flow: _Flow, nodes: _Nodes) -> _Edges:
    """By depth and place, of equals those with most paths first."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="paths") as pool:  # sorting holds no lock
        levels = pool.map(lambda depth: _level(flow.levels[depth], nodes, depth), range(len(flow.levels)))
        return _Edges(*map(np.concatenate, zip(*levels, strict=True)))


def _level(level: _Level, nodes: _Nodes, depth: int) -> _Edges:
    size, width = nodes.place.shape[1], nodes.limit + 2
    edges = level.edges
    near, far = nodes.place[depth, edges.code // size], nodes.place[depth + 1, edges.code % size]
    code, edge = np.unique(near * width + far, return_inverse=True)
    count = sums(edge, edges.times, len(code)).astype(np.int64)
    inside = np.where(code % width == width - 1, 0, count)
    of = looked_up(edges.code, edge, np.concatenate(level.of), size * size)
    seconds = quantiles(np.concatenate(level.micros), of, inside, (0.5,))[0] / _SECOND
    reached = sums(code // width, count, width).astype(np.int64)[code // width]
    by = np.lexsort((-count, code // width))
    columns: tuple[Any, ...] = (np.full(len(code), depth), code // width, code % width, count, reached, seconds)
    return _Edges(*(column[by] for column in columns))


def _table(edges: _Edges, nodes: _Nodes, names: Sequence[str], backwards: bool) -> pa.Table:
    outside = ENTRY if backwards else EXIT

    def named(depth: I64, place: I64) -> list[str]:
        words = [[*(names[code] for code in codes.tolist())] for codes in nodes.named]
        special = {nodes.limit: OTHER, nodes.limit + 1: outside}
        pairs = zip(depth.tolist(), place.tolist(), strict=True)
        return [special[at] if at in special else words[level][at] for level, at in pairs]

    def labelled(depth: I64, words: Sequence[str]) -> list[str]:
        return [f"{level + 1}: {word}" for level, word in zip(depth.tolist(), words, strict=True)]

    near, far = named(edges.depth, edges.near), named(edges.depth + 1, edges.far)
    ends = [(near, labelled(edges.depth, near)), (far, labelled(edges.depth + 1, far))]
    (origin, origin_node), (target, target_node) = reversed(ends) if backwards else ends
    text = {"from": origin, "to": target, "from_node": origin_node, "to_node": target_node}
    return pa.table(
        {
            "depth": edges.depth + 1,
            **{column: pa.array(words, pa.string()) for column, words in text.items()},
            "paths": edges.paths,
            "share": shown(ratio(edges.paths, edges.reached)),
            "median_seconds": shown(edges.seconds),
        }
    )
