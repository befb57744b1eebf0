"""``analytics users erase | erasures``: what is asked of the server, what is said meanwhile, and what is left to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from analytics_core import cli
from analytics_core.cli.users import receipts
from tests.unit.cli_plugins_site import answering

DONE = {"place": "lake", "status": "done", "detail": "rewritten", "counts": {"events": 3, "files_rewritten": 0}}
WAITS = {"place": "lake", "status": "waiting", "detail": "2 replaced files are still read by questions"}
SHOP = {"place": "plugin:shop", "status": "deferred", "detail": "is not installed"}
RECEIPT: dict[str, Any] = {
    "id": "k1",
    "tenant": "a",
    "state": "done",
    "ids": ["ff"],
    "by": "x",
    "asked_at": "2025-01-31T12:00:00Z",
    "position": 4,
    "events": 3,
    "places": [DONE],
}
RUNNING = {**RECEIPT, "state": "running", "places": [WAITS]}
FOUND = {"ids": ["ada", "phone"], "events": 3, "first": "2025-01-01T00:00:00Z", "last": "2025-01-03T00:00:00Z"}
ERASE, ONE = "POST /api/v1/users/erase", "GET /api/v1/users/erasures/k1"
DROP = "DELETE /api/v1/users/erasures/k1/plugins/shop"
Answers = dict[str, list[tuple[int, Any]]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(receipts, "_PATIENCE_SECONDS", 0.0)


@pytest.fixture
def users() -> Callable[..., tuple[Result, list[str]]]:
    """Types a command to a server that gives the ``answers`` to each request in turn, the last one for ever."""

    def typed(*words: str, answers: Answers, typed: str = "") -> tuple[Result, list[str]]:
        asked: list[str] = []

        def reply(request: str, _: Any) -> tuple[int, bytes]:
            asked.append(request)
            left = answers[request]
            status, answer = left.pop(0) if len(left) > 1 else left[0]
            return status, json.dumps(answer).encode()

        with answering(reply) as port:
            runner = CliRunner(env={"ANALYTICS_API_KEY": None, "ANALYTICS_MANIFESTS_DIR": None})
            return runner.invoke(cli.main, ["users", *words, "--port", port], typed), asked

    return typed


def test_what_would_go_is_said_before_it_is_asked_for(users: Any) -> None:
    found = {**FOUND, "outputs": {"points": 1200, "insights": 0, "documents": 1}}
    done, asked = users("erase", "ada", answers={ERASE: [(200, found)]}, typed="n\n")
    assert (done.exit_code, asked) == (1, [ERASE])
    assert "3 events, from 2025-01-01 to 2025-01-03 of ada, phone\n" in done.stdout
    assert "these name one of the ids, and go with them: 1,200 points, 1 documents\n" in done.stdout
    nothing = {"ids": ["adda"], "events": 0}
    done, _ = users("erase", "adda", answers={ERASE: [(200, nothing)]}, typed="n\n")
    assert "nothing is stored under this name" in done.stdout


def test_what_is_waited_for_is_told_once(users: Any) -> None:
    answers = {ERASE: [(202, RUNNING)], ONE: [(200, RUNNING), (200, RECEIPT)]}
    done, asked = users("erase", "ada", "--yes", answers=answers)
    assert (done.exit_code, asked) == (0, [ERASE, ONE, ONE])
    assert done.stderr == "… lake: 2 replaced files are still read by questions\n"
    assert done.stdout.splitlines() == [
        "✓ lake: rewritten (3 events)",
        "erasure k1 is done; its receipt: analytics users erasures k1",
    ]


def test_when_the_server_goes_away_it_is_said_where_the_receipt_is(users: Any) -> None:
    gone = (503, {"title": "Stopping", "detail": "the host stops"})
    done, _ = users("erase", "ada", "--yes", answers={ERASE: [(202, RUNNING)], ONE: [gone]})
    assert done.exit_code == 1
    assert "it goes on without you; its receipt: analytics users erasures k1\n" in done.stderr
    assert "the host stops" in done.stderr


def test_all_are_a_list_and_one_shows_its_places(users: Any) -> None:
    path = "GET /api/v1/users/erasures"
    waits = {**RECEIPT, "id": "k2", "events": None, "places": [DONE, SHOP]}
    done, _ = users("erasures", answers={path: [(200, {"erasures": [waits, RECEIPT]})]})
    assert done.stdout.splitlines() == [
        "k2  2025-01-31 12:00  done, events not counted, waits for plugin:shop",
        "k1  2025-01-31 12:00  done, 3 events",
    ]
    done, _ = users("erasures", answers={path: [(200, {"erasures": []})]})
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "none\n")
    done, _ = users("erasures", "k1", answers={ONE: [(200, {**RECEIPT, "places": [DONE, SHOP]})]})
    assert done.stdout.splitlines() == [
        "✓ lake: rewritten (3 events)",
        "! plugin:shop: is not installed",
        "shop has still to be told; if it is not to come back: analytics users erasures k1 --drop-state shop",
        "erasure k1 is done; its receipt: analytics users erasures k1",
    ]
    refused = (404, {"title": "Not found", "detail": "no erasure is named 'k1'"})
    done, _ = users("erasures", "k1", answers={ONE: [refused]})
    assert (done.exit_code, done.stderr) == (2, "analytics: no erasure is named 'k1'\n")


def test_the_state_of_a_plugin_is_dropped_once_that_is_confirmed(users: Any) -> None:
    waits = {**RECEIPT, "places": [SHOP]}
    told = {**RECEIPT, "places": [{**SHOP, "status": "done", "detail": "holds nothing"}]}
    command = ("erasures", "k1", "--drop-state", "shop")
    done, asked = users(*command, answers={DROP: [(202, waits)]}, typed="n\n")
    assert (done.exit_code, asked) == (1, [])
    done, asked = users(*command, answers={DROP: [(202, waits)], ONE: [(200, waits), (200, told)]}, typed="y\n")
    assert (done.exit_code, asked) == (0, [DROP, ONE, ONE])
    assert "✓ plugin:shop: holds nothing\n" in done.stdout
    refused = (409, {"title": "Plugin runs", "detail": "Plugin 'shop': is active; disable it first"})
    done, _ = users(*command, "--yes", answers={DROP: [refused]})
    assert (done.exit_code, done.stderr) == (2, "analytics: Plugin 'shop': is active; disable it first\n")
    for wrong in (("erasures", "--drop-state", "shop"), (*command, "--json")):
        done, asked = users(*wrong, answers={})
        assert (done.exit_code, asked) == (2, [])
