"""Every error is a problem document, every record is bound to its tenant, and the description of the API is true."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Coroutine
from typing import Any

import aiohttp
import jsonschema
import msgspec
import pytest
import structlog

from analytics_core import api
from analytics_core.config import Intake, Live, Server, Settings
from analytics_core.errors import (
    ClashError,
    HookFailedError,
    HookTimeoutError,
    LogFullError,
    MalformedBodyError,
    OverloadedError,
    ParameterError,
    RejectedError,
    StorageError,
)
from analytics_core.host.reloader import ManifestsView
from analytics_core.lanes.maintenance import HeldRetention
from tests.flow.api_house import AUTH, House, opened

PROBLEM = "application/problem+json"
GUARDED = Settings(auth=AUTH)
EVENT = b'{"event": "x"}'


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def is_problem(answer: Any, status: int, *parts: str) -> None:
    assert (answer.status, answer.headers["Content-Type"]) == (status, PROBLEM)
    body = answer.body
    assert body["status"] == status
    assert body["instance"] == answer.headers["X-Request-Id"]
    assert body["title"]
    for part in parts:
        assert part in body["detail"]


# --- errors ----------------------------------------------------------------------------------------------------------


RAISED = {
    "malformed": (MalformedBodyError("line 3"), 400, "line 3", {}),
    "rejected": (
        RejectedError([{"index": 0, "field": "event", "message": "is missing"}]),
        422,
        "rejected",
        {"accepted": 0, "rejected": [{"index": 0, "field": "event", "message": "is missing"}]},
    ),
    "parameter": (ParameterError("endDate", "is no date"), 422, "endDate: is no date", {"parameter": "endDate"}),
    "clash": (ClashError("metric", "a.b", ["x", "y"]), 409, "claimed by x and y", {}),
    "overloaded": (OverloadedError("the queue is full", 3), 503, "retry after 3 s", {}),
    "full": (LogFullError("the disk is full"), 503, "the disk is full", {}),
    "hook": (HookFailedError("p", "insight", ValueError("bad")), 502, "hook 'insight' failed", {}),
    "timeout": (HookTimeoutError("p", "insight", 2.0), 504, "no answer within 2 s", {}),
}


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(("error", "status", "part", "more"), RAISED.values(), ids=RAISED)
def test_our_errors_are_problem_documents(
    method: str, error: Exception, status: int, part: str, more: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with opened() as house:
            house.behind.fail = error
            path = "/api/v1/events" if method == "POST" else "/api/v1/metrics?metrics=a"
            answer = await house.ask(method, path, data=EVENT if method == "POST" else None)
            is_problem(answer, status, part)
            assert answer.body["type"].startswith("urn:analytics:problem:")
            assert answer.body.items() >= more.items()
            assert answer.headers.get("Retry-After") == ({"overloaded": "3", "full": "10"}.get(_name(error)))

    run(scenario())


def _name(error: Exception) -> str:
    return next(name for name, case in RAISED.items() if case[0] is error)


@pytest.mark.parametrize("error", [KeyError("/srv/secret/path"), StorageError("/srv/secret/path is broken")])
def test_what_the_server_did_wrong_is_logged_and_not_told(error: Exception) -> None:
    async def scenario() -> None:
        async with opened() as house:
            house.behind.fail = error
            for method, path in (("POST", "/api/v1/events"), ("GET", "/api/v1/metrics?metrics=a")):
                with structlog.testing.capture_logs() as lines:
                    answer = await house.ask(method, path, data=EVENT if method == "POST" else None)
                is_problem(answer, 500, answer.headers["X-Request-Id"])
                assert "secret" not in str(answer.body)
                failed = next(line for line in lines if line["event"] == "request_failed")
                assert failed["exc_info"] is error
                assert failed["id"] == answer.headers["X-Request-Id"]

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status", "parts"),
    [
        ("GET", "/api/v1/plugin", 404, ["nothing is at /api/v1/plugin", "did you mean '/api/v1/plugins'?"]),
        ("GET", "/zzz", 404, ["valid are: /, /api/analytics/health"]),
        ("PUT", "/api/v1/events", 405, ["takes GET, HEAD, POST, not PUT"]),
        ("DELETE", "/api/v1/plugins", 405, ["not DELETE"]),
        ("GET", "/api/v1/metrics", 422, ["metrics: is needed"]),
        ("GET", "/api/v1/metrics?metric=a", 422, ["metric: is not known here; did you mean 'metrics'?"]),
        ("GET", "/api/v1/metrics?metrics=a&metrics=b", 422, ["metrics: was given more than once"]),
        ("GET", "/api/v1/metrics?metrics=a&endDate=soon", 422, ["endDate: 'soon' is no time"]),
        ("GET", "/api/v1/metrics?metrics=a&timezone=Mars", 422, ["timezone: 'Mars'"]),
        ("GET", "/api/v1/stream?stream=alarm", 422, ["stream: 'alarm' is no stream; did you mean 'alert'?"]),
        ("GET", "/api/v1/stream?follow=1", 422, ["follow: is not known here"]),
        ("GET", "/api/analytics/result/nobody", 404, ["no analysis is named 'nobody'"]),
    ],
)
def test_what_a_client_can_do_wrong_in_a_url(method: str, path: str, status: int, parts: list[str]) -> None:
    async def scenario() -> None:
        async with opened() as house:
            answer = await house.ask(method, path)
            is_problem(answer, status, *parts)
            if status == 405:
                assert answer.headers["Allow"]

    run(scenario())


BODIES = {
    "no json": ("/api/analytics/query", b"{", 400, "cannot be read"),
    "deep": ("/api/v1/analyses/funnel", b'{"a":' * 100_000, 400, "nested too deeply"),
    "no object": ("/api/v1/analyses/funnel", b"[1]", 422, "expected `object`, got `array`"),
    "missing": ("/api/analytics/submit", b'{"type": "x"}', 422, "missing required field `data`"),
    "wrong type": ("/api/analytics/query", b'{"limit": "many"}', 422, "limit: expected `int`"),
    "unknown member": (
        "/api/analytics/query",
        b'{"limits": 5}',
        422,
        "limits: is not known here; did you mean 'limit'?",
    ),
    "unknown type": ("/api/analytics/query", b'{"type": "user-behaviour"}', 404, "did you mean 'user-behavior'?"),
    "range": ("/api/analytics/query", b'{"timeRange": "soon"}', 422, "timeRange: 'soon' is no span"),
    "backwards": (
        "/api/analytics/query",
        b'{"timeRange": {"start": "2025-02-01", "end": "2025-01-01"}}',
        422,
        "timeRange.end: 2025-01-01T00:00:00+00:00 is not after",
    ),
    "filters": ("/api/analytics/query", b'{"filters": [{"op": "="}]}', 422, "filters[0]: must be an object"),
    "too many": ("/api/analytics/query", b'{"limit": 100000}', 422, "limit: 100000 is outside 1..1000"),
    "cursor": ("/api/analytics/query", b'{"records": "insights", "cursor": "x"}', 422, "cursor: is not one"),
    "long cursor": (
        "/api/analytics/query",
        b'{"records": "insights", "cursor": "99999999999999999999"}',
        422,
        "cursor: is not one",
    ),
    "cursor beyond": (
        "/api/analytics/query",
        b'{"records": "insights", "cursor": "9223372036854775808"}',
        422,
        "cursor: is not one",
    ),
}


@pytest.mark.parametrize(("path", "body", "status", "part"), BODIES.values(), ids=BODIES)
def test_what_a_client_can_do_wrong_in_a_body(path: str, body: bytes, status: int, part: str) -> None:
    async def scenario() -> None:
        async with opened() as house:
            is_problem(
                await house.ask("POST", path, data=body, headers={"Content-Type": "application/json"}), status, part
            )

    run(scenario())


def test_types_encodings_and_sizes() -> None:
    async def scenario() -> None:
        settings = Settings(intake=Intake(max_body_bytes=1000, max_inflated_bytes=2000))
        async with opened(settings) as house:
            post, json = "/api/analytics/query", {"Content-Type": "application/json"}
            is_problem(await house.ask("POST", post, data={"a": "1"}), 415, "application/x-www-form-urlencoded")
            for path in (post, "/api/v1/events", "/foreign/track"):
                is_problem(await house.ask("POST", path, json={"a": "x" * 1001}), 413, "larger than 1000 bytes")
                is_problem(await house.ask("POST", path, data=_chunks(), headers=json), 413, "larger than 1000 bytes")
            packed = gzip.compress(b'{"limit": 5}' + b" " * 3000)
            given: dict[str, Any] = {
                "data": packed,
                "headers": {"Content-Encoding": "gzip", **json},
            }
            is_problem(await house.ask("POST", post, **given), 413, "after inflation is larger than 2000 bytes")
            given["data"] = packed[:20]
            is_problem(await house.ask("POST", post, **given), 400, "gzip stream is broken")
            given["data"] = gzip.compress(b'{"limit": 5}')
            assert (await house.ask("POST", post, **given)).status == 200

    run(scenario())


async def _chunks() -> Any:
    """A body whose length is not declared."""
    for _ in range(20):
        yield b"x" * 100


# --- the edge --------------------------------------------------------------------------------------------------------


def test_request_ids_come_in_and_go_out() -> None:
    async def scenario() -> None:
        async with opened() as house:
            for path in ("/api/v1/plugins", "/nothing", "/api/v1/metrics"):
                told = await house.ask("GET", path, headers={"X-Request-Id": "abc-1.2_3"})
                assert told.headers["X-Request-Id"] == "abc-1.2_3"
            made = {(await house.ask("GET", "/healthz")).headers["X-Request-Id"] for _ in range(3)}
            assert len(made) == 3
            for bad in ("a b", "x" * 129, "é"):
                answer = await house.ask("GET", "/healthz", headers={"X-Request-Id": bad})
                assert answer.headers["X-Request-Id"] != bad

    run(scenario())


def test_cross_origin() -> None:
    async def scenario() -> None:
        server = Server(cors_origins=("https://a.example",), frontend_url="https://shop.example/app/")
        async with opened(Settings(server=server, auth=AUTH)) as house:
            for origin, allowed in (
                ("https://a.example", True),
                ("https://shop.example", True),
                ("https://b.x", False),
            ):
                asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                for path in ("/api/v1/events", "/foreign/track"):
                    preflight = await house.ask("OPTIONS", path, headers=asked)
                    assert preflight.status == 204
                    assert preflight.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
                    assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]
                for key in ("acme-writer", "wrong"):  # refusals can be read too
                    answer = await house.ask("POST", "/api/v1/events", key, data=EVENT, headers={"Origin": origin})
                    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
                    assert "Origin" in answer.headers["Vary"]
            assert "Access-Control-Allow-Origin" not in (await house.ask("GET", "/healthz")).headers

    run(scenario())


def test_room_in_the_queue_is_held_from_before_a_body_is_read_until_the_answer() -> None:
    async def scenario() -> None:
        async with opened(Settings(intake=Intake(max_body_bytes=1000))) as house:
            behind = house.behind

            async def body(held: list[list[int]]) -> Any:
                yield b"a"
                await asyncio.wait_for(behind.taken.wait(), 10)  # before the rest has come
                held.append([*behind.room])
                yield b",b"

            for path in ("/api/v1/events", "/foreign/track"):
                for length, size in (("3", 3), (None, 1000)):
                    behind.taken.clear()
                    held: list[list[int]] = []
                    headers = {"Content-Length": length} if length else {}
                    assert (await house.ask("POST", path, data=body(held), headers=headers)).status < 300
                    assert (held, behind.room) == ([[size]], [])
                behind.taken.clear()
                is_problem(await house.ask("POST", path, data=b"x" * 1001), 413)
                assert not behind.taken.is_set()

    run(scenario())


# --- ingest ----------------------------------------------------------------------------------------------------------


def test_ingest_hands_on_what_was_sent_and_answers_a_receipt() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            headers = {
                "Content-Type": "application/x-ndjson; charset=utf-8",
                "Content-Encoding": "gzip",
                "Idempotency-Key": "once",
            }
            packed = gzip.compress(EVENT)
            answer = await house.ask("POST", "/api/v1/events", "acme-writer", data=packed, headers=headers)
            assert answer.status == 202
            assert answer.body == {
                "accepted": 1,
                "duplicates": 0,
                "rejected": [],
                "deduplicated": "messageId",
                "seq": 7,
            }
            asked = {
                "tenant": "acme",
                "content_type": headers["Content-Type"],
                "content_encoding": "gzip",
                "idempotency_key": "once",
            }
            assert house.behind.asked == [("accept", packed, asked)]  # still compressed: intake caps the inflation

    run(scenario())


def test_a_plugins_route_goes_through_its_adapter_and_the_one_ingest_path() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            headers = {"Content-Encoding": "gzip", "Cookie": "a=b", "X-Sdk": "1"}
            answer = await house.ask(
                "POST", "/foreign/track?v=2", "acme-writer", data=gzip.compress(b"a,b"), headers=headers
            )
            assert (answer.status, answer.body, answer.headers["X-Foreign"]) == (200, b"2 taken, 0 refused", "foreign")
            (_, plugin, request), (_, events, given) = house.behind.asked
            assert (plugin, request.body, request.query, request.tenant) == ("foreign", b"a,b", {"v": "2"}, "acme")
            assert request.headers["x-sdk"] == "1"
            assert not {"cookie", "x-api-key", "authorization"} & set(request.headers)
            assert [e.name for e in events] == ["a", "b"]
            assert given == {"tenant": "acme", "source": "foreign"}
            is_problem(await house.ask("POST", "/foreign/track", "acme-writer", data=b"broken"), 400, "no comma")
            is_problem(await house.ask("POST", "/foreign/track", "acme-reader", data=b"a"), 403)
            is_problem(await house.ask("POST", "/foreign/track", data=b"a"), 401)
            is_problem(await house.ask("GET", "/foreign/track", "acme-writer"), 404)

    run(scenario())


def test_an_adapter_answers_refusals_in_its_own_terms() -> None:
    async def scenario() -> None:
        async with opened() as house:

            async def refuse(*_: Any, **__: Any) -> Any:
                raise house.behind.fail  # type: ignore[misc]

            house.behind.accept_events = refuse  # type: ignore[method-assign]
            errors = (OverloadedError("full"), RejectedError([{"index": 0, "field": "event", "message": "m"}]))
            texts = []
            for error in errors:
                house.behind.fail = None
                original, house.behind.ingest = house.behind.ingest, _one_event  # type: ignore[method-assign]
                house.behind.fail = error
                texts.append((await house.ask("POST", "/foreign/track", data=b"a")).body)
                house.behind.ingest = original  # type: ignore[method-assign]
            assert texts[0].startswith(b"full; nothing was stored")
            assert texts[1] == b"0 taken, 1 refused"

    run(scenario())


async def _one_event(*_: Any) -> list[Any]:
    return []


# --- who may do what -------------------------------------------------------------------------------------------------


def _requests() -> list[tuple[Any, str, dict[str, Any]]]:
    bodies = {
        "/api/v1/events": {"event": "x"},
        "/api/analytics/submit": {"type": "user-behavior", "data": {}},
        "/api/v1/cohorts/preview": {"all": [{"did": {"event": "x"}}]},
        "/api/v1/users/merges": {"from": "acme-1", "into": "acme-2"},
    }
    found = []
    for operation in api.OPERATIONS:
        name = "user-behavior" if "/plugins/" in operation.path else "funnel"
        path = operation.path.replace("{name}", name).replace("{id}", "1" if "/merges/" in operation.path else "acme-1")
        if path == "/api/v1/metrics":
            path += "?metrics=a"
        given = {"json": bodies.get(path, {})} if operation.method == "POST" else {}
        found.append((operation, path, given))
    return found


async def _status(house: House, operation: Any, path: str, key: str | None, given: dict[str, Any]) -> int:
    headers = {"X-API-Key": key} if key else {}
    async with house.http.request(operation.method, house.url + path, headers=headers, **given) as response:
        return response.status  # a stream is not read to its end


@pytest.mark.parametrize(("operation", "path", "given"), _requests(), ids=lambda v: getattr(v, "path", None))
def test_every_operation_needs_its_role(operation: Any, path: str, given: dict[str, Any]) -> None:
    async def scenario() -> None:
        ranks = ["none", "reader", "writer", "operator"]
        async with opened(GUARDED) as house:
            needed = ranks.index(operation.role)
            for rank, key in enumerate([None, "acme-reader", "acme-writer", "acme-operator"]):
                status = await _status(house, operation, path, key, given)
                expected = status < 300 if rank >= needed else status == (401 if key is None else 403)
                assert expected, f"{key}: {status}"
            assert await _status(house, operation, path, "wrong", given) == 401
            if needed:
                answer = await house.ask(operation.method, path, **given)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                is_problem(answer, 401, "no credential")

    run(scenario())


@pytest.mark.parametrize(("operation", "path", "given"), _requests(), ids=lambda v: getattr(v, "path", None))
def test_a_key_in_the_url_is_for_streams_only(operation: Any, path: str, given: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            path_with_key = path + ("&" if "?" in path else "?") + "api_key=acme-operator"
            status = await _status(house, operation, path_with_key, None, given)
            assert (status == 401) == (operation.role != "none" and not operation.key_in_query)

    run(scenario())


@pytest.mark.parametrize(
    "path", ["/api/v1/metrics?metrics=a", "/api/v1/analyses", "/api/analytics/metrics", "/api/analytics/health"]
)
def test_no_answer_holds_another_tenants_data(path: str) -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            acme = await house.ask("GET", path, "acme-reader")
            other = await house.ask("GET", path, "other-operator")
            assert acme.status == other.status == 200
            assert acme.body != other.body
            assert "other" not in str(acme.body)
            assert "acme" not in str(other.body)

    run(scenario())


def test_no_call_reaches_another_tenant() -> None:
    """The tenant is the caller's, whatever body, query or path say."""

    async def scenario() -> None:
        async with opened(GUARDED) as house:
            evil = {"tenant": "acme", "X-Tenant": "acme"}
            calls: list[tuple[str, str, dict[str, Any]]] = [
                ("POST", "/api/v1/events?tenant=acme", {"json": {"event": "x", "tenant": "acme"}, "headers": evil}),
                ("POST", "/foreign/track?tenant=acme", {"data": b"a", "headers": evil}),
                ("POST", "/api/v1/analyses/funnel", {"json": {"tenant": "acme"}, "headers": evil}),
                ("POST", "/api/analytics/submit", {"json": {"type": "t", "data": {}, "tenant": "acme"}}),
                ("POST", "/api/analytics/query", {"json": {}, "headers": evil}),
                ("POST", "/api/analytics/query", {"json": {"records": "insights"}, "headers": evil}),
            ]
            for method, path, given in calls:
                assert (await house.ask(method, path, "other-operator", **given)).status < 300
            for call in house.behind.asked:
                assert "other" in _tenants(call), call
                assert "acme" not in _tenants(call), call
            assert (await house.ask("GET", "/api/analytics/result/acme-1", "acme-reader")).status == 200
            is_problem(await house.ask("GET", "/api/analytics/result/acme-1", "other-operator"), 404)

    run(scenario())


def _tenants(call: tuple[Any, ...]) -> set[str]:
    """Every tenant that a call to the services was made for."""
    found = set()
    for part in call[1:]:
        if isinstance(part, str):
            found.add(part)
        elif isinstance(part, dict) and call[0] != "analysis" and "tenant" in part:
            found.add(part["tenant"])
        elif hasattr(part, "tenant"):
            found.add(part.tenant)
    return found


def test_health_tells_strangers_only_that_it_lives() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            stranger = (await house.ask("GET", "/api/analytics/health")).body
            assert (stranger["success"], stranger["status"], stranger["metrics"]) == (True, "healthy", None)
            assert stranger["components"]["lane:store"] == {"status": "running", "reason": None, "lag": None}
            known = (await house.ask("GET", "/api/analytics/health", "acme-reader")).body
            assert known["metrics"] == {"totalAnalyzed": 4, "averageProcessingTime": 2.0, "modelsLoaded": 0}
            assert known["components"]["plugin:user-behavior"]["status"] == "active"
            host = (await house.ask("GET", "/api/analytics/health", "acme-operator")).body
            assert host["metrics"]["totalAnalyzed"] == 5  # of all lanes

    run(scenario())


@pytest.mark.parametrize(
    ("state", "errors", "ready"),
    [
        ("discovered", 0, False),
        ("loading", 0, False),
        ("starting", 0, False),
        ("retrying", 1, True),
        ("loading", 1, True),
        ("load_error", 1, True),
        ("disabled", 0, True),
        ("active", 0, True),
    ],
)
def test_the_host_is_ready_when_no_plugin_is_on_its_way_up(state: str, errors: int, ready: bool) -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            house.behind.state, house.behind.errors = state, errors
            answer = await house.ask("GET", "/readyz")
            assert (answer.status, answer.headers.get("Retry-After")) == ((200, None) if ready else (503, "1"))
            assert answer.body == {"ready": ready, "starting": {} if ready else {"user-behavior": state}}
            assert (await house.ask("GET", "/healthz")).status == 200

    run(scenario())


@pytest.mark.parametrize(
    ("lane", "plugin", "status"),
    [
        ("running", "active", "healthy"),
        ("active", "disabled", "healthy"),
        ("retrying", "active", "degraded"),
        ("failed", "active", "degraded"),
        ("running", "quarantined", "degraded"),
    ],
)
def test_a_lane_in_trouble_is_a_host_in_trouble(lane: str, plugin: str, status: str) -> None:
    async def scenario() -> None:
        async with opened() as house:
            house.behind.lane_state, house.behind.state = lane, plugin
            assert (await house.ask("GET", "/api/analytics/health")).body["status"] == status

    run(scenario())


def test_what_concerns_all_tenants_is_for_operators() -> None:
    """Reasons quote other tenants' data, and positions and lags tell how much they send."""

    async def scenario() -> None:
        async with opened(GUARDED) as house:
            house.behind.held = [HeldRetention("globex", 0.4, "the clock jumped")]
            paths = ("/api/v1/plugins", "/api/v1/lanes", "/api/analytics/metrics", "/api/analytics/health")
            for key in ("acme-reader", "acme-writer", None):
                plugins, lanes, operational, health = [(await house.ask("GET", path, key)).body for path in paths]
                assert "a row of" not in str((plugins, lanes, operational, health))
                assert "globex" not in str(health)
                assert health["components"]["retention"] == {"status": "held", "reason": None, "lag": None}
                assert health["components"]["plugin:user-behavior"]["lag"] is None
                if key is None:
                    continue
                hidden = ("reason", "lag", "events_processed", "errors")
                assert [plugins["plugins"][0][name] for name in hidden] == [None] * 4
                assert plugins["plugins"][0]["state"] == "active"
                nothing = {"position": None, "lag": None, "events": None, "reason": None}
                assert lanes["lanes"] == operational["lanes"] == [{"name": "store", "state": "running", **nothing}]
                assert (operational["connections"], operational["figures"]) == (None, None)
            plugins, lanes, operational, health = [(await house.ask("GET", p, "acme-operator")).body for p in paths]
            assert (plugins["plugins"][0]["reason"], plugins["plugins"][0]["events_processed"]) == (
                "a row of globex",
                3,
            )
            assert lanes["lanes"] == operational["lanes"]
            assert lanes["lanes"][0].items() >= {"position": 5, "lag": 2, "events": 5}.items()
            assert health["components"]["lane:store"] == {"status": "running", "reason": "a row of globex", "lag": 2}
            assert "'globex': retention would drop 40% of its events" in health["components"]["retention"]["reason"]
            assert operational["figures"] == house.behind.figures()
            assert operational["connections"] == 0

    run(scenario())


def test_an_operator_confirms_retention_that_is_held_and_nothing_ahead() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            assert (await house.ask("GET", "/api/v1/retention", "acme-operator")).body == {"held": []}
            answer = await house.ask("POST", "/api/v1/retention/confirm", "acme-operator")
            assert (answer.status, answer.body, house.behind.confirmed) == (202, {"confirmed": []}, 0)
            house.behind.held = [HeldRetention("globex", 0.4, "the clock jumped")]
            held = [{"tenant": "globex", "share": 0.4, "reason": "the clock jumped"}]
            assert (await house.ask("GET", "/api/v1/retention", "acme-operator")).body == {"held": held}
            is_problem(await house.ask("POST", "/api/v1/retention/confirm", "acme-writer"), 403)
            assert house.behind.confirmed == 0
            answer = await house.ask("POST", "/api/v1/retention/confirm", "acme-operator")
            assert (answer.status, answer.body, house.behind.confirmed) == (202, {"confirmed": held}, 1)

    run(scenario())


def test_another_scheme_is_nobodys_business_where_no_credential_is_needed() -> None:
    """A proxy with a password of its own passes its header on."""

    async def scenario() -> None:
        basic = {"Authorization": "Basic abc"}
        async with opened() as house:
            assert (await house.ask("POST", "/api/v1/events", data=EVENT, headers=basic)).status == 202
            assert (await house.ask("POST", "/foreign/track", data=b"a", headers=basic)).status == 200
        async with opened(GUARDED) as house:
            for path in ("/healthz", "/api/analytics/health", "/api/v1/openapi.json"):
                assert (await house.ask("GET", path, headers=basic)).status == 200
            assert (await house.ask("GET", "/api/analytics/health", headers=basic)).body["metrics"] is None
            is_problem(await house.ask("GET", "/api/v1/plugins", headers=basic), 401, "'Basic' is not supported")
            assert (await house.ask("GET", "/api/v1/plugins", "acme-reader", headers=basic)).status == 200

    run(scenario())


def test_the_tenants_zone_holds_where_a_request_names_none() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            for key, zone in (("acme-reader", "Europe/Berlin"), ("other-operator", "UTC")):
                house.behind.asked.clear()
                await house.ask("GET", "/api/v1/metrics?metrics=a", key)
                await house.ask("GET", "/api/v1/metrics?metrics=a&timezone=Asia/Tokyo", key)
                assert [call[6] for call in house.behind.asked] == [zone, "Asia/Tokyo"]
                await house.ask("POST", "/api/v1/analyses/funnel", key, json={})
                assert house.behind.asked[-1][-1] == zone
                listed = (await house.ask("GET", "/api/v1/analyses", key)).body["analyses"]
                assert listed[0]["schema"] == {"default": zone}
                span = {"timeRange": {"start": "2025-01-01", "end": "2025-01-02"}}
                await house.ask("POST", "/api/analytics/query", key, json=span)
                midnight = house.behind.asked[-1][2]["start"]
                assert midnight.isoformat() == (
                    "2024-12-31T23:00:00+00:00" if zone == "Europe/Berlin" else "2025-01-01T00:00:00+00:00"
                )

    run(scenario())


# --- the description -------------------------------------------------------------------------------------------------


def test_every_route_is_described() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            document = (await house.ask("GET", "/api/v1/openapi.json")).body
            described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
            routed = {
                (route.method, route.resource.canonical)
                for route in house.app.router.routes()
                if route.method != "HEAD" and route.resource is not None
            }
            socket = {(method, "/socket.io/") for method in ("GET", "POST", "OPTIONS")}
            assert routed - socket == described
            assert socket <= routed

    run(scenario())


def test_every_answer_fits_its_description() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            document = (await house.ask("GET", "/api/v1/openapi.json")).body
            for operation, path, given in _requests():
                if all("application/json" not in content.types for content in operation.replies.values()):
                    continue
                described = document["paths"][operation.path][operation.method.lower()]
                good = await house.ask(operation.method, path, "acme-operator", **given)
                _fits(document, described["responses"][str(good.status)], "application/json", good.body)
                if operation.role != "none":
                    refused = await house.ask(operation.method, path, **given)
                    _fits(document, described["responses"]["401"], PROBLEM, refused.body)

    run(scenario())


def _fits(document: dict[str, Any], response: dict[str, Any], type_: str, body: Any) -> None:
    schema = {**response["content"][type_]["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(body)


def test_described_bodies_are_those_that_are_read() -> None:
    async def scenario() -> None:
        async with opened() as house:
            document = (await house.ask("GET", "/api/v1/openapi.json")).body
            schema = document["paths"]["/api/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
            validator = jsonschema.Draft202012Validator(schema)
            for good in ({"event": "x"}, [{"event": "x", "userId": 5}], {"events": [{"event": "x"}], "sentAt": 1.0}):
                validator.validate(good)
            for bad in ({"name": "x"}, {"event": "x", "properties": 5}, [5]):
                assert not validator.is_valid(bad)
            for item in document["paths"].values():
                for operation in item.values():
                    assert operation["summary"]
                    assert operation["responses"]

    run(scenario())


def test_without_the_socket_there_is_no_endpoint() -> None:
    async def scenario() -> None:
        async with opened(Settings(live=Live(enabled=False))) as house:
            is_problem(await house.ask("GET", "/socket.io/?EIO=4&transport=polling"), 404)
            assert (await house.ask("GET", "/healthz")).status == 200

    run(scenario())


def test_a_client_that_goes_during_its_request_hurts_nobody() -> None:
    async def scenario() -> None:
        async with opened() as house:
            started, go = asyncio.Event(), asyncio.Event()

            async def slow(*_: Any, **__: Any) -> Any:
                started.set()
                await go.wait()
                raise ParameterError("a", "b")

            house.behind.accept = slow  # type: ignore[method-assign]
            asked = asyncio.ensure_future(house.ask("POST", "/api/v1/events", data=EVENT))
            await started.wait()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            go.set()
            assert (await house.ask("GET", "/healthz")).status == 200

    run(scenario())


def test_text_plain_beacons_reach_intake() -> None:
    async def scenario() -> None:
        async with opened() as house, aiohttp.ClientSession() as browser:
            data = msgspec.json.encode([{"event": "x"}]).decode()
            async with browser.post(house.url + "/api/v1/events", data=data) as answer:
                assert answer.status == 202
            assert house.behind.asked[0][2]["content_type"] == "text/plain; charset=utf-8"

    run(scenario())


def test_health_names_what_became_of_the_manifests_to_operators_alone() -> None:
    async def scenario() -> None:
        async with opened(GUARDED) as house:
            house.behind.manifests = ManifestsView("host.yaml: no", ("host.server.port: 1 -> 2",))
            for key, reason, waiting in (
                ("acme-operator", "host.yaml: no", ["host.server.port: 1 -> 2"]),
                ("acme-reader", None, None),
                (None, None, None),
            ):
                told = (await house.ask("GET", "/api/analytics/health", key)).body
                assert told["components"]["manifests"] == {"status": "refused", "reason": reason, "lag": None}
                assert told["restart_required"] == waiting
                assert told["status"] == "degraded"
            house.behind.manifests = ManifestsView("", ("host.server.port: 1 -> 2",))
            told = (await house.ask("GET", "/api/analytics/health")).body
            assert told["components"]["manifests"]["status"] == "restart_required"
            assert told["status"] == "healthy"

    run(scenario())
