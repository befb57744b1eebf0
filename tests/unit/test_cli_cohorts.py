"""``analytics cohorts``: what is asked of the server, and how its answer looks."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from analytics_core import cli
from tests.unit.cli_plugins_site import answering

BESIDE: dict[str, Any] = {
    "timeRange": {"start": "2025-01-03T11:00:00+00:00", "end": "2025-02-02T11:00:00+00:00"},
    "timezone": "Europe/Berlin",
    "data_as_of": "2025-02-02T11:00:00+00:00",
    "watermark": "2025-02-02T11:00:01+00:00",
    "notes": [],
}
BUYERS: dict[str, Any] = {
    "name": "buyers",
    "title": "Bou\x1b[2Jght",
    "definition": {"all": [{"did": {"event": "purchase"}, "within": "30d"}]},
    "people": 12345,
    "active": 99,
    "share": 0.125,
}
ALL = {"cohorts": [BUYERS, {**BUYERS, "name": "nobody", "people": 0, "active": 0, "share": None}], "note": None}


def answered(*arguments: str, status: int = 200, answer: Any) -> tuple[Result, str]:
    """What the command does with an answer, and what it has requested."""
    asked = []

    def reply(request: str, _: Any) -> tuple[int, bytes]:
        asked.append(request)
        return status, json.dumps(answer).encode()

    with answering(reply) as port:
        runner = CliRunner(env={"ANALYTICS_API_KEY": None, "ANALYTICS_MANIFESTS_DIR": None})
        done = runner.invoke(cli.main, ["cohorts", *arguments, "--port", port])
    return done, asked[0]


def test_all_are_a_table_that_obeys_no_title() -> None:
    done, asked = answered(answer={**ALL, **BESIDE})
    assert asked == "GET /api/v1/cohorts"
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "cohorts, 2025-01-03 12:00 to 2025-02-02 12:00 (Europe/Berlin)"
    assert lines[1].split() == ["name", "title", "people", "active", "share"]
    assert [line.split()[0::1][-3:] for line in lines[3:5]] == [["12,345", "99", "12.5%"], ["0", "0", "-"]]
    assert lines[5:] == ["as of 2025-02-02 12:00 (Europe/Berlin), watermark 2025-02-02 12:00:01"]


def test_one_shows_its_definition_as_in_a_manifest() -> None:
    done, asked = answered("buyers", "--since", "7d", "--timezone", "Asia/Kolkata", answer={**BUYERS, **BESIDE})
    assert urlsplit(asked).path == "GET /api/v1/cohorts/buyers"
    assert parse_qs(urlsplit(asked).query) == {"timeRange": ["7d"], "timezone": ["Asia/Kolkata"]}
    assert "all:\n- did:\n    event: purchase\n  within: 30d\n" in done.stdout


def test_since_a_date_is_the_begin_of_the_range() -> None:
    _, asked = answered("--since", "2025-01-01", answer={**ALL, **BESIDE})
    assert asked == "GET /api/v1/cohorts?start=2025-01-01"


def test_json_is_the_answer_unchanged() -> None:
    done, _ = answered("--json", answer={**ALL, **BESIDE})
    assert json.loads(done.stdout) == {**ALL, **BESIDE}


def test_without_any_it_says_how_to_declare_one() -> None:
    nothing = {"cohorts": [], "note": "no cohort is declared; do so", **BESIDE, "data_as_of": None, "watermark": None}
    done, _ = answered(answer=nothing)
    assert (done.exit_code, done.stderr) == (0, "no cohort is declared; do so\n")
    assert done.stdout.splitlines()[-1] == "as of nothing: no event has come yet"


def test_what_nobody_has_sent_is_said_beside_the_table() -> None:
    done, _ = answered(answer={**ALL, **BESIDE, "notes": ["no event is named 'purchse'; did you mean 'purchase'?"]})
    assert (done.exit_code, done.stderr) == (0, "no event is named 'purchse'; did you mean 'purchase'?\n")


@pytest.mark.parametrize("status", [404, 422])
def test_a_wrong_question_is_told_in_one_line(status: int) -> None:
    detail = "no cohort is named 'buyer'; did you mean 'buyers'?"
    done, _ = answered("buyer", status=status, answer={"title": "No", "detail": detail})
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"analytics: {detail}\n")


def test_a_server_that_fails_is_another_matter() -> None:
    done, _ = answered(status=503, answer={"title": "Stopping", "detail": "the host stops"})
    assert done.exit_code == 1
    assert "answered 503: the host stops" in done.stderr
