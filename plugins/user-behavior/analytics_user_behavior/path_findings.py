"""What the edges of paths show, where there are enough of them to say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from analytics_core import Insight, Recommendation
from analytics_user_behavior.activity import Asked, name_of
from analytics_user_behavior.counts import OTHER
from analytics_user_behavior.intervals import normal_cdf, wilson
from analytics_user_behavior.transitions import EXIT

_LEAST = 50
"""Paths at a node below which nothing is said of it."""


class Way(NamedTuple):
    """One edge as it is shown; ``share`` is of the paths at ``origin``."""

    depth: int
    origin: str
    target: str
    paths: int
    share: float

    @property
    def reached(self) -> int:
        return round(self.paths / self.share)


def findings(ways: Sequence[Way]) -> tuple[list[Insight], list[Recommendation]]:
    """Of edges read forwards: the way that most paths take, and the event after which most of them end."""
    told_of = [way for way in ways if way.reached >= _LEAST and OTHER not in (way.origin, way.target)]
    onward = [way for way in told_of if way.target != EXIT]
    exits = [way for way in told_of if way.target == EXIT]
    found, advice = [], []
    if onward:
        found.append(_main(sorted(onward, key=lambda way: -way.paths)))
    if exits:
        end = max(exits, key=lambda way: way.paths)
        found.append(_end(end))
        sure = wilson(end.paths, end.reached)
        if sure is not None and sure.low > 0.5:
            advice.append(
                Recommendation(
                    title=f"Look at what is missing after {end.origin}",
                    description=f"{end.share:.0%} of the paths that are at {end.origin} in step {end.depth} end there. "
                    "See whether that is where they should end; if not, compare them with those that go on.",
                    insight="path-end",
                )
            )
    return found, advice


def _main(ways: Sequence[Way]) -> Insight:
    first, second = ways[0], ways[1].paths if len(ways) > 1 else 0
    return Insight(
        key="main-way",
        title=f"Most paths lead from {first.origin} to {first.target}",
        description=f"No edge has more paths than that from {first.origin} in step {first.depth} to {first.target}: "
        f"{first.paths}, {first.share:.0%} of the {first.reached} that were there.",
        confidence=normal_cdf((first.paths - second) / math.sqrt(first.paths + second)),
        data={
            "depth": first.depth,
            "from": first.origin,
            "to": first.target,
            "paths": first.paths,
            "size": first.share,
        },
    )


def _end(way: Way) -> Insight:
    return Insight(
        key="path-end",
        title=f"Most paths that end do so after {way.origin}",
        description=f"{way.paths} of the {way.reached} paths that are at {way.origin} in step {way.depth} "
        f"({way.share:.0%}) have nothing after it.",
        data={"depth": way.depth, "event": way.origin, "ended": way.paths, "reached": way.reached, "size": way.share},
    )


def missing(asked: Mapping[str, Asked], names: Sequence[str]) -> list[Insight]:
    """That events which are asked for by name do not exist, by parameter, and which names are near."""
    found = []
    for parameter, event in asked.items():
        name = name_of(event)
        if name in names or not names or not name:
            continue
        close = get_close_matches(name, names, 3)
        near = f"; near are {', '.join(close)}" if close else ""
        found.append(
            Insight(
                key=f"unknown-{parameter}",
                title=f"There is no event {name}",
                description=f"No event of that name was ever seen{near}.",
                data={"parameter": parameter, "event": name, "near": close},
            )
        )
    return found
