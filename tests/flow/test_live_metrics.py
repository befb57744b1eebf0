"""The live lane: figures pushed while events arrive, complete windows after a restart, bounds."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from analytics_core.events import MINUTE, UNPLACED_SCHEMA, EventBatch, micros
from analytics_core.lanes import live_metrics
from analytics_core.lanes.live_metrics import LiveMetrics, rest_after
from analytics_core.log.reading import SUFFIX
from analytics_core.log.segments import SegmentLog
from analytics_core.manifest import MetricManifest
from analytics_core.metrics.definition import Definition, define
from analytics_core.metrics.filters import Field
from analytics_core.metrics.live import LiveWindows
from analytics_core.records import Message
from analytics_core.testing import batch

NOW = datetime.now(UTC)
THIS_MINUTE = NOW.replace(second=0, microsecond=0)
METRICS = [
    define(MetricManifest(name="page_views", event="page_view")),
    define(MetricManifest(name="active_users", aggregate="unique", property="user_id")),
]
SECONDS = 10.0


class Bus:
    """Keeps what is published; `until` waits for it."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def publish(self, message: Message) -> None:
        self.messages.put(message)

    def until(self, wanted: Callable[[str, dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = self.messages.get(timeout=SECONDS)
            assert message.topic == "metric"
            body = msgspec.json.decode(message.body)
            self.seen.append((message.tenant, body))
            if wanted(message.tenant, body):
                return body


class Running:
    def __init__(self, log: SegmentLog) -> None:
        self.bus = Bus()
        self.lane = LiveMetrics(log, self.bus, LiveWindows(METRICS))
        self.lane.start()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SegmentLog]:
    opened = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0)
    yield opened
    opened.close()


@pytest.fixture
def start(log: SegmentLog) -> Iterator[Callable[[], Running]]:
    started: list[Running] = []

    def begin() -> Running:
        started.append(Running(log))
        return started[-1]

    yield begin
    for running in started:
        running.lane.stop()


def post(log: SegmentLog, *rows: dict[str, Any], tenant: str = "default", at: datetime = NOW) -> None:
    made = batch([{"timestamp": at, **row} for row in rows], tenant).record_batch
    log.append([pa.RecordBatch.from_arrays(made.columns[2:], schema=UNPLACED_SCHEMA)], at)


def test_a_figure_is_pushed_when_it_changes(log: SegmentLog, start: Callable[[], Running]) -> None:
    running = start()
    post(log, {"event": "page_view", "user_id": "u1"}, {"event": "page_view", "user_id": "u1"}, {"event": "click"})
    pushed = running.bus.until(lambda _, b: b["metric"] == "page_views" and b["value"] == 2)
    assert pushed == {
        "metric": "page_views",
        "value": 2,
        "window": {
            "start": THIS_MINUTE.isoformat().replace("+00:00", "Z"),
            "end": (THIS_MINUTE + timedelta(minutes=1)).isoformat().replace("+00:00", "Z"),
        },
        "labels": {},
    }
    post(log, {"event": "page_view", "user_id": "u2"})
    running.bus.until(lambda _, b: b["metric"] == "page_views" and b["value"] == 3)
    users = [b["value"] for _, b in running.bus.seen if b["metric"] == "active_users"]
    assert users == [1, 2]
    assert [b["value"] for _, b in running.bus.seen if b["metric"] == "click"] == [1]  # unchanged: not again
    running.lane.stop()
    assert running.lane.latest("default")["page_views"] == {"value": 3, "window": pushed["window"]}
    view = running.lane.view()
    assert (view.name, view.state, view.lag, view.events) == ("live-metrics", "stopped", 0, 4)


def test_tenants_are_counted_apart(log: SegmentLog, start: Callable[[], Running]) -> None:
    running = start()
    post(log, {"event": "page_view"}, tenant="acme")
    post(log, {"event": "page_view"}, {"event": "page_view"}, tenant="globex")
    running.bus.until(lambda tenant, b: tenant == "globex" and b["metric"] == "page_views" and b["value"] == 2)
    running.lane.stop()
    assert running.lane.latest("acme")["page_views"]["value"] == 1
    assert running.lane.latest("globex")["page_views"]["value"] == 2
    assert running.lane.latest("nobody") == {}


def test_after_a_restart_the_current_minute_is_complete_and_earlier_ones_stay_silent(
    log: SegmentLog, start: Callable[[], Running]
) -> None:
    before = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=3)
    for _ in range(3):
        post(log, *({"event": "page_view", "timestamp": before} for _ in range(600)), at=before)
    now = datetime.now(UTC)
    post(log, {"event": "page_view"}, {"event": "page_view"}, at=now)
    running = start()
    minute = now.replace(second=0, microsecond=0).isoformat().replace("+00:00", "Z")
    first = running.bus.until(lambda _, b: b["metric"] == "page_views")
    assert (first["window"]["start"], first["value"]) == (minute, 2)
    post(log, {"event": "page_view", "timestamp": before}, {"event": "last", "timestamp": now}, at=now)
    running.bus.until(lambda _, b: b["metric"] == "last")
    assert {b["window"]["start"] for _, b in running.bus.seen} == {minute}


def test_a_lane_that_the_log_has_outrun_goes_on_from_what_is_left(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "p0", segment_bytes=2048, disk_reserve_bytes=0)
    post(log, {"event": "first"})
    outrun, ended = threading.Event(), threading.Event()

    class Slow(LiveWindows):
        def add(self, batch: EventBatch) -> None:
            if not outrun.is_set():
                ended.set()
                assert outrun.wait(SECONDS)
            super().add(batch)

    bus = Bus()
    lane = LiveMetrics(log, bus, Slow(METRICS))
    lane.start()
    assert ended.wait(SECONDS)
    for _ in range(20):
        post(log, {"event": "filling", "properties": {"x": "x" * 500}})
    log.trim(log.durable)
    outrun.set()
    soon = datetime.now(UTC) + timedelta(minutes=1)
    post(log, {"event": "after", "timestamp": soon}, at=soon)
    bus.until(lambda _, b: b["metric"] == "after")
    lane.stop()
    assert lane.view().state == "stopped"
    log.close()


# --- what fails ------------------------------------------------------------------------------------------------------

BROKEN = Definition("broken", "sum", value=Field("user_id"))  # no manifest can say so


def test_a_metric_that_cannot_be_counted_is_named_and_costs_no_other(log: SegmentLog) -> None:
    bus = Bus()
    lane = LiveMetrics(log, bus, LiveWindows([BROKEN, *METRICS]))
    lane.start()
    for value in (1, 2):
        post(log, {"event": "page_view", "user_id": "u1"})
        bus.until(lambda _, b, value=value: b["metric"] == "page_views" and b["value"] == value)  # type: ignore[misc]
    view = lane.view()
    assert view.state == "running"
    assert view.reason.startswith("metric 'broken' cannot be counted (")
    assert "u1" not in view.reason
    lane.stop()
    assert not [b for _, b in bus.seen if b["metric"] == "broken"]


def test_a_metric_that_failed_is_counted_again_in_the_next_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    held = LiveWindows([define(MetricManifest(name="paid", aggregate="sum", property="amount"))])
    column_of = Field.column_of

    def failing(field: Field, batch: EventBatch, kind: type) -> pa.Array:
        if "poison" in batch.column("name").to_pylist():
            raise ValueError("no such column")
        return column_of(field, batch, kind)

    monkeypatch.setattr(Field, "column_of", failing)

    def paid(minute: int, *names: str) -> dict[tuple[str, int], float]:
        at = THIS_MINUTE + timedelta(minutes=minute, seconds=1)
        held.add(batch([{"event": n, "timestamp": at, "properties": {"amount": 2}} for n in names], watermark=at))
        return {key: value for key, value in shown(held).items() if key[0] == "paid"}

    assert paid(0, "sale") == {("paid", 0): 2}
    assert paid(0, "poison") == {}
    assert held.problem == "metric 'paid' cannot be counted (ValueError, see the log)"
    assert paid(0, "sale") == {}  # a sum without the poison would be wrong
    assert paid(1, "sale") == {("paid", 1): 2}
    assert paid(11, "sale") == {("paid", 11): 2}
    assert held.problem == ""


def test_a_round_that_fails_is_shown_and_the_next_goes_on(log: SegmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_metrics, "_RETRY_SECONDS", 0.01)
    failed = threading.Event()

    class Once(LiveWindows):
        def add(self, batch: EventBatch) -> None:
            if len(batch) and not failed.is_set():
                failed.set()
                raise ValueError("u1 is no number")
            super().add(batch)

    bus = Bus()
    lane = LiveMetrics(log, bus, Once(METRICS))
    lane.start()
    post(log, {"event": "page_view", "user_id": "u1"})
    assert failed.wait(SECONDS)
    soon = datetime.now(UTC) + timedelta(minutes=1)  # the minute that lost an event is not shown
    post(log, {"event": "page_view", "timestamp": soon}, at=soon)
    assert bus.until(lambda _, b: b["metric"] == "page_views")["value"] == 1
    lane.stop()
    assert lane.view().state == "stopped"


def test_a_damaged_log_ends_the_lane_with_the_place_of_the_damage(log: SegmentLog) -> None:
    post(log, {"event": "page_view"}, {"event": "page_view"})
    log.append([], NOW)  # on a quiet log every read is one of the file
    path = next(log.directory.glob(f"*{SUFFIX}"))
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\xa5" * 8)
    lane = LiveMetrics(log, Bus(), LiveWindows(METRICS))
    lane.start()
    deadline = time.monotonic() + SECONDS
    while (view := lane.view()).state in ("starting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert view.state == "failed"
    assert f"{path}: bad frame at byte 0" in view.reason
    lane.stop()


def test_the_newest_figures_are_forgotten_with_their_windows(log: SegmentLog, start: Callable[[], Running]) -> None:
    running = start()
    post(log, {"event": "page_view"}, tenant="gone")
    for minutes, name in ((5, "click"), (11, "late")):
        at = NOW + timedelta(minutes=minutes)
        post(log, {"event": name, "timestamp": at}, at=at)
        running.bus.until(lambda _, b, name=name: b["metric"] == name)  # type: ignore[misc]
        if name == "click":
            assert set(running.lane.latest("gone")) == {"page_views", "page_view"}
    running.lane.stop()
    assert running.lane.latest("gone") == {}
    assert set(running.lane.latest("default")) == {"click", "late"}


def test_rests_follow_the_work_and_have_an_end() -> None:
    assert [rest_after(spent) < 0.05 for spent in (0.0, 0.001, 0.005, 0.01)] == [False, True, True, True]
    for spent in (0.001, 0.005, 0.01, 0.02, 0.025):
        assert spent + rest_after(spent) <= 0.125 + 1e-9
        assert spent / (spent + rest_after(spent)) <= 0.2 + 1e-9  # the share of a processor
    for share in (0.1, 0.3, 0.6, 0.9):  # of the time that the events of a second take to count
        spent = 0.001
        for _ in range(1_000):
            spent = share * (spent + rest_after(spent))
        assert spent <= 0.1 * share / (1 - share) + 1e-9


def windows(**bounds: Any) -> LiveWindows:
    return LiveWindows(METRICS, **bounds)


def shown(held: LiveWindows) -> dict[tuple[str, int], float]:
    return {(c.metric, (c.start - micros(THIS_MINUTE)) // MINUTE): c.value for c in held.changes()}


def at_minute(minute: int, *names: str) -> EventBatch:
    moment = THIS_MINUTE + timedelta(minutes=minute, seconds=1)
    return batch([{"event": name, "timestamp": moment} for name in names], watermark=moment)


def test_windows_go_by_event_time_and_old_ones_are_forgotten() -> None:
    held = windows(keep=3)
    held.add(at_minute(0, "a", "a"))
    held.add(at_minute(1, "a"))
    assert shown(held) == {("a", 0): 2, ("a", 1): 1}
    late = batch([{"event": "a", "timestamp": THIS_MINUTE}], watermark=THIS_MINUTE + timedelta(minutes=1, seconds=5))
    held.add(late)
    assert shown(held) == {("a", 0): 3}
    held.add(EventBatch.empty("", THIS_MINUTE + timedelta(minutes=3)))  # time passes without events
    held.add(batch([{"event": "a", "timestamp": THIS_MINUTE}], watermark=THIS_MINUTE + timedelta(minutes=3)))
    assert shown(held) == {}
    far = batch([{"event": "a", "timestamp": THIS_MINUTE + timedelta(hours=9)}], watermark=THIS_MINUTE)
    held.add(far)
    assert shown(held) == {}


def test_only_the_most_frequent_event_names_are_shown() -> None:
    held = windows(top_names=2)
    held.add(at_minute(0, "rare", "often", "often", "often", "some", "some"))
    assert shown(held) == {("often", 0): 3, ("some", 0): 2}


def test_an_event_with_the_name_of_a_metric_does_not_take_its_place() -> None:
    held = windows()
    held.add(at_minute(0, "active_users", "page_view"))
    assert shown(held) == {("page_views", 0): 1, ("page_view", 0): 1}


# --- definitions that change -----------------------------------------------------------------------------------------

VIEWS, USERS = METRICS
CLICKS = define(MetricManifest(name="clicks", event="click"))


def figures(bus: Bus, metric: str) -> list[float]:
    return [body["value"] for _, body in bus.seen if body["metric"] == metric]


def test_a_new_metric_has_the_whole_current_minute_and_no_other_is_disturbed(log: SegmentLog) -> None:
    bus, held = Bus(), LiveWindows(METRICS)
    lane = LiveMetrics(log, bus, held)
    lane.start()
    now = datetime.now(UTC)
    for _ in range(3):
        post(log, {"event": "page_view", "user_id": "u1"}, {"event": "click"}, at=now)
    bus.until(lambda _, b: (b["metric"], b["value"]) == ("page_views", 3))
    held.declare([VIEWS, CLICKS])
    assert bus.until(lambda _, b: b["metric"] == "clicks")["value"] == 3  # with no further event
    post(log, {"event": "page_view", "user_id": "u2"}, {"event": "click"}, at=now)
    bus.until(lambda _, b: (b["metric"], b["value"]) == ("page_views", 4))
    lane.stop()
    assert set(lane.latest("default")) == {"page_views", "page_view", "clicks", "click"}  # and no active_users
    assert figures(bus, "clicks")[-1] == 4
    assert figures(bus, "page_views") == sorted(set(figures(bus, "page_views")))  # on and on, none twice
    assert set(figures(bus, "active_users")) == {1}
    assert lane.view().events == 8


def test_a_changed_metric_is_counted_anew_from_the_current_minute_on(log: SegmentLog) -> None:
    bus, held = Bus(), LiveWindows([VIEWS])
    lane = LiveMetrics(log, bus, held)
    lane.start()
    now = datetime.now(UTC)
    begun = now.replace(second=0, microsecond=0).isoformat().replace("+00:00", "Z")
    earlier = now - timedelta(minutes=2)
    post(log, {"event": "page_view"}, {"event": "click"}, {"event": "click"}, at=earlier)
    post(log, {"event": "page_view"}, {"event": "click"}, at=now)
    bus.until(lambda _, b: b["metric"] == "page_views" and b["window"]["start"] == begun)
    seen = len(bus.seen)
    held.declare([define(MetricManifest(name="page_views", events=("page_view", "click")))])
    bus.until(lambda _, b: (b["metric"], b["value"]) == ("page_views", 2))
    post(log, {"event": "click", "timestamp": earlier}, {"event": "last"}, at=now)  # for a window that is not whole
    bus.until(lambda _, b: b["metric"] == "last")
    lane.stop()
    shown = [(b["window"]["start"], b["value"]) for _, b in bus.seen[seen:] if b["metric"] == "page_views"]
    assert shown == [(begun, 2)]


def test_a_renewal_that_fails_changes_nothing_and_is_tried_again(
    log: SegmentLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_metrics, "_RETRY_SECONDS", 0.01)
    bus, held = Bus(), LiveWindows(METRICS)
    lane = LiveMetrics(log, bus, held)
    lane.start()
    post(log, {"event": "page_view", "user_id": "u1"}, {"event": "click"}, at=datetime.now(UTC))
    bus.until(lambda _, b: b["metric"] == "page_views")
    begin, failed = LiveWindows.begin, threading.Event()

    def failing(windows: LiveWindows, since: datetime) -> None:
        if windows is not held and not failed.is_set():
            failed.set()
            raise OSError("no file")
        begin(windows, since)

    monkeypatch.setattr(LiveWindows, "begin", failing)
    held.declare([*METRICS, CLICKS])
    assert failed.wait(SECONDS)
    assert bus.until(lambda _, b: b["metric"] == "clicks")["value"] == 1
    lane.stop()
    assert figures(bus, "page_views") == [1]


def test_a_name_that_no_metric_has_any_more_is_the_events_again() -> None:
    held = LiveWindows([define(MetricManifest(name="click", event="page_view"))])
    held.add(at_minute(0, "click", "page_view", "page_view", "page_view"))
    assert shown(held) == {("click", 0): 3, ("page_view", 0): 3}
    held.declare([])
    assert held.renew(lambda _: pytest.fail("nothing is new")) == {"click"}
    assert shown(held) == {("click", 0): 1}
    assert held.renew(lambda _: pytest.fail("nothing is new")) is None


def test_labels_and_failures_come_with_the_windows_that_are_new() -> None:
    by_plan = define(MetricManifest(name="by_plan", breakdown=("user_id",)))
    held = LiveWindows(METRICS)
    rows = [{"event": "page_view", "user_id": user, "timestamp": THIS_MINUTE} for user in ("a", "a", "b")]
    held.add(batch(rows, watermark=THIS_MINUTE))
    list(held.changes())
    held.declare([*METRICS, by_plan, BROKEN])
    assert held.renew(lambda fresh: fresh.add(batch(rows, watermark=THIS_MINUTE))) == {"by_plan", "broken"}
    assert [(c.metric, c.labels, c.value) for c in held.changes()] == [
        ("by_plan", {}, 3),
        ("by_plan", {"user_id": "a"}, 2),
        ("by_plan", {"user_id": "b"}, 1),
    ]
    assert held.problem.startswith("metric 'broken' cannot be counted (")
    held.declare(METRICS)
    held.renew(lambda _: None)
    assert held.problem == ""
