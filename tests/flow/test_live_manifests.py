"""A running server takes in metric, tenant and cohort manifests, and says what it cannot: bad files and host keys."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.flow.server_house import Listener, ServerHouse, equals, house, socket_of, until

pytestmark = pytest.mark.server

COUNT = {"kind": "metric", "name": "signups", "event": "signup"}
UNIQUE = {**COUNT, "aggregate": "unique", "property": "user_id"}
ASKS = """
@hookimpl
def insight(self, question, events):
    return Answer([{"total": float(events.metric("signups", "day").values.sum())}])
"""
ASKED = "/api/v1/analyses/ask-signups"


WHO = """
@hookimpl
def insight(self, question, events):
    people = events.sql("SELECT DISTINCT user_id FROM events ORDER BY 1")["user_id"].to_pylist()
    return Answer([{"people": people, "visitors": sum(events.in_user_order(lambda part: len(part.key)))}])
"""


def named(server: ServerHouse, plugin: str, isolation: str) -> None:
    server.install(plugin, ASKS, ("insight",), isolation=isolation, provides={"analyses": [{"name": plugin}]})


def total(server: ServerHouse, analysis: str) -> Any:
    """What a plugin reads by `EventReader.metric`; the status when it cannot."""
    answer = server.ask("POST", f"/api/v1/analyses/{analysis}", {"timeRange": "2d"})
    return answer.body["data"][0]["total"] if answer.status == 200 else answer.status


def manifests(server: ServerHouse) -> dict[str, Any]:
    """``status`` and ``reason`` of the manifests, and what waits for a restart."""
    health = server.get("/api/analytics/health")
    part = health["components"]["manifests"]
    return {"status": part["status"], "reason": part["reason"], "waits": health["restart_required"]}


GOOD = {"status": "up", "reason": None, "waits": []}


@contextmanager
def flowing(server: ServerHouse) -> Iterator[None]:
    """Events of another name arrive meanwhile; at the end each has been counted once."""
    ended, sent = threading.Event(), [0]

    def send() -> None:
        while not ended.is_set():
            sent[0] += server.post([{"event": "flow"}] * 20)["accepted"]

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
    assert server.total("flow") == sent[0]


def by_minute(server: ServerHouse, metric: str) -> dict[str, float]:
    """What history says of each minute, by its start as pushes write it."""
    now = datetime.now(UTC)
    start, end = (f"{(now + timedelta(hours=hours)):%Y-%m-%dT%H:%M:%SZ}" for hours in (-1, 1))
    path = f"/api/v1/metrics?metrics={metric}&startDate={start}&endDate={end}&interval=minute"
    points = server.get(path)["metrics"][0]["points"]
    return {p["timestamp"].replace("+00:00", "Z"): p["value"] for p in points if p["value"]}


async def agree(server: ServerHouse, client: Listener, *metrics: str) -> None:
    """Wait for the pushes that say of each metric's newest minute what history says of it."""
    awaited = {(metric, *max((await asyncio.to_thread(by_minute, server, metric)).items())) for metric in metrics}
    while awaited:
        _, _, pushed = await client.next("metric")
        awaited.discard((pushed["metric"], pushed["window"]["start"], pushed["value"]))


@pytest.mark.parametrize("watch", ["notify", "poll"])
def test_a_metric_is_added_changed_and_removed_while_events_flow(tmp_path: Path, watch: str) -> None:
    async def scenario(server: ServerHouse) -> None:
        def post(*users: str) -> None:
            server.post([{"event": "signup", "userId": user} for user in users])

        def figure(value: float) -> Callable[[], bool]:
            return lambda: server.total("signups") == value

        async with socket_of(server) as client:
            await client.call("subscribe", {"metrics": ["signups", "signup"]})
            await asyncio.to_thread(post, "a", "a", "b")
            assert server.total("signups") is None
            server.manifest("signups.yaml", COUNT)
            await asyncio.to_thread(until, figure(3), "the added metric, over all history", 10.0)
            await asyncio.to_thread(post, "a")
            await agree(server, client, "signups", "signup")  # the event's own count goes on
            server.manifest("signups.yaml", UNIQUE)
            await asyncio.to_thread(until, figure(2), "the changed metric, over all history", 10.0)
            await asyncio.to_thread(post, "c")
            await agree(server, client, "signups")
            assert [await asyncio.to_thread(total, server, f"ask-{how}") for how in ("thread", "process")] == [3, 3]
            (server.manifests / "signups.yaml").unlink()
            await asyncio.to_thread(until, lambda: server.total("signups") is None, "its end", 10.0)

    with house(tmp_path, host={"plugins": {"watch": watch}}) as server:
        named(server, "ask-thread", "thread")
        named(server, "ask-process", "process")
        server.start()
        with flowing(server):
            asyncio.run(scenario(server))
        gone = server.ask("GET", "/api/v1/metrics?metrics=signups")
        assert gone.status == 404
        assert "did you mean 'signup'?" in gone.body["detail"]
        until(lambda: "signups" not in server.get("/api/analytics/metrics")["latest"], "no live figure", 5.0)
        assert [total(server, f"ask-{how}") for how in ("thread", "process")] != [3, 3]
        applied = [line["changes"] for line in server.logged("manifests_applied")]
        assert applied == [["metric signups added"], ["metric signups changed"], ["metric signups removed"]]
        server.stop()


def test_a_bad_file_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    with house(tmp_path) as server:
        server.start()
        server.post({"event": "signup", "userId": "a"})
        assert manifests(server) == GOOD
        bad = server.manifests / "bad.yaml"
        for text, line, hint in (
            ("kind: metric\nname: bad\nagregate: count\n", 3, "did you mean 'aggregate'?"),
            ("kind: metric\nname: bad\nwhere:\n  colour: red\n", 4, "did you mean 'properties.colour'?"),
            ("kind: tenant\nname: default\ntimezone: Berlin\n", 3, "valid are names such as 'Europe/Berlin'"),
            ("kind: cohort\nname: bad\nall:\n- has: {plan: pro}\n", 3, "did you mean 'properties.plan'?"),
        ):
            bad.write_text(text)
            until(lambda hint=hint: hint in str(manifests(server)["reason"]), hint, 10.0)  # type: ignore[misc]
            told = manifests(server)
            assert told["status"] == "refused"
            assert told["reason"].startswith(f"{bad}: ")
            assert told["reason"].endswith(f"(line {line})")
            assert server.logged("manifests_refused")[-1]["problem"] == told["reason"]
        assert server.get("/api/analytics/health")["status"] == "degraded"
        server.manifest("signups.yaml", COUNT)
        (server.manifests / "metrics.yaml").unlink()
        host = server.manifests / "host.yaml"
        host.write_text(host.read_text().replace("server:", "sever:"))
        bad.unlink()
        until(lambda: "did you mean 'server'?" in str(manifests(server)["reason"]), "the other bad file", 10.0)
        assert server.total("signups") is None
        assert server.total("page_views") == 0, "what was declared at the start holds"
        host.write_text(host.read_text().replace("sever:", "server:"))
        equals(lambda: server.total("signups"), 1, "what was written meanwhile")
        assert server.total("page_views") is None
        assert manifests(server) == GOOD
        assert server.get("/api/analytics/health")["status"] == "healthy"


def test_a_cohort_is_added_changed_and_removed(tmp_path: Path) -> None:
    """For the sizes, and for the analyses of plugins in a thread and in a process of their own."""

    def buyers(times: int) -> dict[str, Any]:
        return {"kind": "cohort", "name": "buyers", "all": [{"did": {"event": "buy"}, "at_least": times}]}

    def sizes() -> list[tuple[str, int, float]]:
        cohorts = server.get("/api/v1/cohorts?timeRange=2d")["cohorts"]
        return [(one["definition"]["all"][0].get("at_least", 1), one["people"], one["share"]) for one in cohorts]

    def who(isolation: str) -> Any:
        answer = server.ask("POST", f"/api/v1/analyses/who-{isolation}", {"timeRange": "2d", "cohort": "buyers"})
        return answer.body["data"] if answer.status == 200 else answer.body["detail"]

    with house(tmp_path) as server:
        for isolation in ("thread", "process"):
            analyses = {"analyses": [{"name": f"who-{isolation}"}]}
            server.install(f"who-{isolation}", WHO, ("insight",), isolation=isolation, provides=analyses)
        server.start()
        server.post([{"event": event, "userId": user} for event, user in (("buy", "a"), ("buy", "a"), ("buy", "b"))])
        server.post({"event": "view", "userId": "c"})
        assert sizes() == []
        assert "kind: cohort" in server.get("/api/v1/cohorts")["note"]
        server.manifest("buyers.yaml", buyers(1))
        equals(sizes, [(1, 2, 0.6667)], "the added cohort", 10.0)
        assert [who(how) for how in ("thread", "process")] == [[{"people": ["a", "b"], "visitors": 2}]] * 2
        server.manifest("buyers.yaml", buyers(2))
        equals(sizes, [(2, 1, 0.3333)], "the changed cohort", 10.0)
        assert [who(how) for how in ("thread", "process")] == [[{"people": ["a"], "visitors": 1}]] * 2
        (server.manifests / "buyers.yaml").unlink()
        equals(sizes, [], "no cohort", 10.0)
        assert "no cohort is named 'buyers'" in who("process")
        assert server.ask("GET", "/api/v1/cohorts/buyers").status == 404
        applied = [line["changes"] for line in server.logged("manifests_applied")]
        assert applied == [["cohort buyers added"], ["cohort buyers changed"], ["cohort buyers removed"]]


def test_keys_of_the_host_wait_for_a_restart_by_name_until_they_go_back(tmp_path: Path) -> None:
    with house(tmp_path, host={"live": {"max_connections": 100}, "lanes": {"checkpoint_seconds": 1.0}}) as server:
        server.start()
        before = (server.manifests / "host.yaml").read_text()
        server.configure(
            {
                "server": {"port": 9000},  # the command line says another, and will say so again
                "live": {"max_connections": 7},
                "auth": {"jwt_secret": "hush"},
            }
        )
        waits = ["host.auth.jwt_secret: '' -> ***", "host.live.max_connections: 100 -> 7"]
        until(lambda: manifests(server)["waits"], "what waits", 10.0)
        assert manifests(server) == {"status": "restart_required", "reason": None, "waits": waits}
        assert server.get("/api/analytics/health")["status"] == "healthy"
        assert [line["waiting"] for line in server.logged("restart_required")] == [waits]
        server.manifest("signups.yaml", COUNT)  # what needs no restart does not wait for one
        equals(lambda: server.total("signups"), 0, "the added metric")
        assert manifests(server)["waits"] == waits
        (server.manifests / "host.yaml").write_text(before)
        until(lambda: manifests(server) == GOOD, "nothing that waits", 10.0)
        assert len(server.logged("restart_required")) == 1
        assert "hush" not in server.output()


def test_a_tenants_zone_and_retention_are_taken_in(tmp_path: Path) -> None:
    with house(tmp_path) as server:
        server.start()

        def first_hour() -> str:
            asked = "/api/v1/metrics?metrics=errors&startDate=2025-01-01&endDate=2025-01-02&interval=hour"
            stamp: str = server.get(asked)["metrics"][0]["points"][0]["timestamp"]
            return stamp

        assert first_hour() == "2025-01-01T00:00:00+00:00"
        berlin = {"kind": "tenant", "name": "default", "timezone": "Europe/Berlin", "retention_days": 7}
        server.manifest("tenants.yaml", berlin)
        equals(first_hour, "2025-01-01T00:00:00+01:00", "midnight in Berlin", 10.0)
        (server.manifests / "tenants.yaml").unlink()
        equals(first_hour, "2025-01-01T00:00:00+00:00", "midnight in UTC", 10.0)
        assert [line["changes"] for line in server.logged("manifests_applied")] == [
            ["tenant default added"],
            ["tenant default removed"],
        ]
        policies = [(line["days"], line["tenants"]) for line in server.logged("retention_changed")]
        assert policies == [(90, {"default": 7}), (90, {})]


def test_without_watching_manifests_are_taken_in_when_the_operator_acts(tmp_path: Path) -> None:
    with house(tmp_path, host={"plugins": {"watch": "off"}, "live": {"max_connections": 100}}) as server:
        named(server, "ask-thread", "thread")
        server.start()
        server.post({"event": "signup", "userId": "a"})
        server.manifest("signups.yaml", COUNT)
        server.configure({"live": {"max_connections": 7}})
        assert server.total("signups") is None
        assert manifests(server) == GOOD
        assert server.ask("POST", "/api/v1/plugins/ask-thread/disable").status == 200
        assert server.total("signups") == 1
        assert manifests(server)["waits"] == ["host.live.max_connections: 100 -> 7"]
