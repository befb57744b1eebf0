"""The server that the commands ask: addresses, keys and answers that are no good are one line that says what is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.unit.cli_plugins_site import Site, answering

COMMANDS = [("list",), ("why", "shop"), ("inspect", "shop"), ("reload", "shop")]
ROW = {"name": "shop", "version": "1.0", "state": "active", "reason": "", "lag": 1234, "isolation": "thread"}
RECEIPT = {
    "plugin": "shop", "outcome": "active", "before": 1, "after": 2, "reason": "", "seconds": {"load": 0.01},
    "pause": 0.002, "state_bytes": 1_500_000, "events_lost": 0, "survivors": ["thread 'poller'"],
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.plugin("shop")
    return made


def one_line(result: Result) -> str:
    assert result.stdout == ""
    assert result.stderr.startswith("analytics: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:4000", "ftp://localhost", "http://", "http://:4000", "http://localhost:99999",
        "http://localhost:port", "http://[::1", "http://a..b", "http://lo cal", "http://localhost/a\nb",
        "http://localhost/ä", "http://me:secret@localhost", "http://localhost?key=1", "http://localhost#a",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(site: Site, command: tuple[str, ...], url: str) -> None:
    refused = site.run(*command, "--url", url)
    assert refused.exit_code == 2
    assert "is no address of a server; valid is http://host:port" in one_line(refused)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_host_or_key_is_refused(site: Site, command: tuple[str, ...]) -> None:
    refused = site.run(*command, "--host", "a b")
    assert refused.exit_code == 2
    assert "server.host: 'http://a b:4000' is no address" in one_line(refused)
    with answering(lambda request, headers: (200, b"{}")) as port:
        refused = site.run(*command, "--port", port, ANALYTICS_API_KEY="two\nlines")
    assert refused.exit_code == 2
    assert "name it in one line with --api-key or ANALYTICS_API_KEY" in one_line(refused)
    assert "two" not in refused.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_where_nobody_answers_is_said_with_what_to_do(site: Site, command: tuple[str, ...]) -> None:
    refused = site.run(*command, "--url", "http://127.0.0.1:1")
    assert refused.exit_code == 1
    line = one_line(refused)
    assert "no server answers at http://127.0.0.1:1 (Connection refused)" in line
    assert "start one with 'analytics serve', or name one with --url" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("status", "key", "advice"),
    [
        (401, "", "name a key with --api-key or ANALYTICS_API_KEY"),
        (401, "k", "name one that the server knows with --api-key or ANALYTICS_API_KEY"),
        (403, "k", "name the key of an operator with --api-key or ANALYTICS_API_KEY"),
        (404, "", "name the address of an analytics server with --url"),
    ],
)
def test_a_refusal_is_shown_with_what_would_be_taken(
    site: Site, command: tuple[str, ...], status: int, key: str, advice: str
) -> None:
    seen: list[str | None] = []

    def refuse(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append(headers.get("X-API-Key"))
        return status, json.dumps({"title": "No", "detail": "not\nfor you"}).encode()

    with answering(refuse) as port:
        refused = site.run(*command, "--port", port, "--api-key", key)
    assert refused.exit_code == 1
    assert one_line(refused) == f"analytics: http://127.0.0.1:{port} answered {status}: not for you; {advice}\n"
    assert seen == [key or None]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("body", [b"<html>\nhello\n</html>", b"[]", b'{"plugin": []}', b'{"plugins": [1]}'])
def test_another_server_is_no_analytics_server(site: Site, command: tuple[str, ...], body: bytes) -> None:
    with answering(lambda request, headers: (200, body)) as port:
        refused = site.run(*command, "--port", port)
    assert refused.exit_code == 1
    assert f"what answers at http://127.0.0.1:{port} is no analytics server (" in one_line(refused)


def test_the_key_goes_out_as_it_was_typed(site: Site) -> None:
    """The server compares UTF-8."""
    seen: list[str] = []

    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append(headers["X-API-Key"].encode("latin-1").decode())
        return 200, json.dumps({"plugins": [ROW]}).encode()

    with answering(reply) as port:
        assert site.run("list", "--port", port, "--api-key", "schlüssel").exit_code == 0
    assert seen == ["schlüssel"]


def test_a_server_that_is_told_is_asked_whatever_the_manifests_say(site: Site) -> None:
    (site.manifests / "host.yaml").write_text("kind: host\nserver: {prot: 1}\n")
    with answering(lambda request, headers: (200, json.dumps({"plugins": [ROW]}).encode())) as port:
        shown = site.run("list", "--url", f"http://127.0.0.1:{port}/")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[1].split() == ["shop", "1.0", "active", "thread", "1,234"]


def test_reload_asks_for_a_new_generation_and_shows_the_receipt(site: Site) -> None:
    asked: list[str] = []

    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append(request)
        return 200, json.dumps({"plugins": [ROW]} if request.startswith("GET") else RECEIPT).encode()

    with answering(reply) as port:
        shown = site.run("reload", "shop", "--port", port)
        assert site.json("reload", "shop", "--port", port) == RECEIPT
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "shop: generation 2 has taken over from 1",
        "  load 10 ms; its lane stood still for 2.0 ms to hand over 1.5 MB; no event was lost",
        "  still alive of generation 1: thread 'poller'",
    ]
    assert asked[:2] == ["GET /api/v1/plugins", "POST /api/v1/plugins/shop/reload"]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"outcome": "rolled_back", "reason": "no"}, "generation 1 runs on; 2 was not taken in: no"),
        (
            {"outcome": "restart_required", "after": 1, "reason": "no"},
            "generation 1 runs on; the next was not taken in: no",
        ),
        ({"outcome": "failed", "before": 0, "reason": "no"}, "generation 2 does not run, and none did before: no"),
        ({"outcome": "superseded", "reason": "3 has come"}, "generation 2 was passed over: 3 has come"),
        ({"reason": "nothing ran"}, "generation 2 runs: nothing ran"),
    ],
)
def test_what_became_of_a_reload_is_said_as_it_is(site: Site, told: dict[str, Any], shown: str) -> None:
    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        return 200, json.dumps({"plugins": [ROW]} if request.startswith("GET") else {**RECEIPT, **told}).encode()

    with answering(reply) as port:
        result = site.run("reload", "shop", "--port", port)
    assert result.stdout.splitlines()[0] == f"shop: {shown}"
    assert result.exit_code == ("outcome" in told)


def test_lost_events_are_said(site: Site) -> None:
    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        return 200, json.dumps(
            {"plugins": [ROW]} if request.startswith("GET") else {**RECEIPT, "events_lost": 3}
        ).encode()

    with answering(reply) as port:
        assert "; 3 events were lost\n" in site.run("reload", "shop", "--port", port).stdout


def test_a_plugin_that_does_not_run_is_no_reason_for_another_address(site: Site) -> None:
    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if request.startswith("GET"):
            return 200, json.dumps({"plugins": [{**ROW, "state": "disabled"}]}).encode()
        return 404, json.dumps({"detail": "no running plugin is named 'shop'"}).encode()

    with answering(reply) as port:
        refused = site.run("reload", "shop", "--port", port)
    assert (refused.exit_code, one_line(refused).rpartition(": ")[2]) == (1, "no running plugin is named 'shop'\n")


def test_long_reasons_go_on_below_on_a_narrow_terminal(site: Site) -> None:
    row: dict[str, Any] = {**ROW, "state": "invalid", "reason": "one [bold] word after another " * 4}
    with answering(lambda request, headers: (200, json.dumps({"plugins": [row]}).encode())) as port:
        shown = site.run("list", "--port", port, COLUMNS="70").stdout.splitlines()
        wide = site.run("list", "--port", port).stdout.splitlines()
    assert len(wide) == 2
    assert len(shown) > 2
    assert all(len(line) <= 70 for line in shown)
    start = shown[1].index("one")
    assert [line[:start].strip() for line in shown[2:]] == [""] * (len(shown) - 2)
    assert " ".join(line[start:].strip() for line in shown[1:]) == row["reason"].strip()


def test_a_long_reason_of_the_server_is_shown_whole(site: Site) -> None:
    reason = " ".join(["word"] * 100)

    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if request.startswith("GET"):
            return 200, json.dumps({"plugins": [ROW]}).encode()
        return 503, json.dumps({"detail": reason}).encode()

    with answering(reply) as port:
        assert one_line(site.run("reload", "shop", "--port", port)).endswith(f"answered 503: {reason}\n")
