"""``/api/v1/users`` and ``analytics users``, about who is who: over HTTP, with a real log and lake behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from analytics_core.cli import main
from analytics_core.config import Settings
from tests.flow.api_house import AUTH, House, opened
from tests.flow.history_house import House as HistoryHouse
from tests.flow.test_identity import Operator, identify

MERGES = "/api/v1/users/merges"
KEY = "acme-operator"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[HistoryHouse]:
    made = HistoryHouse(tmp_path)
    made.post(
        identify("a/1", "u1"),
        {"event": "view", "user_id": "u2"},
        {"event": "view", "anonymous_id": "a/1"},
        tenant="acme",
    )
    yield made
    made.close()


@asynccontextmanager
async def served(history: HistoryHouse) -> AsyncIterator[House]:
    with capture_logs():  # they would be among what the commands print
        async with opened(Settings(auth=AUTH), merging=Operator(history).asks) as house:
            yield house


def test_merge_look_and_undo(history: HistoryHouse) -> None:
    async def run() -> None:
        async with served(history) as house:
            refused = await house.ask("POST", MERGES, KEY, json={"from": "u1", "into": "u2"})
            assert (refused.status, refused.body["title"]) == (409, "Merge refused")
            assert (refused.body["from"], refused.body["into"]) == ("u1", "u2")
            made = await house.ask("POST", MERGES, KEY, json={"from": "u1", "into": "u2", "force": True})
            assert (made.status, made.body["state"], made.body["forced"]) == (201, "active", True)
            person = await house.ask("GET", "/api/v1/users/a%2F1", "acme-reader")
            assert (person.body["user"], person.body["ids"], person.body["events"]) == ("u2", ["u2", "a/1", "u1"], 4)
            assert person.body["firstSeen"] == "2025-03-01T12:00:00Z"
            undone = await house.ask("DELETE", f"{MERGES}/{made.body['id']}", KEY)
            assert (undone.status, undone.body["state"]) == (200, "undone")
            page = await house.ask("GET", f"{MERGES}?limit=1", "acme-reader")
            assert ([m["id"] for m in page.body["merges"]], page.body["next"]) == ([made.body["id"]], made.body["id"])
            rest = await house.ask("GET", f"{MERGES}?before={page.body['next']}&state=active", "acme-reader")
            assert ([m["from"] for m in rest.body["merges"]], rest.body["next"]) == (["a/1"], None)

    asyncio.run(run())


WRONG = (
    ("POST", "", {"from": "u1", "into": "u2", "forced": 1}, 422, "forced: is not known here; did you mean 'force'?"),
    ("POST", "", {"from": "u1"}, 422, "missing required field `into`"),
    ("POST", "", {"from": "u1", "into": ""}, 422, "into: '' is no id"),
    ("DELETE", "/7", None, 404, "no merge is named '7'"),
    ("DELETE", "/first", None, 404, "no merge is named 'first'"),
    ("GET", "?state=undon", None, 422, "state: 'undon' is not known; did you mean 'undone'?"),
    ("GET", "?limit=1001", None, 422, "limit: 1001 is outside 1..1000"),
    ("GET", "?before=x", None, 422, "before: 'x' is no whole number"),
)


def test_what_cannot_be_is_said(history: HistoryHouse) -> None:
    async def run() -> None:
        async with served(history) as house:
            for method, path, body, status, said in WRONG:
                answer = await house.ask(method, MERGES + path, KEY, **({"json": body} if body else {}))
                assert (answer.status, said in answer.body["detail"]) == (status, True), answer.body

    asyncio.run(run())


def test_only_an_operator_merges(history: HistoryHouse) -> None:
    async def run() -> None:
        async with served(history) as house:
            for method, path in (("POST", MERGES), ("DELETE", f"{MERGES}/0")):
                assert (await house.ask(method, path, "acme-writer", json={})).status == 403
            assert (await house.ask("GET", "/api/v1/users/u1", "other-operator")).status == 404  # of another tenant

    asyncio.run(run())


def test_the_commands_show_merge_and_undo(history: HistoryHouse) -> None:
    async def run() -> None:
        async with served(history) as house:

            async def users(*typed: str) -> Result:
                given = ["users", *typed, "--url", house.url, "--api-key", KEY]
                return await asyncio.to_thread(CliRunner().invoke, main, given)

            refused = await users("merge", "u1", "u2")
            assert refused.exit_code == 2
            assert "both known users" in refused.stderr
            made = await users("merge", "u1", "u2", "--force")
            assert "u1 -> u2  (forced, active)" in made.stdout
            shown = await users("show", "a/1")
            assert shown.stdout.splitlines()[:3] == [
                "u2: 4 events, from 2025-03-01T12:00:00 to 2025-03-01T12:00:03",
                "  also a/1",
                "  also u1",
            ]
            assert json.loads((await users("show", "u2", "--json")).stdout)["ids"] == ["u2", "a/1", "u1"]
            assert (await users("show", "nobody")).exit_code == 2
            undone = await users("unmerge", "3", "--json")
            assert json.loads(undone.stdout)["state"] == "undone"
            assert "merge 3 is undone" in (await users("unmerge", "3")).stderr
            listed = await users("merges", "--limit", "1")
            assert ("(forced, undone)" in listed.stdout, listed.stderr) == (True, "for more: --before 3\n")
            assert (await users("merges", "--state", "refused")).stderr == "none\n"

    asyncio.run(run())
