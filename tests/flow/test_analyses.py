"""Analyses: parameters checked, the reader bound and released, the answer ready for JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from analytics_core.errors import BudgetError, HookFailedError, NotFoundError, ParameterError, QueryError, StoppingError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.host.views import AnalysisSpec
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.segments import SegmentLog
from analytics_core.queries.analyses import Analyses
from analytics_core.queries.cache import AnswerCache, Made
from analytics_core.queries.history import History
from analytics_core.records import Answer, Chart, Insight, Question, Recommendation
from analytics_core.testing import batch

NOW = datetime(2025, 1, 10, 12, tzinfo=UTC)
SCHEMA = {"properties": {"steps": {"type": "array", "minItems": 2}, "window": {"type": "integer", "default": 60}}}


class Host:
    """One analysis that answers with what it can see."""

    def __init__(self) -> None:
        self.question: Question | None = None
        self.reader: Any = None
        self.answer: Answer | None = None
        self.current = 1
        self.asked = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.began = asyncio.Event()

    def analyses(self) -> dict[str, AnalysisSpec]:
        return {"funnel": AnalysisSpec(name="funnel", plugin="web", title="Funnel", schema=SCHEMA)}

    def generation(self, plugin: str) -> int:
        return self.current

    async def insight(self, question: Question, reader: Any) -> Answer:
        self.question, self.reader = question, reader
        self.asked += 1
        self.began.set()
        await self.go_on.wait()
        table = reader.sql(
            "SELECT name, count(*) AS n, sum(seq) AS s, max(timestamp) AS last FROM events GROUP BY name"
        )
        return self.answer or Answer(table, chart=Chart(kind="bar", x="name", y=["n"]))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SegmentLog]:
    made = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0)
    yield made
    made.close()


@pytest.fixture
def post(log: SegmentLog) -> Callable[..., None]:
    def append(tenant: str, *rows: dict[str, Any]) -> None:
        columns = batch(rows, tenant).record_batch.columns[2:]
        log.append([pa.RecordBatch.from_arrays(columns, schema=UNPLACED_SCHEMA)], NOW)

    return append


@pytest.fixture
def asked(tmp_path: Path, log: SegmentLog, post: Callable[..., None]) -> Iterator[tuple[Host, Analyses]]:
    store = DeltaStore(tmp_path / "lake")
    for tenant, days in (("default", [1, 2, 20]), ("acme", [3])):
        post(tenant, *({"event": "a", "user_id": f"u{d}", "timestamp": NOW - timedelta(days=d)} for d in days))
    host = Host()
    yield host, Analyses(host, History(log, store, cache=tmp_path / "cache"), clock=lambda: NOW)
    store.close()


def ask(asked: tuple[Host, Analyses], tenant: str = "default", **parameters: Any) -> dict[str, Any]:
    return asyncio.run(asked[1].ask("funnel", parameters, tenant))


def test_an_answer_is_ready_for_json(asked: tuple[Host, Analyses]) -> None:
    answer = ask(asked, timeRange="7d", timezone="Europe/Berlin", steps=["a", "b"])
    assert msgspec.json.decode(msgspec.json.encode(answer)) == {
        "analysis": "funnel",
        "plugin": "web",
        "parameters": {
            "steps": ["a", "b"],
            "window": 60,
            "timeRange": {"start": "2025-01-03T12:00:00+00:00", "end": "2025-01-10T12:00:00+00:00"},
            "timezone": "Europe/Berlin",
        },
        "columns": ["name", "n", "s", "last"],
        "data": [{"name": "a", "n": 2, "s": 1, "last": "2025-01-09T12:00:00+00:00"}],
        "insights": [],
        "recommendations": [],
        "chart": {"kind": "bar", "x": "name", "y": ["n"], "series": ""},
        "quality": {"events": 2, "late": 0, "bot_share": 0.0, "duplicates": 0},
        "notes": [],
        "data_as_of": NOW.isoformat(),
        "watermark": NOW.isoformat(),
    }


def test_the_reader_is_bound_to_the_question_and_closed_after_it(asked: tuple[Host, Analyses]) -> None:
    host, _ = asked
    assert ask(asked, tenant="acme")["data"][0]["n"] == 1
    assert host.question is not None
    assert host.question.tenant == "acme"
    answer = ask(asked, timeRange={"start": "2025-01-08", "end": "2025-01-09"}, filters={"userId": "u2"})
    assert answer["data"][0]["n"] == 1
    assert answer["data_as_of"] == "2025-01-09T00:00:00+00:00"
    assert ask(asked, filters={"userId": "u3"})["data"] == []
    assert ask(asked, timeRange="99999w")["parameters"]["timeRange"]["start"] == "2000-01-01T00:00:00+00:00"
    with pytest.raises(QueryError, match=r"[Cc]losed"):
        host.reader.sql("SELECT 1")


def test_the_tenants_zone_is_meant_where_the_question_names_none(asked: tuple[Host, Analyses]) -> None:
    span = {"timeRange": {"start": "2025-01-08", "end": "2025-01-09"}}
    answer = asyncio.run(asked[1].ask("funnel", span, "default", "Europe/Berlin"))
    assert answer["parameters"]["timezone"] == "Europe/Berlin"
    assert answer["parameters"]["timeRange"]["start"] == "2025-01-07T23:00:00+00:00"
    named = asyncio.run(asked[1].ask("funnel", {**span, "timezone": "UTC"}, "default", "Europe/Berlin"))
    assert named["parameters"]["timezone"] == "UTC"
    (entry,) = asked[1].catalogue("default", "Europe/Berlin")
    assert entry["parameters"]["properties"]["timezone"]["default"] == "Europe/Berlin"


def test_a_question_in_flight_when_the_host_stops_is_answered_503(tmp_path: Path) -> None:
    class Slow(Host):
        async def insight(self, question: Question, reader: Any) -> Answer:
            def run() -> None:
                running.set()
                reader.sql("SELECT sum(a.range * b.range % 7) FROM range(10000000) a, range(10000000) b")

            try:
                await asyncio.to_thread(run)
            except QueryError as error:
                raise HookFailedError("web", "insight", error) from error
            raise AssertionError("it was not interrupted")

    running = threading.Event()
    log, store = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0), DeltaStore(tmp_path / "lake")
    history = History(log, store)

    async def scenario() -> None:
        asking = asyncio.ensure_future(Analyses(Slow(), history).ask("funnel", {}, "default"))
        assert await asyncio.to_thread(running.wait, 10)
        history.interrupt()
        with pytest.raises(StoppingError, match="the host is stopping") as caught:
            await asyncio.wait_for(asking, 20)
        assert caught.value.status == 503

    asyncio.run(scenario())
    store.close()
    log.close()


def test_rows_of_any_kind(asked: tuple[Host, Analyses]) -> None:
    rows = [
        {"x": np.float64("nan"), "y": np.int32(3), "z": np.arange(2)},
        {"x": Decimal("1.5"), "at": NOW, "deep": {"inf": float("inf")}},
    ]
    asked[0].answer = Answer(
        rows,
        insights=[Insight(key="k", title="t", description="d", data={"n": np.int64(4)})],
        recommendations=[Recommendation(title="r", description="d")],
    )
    answer = ask(asked)
    assert answer["columns"] == ["x", "y", "z", "at", "deep"]
    assert answer["data"] == [
        {"x": None, "y": 3, "z": [0, 1]},
        {"x": 1.5, "at": NOW.isoformat(), "deep": {"inf": None}},
    ]
    assert answer["insights"][0]["data"] == {"n": 4}
    assert answer["recommendations"][0]["title"] == "r"
    assert answer["chart"] is None
    asked[0].answer = Answer([{}] * 100_001)
    asked[0].current += 1
    with pytest.raises(BudgetError, match="100,001 rows"):
        ask(asked)


def test_rows_are_made_ready_apart_from_the_event_loop(asked: tuple[Host, Analyses]) -> None:
    class Rows(list[dict[str, int]]):
        def __iter__(self) -> Iterator[dict[str, int]]:
            readers.add(threading.current_thread())
            return super().__iter__()

    readers: set[threading.Thread] = set()
    asked[0].answer = Answer(Rows([{"n": 1}]))
    assert ask(asked)["data"] == [{"n": 1}]
    assert readers
    assert threading.current_thread() not in readers


@pytest.mark.parametrize("table", [[{"n": object()}], [1]])
def test_what_has_no_form_in_json_is_the_plugins_failure(asked: tuple[Host, Analyses], table: Any) -> None:
    asked[0].answer = Answer(table)
    with pytest.raises(HookFailedError, match=r"'web'.*'funnel' gave"):
        ask(asked)


@pytest.mark.parametrize(
    ("parameters", "parameter", "text"),
    [
        ({"steps": ["a"]}, "steps", "at least 2"),
        ({"stepz": []}, "stepz", "did you mean 'steps'?"),
        ({"timeRange": "week"}, "timeRange", "valid are such as '7d'"),
        ({"timeRange": {"start": "2025-01-05", "end": "2025-01-05"}}, "timeRange.end", "is not after"),
        ({"timeRange": {"start": "2025-01-05", "stop": "x"}}, "timeRange.stop", "valid are: end, start"),
        ({"timeRange": 7}, "timeRange", "must be a span"),
        ({"timezone": "Berlin"}, "timezone", "is no time zone"),
        ({"timezone": 1}, "timezone", "must be a text"),
        ({"filters": {"plan": 1}}, "filters.plan.field", "did you mean 'properties.plan'?"),
    ],
)
def test_a_wrong_parameter_is_named(
    asked: tuple[Host, Analyses], parameters: dict[str, Any], parameter: str, text: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        ask(asked, **parameters)
    assert caught.value.parameter == parameter
    assert text in str(caught.value)


def test_the_catalogue_and_unknown_names(asked: tuple[Host, Analyses]) -> None:
    (entry,) = asked[1].catalogue("default")
    assert (entry["name"], entry["plugin"], entry["title"]) == ("funnel", "web", "Funnel")
    assert {"timeRange", "timezone", "cohort", "filters", "steps", "window"} == set(entry["parameters"]["properties"])
    with pytest.raises(NotFoundError, match="did you mean 'funnel'"):
        asyncio.run(asked[1].ask("funel", {}, "default"))


def test_a_question_is_answered_once_until_something_changes(
    asked: tuple[Host, Analyses], post: Callable[..., None]
) -> None:
    host, _ = asked
    first = ask(asked)
    assert ask(asked) == first
    assert host.asked == 1
    post("acme", {"event": "a", "user_id": "somebody", "timestamp": NOW - timedelta(days=1)})
    assert ask(asked)["data"] == first["data"]
    assert host.asked == 1  # another tenant's event changes nothing
    post("default", {"event": "a", "user_id": "somebody", "timestamp": NOW - timedelta(days=1)})
    assert ask(asked)["data"][0]["n"] == first["data"][0]["n"] + 1
    assert host.asked == 2


@pytest.mark.parametrize(
    "other", [{"timeRange": "6d"}, {"timezone": "Asia/Kolkata"}, {"filters": {"userId": "u1"}}, {"window": 61}]
)
def test_another_question_is_another_answer(asked: tuple[Host, Analyses], other: dict[str, Any]) -> None:
    ask(asked)
    ask(asked, **other)
    assert asked[0].asked == 2


def test_a_new_generation_answers_anew(asked: tuple[Host, Analyses]) -> None:
    ask(asked)
    asked[0].current += 1
    ask(asked)
    assert asked[0].asked == 2


def test_who_asks_the_same_at_a_time_gets_one_answer(asked: tuple[Host, Analyses]) -> None:
    host, analyses = asked

    async def together() -> list[Any]:
        host.go_on, host.began = asyncio.Event(), asyncio.Event()
        waiting = [asyncio.ensure_future(analyses.ask("funnel", {}, "default")) for _ in range(5)]
        await host.began.wait()
        waiting[0].cancel()
        host.go_on.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    gone, *answers = asyncio.run(together())
    assert isinstance(gone, asyncio.CancelledError)
    assert host.asked == 1
    assert all(answer == answers[0] for answer in answers)


def test_a_failure_is_asked_again(asked: tuple[Host, Analyses]) -> None:
    asked[0].answer = Answer([{}] * 100_001)
    for _ in range(2):
        with pytest.raises(BudgetError):
            ask(asked)
    assert asked[0].asked == 2


def test_the_least_used_answers_go_first() -> None:
    made: list[int] = []

    async def fill() -> None:
        cache = AnswerCache(entries=2)
        for key in (1, 2, 1, 3, 1, 2):

            async def make(key: int = key) -> Made:
                made.append(key)
                return Made({"columns": [], "data": []}, True)

            await cache.get(key, make)

    asyncio.run(fill())
    assert made == [1, 2, 3, 2]


def test_what_lasts_not_and_what_is_too_large_is_not_kept() -> None:
    made: list[str] = []

    async def fill() -> None:
        cache = AnswerCache(cells=40)
        for key, rows, lasting in [("lasting", 1, True), ("large", 100, True), ("passing", 1, False)] * 2:

            async def make(key: str = key, rows: int = rows, lasting: bool = lasting) -> Made:
                made.append(key)
                return Made({"columns": ["a"], "data": [{}] * rows}, lasting)

            await cache.get(key, make)

    asyncio.run(fill())
    assert made == ["lasting", "large", "passing", "large", "passing"]


def test_late_events_and_bots_are_counted_beside_the_figures(
    asked: tuple[Host, Analyses], post: Callable[..., None]
) -> None:
    agent = {"userAgent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}
    at = NOW - timedelta(hours=3)
    post(
        "default",
        {"event": "a", "timestamp": at, "received_at": at + timedelta(minutes=59)},
        {"event": "a", "user_id": "u", "timestamp": at, "received_at": at + timedelta(minutes=61)},
        {"event": "b", "user_id": "u", "timestamp": at, "received_at": NOW, "context": agent},
        {"event": "b", "user_id": "u", "timestamp": at, "received_at": at, "context": agent},
        {"event": "b", "user_id": "u", "timestamp": at, "received_at": at, "context": {"userAgent": "Firefox"}},
    )
    answer = ask(asked, timeRange="6h", filters={"event": "b"})
    assert answer["quality"] == {"events": 5, "late": 2, "bot_share": 0.4, "duplicates": 0}


def test_what_nobody_has_sent_is_named(asked: tuple[Host, Analyses], post: Callable[..., None]) -> None:
    post("default", {"event": "cart", "user_id": "u", "timestamp": NOW, "properties": {"plan": "pro"}})
    answer = ask(asked, filters={"event": "crat"})
    assert answer["notes"] == ["no event is named 'crat'; did you mean 'cart'?"]
    assert ask(asked, filters={"event": ["cart", "a"]})["notes"] == []
    (note,) = ask(asked, filters={"properties.plam": "pro"})["notes"]
    assert note.startswith("no 'properties.plam' in the ")
    assert note.endswith(" events that were looked at; did you mean 'properties.plan'?")


def test_the_tenants_first_day_of_the_week_is_meant_where_the_question_names_none(
    asked: tuple[Host, Analyses], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, analyses = asked
    schema = {"type": "object", "properties": {"weekStart": {"enum": ["monday", "sunday"], "default": "monday"}}}
    spec = AnalysisSpec(name="funnel", plugin="web", title="Funnel", schema=schema)
    monkeypatch.setattr(host, "analyses", lambda: {"funnel": spec})
    monkeypatch.setattr(analyses, "_week_start", {"default": "sunday"}.__getitem__)
    assert analyses.catalogue("default")[0]["parameters"]["properties"]["weekStart"]["default"] == "sunday"
    assert ask(asked)["parameters"]["weekStart"] == "sunday"
    assert ask(asked, weekStart="monday")["parameters"]["weekStart"] == "monday"
