"""``kind: cohort``: people by what they did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct

from analytics_core.manifest.source import Key

Span = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}[mhdw]$")]
CohortName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]


class Happening(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Events of one name, or any. ``where``: filters, ``{"properties.plan": "pro", "properties.n": {">": 9}}``."""

    event: str | None = None
    where: dict[str, Any] = {}


class CohortCondition(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One of three: ``did`` something ``at_least`` so often; ``did_not`` do it so often; ``has`` these values, each in
    the latest event that names it. ``within`` looks only at that long before the end of what is asked ("30d")."""

    did: Happening | None = None
    did_not: Happening | None = None
    has: dict[str, Any] | None = None
    at_least: Annotated[int, Meta(ge=1)] = 1
    within: Span | None = None

    def problems(self) -> Iterator[tuple[Key, str]]:
        given = [key for key in ("did", "did_not", "has") if getattr(self, key) is not None]
        if len(given) != 1:
            yield (), f"needs exactly one of 'did', 'did_not' and 'has'; it has {' and '.join(given) or 'none'}"
        elif given == ["has"] and self.at_least != 1:
            yield ("at_least",), "is for 'did' and 'did_not'"
        if self.has is not None and not self.has:
            yield ("has",), "is empty: everybody would be in it; name a field and its value"
        for key in ("did", "did_not"):
            happening = getattr(self, key)
            if happening is not None and happening.event is not None and "event" in happening.where:
                yield (key, "where", "event"), "names the event a second time; say it once, beside 'where'"


class CohortManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind: cohort``: the people for whom ``all`` conditions hold, by its name the ``cohort`` of any analysis."""

    name: CohortName
    title: str = ""
    all: Annotated[tuple[CohortCondition, ...], Meta(min_length=1, max_length=20)]

    def problems(self) -> Iterator[tuple[Key, str]]:
        for i, condition in enumerate(self.all):
            for key, problem in condition.problems():
                yield ("all", i, *key), problem
