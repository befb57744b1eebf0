"""A metric manifest gives the same figure as exact SQL over history and as live windows over batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import ClashError, ManifestError, NotFoundError
from analytics_core.events import EventBatch
from analytics_core.manifest import MetricManifest, read_deployment
from analytics_core.metrics.accumulators import accumulator
from analytics_core.metrics.buckets import buckets
from analytics_core.metrics.definition import Definition, PluginMetric, define, look_up
from analytics_core.metrics.live import LiveWindows
from analytics_core.queries.figures import over_events
from analytics_core.testing import MemoryReader, batch

ROWS: list[dict[str, Any]] = [
    {"event": "buy", "user_id": "u1", "properties": {"amount": 10, "plan": "pro", "paid": True}},
    {"event": "buy", "user_id": "u1", "properties": {"amount": 2.5, "plan": "free", "paid": False}},
    {"event": "buy", "anonymous_id": "a1", "properties": {"amount": "30", "plan": "pro"}},  # a text is no number
    {"event": "refund", "user_id": "u2", "properties": {"amount": -4, "plan": 7}},
    {"event": "view", "anonymous_id": "a1", "properties": {"cart": {"total": 7}}, "context": {"page": "/"}},
    {"event": "view", "properties": {"amount": None}},
]


def manifest(**keys: Any) -> MetricManifest:
    return MetricManifest(**{"name": "m", **keys})


def exact(metric: MetricManifest, batches: list[EventBatch]) -> float | None:
    with MemoryReader(batches) as reader:
        spans = buckets(reader.range.start, reader.range.end, "day")
        return over_events(reader, [define(metric)], spans, ())["m"][0].value


def live(metric: MetricManifest, batches: list[EventBatch]) -> float | None:
    windows = LiveWindows([define(metric)])
    for each in batches:
        windows.add(each)
    return next((c.value for c in windows.changes() if c.metric == "m" and not c.labels), None)


@pytest.mark.parametrize(
    ("keys", "figure"),
    [
        ({}, 6),
        ({"event": "buy"}, 3),
        ({"events": ("buy", "refund")}, 4),
        ({"event": "buy", "where": {"properties.plan": "pro"}}, 2),
        ({"where": {"properties.plan": 7}}, 1),
        ({"where": {"properties.plan": "7"}}, None),
        ({"where": {"properties.plan": ["pro", "free"]}}, 3),
        ({"where": {"properties.paid": True}}, 1),
        ({"where": {"properties.plan": None}}, 2),
        ({"where": {"user_id": [None, "u2"]}}, 4),
        ({"where": {"context.page": "/", "event": "view"}}, 1),
        ({"where": {"properties.amount": {">": 2}}}, 2),
        ({"where": {"properties.amount": {">": 2, "<": 10}, "event": "buy"}}, 1),
        ({"where": {"properties.plan": {"regex": "^(pro|fre)", "!=": "free"}}}, 2),
        ({"where": {"properties.plan": {"exists": False}}}, 2),
        ({"where": {"properties.plan": {"in": ["pro"]}, "event": {"contains": "u"}}}, 2),
        ({"aggregate": "sum", "property": "amount"}, 8.5),
        ({"aggregate": "sum", "property": "properties.cart.total"}, 7),
        ({"aggregate": "avg", "event": "buy", "property": "amount"}, 6.25),
        ({"aggregate": "min", "property": "amount"}, -4),
        ({"aggregate": "max", "property": "amount"}, 10),
        ({"aggregate": "unique", "property": "user_id"}, 3),  # u1, u2, a1
        ({"aggregate": "unique", "property": "anonymous_id"}, 1),
        ({"aggregate": "count", "property": "anonymous_id"}, 2),
        ({"aggregate": "count", "property": "timestamp"}, 6),
        ({"aggregate": "unique", "property": "plan"}, 3),  # pro, free, 7
        ({"aggregate": "max", "event": "view", "property": "amount"}, None),
        ({"aggregate": "p50", "event": "nothing", "property": "amount"}, None),
    ],
)
def test_history_and_live_windows_agree(keys: dict[str, Any], figure: float | None) -> None:
    whole = [batch(ROWS)]
    split = [batch([{**row, "timestamp": f"2025-01-01T00:00:{i:02}Z"}], first_seq=i) for i, row in enumerate(ROWS)]
    for batches in (whole, split):
        found = exact(manifest(**keys), batches)
        assert (found or None) == figure if figure is None else found == figure
        assert (live(manifest(**keys), batches) or None) == figure


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60), st.sampled_from(["p50", "p75", "p90", "p95", "p99"]))
def test_live_percentiles_are_within_a_percent_of_a_value_at_that_rank(values: list[float], aggregate: str) -> None:
    definition = define(manifest(aggregate=aggregate, property="x"))
    held = accumulator(definition)
    held.add(values)
    at = (definition.quantile or 0) * (len(values) - 1)
    near = sorted(values)[int(at)]
    found = held.value()
    assert found is not None
    assert abs(found - near) <= 0.0101 * near


def test_a_breakdown_counts_each_combination_of_labels() -> None:
    windows = LiveWindows([define(manifest(event="buy", breakdown=("properties.plan", "user_id")))])
    windows.add(batch(ROWS))
    found = {tuple(c.labels.items()): c.value for c in windows.changes() if c.metric == "m"}
    assert found == {
        (): 3,
        (("properties.plan", "pro"), ("user_id", "u1")): 1,
        (("properties.plan", "free"), ("user_id", "u1")): 1,
        (("properties.plan", "pro"), ("user_id", "")): 1,
    }


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"aggregate": "sum"}, "property: sum needs the property to take"),
        ({"aggregate": "sum", "property": "propertys.amount"}, "is no field"),
        ({"aggregate": "sum", "property": "user_id"}, "sum takes numbers, and user_id holds text"),
        ({"aggregate": "p95", "property": "userId"}, "valid is a property of the event, such as 'properties.amount'"),
        ({"aggregate": "avg", "property": "timestamp"}, "avg takes numbers, and timestamp holds times"),
        ({"aggregate": "max", "property": "received_at"}, "or the aggregates count and unique"),
        ({"where": {"colour": "red"}}, "did you mean 'properties.colour'?"),
        ({"where": {"event": {"is": "order"}}}, "'is' is no operator; valid are: =, !=, in"),
        ({"where": {"event": {"regex": "("}}}, "is no pattern"),
        ({"breakdown": ("props.x",)}, "is no field"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused_by_name(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ManifestError, match="metric 'm'") as caught:
        define(manifest(**keys))
    assert text in str(caught.value)


def test_names_are_looked_up_in_order_and_a_clash_is_an_error() -> None:
    declared = Definition("visits", "count", ("page_view",))
    counted = PluginMetric("web", "visits", "sum")
    manifests, plugins = {"visits": declared}, {"web.visits": counted}

    def names() -> list[str]:
        return ["visits", "click"]

    assert look_up("visits", manifests, plugins, names) is declared  # not the event of that name
    assert look_up("web.visits", manifests, plugins, names) is counted
    assert look_up("click", manifests, plugins, names) == Definition("click", "count", ("click",))
    with pytest.raises(NotFoundError, match="did you mean 'visits'"):
        look_up("vists", manifests, plugins, names)
    with pytest.raises(ClashError, match="a metric manifest and the plugin 'web'"):
        look_up("web.visits", {"web.visits": declared}, plugins, names)


def test_the_shipped_metrics_can_all_be_computed() -> None:
    shipped = read_deployment(Path(__file__).parents[2] / "manifests", {}).metrics
    assert {"page_views", "conversions", "active_users"} <= set(shipped)
    assert all(isinstance(define(metric), Definition) for metric in shipped.values())
