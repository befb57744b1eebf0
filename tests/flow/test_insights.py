"""Insights: the marked analyses asked over one range, their findings ranked, each with the question that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.config import Settings
from analytics_core.errors import HookFailedError, ParameterError, PluginStartingError, QueryError, StoppingError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.host.views import AnalysisSpec
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.segments import SegmentLog
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.history import History
from analytics_core.queries.insights import Insights, Wanted
from analytics_core.records import Answer, Insight, Question, Recommendation
from analytics_core.testing import batch
from tests.flow.api_house import AUTH, opened

NOW = datetime(2025, 1, 10, 12, tzinfo=UTC)
SEVERITIES = ["info", "low", "medium", "high", "critical"]


def insight(key: str, severity: str = "info", confidence: Any = 1.0, **data: Any) -> dict[str, Any]:
    return {"key": key, "title": key, "description": "", "severity": severity, "confidence": confidence,
            "window": None, "data": data}  # fmt: skip


def advice(key: str, of: str) -> dict[str, Any]:
    return {"title": key, "description": "", "insight": of, "priority": "medium"}


class Behind:
    """Plugins and their analyses: each answers what it is told, or raises it."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.marked: dict[str, Any] = {name: {} for name in answers}
        self.plugins: dict[str, str] = {}
        self.asked: dict[str, Mapping[str, Any]] = {}
        self.running = self.most = 0

    def analyses(self) -> dict[str, AnalysisSpec]:
        return {
            name: AnalysisSpec(name, self.plugins.get(name, "user-behavior"), name, {}, insights)
            for name, insights in self.marked.items()
        }

    async def ask(self, name: str, parameters: Mapping[str, Any], tenant: str, timezone: str) -> dict[str, Any]:
        self.asked[name] = parameters
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        rest = {"parameters": dict(parameters), "data": [{}, {}], "recommendations": [], "data_as_of": None,
                "watermark": None}  # fmt: skip
        return {**rest, **({"insights": answer} if isinstance(answer, list) else answer)}

    def find(self, timezone: str = "UTC", **wanted: Any) -> dict[str, Any]:
        async def scenario() -> dict[str, Any]:
            return await Insights(self, self, clock=lambda: NOW).find(Wanted(**wanted), "acme", timezone)

        return asyncio.run(scenario())


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(SEVERITIES),
            st.sampled_from([0.0, 0.5, 1.0, 2.0, None]),
            st.sampled_from([{}, {"size": 0.5}, {"size": -2}, {"size": "big"}, {"size": None}]),
        ),
        max_size=12,
    )
)
def test_the_gravest_come_first_then_the_surest_then_the_largest(listed: list[tuple[str, str, Any, Any]]) -> None:
    answers: dict[str, list[Any]] = {name: [] for name in "abc"}
    for number, (name, severity, confidence, data) in enumerate(listed):
        answers[name].append(insight(str(number), severity, confidence, **data))
    found = Behind(**answers).find()["insights"]

    def rank(entry: dict[str, Any]) -> tuple[Any, ...]:
        size = entry["data"].get("size")
        return (
            SEVERITIES.index(entry["severity"]),
            entry["confidence"],
            abs(size) if isinstance(size, float | int) else 0,
        )

    assert sorted(entry["id"] for entry in found) == sorted(f"{row[0]}:{n}" for n, row in enumerate(listed))
    for first, second in pairwise(found):
        assert rank(first) >= rank(second)
        if rank(first) == rank(second):
            (one, at), (other, then) = (entry["id"].split(":") for entry in (first, second))
            assert (one, int(at)) < (other, int(then))
    assert all(0 <= entry["confidence"] <= 1 for entry in found)


def test_one_that_fails_is_listed_and_the_others_count() -> None:
    behind = Behind(
        a=[insight("x")], b=HookFailedError("user-behavior", "insight", "it broke"), c=QueryError("too long")
    )
    answer = behind.find(recommendations=True)
    assert [entry["id"] for entry in answer["insights"]] == ["a:x"]
    assert [(entry["name"], entry["rows"]) for entry in answer["analyses"]] == [("a", 2), ("b", 0), ("c", 0)]
    assert "error" not in answer["analyses"][0]
    assert "it broke" in answer["analyses"][1]["error"]
    assert answer["analyses"][2]["error"] == "too long"
    assert answer["analyses"][2]["parameters"]["timeRange"] == answer["timeRange"]


def test_within_a_minute_the_analyses_are_asked_the_same_so_that_their_answers_are_kept() -> None:
    async def scenario(seconds: int) -> Any:
        behind = Behind(a=[])
        insights = Insights(behind, behind, clock=lambda: NOW + timedelta(seconds=seconds, microseconds=7))
        await insights.find(Wanted(time_range="7d"), "acme")
        return behind.asked["a"]["timeRange"]

    first, second, later = (asyncio.run(scenario(seconds)) for seconds in (1, 58, 61))
    assert first == second == {"start": "2025-01-03T12:01:00+00:00", "end": "2025-01-10T12:01:00+00:00"}
    assert later["end"] == "2025-01-10T12:02:00+00:00"


def test_when_all_are_on_their_way_up_the_same_question_is_to_be_asked_again() -> None:
    starting = PluginStartingError("user-behavior", "is loading")
    with pytest.raises(PluginStartingError, match="ask again in a moment"):
        Behind(a=starting, b=starting).find()
    assert "ask again" in Behind(a=[], b=starting).find()["analyses"][1]["error"]


def test_the_end_of_the_host_is_nobodys_answer() -> None:
    with pytest.raises(StoppingError):
        Behind(a=[], b=StoppingError()).find()


def test_recommendations_come_when_asked_for_and_belong_to_an_insight() -> None:
    told = {"insights": [insight("x"), insight("y", "high")],
            "recommendations": [advice("for x", "x"), advice("for nothing", ""), advice("for y", "y"),
                                advice("for z", "z")]}  # fmt: skip
    behind = Behind(a=told, b=[insight("z")])
    assert behind.find()["recommendations"] == []
    answer = behind.find(recommendations=True)
    assert [(entry["title"], entry["insight"]) for entry in answer["recommendations"]] == [
        ("for y", "a:y"),
        ("for x", "a:x"),
    ]
    assert all(entry["query"]["analysis"] == "a" for entry in answer["recommendations"])


def test_all_are_asked_over_one_range_with_their_parameters_and_what_is_common() -> None:
    behind = Behind(funnel=[], sessions=[], plain=[])
    behind.marked = {"funnel": {"steps": [1, 2]}, "sessions": {}, "plain": None}
    common = {"filters": {"properties.plan": "pro"}, "cohort": "buyers"}
    answer = behind.find("Asia/Kolkata", time_range={"start": "2025-01-08", "end": "2025-01-20"}, common=common)
    span = {"start": "2025-01-07T18:30:00+00:00", "end": NOW.isoformat()}
    assert answer["timeRange"] == span
    expected = {**common, "timeRange": span, "timezone": "Asia/Kolkata"}
    assert behind.asked == {"funnel": {"steps": [1, 2], **expected}, "sessions": expected}


@pytest.mark.parametrize("source", ["user_behavior", "user-behavior"])
def test_a_source_and_one_analysis_can_be_chosen(source: str) -> None:
    behind = Behind(a_b=[], sessions=[], latency=[])
    behind.plugins = {"latency": "performance"}
    assert [entry["name"] for entry in behind.find()["analyses"]] == ["latency", "a_b", "sessions"]
    answer = behind.find(data_source=source)
    assert (answer["dataSource"], [entry["name"] for entry in answer["analyses"]]) == (
        "user-behavior",
        ["a_b", "sessions"],
    )
    assert [entry["name"] for entry in behind.find(data_source=source, analysis_type="a-b")["analyses"]] == ["a_b"]


@pytest.mark.parametrize(
    ("wanted", "parameter", "problem"),
    [
        (
            {"data_source": "user_behaviour"},
            "dataSource",
            "no plugin 'user-behaviour' has insights; did you mean 'user-",
        ),
        ({"analysis_type": "sesions"}, "analysisType", "no analysis 'sesions' is marked .* did you mean 'sessions'"),
        ({"time_range": "7 moons"}, "timeRange", "no span"),
        ({"time_range": {"start": "2025-01-11"}}, "timeRange.end", "is not after"),
        ({"time_range": {"start": "2025-01-11", "end": "2025-01-12"}}, "timeRange", "yet to come"),
        ({"common": {"timezone": "Mars/Base"}}, "timezone", "Mars/Base"),
        ({"common": {"filters": [1]}}, r"filters\[0\]", "must be an object"),
    ],
)
def test_a_wrong_question_is_refused(wanted: dict[str, Any], parameter: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=f"{parameter}: .*{problem}"):
        Behind(sessions=[]).find(**wanted)


def test_what_every_analysis_refuses_is_the_callers_mistake() -> None:
    refusal = ParameterError("cohort", "no cohort is named 'x'")
    with pytest.raises(ParameterError, match="no cohort"):
        Behind(a=refusal, b=refusal).find()
    assert Behind(a=refusal, b=[]).find()["analyses"][0]["error"] == "cohort: no cohort is named 'x'"


def test_a_few_are_asked_at_a_time() -> None:
    behind = Behind(**{name: [] for name in "abcdef"})
    behind.find()
    assert behind.most == 2


def test_the_freshness_is_that_of_the_oldest_snapshot() -> None:
    times = [("2025-01-10T11:00:00+00:00", "2025-01-10T11:30:00.5+00:00"), (None, None),
             ("2025-01-10T10:00:00.25+00:00", "2025-01-10T12:00:00+00:00")]  # fmt: skip
    told = {
        name: {"insights": [], "data_as_of": as_of, "watermark": watermark}
        for name, (as_of, watermark) in zip("abc", times, strict=True)
    }
    answer = Behind(**told).find()
    assert (answer["data_as_of"], answer["watermark"]) == (times[2][0], times[0][1])


def test_asking_the_query_of_an_insight_again_shows_its_figures(tmp_path: Path) -> None:
    class Counting:
        """Counts the events of the range; the finding repeats the figure."""

        def analyses(self) -> dict[str, AnalysisSpec]:
            return {
                "count": AnalysisSpec("count", "web", "Count", {"properties": {"n": {"type": "integer"}}}, {"n": 2})
            }

        def generation(self, plugin: str) -> int:
            return 1

        async def insight(self, question: Question, reader: Any) -> Answer:
            n = reader.sql("SELECT count(*) AS n FROM events")["n"][0].as_py() * question.parameters["n"]
            found = Insight(key="n", title="n", description="", data={"n": n})
            return Answer([{"n": n}], [found], [Recommendation(title="do", description="it", insight="n")])

    log, store = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0), DeltaStore(tmp_path / "lake")
    rows = [{"event": "a", "user_id": f"u{n % 3}", "timestamp": NOW - timedelta(days=n)} for n in range(20)]
    log.append([pa.RecordBatch.from_arrays(batch(rows).record_batch.columns[2:], schema=UNPLACED_SCHEMA)], NOW)
    analyses = Analyses(Counting(), History(log, store), clock=lambda: NOW)

    async def scenario() -> None:
        wanted = Wanted(time_range="6d", recommendations=True, common={"filters": {"userId": ["u1", "u2"]}})
        answer = await Insights(Counting(), analyses, clock=lambda: NOW).find(wanted, "default", "Asia/Kolkata")
        (found,) = answer["insights"]
        assert found["data"] == {"n": 2 * sum(n % 3 > 0 for n in range(1, 7))}
        again = await analyses.ask(found["query"]["analysis"], found["query"]["parameters"], "default")
        assert again["data"] == [found["data"]]
        assert answer["recommendations"][0]["query"] == found["query"]
        assert answer["data_as_of"] == again["data_as_of"] == NOW.isoformat()

    asyncio.run(scenario())
    store.close()
    log.close()


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_the_request_is_read_whole_and_bound_to_its_tenant() -> None:
    async def scenario() -> None:
        async with opened(Settings(auth=AUTH)) as house:
            body = {"dataSource": "user_behavior", "timeRange": "14d", "analysisType": "comprehensive",
                    "includeRecommendations": True, "filters": {"name": "x"}, "cohort": "buyers"}  # fmt: skip
            answer = await house.ask("POST", "/api/v1/insights", "acme-reader", json=body)
            assert (answer.status, answer.body["insights"]) == (200, [{"tenant": "acme"}])
            (asked,) = house.behind.asked
            assert asked == (
                "insights",
                Wanted(data_source="user_behavior", time_range="14d", recommendations=True,
                       common={"filters": {"name": "x"}, "cohort": "buyers"}),
                "acme",
                "Europe/Berlin",
            )  # fmt: skip
            for wrong, problem in [({"dataSorce": "x"}, "did you mean 'dataSource'"), ({"timezone": 5}, "timezone")]:
                refused = await house.ask("POST", "/api/v1/insights", "acme-reader", json=wrong)
                assert refused.status == 422
                assert problem in refused.body["detail"]

    asyncio.run(scenario())
