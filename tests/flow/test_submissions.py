"""Submitted data: stored like any events, folded apart from all others, answered by id, refused by path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analytics_core import hookimpl
from analytics_core.config import Intake as IntakeSettings
from analytics_core.errors import HookFailedError, NotFoundError, OverloadedError, ParameterError
from analytics_core.events import EventBatch
from analytics_core.hashing import hash_strings
from analytics_core.intake import Intake
from analytics_core.log.dedup import Deduplicator
from analytics_core.log.segments import SegmentLog
from analytics_core.queries.findings import figures
from analytics_core.queries.submissions import Submissions, replayed
from analytics_core.records import Insight, Metric, Pattern, ProcessResult, Window
from analytics_core.sketches import UniqueSketch
from analytics_core.state.sqlite import SqliteState
from analytics_core.testing import batch

START = datetime(2025, 1, 1, 12, tzinfo=UTC)
SESSIONS = {
    "sessions": [
        {
            "sessionId": "s1",
            "userId": "u1",
            "startTime": "2025-01-01T12:00:00Z",
            "events": [
                {"type": "page_view", "timestamp": "2025-01-01T12:00:05Z", "data": {"page": "/"}},
                {"type": "click", "timestamp": 1735733000, "data": {"on": "buy"}},
                {"type": "page_view"},
            ],
        },
        {"sessionId": 7, "userId": "u2", "startTime": "2025-01-02T09:00:00Z", "events": [{"type": "page_view"}]},
    ]
}


class Counter:
    """A plugin: events per name, and what it saw of the first of them."""

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        rows = batch.rows()
        window = Window(START)
        return ProcessResult(
            metrics=[
                Metric(name="events", value=float(len(rows)), window=Window(rows[0].timestamp)),
                Metric(name="pages", value=1, window=window, labels={"page": str(rows[0].properties.get("page"))}),
            ],
            insights=[
                Insight(key="first", title=rows[0].name, description=str(rows[0].user_id), confidence=float("nan"))
            ],
            patterns=[Pattern(key="p", name="p", description="", count=1, window=window)],
        )


class Host:
    """Folds with a real plugin object; the parts of the plugin host that submissions use."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.masks = False
        self.fails = ""
        self.data: dict[Any, Any] = {}
        self.folded: list[EventBatch] = []

    def views(self) -> list[Any]:
        return [
            SimpleNamespace(name="user-behavior", hooks=["process", "insight"]),
            SimpleNamespace(name="webhook", hooks=["deliver"]),
        ]

    def enriches(self) -> bool:
        return self.masks

    async def enrich(self, batch: EventBatch) -> tuple[EventBatch, Any]:
        return batch, np.array([name == "click" for name in batch.column("name").to_pylist()])

    async def fold_once(self, plugin: str, batches: Sequence[EventBatch]) -> ProcessResult:
        await self.gate.wait()
        if self.fails:
            raise HookFailedError(plugin, "process", self.fails)
        self.folded = list(batches)
        fold = Counter()
        results = [fold.process(each) for each in batches if len(each)]
        insights = [*results[0].insights, Insight(key="more", title="more", description="", data=self.data)]
        return ProcessResult(
            metrics=[m for r in results for m in r.metrics], insights=insights, patterns=results[0].patterns
        )


class House:
    def __init__(self, log: SegmentLog, intake: Intake, state: SqliteState) -> None:
        self.log, self.intake, self.state, self.host = log, intake, state, Host()
        self.submissions = Submissions(intake.accept_events, self.host, self.host.views, state, max_running=2)

    def stored(self) -> list[tuple[str, str, str | None, str | None]]:
        batches, _ = self.log.read(0)
        return [(b.tenant, row.name, row.user_id, row.session_id) for b in batches for row in b.rows()]

    async def done(self, analysis_id: str, tenant: str = "default") -> dict[str, Any]:
        await self.submissions.close()
        found = self.submissions.result(analysis_id, tenant)
        assert found is not None
        return found


@asynccontextmanager
async def house(tmp_path: Path) -> AsyncIterator[House]:
    log = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0)
    state = SqliteState(tmp_path / "state.db")
    dedup = Deduplicator(log, window=1000)
    intake = Intake(IntakeSettings(), log, dedup, Host())
    intake.start()
    made = House(log, intake, state)
    try:
        yield made
    finally:
        made.host.gate.set()
        await made.submissions.close()
        await intake.stop()
        dedup.close()
        state.close()
        log.close()


def test_sessions_are_stored_and_answered_by_a_fold_over_exactly_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            await at.done(await at.submissions.submit("user-behavior", {"events": [{"event": "other"}]}, "default"))
            analysis_id = await at.submissions.submit("user_behavior", SESSIONS, "default")
            found = await at.done(analysis_id)
            assert sorted(at.stored(), key=str)[0] == ("default", "click", "u1", "s1")
            assert len(at.stored()) == 5
            rows = [row for each in at.host.folded for row in each.rows()]
            assert [row.name for row in rows] == ["page_view", "page_view", "click", "page_view"]
            assert [row.timestamp.isoformat() for row in rows][:2] == [
                "2025-01-01T12:00:00+00:00",  # no time of its own: the session's start
                "2025-01-01T12:00:05+00:00",
            ]
            assert rows[1].properties == {"page": "/"}
            assert {row.context["analysisId"] for row in rows} == {analysis_id}
            assert (found["success"], found["status"], found["type"]) == (True, "done", "user-behavior")
            assert found["analysisId"] == analysis_id
            assert found["insights"][0]["title"] == "page_view"
            assert found["insights"][0]["confidence"] is None  # NaN is no JSON
            assert found["patterns"][0]["window"] == {"start": "2025-01-01T12:00:00+00:00", "seconds": 60}
            assert found["metrics"]["events"] == 4
            assert at.submissions.analyzed == 2
            assert at.submissions.result(analysis_id, "acme") is None
            assert at.submissions.result("nothing", "default") is None

    asyncio.run(main())


def test_a_result_is_pending_until_it_is_there_and_the_number_at_once_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.gate.clear()
            first = await at.submissions.submit("user-behavior", SESSIONS, "default")
            await at.submissions.submit("user-behavior", SESSIONS, "default")
            pending = at.submissions.result(first, "default")
            assert pending is not None
            assert (pending["success"], pending["status"], pending["metrics"]) == (True, "pending", {})
            before = len(at.stored())
            with pytest.raises(OverloadedError, match="2 analyses are under way"):
                await at.submissions.submit("user-behavior", SESSIONS, "default")
            assert len(at.stored()) == before

            restarted = Submissions(at.intake.accept_events, at.host, at.host.views, at.state).result(first, "default")
            assert restarted is not None
            assert (restarted["success"], restarted["status"]) == (False, "failed")
            assert "restarted" in restarted["error"]

            at.host.gate.set()
            assert (await at.done(first))["status"] == "done"
            await at.submissions.submit("user-behavior", SESSIONS, "default")  # there is room again

    asyncio.run(main())


def test_a_plugin_that_fails_gives_a_failed_result(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.fails = "it broke"
            found = await at.done(await at.submissions.submit("user-behavior", SESSIONS, "default"))
            assert (found["success"], found["status"]) == (False, "failed")
            assert "it broke" in found["error"]
            assert len(at.stored()) == 4

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"totals": [1, 10**5000]}, "insights[1].data.totals[1]: Exceeds the limit"),
        ({"word": "\ud800"}, "insights[1].data.word: 'utf-8' codec can't encode character '\\ud800'"),
        ({"by": {("a", "b"): 1}}, "insights[1].data.by: Only dicts with str-like or number-like keys"),
    ],
)
def test_a_value_that_json_cannot_hold_gives_a_failed_result_that_names_its_place(
    tmp_path: Path, data: dict[Any, Any], problem: str
) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.data = data
            found = await at.done(await at.submissions.submit("user-behavior", SESSIONS, "default"))
            assert (found["success"], found["status"], found["insights"]) == (False, "failed", [])
            assert found["error"].startswith(f"Plugin 'user-behavior': hook 'process' failed: {problem}")

    asyncio.run(main())


def test_an_integer_beyond_64_bits_is_answered_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.data = {"n": 2**64}
            found = await at.done(await at.submissions.submit("user-behavior", SESSIONS, "default"))
            assert (found["status"], found["insights"][1]["data"]) == ("done", {"n": 2**64})

    asyncio.run(main())


def test_an_error_with_half_a_character_can_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.fails = "it broke on \ud800"
            found = await at.done(await at.submissions.submit("user-behavior", SESSIONS, "default"))
            assert found["status"] == "failed"
            assert found["error"].endswith("it broke on ?")

    asyncio.run(main())


def test_what_an_enrich_plugin_drops_reaches_no_fold(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            at.host.masks = True
            await at.done(await at.submissions.submit("user-behavior", SESSIONS, "default"))
            assert all(row.name != "click" for each in at.host.folded for row in each.rows())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ([], "data"),
        ({}, "data"),
        ({"sessions": [], "events": []}, "data"),
        ({"sessions": {}}, "data.sessions"),
        ({"sessions": []}, "data.sessions"),
        ({"sessions": [5]}, "data.sessions[0]"),
        ({"sessions": [{"events": []}]}, "data.sessions[0].sessionId"),
        ({"sessions": [{"sessionId": "s"}]}, "data.sessions[0].events"),
        ({"sessions": [{"sessionId": "s", "startTime": "noon", "events": []}]}, "data.sessions[0].startTime"),
        ({"sessions": [{"sessionId": "s", "userId": {}, "events": []}]}, "data.sessions[0].userId"),
        ({"sessions": [{"sessionId": "s", "events": [{}]}]}, "data.sessions[0].events[0].type"),
        ({"sessions": [{"sessionId": "s", "events": [{"type": ""}]}]}, "data.sessions[0].events[0].type"),
        ({"sessions": [{"sessionId": "s", "events": [{"type": "a", "data": [1]}]}]}, "data.sessions[0].events[0].data"),
        (
            {"sessions": [{"sessionId": "s", "events": [{"type": "a"}, {"type": "a", "timestamp": 5}]}]},
            "data.sessions[0].events[1].timestamp",
        ),
        ({"events": [{"event": "a"}, {"evnt": "a"}]}, "data.events[1].evnt"),
        ({"events": [{"event": "a", "timestamp": True}]}, "data.events[0].timestamp"),
        ({"events": [{"event": "a", "properties": 5}]}, "data.events[0].properties"),
        ({"events": [{"event": "a" * 257}]}, "data.events[0].event"),
    ],
)
def test_bad_data_is_refused_by_its_path_and_nothing_is_stored(tmp_path: Path, data: Any, path: str) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            with pytest.raises(ParameterError) as caught:
                await at.submissions.submit("user-behavior", data, "default")
            assert caught.value.parameter == path
            assert at.stored() == []

    asyncio.run(main())


def test_a_type_is_a_plugin_that_processes(tmp_path: Path) -> None:
    async def main() -> None:
        async with house(tmp_path) as at:
            with pytest.raises(NotFoundError, match="did you mean 'user-behavior'"):
                await at.submissions.submit("user-behaviour", SESSIONS, "default")
            with pytest.raises(ParameterError, match="does not process events; valid are: user-behavior"):
                await at.submissions.submit("webhook", SESSIONS, "default")

    asyncio.run(main())


def test_a_replay_goes_in_order_of_time_in_a_bounded_number_of_steps() -> None:
    rows = [{"event": "a", "timestamp": 1735689600 + 3600 * i} for i in range(2000)]
    steps = replayed(batch(rows))
    assert len(steps) <= 500
    assert sum(map(len, steps)) == 2000
    assert all(step.watermark == step.rows()[-1].timestamp for step in steps[:3])
    assert [s.watermark for s in steps] == sorted(s.watermark for s in steps)
    assert len(replayed(batch(rows[:1]))) == 1


def test_windows_merge_to_one_figure_by_kind() -> None:
    def unique(*people: str) -> bytes:
        sketch = UniqueSketch()
        sketch.add(hash_strings(people))
        return sketch.to_bytes()

    first, second = Window(START), Window(START.replace(minute=1))
    found = figures(
        [
            Metric(name="hits", value=1, window=first),
            Metric(name="hits", value=5, window=first),  # the same window again: an upsert
            Metric(name="hits", value=2, window=second),
            Metric(name="open", value=4, window=first, kind="last"),
            Metric(name="open", value=3, window=second, kind="last"),
            Metric(name="people", value=2, window=first, kind="unique", sketch=unique("a", "b")),
            Metric(name="people", value=2, window=second, kind="unique", sketch=unique("b", "c")),
            Metric(name="by_page", value=1, window=first, labels={"page": "/"}),
            Metric(name="by_page", value=2, window=second, labels={"page": "/x"}),
        ]
    )
    assert found == {
        "hits": 7,
        "open": 3,
        "people": 3,
        "by_page": {
            "value": 3,
            "breakdown": [{"labels": {"page": "/"}, "value": 1}, {"labels": {"page": "/x"}, "value": 2}],
        },
    }
