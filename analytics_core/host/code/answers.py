"""What a hook may return. A wrong answer is the plugin's failure at once, not a puzzle three rooms further on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, get_args

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from analytics_core.events import Event, EventBatch
from analytics_core.records import (
    Answer,
    Condition,
    Delivery,
    Enrichment,
    Insight,
    Metric,
    MetricKind,
    Pattern,
    ProcessResult,
    Recommendation,
    Reply,
    Severity,
    TrainReport,
    Window,
)

_KINDS: Final = frozenset(get_args(MetricKind))
_SKETCHED: Final = frozenset({"unique", "histogram"})
_SEVERITIES: Final = frozenset(get_args(Severity))


class WrongAnswerError(TypeError):
    """What a hook returned and what would be valid."""


def checked_answer(hook: str, answer: Any, arguments: Mapping[str, Any]) -> Any:
    """``answer`` of ``hook`` when the specification allows it; numpy numbers in metrics become plain ones.

    :raises WrongAnswerError: when it is of another type, or something inside it is.
    """
    return _CHECKS[hook](answer, arguments)


def _is(value: Any, valid: type | tuple[type, ...], words: str, where: str = "") -> None:
    if not isinstance(value, valid):
        shown = (
            "None"
            if value is None
            else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        )
        raise WrongAnswerError(f"{f'{where} is' if where else 'returned'} {shown}; valid is {words}")


def _nothing(answer: Any, _: Mapping[str, Any]) -> None:
    _is(answer, type(None), "None")


def _processed(answer: Any, _: Mapping[str, Any]) -> ProcessResult | None:
    _is(answer, (ProcessResult, type(None)), "ProcessResult or None")
    if answer is None:
        return None
    for name in ("metrics", "patterns", "insights"):
        _sequence(getattr(answer, name), name)
    metrics = [_metric(metric) for metric in answer.metrics]
    for pattern in answer.patterns:
        _record(pattern, Pattern, "pattern")
    for insight in answer.insights:
        _insight(insight)
    if all(map(_same, metrics, answer.metrics)):
        return answer  # type: ignore[no-any-return]
    return ProcessResult(metrics, answer.patterns, answer.insights)


def _same(left: object, right: object) -> bool:
    return left is right


def _sequence(value: Any, name: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        _is(value, (list, tuple), "a list", f"'{name}'")
        raise WrongAnswerError(f"{name!r} is text; valid is a list")


def _metric(metric: Any) -> Metric:
    """About a microsecond each: there may be thousands in a result."""
    if type(metric) is not Metric:
        _is(metric, Metric, "Metric", "an entry of 'metrics'")
    value, labels, window = metric.value, metric.labels, metric.window
    if type(value) is not float:
        if not isinstance(value, float | int | np.floating | np.integer) or isinstance(value, bool):
            _is(value, float, "a finite number", f"the value of metric {metric.name!r}")
        metric = replace(metric, value=float(value))
        value = metric.value
    if not math.isfinite(value):
        raise WrongAnswerError(f"the value of metric {metric.name!r} is {value}; valid is a finite number")
    if type(metric.name) is not str or not metric.name:
        raise WrongAnswerError(f"a metric is named {metric.name!r}; valid is text that is not empty")
    if metric.kind not in _KINDS:
        raise WrongAnswerError(
            f"metric {metric.name!r} is of kind {metric.kind!r}; valid are: {', '.join(sorted(_KINDS))}"
        )
    if metric.kind in _SKETCHED and type(metric.sketch) is not bytes:
        raise WrongAnswerError(f"metric {metric.name!r} of kind {metric.kind!r} has no sketch; valid is its to_bytes()")
    if labels:
        _labels(metric.name, labels)
    if type(window) is not Window or type(window.seconds) is not int or window.seconds <= 0:
        raise WrongAnswerError(
            f"metric {metric.name!r} has the window {window!r}; valid is Window(start, whole seconds)"
        )
    if type(window.start) is not datetime or window.start.tzinfo is None:
        raise WrongAnswerError(
            f"metric {metric.name!r}: its window starts at {window.start!r}; valid is an aware datetime"
        )
    return metric  # type: ignore[no-any-return]


def _labels(name: str, labels: Any) -> None:
    if type(labels) is not dict:
        _is(labels, dict, "a dict of text", f"the labels of metric {name!r}")
    for key, value in labels.items():
        if type(key) is not str or type(value) is not str:
            raise WrongAnswerError(f"metric {name!r} has the label {key!r}: {value!r}; valid is text for both")


def _record(record: Any, kind: type, word: str) -> None:
    _is(record, kind, kind.__name__, f"an entry of '{word}s'")
    try:
        msgspec.json.encode(record)
    except (TypeError, ValueError, OverflowError) as error:
        raise WrongAnswerError(f"{word} {record.key!r} cannot be written as JSON: {error}") from error


def _insight(insight: Any) -> None:
    _record(insight, Insight, "insight")
    if insight.severity not in _SEVERITIES:
        valid = ", ".join(sorted(_SEVERITIES))
        raise WrongAnswerError(f"insight {insight.key!r} has the severity {insight.severity!r}; valid are: {valid}")


def _state(answer: Any, _: Mapping[str, Any]) -> Any:
    _is(answer, (bytes, dict, list, str, int, float, type(None)), "bytes or a JSON value")
    return answer


def _events(answer: Any, _: Mapping[str, Any]) -> list[Event] | EventBatch:
    _is(answer, (list, EventBatch), "a list of Event, or an EventBatch")
    if isinstance(answer, list):
        for event in answer:
            _is(event, Event, "Event", "an entry of the list")
    return answer  # type: ignore[no-any-return]


def _reply(answer: Any, _: Mapping[str, Any]) -> Reply:
    _is(answer, Reply, "Reply")
    if type(answer.status) is not int or not 200 <= answer.status <= 599:
        raise WrongAnswerError(f"the reply's status is {answer.status!r}; valid is a whole number from 200 to 599")
    _is(answer.body, bytes, "bytes", "the reply's body")
    for key, value in answer.headers.items():
        if type(key) is not str or type(value) is not str or "\n" in key + value or "\r" in key + value:
            raise WrongAnswerError(f"the reply has the header {key!r}: {value!r}; valid is one line of text for both")
    return answer  # type: ignore[no-any-return]


def _enrichment(answer: Any, arguments: Mapping[str, Any]) -> Enrichment | None:
    _is(answer, (Enrichment, type(None)), "Enrichment or None")
    for name in ("properties", "drop"):
        column = getattr(answer, name, None)
        if column is not None and len(column) != len(arguments["batch"]):
            raise WrongAnswerError(
                f"{name!r} has {len(column)} values for {len(arguments['batch'])} events; valid is one for each"
            )
    return answer  # type: ignore[no-any-return]


def _answer(answer: Any, _: Mapping[str, Any]) -> Answer:
    _is(answer, Answer, "Answer")
    table = answer.table
    if not isinstance(table, pa.Table):
        _is(table, list, "an Arrow table or a list of row dicts", "the answer's table")
        for row in table:
            _is(row, dict, "a dict", "a row of the answer's table")
    for insight in answer.insights:
        _insight(insight)
    for recommendation in answer.recommendations:
        _is(recommendation, Recommendation, "Recommendation", "an entry of 'recommendations'")
    return answer  # type: ignore[no-any-return]


def _conditions(answer: Any, _: Mapping[str, Any]) -> list[Condition]:
    _is(answer, list, "a list of Condition")
    for condition in answer:
        _record(condition, Condition, "condition")
    return answer  # type: ignore[no-any-return]


def _scores(answer: Any, arguments: Mapping[str, Any]) -> Any:
    _is(answer, np.ndarray, "a numpy array")
    wanted = len(arguments["series"].values)
    if answer.shape != (wanted,):
        raise WrongAnswerError(f"returned the shape {answer.shape}; valid is ({wanted},), one score for each point")
    if answer.dtype.kind != "f" or not ((answer >= 0) & (answer <= 1)).all():
        raise WrongAnswerError("returned scores outside [0, 1] or that are no floats; valid are floats from 0 to 1")
    return answer


def _of(kind: type) -> Callable[[Any, Mapping[str, Any]], Any]:
    def check(answer: Any, _: Mapping[str, Any]) -> Any:
        _is(answer, kind, kind.__name__)
        return answer

    return check


_CHECKS: Final[dict[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
    "setup": _nothing,
    "teardown": _nothing,
    "import_state": _nothing,
    "erase": _nothing,
    "process": _processed,
    "export_state": _state,
    "ingest": _events,
    "reply": _reply,
    "enrich": _enrichment,
    "insight": _answer,
    "alert": _conditions,
    "deliver": _of(Delivery),
    "train": _of(TrainReport),
    "score": _scores,
}
