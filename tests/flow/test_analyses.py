"""Analyses: parameters checked, the reader bound and released, the answer ready for JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from analytics_core.errors import HookFailedError, NotFoundError, ParameterError, QueryError, StoppingError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.host.views import AnalysisSpec
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.segments import SegmentLog
from analytics_core.queries.analyses import Analyses
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

    def analyses(self) -> dict[str, AnalysisSpec]:
        return {"funnel": AnalysisSpec(name="funnel", plugin="web", title="Funnel", schema=SCHEMA)}

    async def insight(self, question: Question, reader: Any) -> Answer:
        self.question, self.reader = question, reader
        table = reader.sql(
            "SELECT name, count(*) AS n, sum(seq) AS s, max(timestamp) AS last FROM events GROUP BY name"
        )
        return self.answer or Answer(table, chart=Chart(kind="bar", x="name", y=["n"]))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[Host, Analyses]]:
    log = SegmentLog(tmp_path / "p0", disk_reserve_bytes=0)
    store = DeltaStore(tmp_path / "lake")
    for tenant, days in (("default", [1, 2, 20]), ("acme", [3])):
        rows = [{"event": "a", "user_id": f"u{d}", "timestamp": NOW - timedelta(days=d)} for d in days]
        log.append(
            [pa.RecordBatch.from_arrays(batch(rows, tenant).record_batch.columns[2:], schema=UNPLACED_SCHEMA)], NOW
        )
    host = Host()
    yield host, Analyses(host, History(log, store), clock=lambda: NOW)
    store.close()
    log.close()


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
    with pytest.raises(HookFailedError, match="100001 rows"):
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
    assert {"timeRange", "timezone", "filters", "steps", "window"} == set(entry["parameters"]["properties"])
    with pytest.raises(NotFoundError, match="did you mean 'funnel'"):
        asyncio.run(asked[1].ask("funel", {}, "default"))
