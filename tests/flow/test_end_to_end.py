"""The whole system as its users meet it: a real server, HTTP in, answers and pushes out (issue: items 2, 5, 6, 7)."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import socketio

from analytics_core.events import MAX_DEPTH
from analytics_core.intake.decode import zstd
from analytics_core.intake.duplicates import DuplicateLedger
from analytics_core.queries.ranges import ALL_TIME
from analytics_core.state.sqlite import SqliteState
from tests.flow.server_house import EVENTS, Answer, Listener, ServerHouse, equals, house, socket_of, stream_of, until

pytestmark = pytest.mark.server

MB = 1 << 20
QUICK = {"lanes": {"checkpoint_seconds": 0.2, "hang_seconds": 2.0}, "intake": {"max_inflated_bytes": 16 * MB}}
JSON = "application/json"
NDJSON = "application/x-ndjson"

COUNTS = """
def __init__(self):
    self.n = {}

@hookimpl
def process(self, batch):
    if not len(batch):
        return None
    n = self.n[batch.tenant] = self.n.get(batch.tenant, 0) + len(batch)
    found = [r for r in batch.rows() if r.name == "remarkable"]
    return ProcessResult(
        [Metric(name="seen", value=n, window=Window(DAY, 86400))],
        [Pattern(key=r.user_id, name="p", description="again", count=1) for r in found],
        [Insight(key=r.user_id, title="look", description="here", severity="high") for r in found],
    )

@hookimpl
def export_state(self):
    return self.n

@hookimpl
def import_state(self, state, version):
    self.n = state

@hookimpl
def insight(self, question, events):
    return Answer(events.sql("SELECT count(*) AS n, $word AS word FROM events", {"word": question.parameters["word"]}))

@hookimpl
def ingest(self, request):
    if not request.body:
        raise ValueError("no name was sent")
    return [Event.of(name) for name in request.body.decode().split(",")]

@hookimpl
def reply(self, request, outcome):
    return Reply(200, f"thank you for {outcome.accepted}".encode(), {"X-Tracker": "1"})
"""
COUNTS_HOOKS = ("process", "export_state", "import_state", "insight", "ingest", "reply")
COUNTS_PROVIDES = {
    "routes": ["POST /track"],
    "analyses": [
        {"name": "total", "parameters": {"type": "object", "properties": {"word": {"type": "string", "default": "w"}}}}
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHouse]:
    with house(tmp_path_factory.mktemp("whole"), host=QUICK, forked=False) as made:
        made.install(
            "counts", COUNTS, COUNTS_HOOKS, head="from analytics_core.events import Event", provides=COUNTS_PROVIDES
        )
        made.start()
        yield made


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def problem(answer: Answer, status: int) -> dict[str, Any]:
    """The body of a refusal, which must be a whole RFC 9457 document."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.body
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert (body["status"], body["instance"]) == (status, answer.headers["X-Request-Id"])
    return body


def names(server: ServerHouse, prefix: str) -> list[str]:
    """The message ids in history that hold ``prefix``, in order of the log."""
    rows = server.history(filters=[{"field": "messageId", "op": "contains", "value": prefix}])
    return [row["messageId"] for row in sorted(rows, key=lambda row: row["seq"])]


# --- item 2: in


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": ("", lambda body: body),
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd.compress),
}
FORMS: dict[str, tuple[str, Callable[[list[Any]], bytes]]] = {
    "one": (JSON, lambda events: json.dumps(events[0]).encode()),
    "array": (JSON, lambda events: json.dumps(events).encode()),
    "envelope": (JSON, lambda events: json.dumps({"events": events, "sentAt": now()}).encode()),
    "ndjson": (NDJSON, lambda events: b"\n".join(json.dumps(event).encode() for event in events)),
    "text": ("text/plain;charset=UTF-8", lambda events: json.dumps(events).encode()),
}


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_every_form_in_every_encoding(server: ServerHouse) -> None:
    for form, (content_type, written) in FORMS.items():
        for encoding, (header, packed) in ENCODINGS.items():
            ids = [f"form {form} {encoding} {n}" for n in range(1 if form == "one" else 3)]
            body = packed(written([{"event": "formed", "messageId": id_, "userId": 7} for id_ in ids]))
            headers = {"Content-Type": content_type, **({"Content-Encoding": header} if header else {})}
            answer = server.ask("POST", EVENTS, body, headers=headers)
            assert answer.status == 202, (form, encoding, answer)
            assert set(answer.body) == {"accepted", "duplicates", "rejected", "deduplicated", "seq"}
            assert answer.body == {
                "accepted": len(ids),
                "duplicates": 0,
                "rejected": [],
                "deduplicated": "messageId",
                "seq": answer.body["seq"],
            }
            rows = server.query(filters={"messageId": ids}, limit=5)["data"]
            assert sorted(row["messageId"] for row in rows) == ids
            assert max(row["seq"] for row in rows) == answer.body["seq"]


def test_an_event_is_stored_as_it_was_sent(server: ServerHouse) -> None:
    sent = {
        "event": "étape ✓",
        "properties": {"deep": {"list": [1, None, True, 2.5]}, "text": 'q"\\\u2028', "nul": "a\x00b"},
        "userId": "u",
        "anonymousId": "a",
        "sessionId": "s",
        "timestamp": "2025-02-03T04:05:06.789012+01:00",
        "messageId": "as sent",
        "context": {"library": {"name": "test"}},
    }
    receipt = server.post(sent)
    (row,) = server.query(filters={"messageId": "as sent"})["data"]
    received = row.pop("receivedAt")
    assert abs((datetime.fromisoformat(received) - datetime.now(UTC)).total_seconds()) < 600
    assert row == {
        **sent,
        "timestamp": "2025-02-03T03:05:06.789012+00:00",
        "source": "native",
        "partition": 0,
        "seq": receipt["seq"],
    }


def nested(depth: int) -> bytes:
    return b'{"event":"deep","messageId":"deep %d","properties":%s1%s}' % (depth, b'{"a":' * depth, b"}" * depth)


def test_good_events_are_kept_when_their_neighbours_are_bad(server: ServerHouse) -> None:
    bad = {
        b'{"event": "b", "properties": 5}': ("properties", "must be a JSON object, not a number"),
        b'{"event": "b", "context": []}': ("context", "must be a JSON object, not an array"),
        b'{"event": "b", "timestamp": "1970-01-01T00:00:00Z"}': ("timestamp", "is before 2000-01-01"),
        b'{"event": "b", "timestamp": "yesterday"}': ("timestamp", "yesterday"),
        b'{"event": "b", "properties": {"x": "\xff\xfe"}}': ("", "not UTF-8 at byte"),
        b'{"event": "b", "properties": {"x": NaN}}': ("", "NaN"),
        b'{"event": "b", "properties": {"x": "\\ud800"}}': ("", "half a surrogate pair"),
        nested(MAX_DEPTH + 1): ("properties", f"is nested deeper than {MAX_DEPTH} levels"),
        b'{"event": 5}': ("event", "Expected `str`, got `int`"),
        b'{"event": ""}': ("event", "is empty"),
        b'{"properties": {}}': ("event", "is required"),
        b"null": ("", "Expected `object`"),
        b'{"event": "b", "properties": {"x": "%s"}}' % (b"y" * 10 * MB): ("properties", "larger than 1048576 bytes"),
        b'{"event": "%s"}' % (b"n" * 300): ("event", "is longer than 256 characters"),
        b'{"event": "b", "messageId": "%s"}' % (b"n" * 600): ("messageId", "is longer than 512 bytes"),
    }
    for index, (text, (field, message)) in enumerate(bad.items()):
        good = [b'{"event": "good", "messageId": "neighbour %d %d"}' % (index, n) for n in range(2)]
        receipt = server.post(b"[%s]" % b",".join([good[0], text, good[1]]))
        assert receipt["accepted"] == 2, text[:80]
        (rejected,) = receipt["rejected"]
        assert (rejected["index"], rejected["field"]) == (1, field)
        assert message in rejected["message"]
        alone = problem(server.ask("POST", EVENTS, text), 422 if text != b"null" else 400)
        if text != b"null":
            assert (alone["accepted"], alone["duplicates"]) == (0, 0)
            assert alone["rejected"] == [{**rejected, "index": 0}]
    assert names(server, "neighbour ") == [f"neighbour {index} {n}" for index in range(len(bad)) for n in range(2)]
    receipt = server.post(b'{"event": "good"}\n{"event": "n", "properties": {"x": NaN}}\n', Content_Type=NDJSON)
    assert (receipt["accepted"], [r["index"] for r in receipt["rejected"]]) == (1, [1])


def test_the_far_future_is_now_and_keeps_what_the_client_said(server: ServerHouse) -> None:
    server.post({"event": "2099", "messageId": "2099", "timestamp": "2099-01-01T00:00:00Z"})
    (row,) = server.query(filters={"messageId": "2099"})["data"]
    assert row["timestamp"] == row["receivedAt"]
    assert row["context"] == {"originalTimestamp": "2099-01-01T00:00:00Z"}


BROKEN: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "truncated gzip": (gzip.compress(b'{"event": "x"}')[:-6], {"Content-Encoding": "gzip"}, 400, "ended before"),
    "no gzip": (b'{"event": "x"}', {"Content-Encoding": "gzip"}, 400, "its gzip stream is broken"),
    "gzip bomb": (gzip.compress(bytes(64 * MB)), {"Content-Encoding": "gzip"}, 413, "after inflation is larger"),
    "zstd bomb": (zstd.compress(bytes(64 * MB)), {"Content-Encoding": "zstd"}, 413, "after inflation is larger"),
    "large": (bytes(33 * MB), {}, 413, "the body is larger than 33554432 bytes"),
    "unknown encoding": (b"{}", {"Content-Encoding": "br"}, 415, "valid are: gzip, deflate, zstd"),
    "unknown type": (b"{}", {"Content-Type": "text/html"}, 415, "valid are: application/json"),
    "empty": (b"", {}, 400, "it is empty"),
    "number": (b"5", {}, 400, "neither a JSON object nor a JSON array"),
    "no end": (b'[{"event": "x"}', {}, 400, "cannot be read"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, {}, 400, "nested too deeply"),
    "sentAt": (b'{"events": [], "sentAt": "soon"}', {}, 400, "sentAt"),
}


def test_bodies_that_cannot_be_read_store_nothing(server: ServerHouse) -> None:
    before = server.query(limit=1)["data"]
    for name, (body, headers, status, detail) in BROKEN.items():
        refused = server.ask("POST", EVENTS, body, headers={"Content-Type": JSON, **headers})
        assert detail in problem(refused, status)["detail"], name
    assert server.query(limit=1)["data"] == before
    assert problem(server.ask("POST", "/api/v1/event", {}), 404)["detail"].endswith("did you mean '/api/v1/events'?")
    assert problem(server.ask("DELETE", EVENTS), 405)["detail"].startswith("/api/v1/events takes ")


def test_a_request_that_is_sent_again_changes_nothing(server: ServerHouse) -> None:
    with_ids = [{"event": "again", "messageId": f"again {n}"} for n in range(5)]
    assert server.post(with_ids)["accepted"] == 5
    second = server.post([*with_ids, {"event": "again", "messageId": "again 5"}])
    assert (second["accepted"], second["duplicates"], second["deduplicated"]) == (1, 5, "messageId")
    keyed = [{"event": "keyed"}, {"event": "keyed"}, {"event": "keyed", "properties": 5}]
    first = server.post(keyed, Idempotency_Key="k-1")
    assert (first["accepted"], first["duplicates"], first["deduplicated"]) == (2, 0, "idempotencyKey")
    second = server.post(keyed, Idempotency_Key="k-1")
    assert (second["accepted"], second["duplicates"], second["rejected"]) == (0, 2, first["rejected"])
    assert server.post(keyed[:2], Idempotency_Key="k-2")["accepted"] == 2
    assert server.post(keyed[:2])["deduplicated"] == "none"
    assert server.total("again") == 6
    assert server.total("keyed") == 6


def test_duplicates_in_flight_are_stored_once(server: ServerHouse) -> None:
    batches = [[{"event": "flight", "messageId": f"flight {b} {n}"} for n in range(500)] for b in range(4)]
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(server.post, [batch for batch in batches for _ in range(6)]))
    assert {r["accepted"] + r["duplicates"] for r in receipts} == {500}
    assert sum(r["accepted"] for r in receipts) == 2_000
    assert server.total("flight") == 2_000


def test_an_acknowledged_event_is_in_the_next_answer(server: ServerHouse) -> None:
    for n in range(1, 11):
        server.post({"event": "fresh", "userId": f"f{n}", "messageId": f"fresh {n}"})
        assert server.total("fresh") == n
        assert len(server.query(events=["fresh"])["data"]) == n
        asked = {"timeRange": "1d", "filters": {"event": "fresh"}}
        assert server.ask("POST", "/api/v1/analyses/engagement", asked).body["data"][-1]["dau"] == n


def test_a_plugins_own_route_is_a_way_in(server: ServerHouse) -> None:
    answer = server.ask("POST", "/track", b"tracked,tracked", headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.headers["X-Tracker"], answer.body) == (200, "1", b"thank you for 2")
    assert [row["source"] for row in server.query(events=["tracked"])["data"]] == ["counts"] * 2
    assert "no name was sent" in problem(server.ask("POST", "/track", b""), 400)["detail"]


# --- item 6: metrics


def series(server: ServerHouse, query: str) -> list[dict[str, Any]]:
    answer: dict[str, Any] = server.get(f"/api/v1/metrics?{query}")
    assert set(answer) == {"metrics", "watermark"}
    assert datetime.fromisoformat(answer["watermark"])
    found: list[dict[str, Any]] = answer["metrics"]
    return found


def test_metrics_by_the_hour_in_a_time_zone(server: ServerHouse) -> None:
    def at(hour: str, event: str, user: str, **more: Any) -> dict[str, Any]:
        return {"event": event, "timestamp": f"2025-01-01T{hour}:00+01:00", "userId": user, **more}

    server.post(
        [
            at("00:00", "page_view", "ada"),
            at("00:59", "page_view", "bob"),
            at("09:00", "page_view", "ada"),
            at("09:30", "purchase", "ada", properties={"revenue": 49.5}),
            at("09:40", "order_completed", "", anonymousId="cat", properties={"revenue": "none"}),
            {"event": "page_view", "timestamp": "2024-12-31T22:59:59Z", "userId": "before"},
            {"event": "page_view", "timestamp": "2025-01-01T23:00:00Z", "userId": "after"},
        ]
    )
    asked = "startDate=2025-01-01&endDate=2025-01-02&interval=hour&timezone=Europe/Berlin"
    views, conversions, users, revenue = series(server, f"metrics=page_views,conversions,active_users,revenue&{asked}")
    assert [point["timestamp"] for point in views["points"]] == [f"2025-01-01T{h:02}:00:00+01:00" for h in range(24)]
    assert [views["metric"], views["value"]] == ["page_views", 3]
    assert [point["value"] for point in views["points"]] == [2, *[0] * 8, 1, *[0] * 14]
    assert [conversions["value"], conversions["points"][9]["value"]] == [2, 2]
    assert [users["value"], users["points"][0]["value"], users["points"][9]["value"]] == [3, 2, 2]
    assert [revenue["value"], revenue["unit"], revenue["points"][9]["value"]] == [49.5, "EUR", 49.5]
    (by_name,) = series(server, f"metrics=order_completed&{asked}")
    assert [by_name["value"], len(by_name["points"])] == [1, 24]


def test_buckets_are_right_when_clocks_change(server: ServerHouse) -> None:
    autumn = [{"event": "dst", "timestamp": f"2025-10-26T0{hour}:30:00Z"} for hour in (0, 1)]  # 02:30 twice
    server.post([*autumn, {"event": "dst", "timestamp": "2025-03-30T01:30:00Z"}])
    zone = "timezone=Europe/Berlin"
    (found,) = series(server, f"metrics=dst&startDate=2025-10-26&endDate=2025-10-27&interval=hour&{zone}")
    values = {point["timestamp"]: point["value"] for point in found["points"]}
    assert [len(values), found["value"]] == [25, 2]
    assert [values["2025-10-26T02:00:00+02:00"], values["2025-10-26T02:00:00+01:00"]] == [1, 1]
    (found,) = series(server, f"metrics=dst&startDate=2025-03-30&endDate=2025-03-31&interval=hour&{zone}")
    values = {point["timestamp"]: point["value"] for point in found["points"]}
    assert [len(values), values["2025-03-30T03:00:00+02:00"]] == [23, 1]
    (found,) = series(server, f"metrics=dst&startDate=2025-03-01&endDate=2025-11-01&interval=month&{zone}")
    assert [point["value"] for point in found["points"]] == [1, 0, 0, 0, 0, 0, 0, 2]


def test_a_breakdown_and_quantiles(server: ServerHouse) -> None:
    day = "startDate=2025-05-01&endDate=2025-05-02&interval=day"
    errors = [
        {"event": "error", "timestamp": "2025-05-01T10:00:00Z", "properties": {"code": c}} for c in (404, 404, 500)
    ]
    timed = [
        {"event": "checkout", "timestamp": "2025-05-01T10:00:00Z", "properties": {"duration": n}} for n in range(1, 101)
    ]
    server.post(errors + timed)
    total, *parts = series(server, f"metrics=errors&{day}")
    assert total["value"] == 3
    assert {part["labels"]["properties.code"]: part["value"] for part in parts} == {"404": 2, "500": 1}
    (p95,) = series(server, f"metrics=checkout_p95&{day}")
    assert p95["value"] == pytest.approx(95, rel=0.02)


def test_metric_questions_that_cannot_be_answered(server: ServerHouse) -> None:
    server.post({"event": "cart_opened"})
    for query, status, detail in (
        ("metrics=cart_openned", 404, "did you mean 'cart_opened'?"),
        ("metrics=page_views&interval=fortnight", 422, "fortnight"),
        ("metrics=page_views&timezone=Mars/Base", 422, "Mars/Base"),
        ("metrics=page_views&startDate=2025-01-02&endDate=2025-01-01", 422, "2025-01-01"),
        ("metrics=page_views&endDay=2025-01-01", 422, "did you mean 'endDate'?"),
        ("metrics=page_views&metrics=revenue", 422, "given more than once"),
        ("", 422, "metrics: is needed"),
    ):
        assert detail in problem(server.ask("GET", f"/api/v1/metrics?{query}"), status)["detail"], query


def test_a_plugins_metric_is_there_after_its_checkpoint(server: ServerHouse) -> None:
    server.post([{"event": "counted", "userId": f"c{n}"} for n in range(7)])
    everything = len(server.history())
    equals(
        lambda: series(server, "metrics=counts.seen&startDate=2025-01-01&endDate=2025-01-02")[0]["value"],
        everything,
        "seen",
    )
    for plugin in ("counts", "user-behavior"):
        equals(lambda name=plugin: server.plugin(name)["events_processed"], everything, plugin)
    until(lambda: (server.total("user-behavior.active_users") or 0) >= 7, "the users whom user-behavior has seen")


# --- item 5: analyses


def ask(server: ServerHouse, analysis: str, **parameters: Any) -> dict[str, Any]:
    answer = server.ask("POST", f"/api/v1/analyses/{analysis}", parameters)
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    assert {"analysis", "plugin", "columns", "data", "insights", "recommendations", "chart", "watermark"} <= set(body)
    return body


MARCH = {"start": "2024-03-01", "end": "2024-03-03"}


@pytest.fixture(scope="module")
def march(server: ServerHouse) -> ServerHouse:
    """Ada buys on the 1st in one session and comes back on the 2nd; Bob looks twice, 40 minutes apart."""

    def at(time: str, event: str, user: str, **properties: Any) -> dict[str, Any]:
        return {"event": event, "userId": user, "timestamp": f"2024-03-{time}:00Z", "properties": properties}

    server.post(
        [
            at("01T10:00", "product_view", "ada", duration=100),
            at("01T10:10", "add_to_cart", "ada", duration=300),
            at("01T10:20", "purchase", "ada", duration=200, status=500),
            at("01T12:00", "product_view", "bob", duration=100),
            at("01T12:40", "product_view", "bob"),
            at("02T09:00", "product_view", "ada"),
        ]
    )
    return server


def test_sessions(march: ServerHouse) -> None:
    first, second = ask(march, "sessions", timeRange=MARCH)["data"]
    assert [first["day"], first["sessions"], first["users"]] == ["2024-03-01", 3, 2]
    assert [first["events_per_session"], first["bounce_rate"]] == pytest.approx([5 / 3, 2 / 3])
    assert [first["mean_duration"], first["median_duration"]] == [400, 0]
    assert [second["sessions"], second["bounce_rate"]] == [1, 1]


def test_engagement(march: ServerHouse) -> None:
    first, second = ask(march, "engagement", timeRange=MARCH)["data"]
    assert [first[name] for name in ("dau", "wau", "mau", "new", "returning")] == [2, 2, 2, 2, 0]
    assert [second[name] for name in ("dau", "wau", "mau", "new", "returning")] == [1, 2, 2, 0, 1]
    assert second["stickiness"] == 0.5


def test_who_came_back(march: ServerHouse) -> None:
    cohort = [row for row in ask(march, "retention", timeRange=MARCH)["data"] if row["cohort"] == "2024-03-01"]
    assert [(row["users"], row["returned"], row["retention"]) for row in cohort] == [(2, 2, 1), (2, 1, 0.5)]
    second = ask(march, "lifecycle", timeRange=MARCH)["data"][1]
    assert [second[name] for name in ("new", "returning", "resurrecting", "dormant")] == [0, 1, 0, 1]
    days = ask(march, "frequency", timeRange=MARCH, count="days")["data"]
    assert [row["users"] for row in days] == [1, 1]
    week = ask(march, "stickiness", timeRange=MARCH)["data"]
    assert [row["users_at_least"] for row in week] == [2, 1, 0, 0, 0, 0, 0]


def test_breakdown(march: ServerHouse) -> None:
    rows = ask(march, "breakdown", timeRange=MARCH, by="event", limit=1)["data"]
    assert [(row["kind"], row["users"]) for row in rows] == [("value", 2), ("other", 1)]
    assert ask(march, "breakdown", timeRange=MARCH, by="event", event="no such event")["data"] == []


def test_funnel(march: ServerHouse) -> None:
    steps = [{"event": name} for name in ("product_view", "add_to_cart", "purchase")]
    answer = ask(march, "funnel", timeRange=MARCH, steps=steps)
    assert [row["users"] for row in answer["data"]] == [2, 1, 1]
    assert answer["data"][2]["p50_seconds_from_start"] == 1200
    assert [(row["dropped"], row["open"]) for row in answer["data"]] == [(1, 0), (0, 0), (0, 0)]
    assert answer["insights"] == []  # of two visitors nothing is said
    short = ask(march, "funnel", timeRange=MARCH, steps=steps, window="15m")
    assert [row["users"] for row in short["data"]] == [2, 1, 0]
    where = [{"event": "product_view", "where": {"properties.duration": 100}}, steps[1]]
    assert [row["users"] for row in ask(march, "funnel", timeRange=MARCH, steps=where)["data"]] == [2, 1]


def test_latency(march: ServerHouse) -> None:
    rows = {row["group"]: row for row in ask(march, "latency", timeRange=MARCH)["data"]}
    assert {name: row["count"] for name, row in rows.items()} == {"product_view": 2, "add_to_cart": 1, "purchase": 1}
    assert [rows["purchase"]["errors"], rows["purchase"]["error_rate"], rows["add_to_cart"]["p50"]] == [1, 1, 300]


def test_forecast(server: ServerHouse) -> None:
    server.post(
        [
            {"event": "weekly", "timestamp": f"2024-0{4 + day // 30}-{day % 30 + 1:02}T12:00:00Z"}
            for day in range(28)
            for _ in range(1 + day % 7)
        ]
    )
    answer = ask(server, "forecast", metric="weekly", horizon=7, timeRange={"start": "2024-04-01", "end": "2024-04-29"})
    assert [row["forecast"] for row in answer["data"]] == [1, 2, 3, 4, 5, 6, 7]
    assert answer["data"][0]["timestamp"].startswith("2024-04-29")


def test_the_catalogue_and_questions_that_cannot_be_answered(server: ServerHouse) -> None:
    catalogue = {entry["name"]: entry for entry in server.get("/api/v1/analyses")["analyses"]}
    periodic = {"engagement", "retention", "stickiness", "frequency", "lifecycle", "breakdown"}
    assert set(catalogue) >= periodic | {"sessions", "funnel", "latency", "forecast", "total"}
    assert catalogue["funnel"]["parameters"]["required"] == ["steps"]
    assert ask(server, "total", word="hello", timeRange=MARCH)["data"][0]["word"] == "hello"  # in another process
    for analysis, asked, status, detail in (
        ("funel", {}, 404, "did you mean 'funnel'?"),
        ("funnel", {}, 422, "steps"),
        ("funnel", {"steps": [{"event": "a"}, {"evnt": "b"}]}, 422, "evnt"),
        ("funnel", {"steps": [{"event": "a"}] * 21}, 422, "at most 20 items"),
        (
            "funnel",
            {"steps": [{"event": "a"}] * 2, "window": "0d"},
            422,
            "window: '0d' is not valid; valid are such as",
        ),
        ("funnel", {"steps": [{"event": "a", "where": {"plan": 1}}] * 2}, 422, "did you mean 'properties.plan'?"),
        ("sessions", {"timeRange": "soon"}, 422, "valid are such as '7d'"),
        ("sessions", {"filters": {"colour": 1}}, 422, "properties.colour"),
    ):
        refused = server.ask("POST", f"/api/v1/analyses/{analysis}", asked)
        assert detail in problem(refused, status)["detail"], analysis
    assert "cannot be read" in problem(server.ask("POST", "/api/v1/analyses/funnel", b"{"), 400)["detail"]


# --- item 6: the seed API


SESSIONS = {
    "sessions": [
        {
            "sessionId": f"seed-{n}",
            "userId": f"seeder-{n % 2}",
            "startTime": f"2025-06-01T1{n}:00:00Z",
            "events": [
                {"type": "seeded", "timestamp": f"2025-06-01T1{n}:{minute:02}:00Z", "data": {"n": n}}
                for minute in range(n + 1)
            ],
        }
        for n in range(4)
    ]
}


def submitted(server: ServerHouse, type_: str) -> dict[str, Any]:
    answer = server.ask("POST", "/api/analytics/submit", {"type": type_, "data": SESSIONS})
    assert answer.status == 202
    assert set(answer.body) == {"success", "analysisId"}
    assert answer.body["success"] is True
    path = f"/api/analytics/result/{answer.body['analysisId']}"
    result: dict[str, Any] = until(
        lambda: (found := server.get(path))["status"] != "pending" and found, "the result of a submission"
    )
    return result


def test_submit_result_and_query(server: ServerHouse) -> None:
    result = submitted(server, "user-behavior")
    assert {"success", "status", "analysisId", "type", "insights", "patterns", "metrics"} <= set(result)
    assert (result["success"], result["status"], result["events"]) == (True, "done", 10)
    figures = result["metrics"]
    assert [figures[m] for m in ("events", "sessions", "sessions_ended", "bounces", "active_users")] == [10, 4, 4, 1, 2]
    assert submitted(server, "user_behavior")["metrics"] == figures  # a fresh fold sees exactly what was handed in
    rows = server.history(type="user-behavior", events=["seeded"])
    assert {row["sessionId"] for row in rows} == {f"seed-{n}" for n in range(4)}
    assert {row["source"] for row in rows} == {"submission"}
    spanned = server.query(
        type="user-behavior",
        timeRange={"start": "2025-06-01T13:00:00Z", "end": "2025-06-01T13:02:00Z"},
        filters=[{"field": "properties.n", "op": ">=", "value": 3}, {"field": "userId", "value": "seeder-1"}],
        limit=1,
    )
    assert set(spanned) == {"success", "data", "nextCursor", "watermark", "notes"}
    assert spanned["data"][0]["timestamp"] == "2025-06-01T13:01:00+00:00"
    assert spanned["nextCursor"]


def test_submissions_and_queries_that_are_wrong(server: ServerHouse) -> None:
    for path, asked, status, detail in (
        ("submit", {"type": "user-behaviour", "data": SESSIONS}, 404, "did you mean 'user-behavior'?"),
        ("submit", {"type": "user-behavior", "data": {"sessions": [{"userId": "x"}]}}, 422, "data.sessions[0]"),
        ("submit", {"type": "user-behavior"}, 422, "data"),
        ("query", {"limit": 0}, 422, "outside 1..1000"),
        ("query", {"type": "nothing"}, 404, "nothing"),
        ("query", {"cursor": "!"}, 422, "cursor"),
        ("query", {"timerange": "1d"}, 422, "timerange"),
    ):
        assert detail in problem(server.ask("POST", f"/api/analytics/{path}", asked), status)["detail"], asked
    assert "no analysis is named" in problem(server.ask("GET", "/api/analytics/result/nothing"), 404)["detail"]


def test_pages_neither_repeat_nor_skip_while_events_arrive(server: ServerHouse) -> None:
    server.post([{"event": "paged", "messageId": f"paged {n}"} for n in range(25)])
    seen, cursor = [], None
    while True:
        page = server.query(events=["paged"], limit=4, **({"cursor": cursor} if cursor else {}))
        seen += [row["messageId"] for row in page["data"]]
        server.post({"event": "paged", "messageId": f"later {len(seen)}"})
        if (cursor := page["nextCursor"]) is None:
            break
    assert seen == [f"paged {n}" for n in reversed(range(25))]


def test_health_and_metrics_of_the_host(server: ServerHouse) -> None:
    server.post({"event": "page_view"})
    health = server.get("/api/analytics/health")
    assert {"success", "status", "components", "metrics"} <= set(health)
    assert health["success"] is True
    assert {"log", "live", "lane:store-writer", "plugin:user-behavior", "plugin:counts"} <= set(health["components"])
    assert set(health["metrics"]) == {"totalAnalyzed", "averageProcessingTime", "modelsLoaded"}
    assert health["metrics"]["averageProcessingTime"] > 0
    assert health["metrics"]["totalAnalyzed"] > 0
    until(lambda: "page_views" in server.get("/api/analytics/metrics")["latest"], "the live value of page_views")
    latest = server.get("/api/analytics/metrics")["latest"]["page_views"]
    assert set(latest) == {"value", "window"}
    assert {lane["name"] for lane in server.get("/api/v1/lanes")["lanes"]} == {
        "store-writer",
        "live-metrics",
        "counts",
        "performance",
        "user-behavior",
    }


def test_plugins_are_shown(server: ServerHouse) -> None:
    rows = {row["name"]: row for row in server.get("/api/v1/plugins")["plugins"]}
    assert set(rows) == {"counts", "performance", "predictive", "user-behavior"}
    for row in rows.values():
        assert set(row) == {
            "name",
            "version",
            "state",
            "reason",
            "since",
            "generation",
            "isolation",
            "lag",
            "events_processed",
            "hooks",
            "errors",
        }
        assert (row["state"], row["reason"], row["generation"]) == ("active", "", 1)
        assert datetime.fromisoformat(row["since"]).tzinfo is not None
    assert [rows["counts"]["isolation"], rows["user-behavior"]["isolation"]] == ["process", "thread"]
    assert rows["counts"]["hooks"] == sorted(COUNTS_HOOKS)


# --- item 7: live


async def post(server: ServerHouse, events: Any) -> None:
    await asyncio.to_thread(server.post, events)


def test_the_socket_pushes_what_is_posted(server: ServerHouse) -> None:
    async def scenario() -> None:
        async with socket_of(server) as client:
            answer = await client.call("subscribe", {"metrics": ["page_views", "counts.seen"]})
            assert answer.items() >= {"ok": True, "streams": ["metric"]}.items()
            await post(server, {"event": "page_view"})
            _, _, pushed = await client.next("metric", lambda m: m["metric"] == "page_views")
            assert set(pushed) == {"metric", "value", "window", "labels"}
            assert pushed["value"] >= 1
            assert set(pushed["window"]) == {"start", "end"}
            await client.next("metric", lambda m: m["metric"] == "counts.seen")  # after the plugin's checkpoint
            answer = await client.call(
                "subscribe", {"stream": ["insight", "analytics"], "filters": {"severity": "high"}}
            )
            assert answer["streams"] == ["analytics", "insight", "metric"]
            await post(server, {"event": "remarkable", "userId": "socket"})
            _, _, insight = await client.next("insight:new", lambda i: i["key"] == "socket")
            assert insight.items() >= {"plugin": "counts", "title": "look", "severity": "high"}.items()
            await client.next("analytics:update", lambda u: u["type"] == "insight")
            assert (await client.call("unsubscribe", {"metrics": ["page_views"]}))["ok"]

    run(scenario())


def test_calls_on_the_socket_are_refused_with_a_reason(server: ServerHouse) -> None:
    async def scenario() -> None:
        async with socket_of(server) as client:
            for event, sent, reason in (
                ("subscribe", {"stream": "metrics"}, "did you mean 'metric'?"),
                ("subscribe", None, "takes an object"),
                ("subscribe", {"stream": "metric", "filters": {"severity": "high"}}, "filters.severity"),
                ("unsubscribe", {}, "stream: is needed"),
                ("publish", {}, "valid are: auth:authenticate, subscribe, unsubscribe"),
            ):
                answer = await client.call(event, sent)
                assert answer["ok"] is False
                assert reason in answer["error"]
            known = await client.call("auth:authenticate", {"token": "anything", "userId": "me"})
            assert known.items() >= {"ok": True, "tenant": "default", "userId": "me"}.items()  # no auth: everybody is

    run(scenario())


def test_the_stream_resumes_where_it_was_cut(server: ServerHouse) -> None:
    async def scenario() -> None:
        async with stream_of(server, "stream=insight") as client:
            await post(server, {"event": "remarkable", "userId": "sse-1"})
            _, seen, _ = await client.next("insight:new", lambda i: i["key"] == "sse-1")
        async with stream_of(server, "stream=insight") as other:  # somebody listens, so what happens is kept
            await post(server, {"event": "remarkable", "userId": "sse-2"})
            await other.next("insight:new", lambda i: i["key"] == "sse-2")
        async with stream_of(server, "stream=insight", last_id=seen) as client:
            assert (await asyncio.wait_for(client.heard.get(), 15))[2]["key"] == "sse-2"
        async with stream_of(server, "metrics=never", last_id="of-another-server") as client:
            _, _, gap = await client.next("gap")
            assert gap["lastEventId"] == "of-another-server"
            assert "no longer knows this id" in gap["reason"]

    run(scenario())
    refused = problem(server.ask("GET", "/api/v1/stream?stream=metrics"), 422)
    assert refused["detail"].endswith("did you mean 'metric'?")


def test_records_of_a_plugin_are_paged(server: ServerHouse) -> None:
    server.post([{"event": "remarkable", "userId": f"record-{n}"} for n in range(5)])

    def keys(kind: str) -> list[str]:
        found, cursor = [], None
        while True:
            page = server.query(type="counts", records=kind, limit=2, **({"cursor": cursor} if cursor else {}))
            found += [row["key"] for row in page["data"]]
            if (cursor := page["nextCursor"]) is None:
                return [key for key in found if key.startswith("record-")]

    expected = [f"record-{n}" for n in range(5)]
    until(lambda: len(keys("insights")) == 5, "the insights of the plugin")
    assert sorted(keys("insights")) == expected
    assert sorted(keys("patterns")) == expected


def test_the_socket_speaks_to_the_same_figures_as_rest(server: ServerHouse) -> None:
    server.post([{"event": "page_view"}, {"event": "page_view"}])
    until(lambda: "page_views" in server.get("/api/analytics/metrics")["latest"], "a live value")

    async def scenario() -> None:
        async with socket_of(server) as client:
            latest = (await client.call("subscribe", {"metrics": ["page_views"]}))["latest"]
            assert set(latest) == {"page_views"}
            assert latest["page_views"]["window"]

    run(scenario())


# --- faults


def faults(body: str) -> str:
    """A `process` that does something on the event ``poison`` and counts all others."""
    return f"""
def __init__(self):
    self.n = 0

@hookimpl
def process(self, batch):
    for row in batch.rows():
        if row.name == "poison":
            {body}
        self.n += 1
    return ProcessResult([Metric(name="n", value=self.n, window=Window(DAY, 86400))]) if len(batch) else None

@hookimpl
def export_state(self):
    return self.n

@hookimpl
def import_state(self, state, version):
    self.n = state
"""


FOLDING = ("process", "export_state", "import_state")
FAILED = ("degraded", "quarantined", "half_open")
REASONS = {
    "exits": "its process ended",
    "hangs": "no answer within 2 s",
    "leaves": "SystemExit",
    "raises": "RuntimeError: no more",
}
NOT_STARTED = {
    "unimportable": ("load_error", "No module named 'nowhere'"),
    "misspelled": ("load_error", "did you mean 'process'?"),
    "refusing": ("start_error", "the licence has run out"),
    "left-out": ("disabled", "PLUGINS_ENABLED"),
    "absent": ("unresolved", "it is not installed"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHouse]:
    """A server full of plugins of strangers, most of them bad, and ``good`` among them."""
    enabled = ["user-behavior", "performance", "good", *REASONS, *NOT_STARTED]
    enabled.remove("left-out")
    environ = {"PLUGINS_ENABLED": ",".join(enabled), "WS_MAX_CONNECTIONS": "2"}
    with house(tmp_path_factory.mktemp("faults"), host=QUICK, environ=environ) as made:
        made.install("good", faults("pass"), FOLDING)
        made.install("exits", faults("os._exit(3)"), FOLDING)
        made.install("hangs", faults("time.sleep(3600)"), FOLDING)
        made.install("leaves", faults("sys.exit(0)"), FOLDING, isolation="thread")
        made.install("raises", faults("raise RuntimeError('no more')"), FOLDING, isolation="thread")
        made.install("unimportable", "pass", ("process",), head="import nowhere")
        made.install("misspelled", "@hookimpl\ndef proces(self, batch): return None", ("process",))
        made.install(
            "refusing", "@hookimpl\ndef setup(self, context): raise RuntimeError('the licence has run out')", ("setup",)
        )
        made.install("left-out", faults("pass"), FOLDING)
        made.start()
        yield made


def test_what_json_allows_and_few_can_read_spoils_nothing(faulty: ServerHouse) -> None:
    """Numbers beyond any type must neither break queries nor stop plugins that read events row by row."""
    huge = b"1" + b"0" * 4_000
    properties = b'{"duration": %s, "x": -1e999, "deep": %s}' % (huge, b"[" * 63 + b"]" * 63)
    faulty.post(b'[{"event": "huge", "messageId": "huge", "properties": %s}]' % properties)
    page = faulty.fetch("POST", "/api/analytics/query", {"events": ["huge"]})
    assert page.status == 200
    assert properties in page.body, "history gives back what was sent"
    assert faulty.total("huge") == 1
    assert faulty.ask("POST", "/api/v1/analyses/latency", {"timeRange": "1h"}).status == 200
    for plugin in ("good", "performance", "user-behavior"):
        until(lambda name=plugin: faulty.plugin(name)["lag"] == 0, f"{plugin} gets past them")
        assert faulty.plugin(plugin)["errors"] == 0


def test_a_bad_plugin_stops_itself_alone(faulty: ServerHouse) -> None:
    faulty.post([{"event": "before"}] * 50)
    for name in ("good", *REASONS):
        until(lambda name=name: faulty.plugin(name)["lag"] <= 1, f"{name} reads along")
    faulty.post([{"event": "poison"}, *[{"event": "after"}] * 100])
    for name, reason in REASONS.items():
        row = until(
            lambda name=name: (row := faulty.plugin(name))["state"] in FAILED and row["errors"] and row,
            f"{name} is seen to fail",
            explain=lambda name=name: faulty.plugin(name),
        )
        assert reason in row["reason"], row
        assert row["lag"] >= 101
    total = len(faulty.query(events=["before", "after"], limit=1000)["data"])
    assert total == 150
    for n in range(3):  # ingest, queries and the other lanes go on while all four are down or trying again
        faulty.post([{"event": "meanwhile", "messageId": f"meanwhile {n}"}])
        assert faulty.total("meanwhile") == n + 1
    for name in ("good", "user-behavior", "performance"):
        until(
            lambda name=name: faulty.plugin(name)["lag"] <= 1,
            f"{name} has all",
            explain=lambda: faulty.get("/api/v1/lanes"),
        )
        assert faulty.plugin(name)["state"] == "active"
        assert faulty.plugin(name)["errors"] == 0
    health = faulty.get("/api/analytics/health")
    assert health["status"] == "degraded"
    assert REASONS["exits"] in health["components"]["plugin:exits"]["reason"]


def test_a_plugin_that_cannot_start_is_shown_with_its_reason(faulty: ServerHouse) -> None:
    for name, (state, reason) in NOT_STARTED.items():
        row = faulty.plugin(name)
        assert (row["state"], reason in row["reason"]) == (state, True), row
    assert faulty.plugin("predictive")["state"] == "disabled"
    refused = faulty.ask("POST", "/api/v1/analyses/forecast", {"metric": "x"})
    assert "forecast" in problem(refused, 404)["detail"]


def test_there_are_no_more_live_connections_than_allowed(faulty: ServerHouse) -> None:
    async def scenario() -> None:
        async with socket_of(faulty), stream_of(faulty, "stream=metric"):
            refused = await asyncio.to_thread(faulty.ask, "GET", "/api/v1/stream")
            assert "all 2 live connections are taken" in problem(refused, 503)["detail"]
            assert refused.headers["Retry-After"] == "5"
            late = Listener()
            with pytest.raises(socketio.exceptions.ConnectionError):
                await late.sio.connect(faulty.url, transports=["websocket"])
            assert "all 2 live connections are taken" in late.refused["message"]

    run(scenario())


# --- starts


def duplicates_kept(server: ServerHouse) -> int:
    """Those that the ledger has on disk; the server may run."""
    with closing(SqliteState(server.data / "state.db")) as state:
        return DuplicateLedger(state).count("default", ALL_TIME)


def test_everything_is_kept_when_the_server_starts_again(tmp_path: Path) -> None:
    with house(tmp_path, host=QUICK, environ={"WS_ENABLED": "false"}) as made:
        made.install(
            "counts", COUNTS, COUNTS_HOOKS, head="from analytics_core.events import Event", provides=COUNTS_PROVIDES
        )
        made.start()
        assert made.ask("GET", "/socket.io/?transport=polling&EIO=4").status == 404
        events = [{"event": "kept", "userId": f"u{n}", "messageId": f"kept {n}"} for n in range(20)]
        made.post([*events, {"event": "remarkable", "userId": "r"}], Idempotency_Key="k")
        analysis = submitted(made, "user-behavior")
        before = made.history()
        page = made.query(events=["kept"], limit=15)
        equals(lambda: made.plugin("counts")["events_processed"], len(before), "counts")
        equals(lambda: made.plugin("user-behavior")["events_processed"], len(before), "user-behavior")
        assert made.post(events)["duplicates"] == 20
        made.stop()
        assert not made.logged("lane_failed")
        assert duplicates_kept(made) == 20
        made.environ["WS_ENABLED"] = "true"
        made.start()
        assert made.ask("GET", "/socket.io/?transport=polling&EIO=4").status == 200
        assert made.history() == before
        assert len(made.query(events=["kept"], limit=15, cursor=page["nextCursor"])["data"]) == 5
        assert made.get(f"/api/analytics/result/{analysis['analysisId']}") == analysis
        assert [row["key"] for row in made.query(type="counts", records="insights")["data"]] == ["r"]
        assert made.post([*events, {"event": "remarkable", "userId": "r"}], Idempotency_Key="k")["duplicates"] == 21
        made.post({"event": "after"})
        total = len(before) + 1
        (seen,) = until(
            lambda: (
                made.plugin("counts")["lag"] == 0
                and series(made, "metrics=counts.seen&startDate=2025-01-01&endDate=2025-01-02")
            ),
            "the plugin at the end",
        )
        equals(lambda: made.plugin("counts")["events_processed"], total, "counts")
        equals(lambda: made.total("user-behavior.events"), 22, "the plugin's own figure")
        equals(lambda: duplicates_kept(made), 41, "the duplicates of both runs", 5.0)
        assert seen["value"] <= total


REFUSED_STARTS = {
    "a misspelled key": (
        "host.yaml",
        "kind: host\nstorage:\n  retention_dayz: 5\n",
        ["host.yaml", "did you mean 'retention_days'?"],
    ),
    "a metric with a typo": ("more.yaml", "kind: metric\nname: m\nevnt: x\n", ["more.yaml", "did you mean 'event'?"]),
    "an unknown kind": ("more.yaml", "kind: metrics\nname: m\n", ["more.yaml", "did you mean 'metric'?"]),
}


@pytest.mark.parametrize("what", REFUSED_STARTS)
def test_a_server_with_a_bad_manifest_does_not_start(tmp_path: Path, what: str) -> None:
    file, text, said = REFUSED_STARTS[what]
    with house(tmp_path) as made:
        (made.manifests / file).write_text(text, encoding="utf-8")
        code, output = made.refuse()
        assert code == 2
        assert output.count("\n") == 1, output
        assert all(words in output for words in said), output


def test_one_process_owns_a_data_folder(server: ServerHouse, tmp_path: Path) -> None:
    with house(tmp_path, data=server.data) as second:
        code, output = second.refuse()
        assert server.process is not None
        assert (code, f"is in use by process {server.process.pid}" in output) == (1, True), output
    assert server.ask("GET", "/healthz").status == 200
