"""Metrics over time from a real log, lake and state store: empty buckets, whole-range figures, zones, names."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from analytics_core.errors import NotFoundError, ParameterError
from analytics_core.events import SCHEMA, UNPLACED_SCHEMA
from analytics_core.hashing import hash_strings
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.segments import SegmentLog
from analytics_core.manifest import Deployment, MetricManifest
from analytics_core.metrics.filters import Field
from analytics_core.queries import order_cache, series
from analytics_core.queries.history import History
from analytics_core.queries.reader import Reader
from analytics_core.queries.series import MetricQueries
from analytics_core.records import Metric, TimeRange, Window
from analytics_core.sketches import HistogramSketch, UniqueSketch
from analytics_core.state import Checkpoint, Outputs
from analytics_core.state.sqlite import SqliteState
from analytics_core.testing import batch

DAY = datetime(2025, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 2, 1, tzinfo=UTC)
DECLARED = [
    MetricManifest(name="page_views", event="page_view"),
    MetricManifest(name="active_users", aggregate="unique", property="user_id"),
    MetricManifest(name="revenue", event="buy", aggregate="sum", property="amount", unit="EUR"),
    MetricManifest(name="median", event="buy", aggregate="p50", property="amount"),
    MetricManifest(name="sales", event="buy", breakdown=("properties.plan",)),
]


class Shop:
    def __init__(self, directory: Path, *, columns: bool) -> None:
        self.log = SegmentLog(directory / "log" / "p0", disk_reserve_bytes=0)
        self.store = DeltaStore(directory / "lake")
        self.state = SqliteState(directory / "state.db")
        self.history = History(self.log, self.store, cache=directory / "cache" if columns else None)
        self.queries = MetricQueries(self.history, self.state, Deployment(metrics={m.name: m for m in DECLARED}))

    def close(self) -> None:
        self.history.close()
        self.state.close()
        self.store.close()
        self.log.close()

    def post(self, *rows: dict[str, Any], tenant: str = "default", stored: bool = False) -> None:
        columns = batch(rows, tenant).record_batch.columns
        self.log.append([pa.RecordBatch.from_arrays(columns[2:], schema=UNPLACED_SCHEMA)], NOW)
        if stored:
            batches, upto = self.log.read(self.store.position)
            self.store.append(pa.Table.from_batches([b.record_batch for b in batches], schema=SCHEMA), upto)

    def keep(self, *metrics: Metric, lane: str = "web") -> None:
        claimed = self.state.claim(lane)
        checkpoint = Checkpoint(lane=lane, epoch=claimed.epoch, position=claimed.position + 1)
        self.state.commit(checkpoint, [Outputs(tenant="default", metrics=metrics)])

    def ask(self, *names: str, start: Any = "2025-01-01", end: Any = "2025-01-04", **more: Any) -> dict[str, Any]:
        return self.of("default", *names, start=start, end=end, **more)

    def of(self, tenant: str, *names: str, start: Any, end: Any, **more: Any) -> dict[str, Any]:
        """The answer as it goes over the wire."""
        answer = asyncio.run(self.queries.query(tenant, names, start, end, **more))
        return msgspec.json.decode(msgspec.json.encode(answer), type=dict[str, Any])

    def values(self, name: str, **more: Any) -> tuple[Any, list[Any]]:
        found = self.ask(name, **more)["metrics"][0]
        return found["value"], [point["value"] for point in found["points"]]


@pytest.fixture(params=["by SQL", "by column"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    made = Shop(tmp_path, columns=request.param == "by column")
    made.post(
        {"event": "page_view", "user_id": "u1", "timestamp": "2025-01-01T10:00:00Z"},
        {"event": "page_view", "user_id": "u2", "timestamp": "2025-01-01T23:30:00Z"},
        {
            "event": "buy",
            "user_id": "u1",
            "timestamp": "2025-01-01T10:05:00Z",
            "properties": {"amount": 10, "plan": "pro"},
        },
        stored=True,
    )
    made.post(
        {"event": "page_view", "user_id": "u1", "timestamp": "2025-01-03T10:00:00Z"},
        {
            "event": "buy",
            "user_id": "u3",
            "timestamp": "2025-01-03T11:00:00Z",
            "properties": {"amount": 40, "plan": "free"},
        },
        {
            "event": "buy",
            "user_id": "u3",
            "timestamp": "2025-01-03T12:00:00Z",
            "properties": {"amount": 20, "plan": "pro"},
        },
        {"event": "page_view", "user_id": "u9", "timestamp": "2025-01-04T00:00:00Z"},  # endDate is exclusive
    )
    made.post({"event": "page_view", "timestamp": "2025-01-02T00:00:00Z"}, tenant="acme")
    yield made
    made.close()


def test_the_shape_and_every_empty_bucket(shop: Shop) -> None:
    assert shop.ask("page_views", "median") == {
        "metrics": [
            {
                "metric": "page_views",
                "value": 3,
                "points": [
                    {"timestamp": "2025-01-01T00:00:00+00:00", "value": 2},
                    {"timestamp": "2025-01-02T00:00:00+00:00", "value": 0},
                    {"timestamp": "2025-01-03T00:00:00+00:00", "value": 1},
                ],
            },
            {
                "metric": "median",
                "value": 20,
                "points": [
                    {"timestamp": "2025-01-01T00:00:00+00:00", "value": 10},
                    {"timestamp": "2025-01-02T00:00:00+00:00", "value": None},
                    {"timestamp": "2025-01-03T00:00:00+00:00", "value": 30},
                ],
            },
        ],
        "watermark": NOW.isoformat(),
    }


def test_the_whole_range_is_no_sum_of_buckets(shop: Shop) -> None:
    assert shop.values("active_users") == (3, [2, 0, 2])
    assert shop.values("revenue") == (70, [10, 0, 60])
    assert shop.values("buy") == (3, [1, 0, 2])  # a bare event name
    assert shop.values("buy", start="2025-02-01", end="2025-02-02") == (0, [0])


def test_buckets_are_those_of_the_zone_across_the_clock_change(shop: Shop) -> None:
    assert shop.values("page_views", timezone="Europe/Berlin") == (3, [1, 1, 1])  # 23:30 UTC is the next day there
    hour = datetime(2025, 10, 25, 22, tzinfo=UTC)
    shop.post(*({"event": "tick", "timestamp": hour + timedelta(hours=i, minutes=1)} for i in range(25)))
    more = {"start": "2025-10-26", "end": "2025-10-27", "timezone": "Europe/Berlin"}
    assert shop.values("tick", interval="hour", **more) == (25, [1] * 25)
    assert shop.values("tick", start="2025-10-25", end="2025-10-28", timezone="Europe/Berlin") == (25, [0, 25, 0])
    assert shop.values("tick", start="2025-10-01", end="2025-12-01", interval="month", timezone="Europe/Berlin") == (
        25,
        [25, 0],
    )


def test_a_range_that_begins_inside_a_bucket_counts_its_part_only(shop: Shop) -> None:
    assert shop.values("page_views", start="2025-01-01T12:00:00", end="2025-01-02T00:00:00") == (1, [1])


def test_a_breakdown_follows_the_total(shop: Shop) -> None:
    found = shop.ask("sales")["metrics"]
    assert [(s.get("labels"), s["value"], [p["value"] for p in s["points"]]) for s in found] == [
        (None, 3, [1, 0, 2]),
        ({"properties.plan": "pro"}, 2, [1, 0, 1]),
        ({"properties.plan": "free"}, 1, [0, 0, 1]),
    ]
    users = shop.ask("page_views", breakdown=["user_id"])["metrics"]
    assert {s["labels"]["user_id"]: s["value"] for s in users[1:]} == {"u1": 2, "u2": 1}
    assert len(shop.ask("sales", breakdown=[])["metrics"]) == 1


def test_points_of_a_plugin_merge_by_kind(shop: Shop) -> None:
    def unique(*people: str) -> bytes:
        sketch = UniqueSketch()
        sketch.add(hash_strings(people))
        return sketch.to_bytes()

    def spread(*values: float) -> bytes:
        sketch = HistogramSketch()
        sketch.add(values)
        return sketch.to_bytes()

    first, second = Window(DAY, 60), Window(DAY + timedelta(hours=5), 60)
    third = Window(DAY + timedelta(days=2), 60)
    shop.keep(
        *(Metric(name="hits", value=v, window=w) for v, w in [(2, first), (3, second), (4, third)]),
        *(Metric(name="open", value=v, window=w, kind="last") for v, w in [(9, first), (5, second), (7, third)]),
        *(Metric(name="peak", value=v, window=w, kind="max") for v, w in [(9, first), (5, second), (7, third)]),
        Metric(name="people", value=2, window=first, kind="unique", sketch=unique("a", "b")),
        Metric(name="people", value=2, window=second, kind="unique", sketch=unique("b", "c")),
        Metric(name="people", value=1, window=third, kind="unique", sketch=unique("a")),
        Metric(name="latency_p90", value=1, window=first, kind="histogram", sketch=spread(*range(1, 51))),
        Metric(name="latency_p90", value=1, window=second, kind="histogram", sketch=spread(*range(51, 101))),
    )
    assert shop.values("web.hits") == (9, [5, 0, 4])
    assert shop.values("web.open") == (7, [5, None, 7])
    assert shop.values("web.peak") == (9, [9, None, 7])
    assert shop.values("web.people") == (3, [3, 0, 1])
    value, points = shop.values("web.latency_p90")
    assert value == pytest.approx(90, rel=0.02)
    assert points == [pytest.approx(90, rel=0.02), None, None]


def test_labels_lengths_and_lanes_of_plugin_points(shop: Shop) -> None:
    minute, day = Window(DAY, 60), Window(DAY, 86_400)
    shop.keep(
        Metric(name="hits", value=1, window=minute, labels={"path": "/a"}),
        Metric(name="hits", value=2, window=minute, labels={"path": "/b"}),
        Metric(name="both", value=5, window=minute),
        Metric(name="both", value=5, window=day),
    )
    shop.keep(Metric(name="hits", value=100, window=minute), lane="other")
    found = shop.ask("web.hits", breakdown=["path"])["metrics"]
    assert [(s.get("labels"), s["value"]) for s in found] == [(None, 3), ({"path": "/a"}, 1), ({"path": "/b"}, 2)]
    assert shop.values("other.hits")[0] == 100
    assert shop.values("web.both") == (5, [5, 0, 0])  # the same five, by minute and by day
    assert shop.values("web.both", interval="hour")[0] == 5


def test_any_name_is_found_and_a_miss_costs_no_pass_over_history(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []

    def watched(tenant: str, most: int = 0) -> list[str]:
        listed.append(most)
        return original(tenant, most)

    original = shop.history.event_names
    monkeypatch.setattr(shop.history, "event_names", watched)
    monkeypatch.setattr(series, "_NEAR", 1)  # only the most frequent name is suggested, all are found
    for _ in range(3):
        assert shop.values("buy")[0] == 3
        with pytest.raises(NotFoundError):
            shop.ask("byu")
    assert listed == [1]
    shop.post({"event": "byu", "timestamp": "2025-01-02T00:00:00Z"})
    assert shop.values("byu")[0] == 1  # at once


def test_series_come_in_the_order_in_which_they_were_asked_for(shop: Shop) -> None:
    shop.keep(Metric(name="hits", value=2, window=Window(DAY, 60)))
    found = shop.ask("web.hits", "revenue", "web.hits", "buy")["metrics"]
    assert [(series["metric"], series.get("unit")) for series in found] == [
        ("web.hits", None),
        ("revenue", "EUR"),
        ("buy", None),
    ]


def test_a_repeated_question_is_not_answered_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(tenant: str, *given: Any, **more: Any) -> Reader:
        read.append(tenant)
        return original(tenant, *given, **more)

    original = shop.history.reader
    first = shop.ask("revenue", "median")
    shop.keep(Metric(name="hits", value=2, window=Window(DAY, 60)))
    monkeypatch.setattr(shop.history, "reader", watched)
    assert shop.ask("revenue", "median") == first
    shop.post({"event": "page_view", "timestamp": "2025-01-02T00:00:00Z"}, tenant="acme")
    assert shop.ask("revenue", "median") == first
    assert not read
    assert shop.ask("revenue", "median", breakdown=["properties.plan"]) != first
    assert shop.ask("median", "revenue") != first
    assert read
    shop.post({"event": "buy", "timestamp": "2025-01-02T00:00:00Z", "properties": {"amount": 5}})
    assert shop.values("revenue") == (75, [10, 5, 60])
    shop.post({"event": "buy", "timestamp": "2025-01-02T01:00:00Z", "properties": {"amount": 7}}, stored=True)
    assert shop.values("revenue") == (82, [10, 12, 60])
    assert shop.values("web.hits")[0] == 2
    shop.keep(Metric(name="hits", value=3, window=Window(DAY + timedelta(hours=1), 60)))
    assert shop.values("web.hits")[0] == 5  # without any event


def test_what_has_yet_to_be_read_is_read_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_cache, "SOON", 2)
    shop = Shop(tmp_path, columns=True)

    def at_hand() -> tuple[bool, bool]:
        """Whether the events are, and the amounts."""
        with shop.history.reader("default") as reader:
            view = reader.at_hand()
            return view is not None, view is not None and view.columns(Field("properties", "amount")) is not None

    def read() -> None:
        assert shop.history._order is not None
        shop.history._order._pool.submit(lambda: None).result()  # it does one after the other

    def buy(*amounts: int) -> None:
        shop.post(*({"event": "buy", "timestamp": DAY, "properties": {"amount": amount}} for amount in amounts))

    buy(1, 2, 3)
    assert shop.values("revenue")[0] == 6
    read()
    assert at_hand() == (True, False)
    assert shop.values("revenue")[0] == 6
    read()
    assert at_hand() == (True, True)
    assert shop.values("revenue")[0] == 6
    buy(4)
    assert shop.values("revenue")[0] == 10
    assert at_hand() == (True, True)
    buy(5, 6, 7)
    assert at_hand() == (False, False)
    assert shop.values("revenue")[0] == 28
    shop.close()


def test_names_that_are_no_metric(shop: Shop) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'page_views'"):
        shop.ask("page_vews")
    with pytest.raises(NotFoundError):
        shop.of("acme", "buy", start="2025-01-01", end="2025-01-02")  # another tenant's event name
    with pytest.raises(NotFoundError):
        shop.ask("web.hits")
    with pytest.raises(ParameterError, match="50"):
        shop.ask(*(f"m{i}" for i in range(51)))
    with pytest.raises(ParameterError, match="is no field"):
        shop.ask("buy", breakdown=["props.x"])


def test_a_reader_gives_series_over_its_own_range_and_filters(shop: Shop) -> None:
    asked = TimeRange(DAY, DAY + timedelta(days=3), "UTC")
    shop.keep(Metric(name="hits", value=2, window=Window(DAY, 60)))
    with shop.history.reader("default", asked, metrics=shop.queries) as reader:
        series = reader.metric("revenue", "day")
        assert series.values.tolist() == [10, 0, 60]
        assert series.at.dtype == np.int64
        assert series.step_seconds == 86_400
        assert reader.metric("web.hits", "day").values.tolist() == [2, 0, 0]
        assert np.isnan(reader.metric("median", "day").values[1])
        with pytest.raises(ParameterError, match="did you mean 'revenue'"):
            reader.metric("revenu", "day")
        with pickle.loads(pickle.dumps(reader.to_spec())).open() as there:  # in a plugin's process
            assert there.metric("revenue", "day").values.tolist() == [10, 0, 60]
            assert there.metric("buy", "day").values.tolist() == [1, 0, 2]
            with pytest.raises(ParameterError):
                there.metric("web.hits", "day")
