"""What is declared changes as a whole, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from analytics_core.errors import ManifestError
from analytics_core.lake import RetentionPolicy
from analytics_core.manifest import Deployment, MetricManifest, Source, TenantManifest
from analytics_core.queries.declarations import Declarations, Declared

FIRST = Deployment(metrics={"views": MetricManifest(name="views", event="view")})
NEXT = Deployment(
    metrics={"clicks": MetricManifest(name="clicks", event="click")},
    tenants={
        "acme": TenantManifest(name="acme", timezone="Europe/Berlin", retention_days=7),
        "keeper": TenantManifest(name="keeper", retention_days=None),
        "plain": TenantManifest(name="plain"),
    },
)


def declarations() -> Declarations:
    nothing = cast("Any", None)  # nobody asks for a figure
    return Declarations(nothing, nothing, FIRST)


def test_all_followers_are_told_in_one_step_of_the_loop() -> None:
    async def scenario() -> None:
        told: list[tuple[str, Declared]] = []
        held = declarations()
        for name in ("one", "other"):
            held.follow(lambda now, name=name: told.append((name, now)))  # type: ignore[misc]
        before = held.now
        await asyncio.to_thread(held.apply, NEXT)
        assert told == [("one", held.now), ("other", held.now)]
        assert (set(held.now.metrics.definitions), held.now.timezone("acme")) == ({"clicks"}, "Europe/Berlin")
        assert (set(before.metrics.definitions), before.timezone("acme")) == ({"views"}, "UTC")  # for who holds it

    asyncio.run(scenario())


def test_a_metric_that_cannot_be_computed_changes_nothing_and_names_its_line() -> None:
    async def scenario() -> None:
        told: list[Declared] = []
        held = declarations()
        held.follow(told.append)
        before = held.now
        lines = {("where",): 3, ("where", "properties.a"): 4, ("where", "colour"): 5}
        bad = MetricManifest(name="bad", where={"properties.a": 1, "colour": "red"})
        source = Source("manifests/bad.yaml", lines)
        changed = Deployment(metrics={"bad": bad}, tenants=NEXT.tenants, sources={("metric", "bad"): source})
        with pytest.raises(
            ManifestError, match=r"^manifests/bad.yaml: where.colour: 'colour' is no field.*\(line 5\)$"
        ):
            await asyncio.to_thread(held.apply, changed)
        assert held.now is before
        assert not told

    asyncio.run(scenario())


def test_a_tenants_days_go_before_the_hosts() -> None:
    async def scenario() -> None:
        held = declarations()
        await asyncio.to_thread(held.apply, NEXT)
        assert held.now.retention(90) == RetentionPolicy(90, {"acme": 7, "keeper": None})

    asyncio.run(scenario())
