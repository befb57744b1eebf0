"""``kill -9`` under load, again and again: what was acknowledged is there exactly once, and every plugin counts right.

Segments, commits, compaction and checkpoints are made so small and frequent that each round is full of them.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.server_house import EVENTS, ServerHouse, equals, house, until

pytestmark = pytest.mark.server

BATCH = 50
CONNECTIONS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "lanes": {"checkpoint_seconds": 0.1},
    "storage": {"segment_bytes": 150_000, "store_commit_seconds": 0.25, "maintenance_seconds": 0.3},
}

TALLY = """
def __init__(self):
    self.n = 0

@hookimpl
def process(self, batch):
    self.n += len(batch)
    return ProcessResult([Metric(name="n", value=self.n, window=Window(DAY, 86400))]) if len(batch) else None

@hookimpl
def export_state(self):
    return self.n

@hookimpl
def import_state(self, state, version):
    self.n = state
"""
TALLY_HOOKS = ("process", "export_state", "import_state")


class Senders:
    """Several connections that post requests without end. ``tried`` and ``acknowledged`` map a request to its body."""

    def __init__(self) -> None:
        self.tried: dict[str, bytes] = {}
        self.acknowledged: dict[str, bytes] = {}
        self._numbers = 0
        self._lock = threading.Lock()

    def load_until_killed(self, server: ServerHouse, requests: int) -> None:
        """Kill the server when ``requests`` more were acknowledged, all connections being at work."""
        enough = len(self.acknowledged) + requests
        senders = [threading.Thread(target=self._send, args=(server.port,)) for _ in range(CONNECTIONS)]
        for sender in senders:
            sender.start()
        try:
            until(lambda: len(self.acknowledged) >= enough, f"{requests} acknowledged requests", explain=server.tail)
        finally:
            server.kill()
            for sender in senders:
                sender.join()

    @property
    def unanswered(self) -> dict[str, bytes]:
        return {name: body for name, body in self.tried.items() if name not in self.acknowledged}

    def _send(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while True:
                name, body = self._next()
                connection.request("POST", EVENTS, body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                reply.read()
                assert reply.status == 202
                self.acknowledged[name] = body
        except (OSError, http.client.HTTPException):
            return  # killed
        finally:
            connection.close()

    def _next(self) -> tuple[str, bytes]:
        with self._lock:
            self._numbers += 1
            name = f"r{self._numbers}"
        events: list[dict[str, Any]] = [
            {"event": "load", "userId": f"u{n % 7}", "messageId": f"{name}-{n}", "properties": {"n": n}}
            for n in range(BATCH)
        ]
        for event in events[: BATCH // 2]:
            event["properties"]["duration"] = 5
        self.tried[name] = json.dumps(events).encode()
        return name, self.tried[name]


def ids(requests: dict[str, bytes]) -> set[str]:
    return {f"{name}-{n}" for name in requests for n in range(BATCH)}


def send_again(server: ServerHouse, requests: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    """Every request once more: its name and how many of its events were new."""
    for name, body in requests.items():
        receipt = server.post(body)
        assert receipt["accepted"] + receipt["duplicates"] == BATCH
        yield name, receipt["accepted"]


def check_history(server: ServerHouse, senders: Senders) -> int:
    """Exactly once; the number of events."""
    stored = Counter(row["messageId"] for row in server.history())
    lost = ids(senders.acknowledged) - stored.keys()
    assert not lost, f"{len(lost)} acknowledged events are lost, such as {min(lost)}"
    assert stored.keys() <= ids(senders.tried)
    assert max(stored.values()) == 1, f"stored more than once: {stored.most_common(3)}"
    return len(stored)


def _value(server: ServerHouse, asked: str) -> object:
    """The figure; while the plugin has not stored any yet, the answer that says so."""
    answer = server.ask("GET", asked)
    return answer.body["metrics"][0]["value"] if answer.status == 200 else answer


def check_plugins(server: ServerHouse, total: int, *plugins: str) -> None:
    """Each lane has taken every event once, and what it has made of them says so."""
    for plugin in ("user-behavior", "performance", *plugins):
        equals(
            lambda name=plugin: server.plugin(name)["events_processed"], total, f"events that {plugin} has processed"
        )
    equals(lambda: server.total("user-behavior.events"), total, "user-behavior.events")
    equals(lambda: server.total("performance.requests"), total // 2, "performance.requests")
    for plugin in plugins:
        asked = f"/api/v1/metrics?metrics={plugin}.n&startDate=2025-01-01&endDate=2025-01-02"
        equals(lambda asked=asked: _value(server, asked), total, f"{plugin}.n")


def check_that_much_went_on(server: ServerHouse, maintained: Counter[str]) -> None:
    """The rounds are worth something only when they were cut into seals, commits and compactions."""
    lake = server.data / "lake" / "events" / "_delta_log"
    sealed = max(int(path.stem) for path in (server.data / "log" / "p0").glob("*.seg"))
    assert sealed > 0
    assert maintained["compaction"] > 0
    assert len(list(lake.glob("*.json"))) > 3


def rounds(server: ServerHouse, senders: Senders, number: int, seed: int) -> Counter[str]:
    """Load, kill, start, ``number`` times; what maintenance has done meanwhile."""
    chance = random.Random(seed)
    maintained: Counter[str] = Counter()
    for _ in range(number):
        senders.load_until_killed(server, chance.randint(30, 100))
        maintained.update(line["part"] for line in server.logged("lake_maintained"))
        assert not server.logged("lane_failed")
        server.start()
    return maintained


def test_acknowledged_events_survive_and_resending_changes_nothing(tmp_path: Path) -> None:
    senders = Senders()
    with house(tmp_path, host=SETTINGS) as server:
        server.install("tally", TALLY, TALLY_HOOKS)
        server.start()
        maintained = rounds(server, senders, 3, seed=1)
        check_that_much_went_on(server, maintained)
        total = check_history(server, senders)
        again = dict(send_again(server, senders.acknowledged))
        assert not any(again.values()), "an acknowledged request was taken for new"
        new = sum(added for _, added in send_again(server, senders.unanswered))
        assert server.total("load") == total + new == len(senders.tried) * BATCH
        check_plugins(server, total + new, "tally")


def test_a_trimmed_log_loses_nothing_and_a_late_plugin_gets_all_of_it(tmp_path: Path) -> None:
    senders = Senders()
    settings = {**SETTINGS, "storage": {**SETTINGS["storage"], "dedup_window": 2_000}}
    with house(tmp_path, host=settings) as server:
        server.install("tally", TALLY, TALLY_HOOKS, isolation="thread")
        server.start()
        log = server.data / "log" / "p0"
        maintained: Counter[str] = Counter()
        for number in range(3):
            maintained += rounds(server, senders, 1, seed=10 + number)
            for name, _ in send_again(server, senders.unanswered):  # as clients do, before anything new
                senders.acknowledged[name] = senders.tried[name]
        until(lambda: min(int(path.stem) for path in log.glob("*.seg")) > 0, "the log to be trimmed")
        check_that_much_went_on(server, maintained)
        total = check_history(server, senders)
        assert total == len(senders.tried) * BATCH
        server.kill()
        server.install("late", TALLY, TALLY_HOOKS)
        server.start()
        check_plugins(server, total, "tally", "late")
