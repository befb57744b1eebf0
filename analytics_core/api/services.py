"""What the API calls: `Services`, opened by the app and handed to `analytics_core.api.build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_core.config import Settings
from analytics_core.erasure.erasures import Erasures
from analytics_core.erasure.export import UserExports
from analytics_core.host.caretaker import Caretaker
from analytics_core.host.plugins import PluginHost
from analytics_core.host.reloader import ManifestsView
from analytics_core.host.replaying.replays import Replays
from analytics_core.intake import Intake
from analytics_core.lanes import LaneView
from analytics_core.lanes.live_metrics import LiveMetrics
from analytics_core.lanes.store_writer import StoreWriter
from analytics_core.live import Live
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.cohort_sizes import CohortSizes
from analytics_core.queries.declarations import Declarations
from analytics_core.queries.history import History
from analytics_core.queries.identity.merging import Merging
from analytics_core.queries.insights import Insights
from analytics_core.queries.series import MetricQueries
from analytics_core.queries.submissions import Submissions
from analytics_core.state import StateStore


@dataclass(frozen=True)
class Services:
    """Everything that answers. ``lanes`` gives all readers of the log: the host's own and those of the plugins.

    ``manifests`` tells what became of them when they were read last. ``figures`` are what the host counts about itself,
    by name.
    """

    settings: Settings
    declarations: Declarations
    manifests: Callable[[], ManifestsView]
    intake: Intake
    host: PluginHost
    caretaker: Caretaker
    replays: Replays
    lanes: Callable[[], Sequence[LaneView]]
    history: History
    analyses: Analyses
    insights: Insights
    cohorts: CohortSizes
    merging: Merging
    submissions: Submissions
    state: StateStore
    live: Live
    live_metrics: LiveMetrics
    maintenance: StoreWriter
    erasures: Erasures
    user_exports: UserExports
    figures: Callable[[], Mapping[str, int | float]]
    started_at: datetime

    @property
    def metrics(self) -> MetricQueries:
        """Those that are declared now."""
        return self.declarations.now.metrics

    def timezone(self, tenant: str) -> str:
        """As `Declared.timezone`, of what is declared now."""
        return self.declarations.now.timezone(tenant)
