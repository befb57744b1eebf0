"""Cohorts: who did something, or did not, or has a value; and which visitors these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Struct

from analytics_core.errors import ManifestError, ParameterError, near
from analytics_core.lake.user_order import I64, U64, Mask
from analytics_core.manifest import CohortCondition, CohortManifest, Deployment, Source, fit
from analytics_core.manifest.source import dotted
from analytics_core.metrics.filters import Filter
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.ranges import span
from analytics_core.records import UserOrder

Fold = Callable[[Callable[[UserOrder], U64], Mapping[str, tuple[Filter, ...]]], list[U64]]
"""Gives each part of all the tenant's visitors, with these marks, to a step."""

_HAS: Final = "exists"
_REQUEST: Final = Source("")


class Condition(Struct, frozen=True):
    """One condition. ``filters`` say which events are meant; ``has`` has one filter. ``within``: seconds."""

    kind: Literal["did", "did_not", "has"]
    filters: tuple[Filter, ...]
    at_least: int = 1
    within: float | None = None


class Cohort(Struct, frozen=True):
    """The people for whom every condition holds."""

    conditions: tuple[Condition, ...]

    @property
    def filters(self) -> list[Filter]:
        """Those of all conditions."""
        return [filter_ for condition in self.conditions for filter_ in condition.filters]


def declared_cohorts(deployment: Deployment) -> dict[str, Cohort]:
    """The cohorts of the manifests by name. :raises ManifestError: for a filter that is none."""
    found = {}
    for name, manifest in deployment.cohorts.items():
        try:
            found[name] = _cohort(manifest.all, "all")
        except ParameterError as error:
            raise deployment.sources["cohort", name].error(("all",), str(error)) from error
    return found


def read_cohort(given: Any, known: Mapping[str, Cohort], parameter: str = "cohort") -> Cohort:
    """A cohort by its name, or ``{"all": [conditions]}`` as in a manifest.

    :raises ParameterError: naming the condition and what would be valid.
    """
    if isinstance(given, str):
        if given not in known:
            hint = near(given, known) if known else "; no manifest of kind cohort declares any"
            raise ParameterError(parameter, f"no cohort is named {given[:64]!r}{hint}")
        return known[given]
    if not isinstance(given, dict):
        raise ParameterError(parameter, f'{_shown(given)} is no cohort; valid are a name and {{"all": [conditions]}}')
    try:
        manifest = fit(CohortManifest, {"name": "asked", **given}, _REQUEST)
    except ManifestError as error:
        where = f"{parameter}.{error.path}" if error.path else parameter
        raise ParameterError(where, error.problem.removesuffix(" (line 1)")) from None
    for key, problem in manifest.problems():
        raise ParameterError(f"{parameter}.{dotted(key)}", problem)
    return _cohort(manifest.all, f"{parameter}.all")


def _shown(given: Any) -> str:
    return str(msgspec.json.encode(given, enc_hook=str)[:64], errors="replace")


def _cohort(conditions: tuple[CohortCondition, ...], parameter: str) -> Cohort:
    return Cohort(tuple(one for i, c in enumerate(conditions) for one in _conditions(c, f"{parameter}[{i}]")))


def _conditions(given: CohortCondition, parameter: str) -> list[Condition]:
    within = None if given.within is None else span(given.within, f"{parameter}.within").total_seconds()
    if given.has is not None:
        return [Condition("has", (f,), 1, within) for f in parse_filters(given.has, f"{parameter}.has")]
    happening, kind = (given.did, "did") if given.did is not None else (given.did_not, "did_not")
    assert happening is not None
    named = {"event": happening.event} if happening.event is not None else {}
    filters = parse_filters({**named, **happening.where}, f"{parameter}.{kind}")
    return [Condition("did" if kind == "did" else "did_not", filters, given.at_least, within)]


def members(cohort: Cohort, end: int, fold: Fold) -> U64:
    """The keys of the people in the cohort at ``end`` (microseconds UTC, exclusive), ascending."""
    marks: dict[str, tuple[Filter, ...]] = {}
    for i, condition in enumerate(cohort.conditions):
        marks[f"{i}"] = condition.filters
        if condition.kind == "has":
            marks[f"{i} {_HAS}"] = (Filter(condition.filters[0].field, "exists", True),)

    def step(part: UserOrder) -> U64:
        kept = part.known & (part.first_at < end)
        for i, condition in enumerate(cohort.conditions):
            kept &= _holds(condition, f"{i}", end, part)
        return part.key[kept]

    found = fold(step, marks)
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def _holds(condition: Condition, mark: str, end: int, part: UserOrder) -> Mask:
    """For which visitors it holds, shape ``(users,)``."""
    seen = part.at < end
    if condition.within is not None:
        seen &= part.at >= end - int(condition.within * 1_000_000)
    if condition.kind == "has":
        named = np.where(part.marks[f"{mark} {_HAS}"] & seen, np.arange(len(part)), -1)
        latest: I64 = np.maximum.reduceat(named, part.start())
        return (latest >= 0) & part.marks[mark][latest]
    times = np.add.reduceat((part.marks[mark] & seen).astype(np.int64), part.start())
    often: Mask = times >= condition.at_least
    return often if condition.kind == "did" else ~often
