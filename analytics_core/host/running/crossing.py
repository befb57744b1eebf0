"""What crosses the wire between the host and a plugin's process, with its types on the side that receives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from analytics_core.events import EventBatch
from analytics_core.host.code.fingerprint import Copy
from analytics_core.records import (
    Answer,
    Channel,
    Condition,
    Delivery,
    Enrichment,
    Model,
    Notification,
    Outcome,
    ProcessResult,
    Question,
    Reply,
    Request,
    Series,
    Signals,
    TrainReport,
)

ARGUMENTS: Final[dict[str, Any]] = {
    "request": Request,
    "outcome": Outcome,
    "batch": EventBatch,
    "batches": list[EventBatch],
    "question": Question,
    "events": Any,
    "signals": Signals,
    "notification": Notification,
    "channel": Channel,
    "model": Model,
    "series": Series,
}
"""The arguments of concurrent hooks, by their names in `hookspecs.Hooks`. ``events`` is the spec of a reader."""

RESULTS: Final[dict[str, Any]] = {
    "ingest": Any,
    "reply": Reply,
    "enrich": Enrichment | None,
    "insight": Answer,
    "alert": list[Condition],
    "deliver": Delivery,
    "train": TrainReport,
    "score": Any,
    "fold_once": ProcessResult,
}
"""What each concurrent call gives back; ``fold_once`` is the host's own."""


class Hello(Struct, frozen=True, kw_only=True):
    """What the host says first: which plugin to load, under which settings and bounds, and where the log is."""

    copy: Copy
    generation: int
    settings: dict[str, Any]
    log_directory: Path
    memory_bytes: int


class Call(Struct, frozen=True):
    """One concurrent call: the hook's arguments by name, each still encoded."""

    hook: str
    seconds: float
    arguments: dict[str, msgspec.Raw]
