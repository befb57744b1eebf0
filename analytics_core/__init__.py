"""A plugin host for real-time analytics. What a plugin author imports is here; the rest is the host's own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analytics_core.errors import ParameterError
    from analytics_core.events import Event, EventBatch, FieldError
    from analytics_core.hashing import hash_strings
    from analytics_core.hookspecs import hookimpl
    from analytics_core.records import (
        Answer,
        Channel,
        Chart,
        Condition,
        Delivery,
        Enrichment,
        EventReader,
        Insight,
        Metric,
        Model,
        Notification,
        Outcome,
        Pattern,
        PluginContext,
        ProcessResult,
        Question,
        Recommendation,
        Reply,
        Request,
        Series,
        Signals,
        TimeRange,
        TrainReport,
        UserOrder,
        Window,
    )
    from analytics_core.sketches import HistogramSketch, UniqueSketch

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Channel",
    "Chart",
    "Condition",
    "Delivery",
    "Enrichment",
    "Event",
    "EventBatch",
    "EventReader",
    "FieldError",
    "HistogramSketch",
    "Insight",
    "Metric",
    "Model",
    "Notification",
    "Outcome",
    "ParameterError",
    "Pattern",
    "PluginContext",
    "ProcessResult",
    "Question",
    "Recommendation",
    "Reply",
    "Request",
    "Series",
    "Signals",
    "TimeRange",
    "TrainReport",
    "UniqueSketch",
    "UserOrder",
    "Window",
    "hash_strings",
    "hookimpl",
]

_HOMES = (
    "analytics_core.errors",
    "analytics_core.events",
    "analytics_core.hashing",
    "analytics_core.hookspecs",
    "analytics_core.records",
    "analytics_core.sketches",
)


def __getattr__(name: str) -> Any:
    """Import on first use: the command line's ``--help`` must not wait for Arrow."""
    if name in __all__:
        for home in _HOMES:
            if hasattr(module := import_module(home), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
