"""What the manifests declare: one deployment for all who read it, changed as a whole while the host runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec import UnsetType

from analytics_core.lake import RetentionPolicy
from analytics_core.manifest import Deployment
from analytics_core.queries.cohorts import Cohort, declared_cohorts
from analytics_core.queries.history import History
from analytics_core.queries.series import MetricQueries
from analytics_core.state import StateStore


class Declared(NamedTuple):
    """A deployment, its metrics and its cohorts, ready to be asked."""

    deployment: Deployment
    metrics: MetricQueries
    cohorts: Mapping[str, Cohort]

    def timezone(self, tenant: str) -> str:
        """The IANA zone that the tenant's manifest names; it holds where a request names none."""
        told = self.deployment.tenants.get(tenant)
        return told.timezone if told is not None else "UTC"

    def week_start(self, tenant: str) -> str:
        """The day that the tenant's weeks begin with, where a request names none."""
        told = self.deployment.tenants.get(tenant)
        return told.week_start if told is not None else "monday"

    def retention(self, days: int | None) -> RetentionPolicy:
        """``days`` are the host's, which hold where a tenant's manifest names none."""
        told = {name: tenant.retention_days for name, tenant in self.deployment.tenants.items()}
        return RetentionPolicy(days, {name: own for name, own in told.items() if not isinstance(own, UnsetType)})


class Declarations:
    """``now`` is what holds. It is swapped on the event loop, so it is one deployment from one await to the next.

    Made on the running loop. :raises ManifestError: for a metric that cannot be computed, or a cohort that is none.
    """

    def __init__(self, history: History, state: StateStore, deployment: Deployment) -> None:
        self._history = history
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._followers: list[Callable[[Declared], None]] = []
        self.now = self._declared(deployment)

    def follow(self, follower: Callable[[Declared], None]) -> None:
        """Tell ``follower`` of each swap, on the event loop and in the same step. It neither blocks nor raises."""
        self._followers.append(follower)

    def apply(self, deployment: Deployment) -> None:
        """Let ``deployment`` hold; returns when it does. From any thread but the event loop's.

        :raises ManifestError: for a metric that cannot be computed, or a cohort that is none; then all is as it was.
        """
        asyncio.run_coroutine_threadsafe(self._swap(self._declared(deployment)), self._loop).result()

    def _declared(self, deployment: Deployment) -> Declared:
        return Declared(deployment, MetricQueries(self._history, self._state, deployment), declared_cohorts(deployment))

    async def _swap(self, declared: Declared) -> None:
        self.now = declared
        for follower in self._followers:
            follower(declared)
