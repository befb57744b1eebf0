"""The contracts of a plugin: every hook, its arguments, and what to return.

Implement any of these as methods of one class, ``def`` or ``async def``, each marked with ``@hookimpl``, and list them
in ``plugin.yaml``. A method may take fewer arguments than the specification gives, never others.

``setup``, ``process``, ``export_state``, ``import_state``, ``erase`` and ``teardown`` run on the plugin's lane and
never overlap, so they need no locks. All other hooks run concurrently on a second instance of the same class, which
has been set up but holds no fold state; it reads through ``events``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from analytics_core.events import Event, EventBatch
from analytics_core.records import (
    Answer,
    Channel,
    Condition,
    Delivery,
    Enrichment,
    EventReader,
    Json,
    Model,
    Notification,
    Outcome,
    PluginContext,
    ProcessResult,
    Question,
    Reply,
    Request,
    Scores,
    Series,
    Signals,
    TrainReport,
)

PROJECT = "analytics"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """What a plugin class may implement. No method is required."""

    # lifecycle, on the lane

    @hookspec
    def setup(self, context: PluginContext) -> None:
        """Called once, before anything else. Raise to refuse the start; the text becomes the plugin's reason."""

    @hookspec
    def teardown(self) -> None:
        """Called once, after everything else. Stop what ``setup`` started."""

    @hookspec
    def process(self, batch: EventBatch) -> ProcessResult | None:
        """Fold one batch into the state and return what changed, as absolute values.

        Called in log order, with empty batches too, at any batch boundary: only ``batch.watermark`` is "now".
        """

    @hookspec
    def export_state(self) -> bytes | Json:
        """The whole fold state as bytes or a JSON value; a plugin that processes without it is ``stateless``."""

    @hookspec
    def import_state(self, state: bytes | Json, version: int) -> None:
        """Take over a state that ``export_state`` gave under ``reload.state_version`` = ``version``."""

    @hookspec
    def erase(self, tenant: str, ids: Sequence[str]) -> None:
        """Forget these users: their ids must be in no later export and no later output."""

    # the acknowledgement path, concurrent

    @hookspec
    def ingest(self, request: Request) -> list[Event] | EventBatch:  # type: ignore[empty-body]
        """Translate a foreign protocol on a route that the manifest claims; raise ValueError for a malformed body."""

    @hookspec
    def reply(self, request: Request, outcome: Outcome) -> Reply:  # type: ignore[empty-body]
        """Answer the request after its events are durable, in the foreign protocol's own terms."""

    @hookspec
    def enrich(self, batch: EventBatch) -> Enrichment | None:
        """Change properties or drop events before they are acknowledged. Runs under a deadline."""

    # questions, alerts and models, concurrent

    @hookspec
    def insight(self, question: Question, events: EventReader) -> Answer:  # type: ignore[empty-body]
        """Answer one of the analyses that the manifest provides; a `ParameterError` refuses the question."""

    @hookspec
    def alert(self, signals: Signals) -> list[Condition]:  # type: ignore[empty-body]
        """The conditions that are true now. Pending, firing and resolved are the core's business."""

    @hookspec
    def deliver(self, notification: Notification, channel: Channel) -> Delivery:  # type: ignore[empty-body]
        """Send one notification over a channel of a kind that the manifest provides."""

    @hookspec
    def train(self, model: Model, events: EventReader) -> TrainReport:  # type: ignore[empty-body]
        """Train one model of a type that the manifest provides."""

    @hookspec
    def score(self, series: Series) -> Scores:  # type: ignore[empty-body]
        """One anomaly score in ``[0, 1]`` per point, shape ``(n,)``."""


HOOKS = frozenset(name for name in vars(Hooks) if not name.startswith("_"))
