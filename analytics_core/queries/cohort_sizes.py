"""How many people are in the cohorts that the manifests declare, or in one that is still being defined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from analytics_core.errors import NotFoundError
from analytics_core.lake.user_order import U64
from analytics_core.manifest import CohortManifest
from analytics_core.queries.cache import AnswerCache, Made
from analytics_core.queries.cohorts import Cohort, read_cohort
from analytics_core.queries.declarations import Declared
from analytics_core.queries.history import History
from analytics_core.queries.ranges import time_range, whole_minute
from analytics_core.queries.reader import Reader
from analytics_core.records import TimeRange

DEFAULT_RANGE: Final = "30d"
NONE_DECLARED: Final = (
    "no cohort is declared; a file in the folder of the manifests declares one, such as {kind: cohort, name: buyers, "
    "all: [{did: {event: purchase}, within: 30d}]}"
)
_AT_ONCE: Final = 2
"""Requests whose people are counted at a time; each reads the tenant's whole history."""


class Asked(NamedTuple):
    """Who asks, and of when: ``time_range`` as in a request."""

    tenant: str
    timezone: str = "UTC"
    time_range: Any = DEFAULT_RANGE


class CohortSizes:
    """Answers hold ``timeRange``, ``timezone``, ``data_as_of`` and ``watermark``, ``notes`` that name events and
    properties which the cohorts ask for and nobody has sent, and of each cohort: ``people``, who
    are in it at the end of the range; ``active``, how many of these have an event in the range; and ``share``, their
    share of all people who have one, None when nobody has.

    All methods raise ParameterError for a range that is none, and QueryError over budget. For one event loop.
    """

    def __init__(
        self,
        history: History,
        declared: Callable[[], Declared],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._history = history
        self._declared = declared
        self._clock = clock
        self._answers = AnswerCache()
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def all(self, asked: Asked) -> dict[str, Any]:
        """``cohorts``: those of the manifests, by name, each with its ``name``, ``title`` and ``definition``. ``note``
        says how to declare one where there is none."""
        now = self._declared()
        manifests = sorted(now.deployment.cohorts.values(), key=lambda manifest: manifest.name)
        sizes, beside = await self._sizes(asked, [now.cohorts[manifest.name] for manifest in manifests])
        rows = [{**_described(one), **size} for one, size in zip(manifests, sizes, strict=True)]
        return {"cohorts": rows, "note": None if rows else NONE_DECLARED, **beside}

    async def one(self, name: str, asked: Asked) -> dict[str, Any]:
        """As one of `all`. :raises NotFoundError: when no manifest declares it."""
        now = self._declared()
        if name not in now.cohorts:
            raise NotFoundError("cohort", name, now.cohorts)
        (size,), beside = await self._sizes(asked, [now.cohorts[name]])
        return {**_described(now.deployment.cohorts[name]), **size, **beside}

    async def preview(self, definition: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
        """The size of ``{"all": [conditions]}``. :raises ParameterError: naming the condition that is none."""
        (size,), beside = await self._sizes(asked, [read_cohort(definition, {}, "definition")])
        return {**size, **beside}

    async def _sizes(self, asked: Asked, cohorts: Sequence[Cohort]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Of each cohort, all in one snapshot; and what is said beside them."""
        span = time_range(asked.time_range, asked.timezone, whole_minute(self._clock()))
        version = await asyncio.to_thread(self._history.changed, asked.tenant)
        key = (asked.tenant, tuple(cohorts), span, version[:-1])
        found = await self._answers.get(key, lambda: self._counted(asked.tenant, span, cohorts))
        watermark = version.watermark
        beside = {
            "timeRange": {"start": span.start.isoformat(), "end": span.end.isoformat()},
            "timezone": asked.timezone,
            "data_as_of": min(watermark, span.end).isoformat() if watermark else None,
            "watermark": watermark.isoformat() if watermark else None,
            "notes": found["notes"],
        }
        return found["sizes"], beside

    async def _counted(self, tenant: str, span: TimeRange, cohorts: Sequence[Cohort]) -> Made:
        async with self._turn:
            return Made(await asyncio.to_thread(self._count, tenant, span, cohorts), lasting=True)

    def _count(self, tenant: str, span: TimeRange, cohorts: Sequence[Cohort]) -> dict[str, Any]:
        if not cohorts:
            return {"sizes": [], "notes": []}
        with self._history.reader(tenant, span) as reader:
            seen = _seen(reader)
            sizes = [_size(reader.visitors.members(cohort), seen) for cohort in cohorts]
            return {"sizes": sizes, "notes": reader.visitors.notes()}


def _seen(reader: Reader) -> U64:
    """The keys of the people with an event in the range."""
    parts = reader.in_user_order(lambda part: part.key[part.known])
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _size(members: U64, seen: U64) -> dict[str, Any]:
    active = len(np.intersect1d(members, seen, assume_unique=True))
    share = round(active / len(seen), 4) if len(seen) else None
    return {"people": len(members), "active": active, "share": share}


def _described(manifest: CohortManifest) -> dict[str, Any]:
    """``definition`` is plain JSON: text that was filled in is of a type of its own."""
    definition = {"all": [msgspec.to_builtins(condition, enc_hook=str) for condition in manifest.all]}
    return {"name": manifest.name, "title": manifest.title or manifest.name, "definition": definition}
