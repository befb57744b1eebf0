"""``GET /api/v1/events`` and its export over HTTP: the answers of the POST, and streams that end as they should."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec
import pyarrow.parquet as pq
import pytest

from analytics_core.api import streaming
from analytics_core.queries import export
from analytics_core.queries.history import MAX_EXPORTS
from tests.flow import api_house
from tests.flow.history_house import NOW, House

EVENTS = "/api/v1/events"
EXPORT = f"{EVENTS}/export"
QUERY = "/api/analytics/query"


class Both(NamedTuple):
    """An API whose history is a real one."""

    api: api_house.House
    house: House

    async def get(self, path: str = EVENTS, *query: tuple[str, Any]) -> Any:
        return await self.api.ask("GET", f"{path}?{urlencode(query)}")

    async def ids(self, *query: tuple[str, Any]) -> list[str]:
        found = await self.get(EVENTS, *query)
        assert found.status == 200, found.body
        return [row["messageId"] for row in found.body["data"]]

    async def released(self) -> None:
        """Wait until no file is held for an export and none is under way."""
        async with asyncio.timeout(20):
            while self.house.store._leases or self.house.history._exports._value < MAX_EXPORTS:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(directory: Path, *, read_buffer: int | None = None) -> AsyncIterator[Both]:
    house = House(directory)
    async with api_house.opened(read_buffer=read_buffer) as served:
        for name in ("page", "export"):
            setattr(served.behind, name, getattr(house.history, name))
        yield Both(served, house)
    house.close()


def run(directory: Path, scenario: Callable[[Both], Awaitable[None]], **given: Any) -> None:
    async def inside() -> None:
        async with opened(directory, **given) as both:
            await scenario(both)

    asyncio.run(inside())


def test_the_url_asks_what_a_body_asks(tmp_path: Path) -> None:
    async def scenario(both: Both) -> None:
        both.house.post(
            {"event": "buy", "user_id": "u1", "properties": {"plan": "pro", "amount": 5}},
            {"event": "buy", "user_id": "42", "properties": {"plan": "free", "amount": 20}},
            {"event": "view", "user_id": "u1", "properties": {"coupon": "x"}},
            {"event": "cart", "timestamp": "2025-02-27T23:30:00Z"},
        )
        both.house.store_all(upto=2)
        assert await both.ids() == ["e2", "e1", "e0", "e3"]
        assert await both.ids(("event", "buy"), ("event", "cart")) == ["e1", "e0", "e3"]
        assert await both.ids(("user", "42")) == ["e1"]
        assert await both.ids(("filter", "properties.amount>10")) == ["e1"]
        assert await both.ids(("filter", "event~^(buy|cart)$"), ("filter", "properties.plan!=pro")) == ["e1", "e3"]
        assert await both.ids(("filter", "properties.coupon exists")) == ["e2"]
        assert await both.ids(("start", "2025-02-28"), ("end", "2025-03-01"), ("timezone", "Europe/Berlin")) == ["e3"]
        assert await both.ids(("timeRange", "30m")) == []

        said = await both.get(EVENTS, ("fields", "event, properties.plan"), ("filter", "properties.plan=pro"))
        body = {"fields": ["event", "properties.plan"], "filters": {"properties.plan": "pro"}}
        assert said.body == (await both.api.ask("POST", QUERY, json=body)).body
        assert said.body == {
            "success": True,
            "data": [{"event": "buy", "properties.plan": "pro"}],
            "nextCursor": None,
            "watermark": NOW.isoformat(),
            "notes": [],
        }
        vain = await both.get(EVENTS, ("event", "bye"))
        assert vain.body["notes"] == ["no event is named 'bye'; did you mean 'buy'?"]

    run(tmp_path, scenario)


def test_pages_by_url_follow_their_cursor(tmp_path: Path) -> None:
    async def scenario(both: Both) -> None:
        both.house.post(*({"event": "a"} for _ in range(5)))
        seen: list[str] = []
        query: tuple[tuple[str, Any], ...] = (("limit", 2), ("event", "a"), ("start", "2025-01-01"))
        cursor: tuple[tuple[str, Any], ...] = ()
        while True:
            found = (await both.get(EVENTS, *query, *cursor)).body
            seen += [row["messageId"] for row in found["data"]]
            if not found["nextCursor"]:
                break
            cursor = (("cursor", found["nextCursor"]),)
        assert seen == ["e4", "e3", "e2", "e1", "e0"]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "query", "parameter", "text"),
    [
        (EVENTS, [("fliter", "a=b")], "fliter", "did you mean 'filter'?"),
        (EVENTS, [("user", "a"), ("user", "b")], "user", "more than once"),
        (EVENTS, [("timeRange", "7x")], "timeRange", "is no span"),
        (EVENTS, [("timeRange", "7d"), ("start", "2025-01-01")], "timeRange", "give one of the two"),
        (EVENTS, [("end", "2025-01-01")], "start", "is needed with an end"),
        (EVENTS, [("start", "2025-01-02"), ("end", "2025-01-01")], "timeRange.end", "is not after"),
        (EVENTS, [("timezone", "Mars/Base")], "timezone", "Mars/Base"),
        (EXPORT, [("timezone", "Europe/Berln")], "timezone", "did you mean 'Europe/Berlin'?"),
        (EVENTS, [("filter", "plan=pro")], "filter[0].field", "did you mean 'properties.plan'?"),
        (EVENTS, [("filter", "event~(a+")], "filter[0].value", "the syntax of RE2"),
        (EVENTS, [("fields", "event,plan")], "fields", "did you mean 'properties.plan'?"),
        (EVENTS, [("fields", "")], "fields", "is empty"),
        (EVENTS, [("limit", "many")], "limit", "is no number"),
        (EVENTS, [("limit", "1001")], "limit", "is outside 1..1000"),
        (EXPORT, [("format", "xlsx")], "format", "valid are: arrow, csv, ndjson, parquet"),
        (EXPORT, [("limit", "5")], "limit", "is not known here"),
        (EXPORT, [("filter", "event~a{900}")], "filter[0].value", "stands for 900 steps"),
    ],
)
def test_a_wrong_question_names_what_is_valid(
    tmp_path: Path, path: str, query: list[tuple[str, str]], parameter: str, text: str
) -> None:
    async def scenario(both: Both) -> None:
        refused = await both.get(path, *query)
        assert refused.status == 422, refused.body
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert refused.body["parameter"] == parameter
        assert text in refused.body["detail"]
        assert both.house.history._exports.acquire(blocking=False)

    run(tmp_path, scenario)


def test_fields_are_for_events(tmp_path: Path) -> None:
    async def scenario(both: Both) -> None:
        refused = await both.api.ask("POST", QUERY, json={"records": "insights", "fields": ["event"]})
        assert (refused.status, refused.body["parameter"]) == (422, "fields")

    run(tmp_path, scenario)


def test_an_export_by_url(tmp_path: Path) -> None:
    async def scenario(both: Both) -> None:
        both.house.post({"event": "a", "properties": {"n": 1}}, {"event": "b"}, {"event": "a"})
        both.house.store_all(upto=1)
        lines = await both.get(EXPORT, ("event", "a"), ("fields", "messageId,properties.n"))
        assert lines.body == b'{"messageId":"e0","properties.n":1}\n{"messageId":"e2","properties.n":null}\n'
        assert lines.headers["Content-Type"] == "application/x-ndjson"
        assert lines.headers["X-Total-Events"] == "2"
        assert lines.headers["Content-Disposition"] == 'attachment; filename="events.ndjson"'
        columns = await both.get(EXPORT, ("format", "parquet"), ("filter", "event!=a"))
        assert pq.read_table(io.BytesIO(columns.body)).column("messageId").to_pylist() == ["e1"]
        head = await both.api.ask("HEAD", EXPORT)
        assert (head.status, head.headers["X-Total-Events"]) == (200, "3")
        await both.released()

    run(tmp_path, scenario)


def test_a_client_that_goes_releases_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "WINDOW", 1)

    async def scenario(both: Both) -> None:
        both.house.post(*({"event": "a", "properties": {"filling": "x" * 60_000}} for _ in range(40)))
        both.house.store_all()
        async with both.api.http.get(both.api.url + EXPORT) as response:
            assert await response.content.readline()
            assert both.house.store._leases  # the client reads no more: the server waits for it
            response.close()
        await both.released()

    run(tmp_path, scenario, read_buffer=4096)


@pytest.mark.parametrize("end", ["the host stops", "the client stalls"])
def test_what_is_not_whole_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(export, "WINDOW", 1)
    if end == "the client stalls":
        monkeypatch.setattr(streaming, "STALLED_SECONDS", 0.05)

    async def scenario(both: Both) -> None:
        both.house.post(*({"event": "a", "properties": {"filling": "x" * 60_000}} for _ in range(150)))
        async with both.api.http.get(both.api.url + EXPORT) as response:
            assert response.status == 200
            first = await response.content.readline()
            assert msgspec.json.decode(first)["event"] == "a"
            if end == "the host stops":
                both.house.history.interrupt()
            else:
                await both.released()
            with pytest.raises(aiohttp.ClientError):
                await response.content.read()

    run(tmp_path, scenario, read_buffer=4096)
