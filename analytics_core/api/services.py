"""What the API calls: `Services`, opened by the app and handed to `analytics_core.api.build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_core.config import Settings
from analytics_core.host.caretaker import Caretaker
from analytics_core.host.plugins import PluginHost
from analytics_core.host.replays import Replays
from analytics_core.intake import Intake
from analytics_core.lanes import LaneView
from analytics_core.lanes.live_metrics import LiveMetrics
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.live import Live
from analytics_core.manifest import Deployment
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.history import History
from analytics_core.queries.series import MetricQueries
from analytics_core.queries.submissions import Submissions
from analytics_core.state import StateStore


@dataclass(frozen=True)
class Services:
    """Everything that answers. ``lanes`` gives all readers of the log: the host's own and those of the plugins.

    ``figures`` are what the host counts about itself, by name.
    """

    settings: Settings
    deployment: Deployment
    intake: Intake
    host: PluginHost
    caretaker: Caretaker
    replays: Replays
    lanes: Callable[[], Sequence[LaneView]]
    history: History
    metrics: MetricQueries
    analyses: Analyses
    submissions: Submissions
    state: StateStore
    live: Live
    live_metrics: LiveMetrics
    maintenance: StoreWriter
    figures: Callable[[], Mapping[str, int | float]]
    started_at: datetime

    def timezone(self, tenant: str) -> str:
        """The IANA zone that the tenant's manifest names; it holds where a request names none."""
        told = self.deployment.tenants.get(tenant)
        return told.timezone if told is not None else "UTC"
