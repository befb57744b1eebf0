"""The host that plugin authors test with: real lanes over a real log, started, filled and ended by a fixture."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from analytics_core import Enrichment, EventBatch, Insight, Metric, PluginContext, ProcessResult, Window, hookimpl
from analytics_core.errors import NotFoundError
from analytics_core.testing import (
    START,
    Clock,
    EmbeddedHost,
    Failed,
    Faults,
    Feed,
    differences,
    record,
    replay,
)
from analytics_core.testing.host import _given, embedded

Start = Callable[..., EmbeddedHost]


class CountsClicks:
    """Counts events by name, and tells when an hour has passed."""

    def __init__(self) -> None:
        self.n: dict[str, int] = {}

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        self.step = context.settings.get("step", 1)

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        for row in batch.rows():
            self.n[row.name] = self.n.get(row.name, 0) + self.step
        late = batch.watermark >= START + timedelta(hours=1)
        return ProcessResult(
            [Metric(name="n", value=n, window=Window(START), labels={"event": name}) for name, n in self.n.items()],
            insights=[Insight(key="late", title="Late", description="An hour has passed.")] if late else [],
        )

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return self.n

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.n = state


class DropsBots:
    @hookimpl
    def enrich(self, batch: EventBatch) -> Enrichment:
        return Enrichment(drop=[row.name == "bot" for row in batch.rows()])


def clicks(host: EmbeddedHost, **labels: str) -> list[float]:
    return [point.value for point in host.metric("counts-clicks.n", **labels)]


def test_what_is_posted_is_folded_and_stored(analytics_host: Start, analytics_clock: Clock) -> None:
    host = analytics_host(CountsClicks)
    host.post([{"event": "click"}, {"event": "click"}, {"event": "view"}])
    host.settle()
    assert clicks(host, event="click") == [2]
    assert sorted(clicks(host)) == [1, 2]
    assert host.metric("counts-clicks.n", tenant="acme") == host.insights("counts-clicks") == []
    analytics_clock.advance(hours=1)
    host.post()
    host.settle()
    assert [insight["key"] for insight in host.insights("counts-clicks")] == ["late"]
    view = host.plugin("counts-clicks")
    assert (view.state, view.isolation, view.events_processed, view.lag) == ("active", "thread", 3, 0)
    with pytest.raises(NotFoundError, match="did you mean 'counts-clicks'"):
        host.metric("count-clicks.n")


def test_a_second_start_is_a_restart(analytics_host: Start) -> None:
    analytics_host(CountsClicks).post([{"event": "click"}])
    host = analytics_host(CountsClicks)
    host.post([{"event": "click"}])
    host.settle()
    assert clicks(host) == [2]
    again = analytics_host(CountsClicks)
    again.settle()
    assert clicks(again) == [2]


def test_plugins_that_are_installed_go_by_their_names(analytics_host: Start) -> None:
    settings = {"user-behavior": {"session_gap_minutes": 5}}
    host = analytics_host("user-behavior", CountsClicks, settings=settings)
    host.post([{"event": "click", "user_id": "ada"}], tenant="acme")
    host.settle()
    assert [point.value for point in host.metric("user-behavior.sessions", tenant="acme")] == [1]
    with pytest.raises(NotFoundError, match="no installed plugin is named 'user-behaviour'; did you mean"):
        analytics_host("user-behaviour")


def test_plugins_that_enrich_see_what_is_posted_first(analytics_host: Start) -> None:
    host = analytics_host(CountsClicks, DropsBots)
    host.post([{"event": "bot"}, {"event": "click"}, {"event": "bot"}])
    host.post([{"event": "bot"}])
    host.settle()
    assert clicks(host) == [1]


class Remembers(CountsClicks):
    """Tells what states its instances were given, and how many events each call."""

    given: ClassVar[list[Any]] = []

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult:
        self.given.append(len(batch))
        return super().process(batch)

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        self.given.append(dict(state))
        super().import_state(state, version)


def test_a_plugin_that_fails_once_goes_on_from_its_checkpoint(analytics_host: Start, analytics_faults: Faults) -> None:
    Remembers.given.clear()
    with analytics_faults.raises(Remembers, "process", ValueError("no"), at=2) as fault:
        host = analytics_host(Remembers)
        for _ in range(3):
            host.post([{"event": "click"}])
            host.settle()
        assert (fault.calls, fault.struck) == (4, 1)
        assert Remembers.given == [1, {"click": 1}, 1, 1]  # the second call never got there
        assert [point.value for point in host.metric("remembers.n")] == [3]
        assert host.plugin("remembers").errors == 1


def test_a_plugin_that_gives_a_wrong_type_for_ever_is_quarantined(
    analytics_host: Start, analytics_faults: Faults
) -> None:
    with analytics_faults.returns(CountsClicks, "process", {"n": 1}, times=None):
        host = analytics_host(CountsClicks)
        host.post([{"event": "click"}])
        assert "returned dict; valid is ProcessResult or None" in host.until("counts-clicks", "quarantined").reason
        with pytest.raises(
            AssertionError, match=r"'counts-clicks' is quarantined, 1 positions behind: .*returned dict"
        ):
            host.settle()


def test_a_plugin_that_hangs_is_started_anew(analytics_host: Start, analytics_faults: Faults) -> None:
    with analytics_faults.hangs(CountsClicks, "process") as fault:
        host = analytics_host(CountsClicks, hang_seconds=1.0)
        host.post([{"event": "click"}])
        host.settle()
        assert (fault.calls, fault.struck) == (2, 1)
        assert clicks(host) == [1]
        assert host.plugin("counts-clicks").errors == 1


def test_a_plugin_that_refuses_its_start_says_why(analytics_host: Start, analytics_faults: Faults) -> None:
    with analytics_faults.raises(CountsClicks, "setup", ValueError("no step"), times=None):
        host = analytics_host(CountsClicks)
        assert host.plugin("counts-clicks").state == "start_error"
        with pytest.raises(AssertionError, match=r"start_error, 0 positions behind: .*no step"):
            host.settle()


def test_a_fault_in_the_host_is_recorded_and_replayed(
    analytics_host: Start, analytics_faults: Faults, tmp_path: Path
) -> None:
    with analytics_faults.raises(CountsClicks, "process", ValueError("no"), at=3):
        host = analytics_host(record(CountsClicks, tmp_path / "calls"))
        for _ in range(3):
            host.post([{"event": "click"}])
            host.settle()
    failed = [call for call in replay(tmp_path / "calls", CountsClicks) if isinstance(call.recorded, Failed)]
    assert [call.recorded for call in failed] == [Failed("ValueError: no")]
    assert [metric.value for metric in failed[0].now.metrics] == [3]
    (only,) = differences(tmp_path / "calls", CountsClicks)
    assert only.endswith("where the recording has failed (ValueError: no)")


def test_nothing_is_left_at_the_end(tmp_path: Path, analytics_events: Feed) -> None:
    interval, before = sys.getswitchinterval(), set(threading.enumerate())
    with embedded([CountsClicks, "performance"], tmp_path, analytics_events) as host:
        host.post([{"event": "click"}])
        host.settle()
        assert _given
    assert {thread.name for thread in threading.enumerate() if thread.is_alive() and thread not in before} == set()
    assert sys.getswitchinterval() == interval
    assert not _given
    assert not [name for name in sys.modules if name.startswith("analytics_given")]
