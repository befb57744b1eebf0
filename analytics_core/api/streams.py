"""What clients say to choose live messages, read to `Subscription`s: the same words over the socket and SSE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from analytics_core.errors import ParameterError, near
from analytics_core.live import STREAMS, Stream, Subscription

_FILTERS: Final[dict[str, tuple[str, ...]]] = {
    "metrics": ("metric", "analytics"),
    "labels": ("metric", "alert", "analytics"),
    "severity": ("insight", "alert", "analytics"),
}
"""Each filter, and the streams whose messages have what it looks at; it leaves other streams alone."""

_SEVERITIES: Final = ("info", "low", "medium", "high", "critical")
_MOST_NAMES: Final = 1000


def read_subscriptions(given: Any) -> list[Subscription]:
    """``{"stream": "alert", "filters": {...}}``, ``{"metrics": ["page_views"]}``, or both as two wishes.

    ``stream`` may be a list. ``filters``: ``metrics`` and ``severity`` (a word or a list), ``labels`` (an object of
    values that must be equal).

    :raises ParameterError: naming the member and what would be valid.
    """
    if not isinstance(given, Mapping):
        raise ParameterError(
            "subscribe", "takes an object such as {'stream': 'insight'} or {'metrics': ['page_views']}"
        )
    for key in given:
        if key not in ("stream", "filters", "metrics"):
            raise ParameterError(str(key), f"is not known here{near(str(key), ('stream', 'filters', 'metrics'))}")
    streams = _words(given.get("stream"), "stream")
    for stream in streams:
        if stream not in STREAMS:
            raise ParameterError("stream", f"{stream[:40]!r} is no stream{near(stream, STREAMS)}")
    metrics = _words(given.get("metrics"), "metrics")
    if not streams and not metrics:
        raise ParameterError(
            "stream", f"is needed; valid are: {', '.join(STREAMS)}; or give 'metrics', a list of names"
        )
    if metrics and "metric" not in streams:
        streams.append("metric")
    filters = _filters(given.get("filters"), streams)
    if metrics:
        filters["metrics"] = [*filters["metrics"], *metrics]
    return [_subscription(cast(Stream, stream), filters) for stream in streams]


def _subscription(stream: Stream, filters: dict[str, Any]) -> Subscription:
    used = {name: value for name, value in filters.items() if stream in _FILTERS[name]}
    return Subscription(
        stream,
        frozenset(used.get("metrics", ())),
        dict(used.get("labels", {})),
        frozenset(used.get("severity", ())),
    )


def _filters(given: Any, streams: list[str]) -> dict[str, Any]:
    """Every filter, checked; empty when it was not given."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ParameterError("filters", f"must be an object with any of: {', '.join(_FILTERS)}")
    for key, value in given.items():
        if key not in _FILTERS:
            raise ParameterError(f"filters.{key}", f"is not known{near(str(key), _FILTERS)}")
        if value and not set(streams) & set(_FILTERS[key]):
            raise ParameterError(f"filters.{key}", f"is for the streams {', '.join(_FILTERS[key])} only")
    severities = _words(given.get("severity"), "filters.severity")
    for severity in severities:
        if severity not in _SEVERITIES:
            raise ParameterError("filters.severity", f"{severity[:40]!r} is no severity{near(severity, _SEVERITIES)}")
    labels = {} if given.get("labels") is None else given["labels"]
    if not isinstance(labels, Mapping) or not all(isinstance(value, str) for value in labels.values()):
        raise ParameterError("filters.labels", "must be an object of texts")
    return {"metrics": _words(given.get("metrics"), "filters.metrics"), "labels": labels, "severity": severities}


def _words(value: Any, parameter: str) -> list[str]:
    """A word or a list of words, each once."""
    if value is None:
        return []
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(word, str) and word for word in listed):
        raise ParameterError(parameter, "must be a text or a list of texts")
    if len(listed) > _MOST_NAMES:
        raise ParameterError(parameter, f"{len(listed)} names are more than {_MOST_NAMES}")
    return list(dict.fromkeys(listed))
