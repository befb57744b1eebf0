"""Files into a server over HTTP: counted once, resumed, retried, and every refused row named.

The server here is a small real one that keeps what the contract of ``POST /api/v1/events`` says; the last tests use
the true server in a process of its own.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from analytics_core.cli import main
from analytics_core.errors import ConfigError, ImportFileError, NoServerError, ServerRefusedError
from analytics_core.importing import FileImport, Summary, Wanted

SHARED = Path(__file__).parents[3] / "shared" / "data" / "clickstream" / "ecom.csv.gz"
STEPS = ("home", "catalog", "product_view", "add_to_cart", "cart", "purchase")
COLUMNS = "user_id,session_id,event,timestamp,platform,acquisition_channel,user_cohort,user_lifecycle"


def clickstream(path: Path, rows: int, seed: int = 1) -> Path:
    """A synthetic file of the shape of the shared clickstream: sessions of users as rows in order."""
    rng, lines, at, session = random.Random(seed), [COLUMNS], datetime(2024, 1, 1), 0  # noqa: DTZ001
    while len(lines) <= rows:
        user, session = rng.randrange(rows // 10 + 1), session + 1
        platform = rng.choice(("desktop", "mobile"))
        for step in STEPS[: rng.randrange(1, len(STEPS) + 1)]:
            at += timedelta(seconds=rng.randrange(5, 90))
            lines.append(f"user_{user:04},sess_{session:06},{step},{at},{platform},email,2024-01,returning")
    path.write_bytes(gzip.compress(("\n".join(lines[: rows + 1]) + "\n").encode()))
    return path


class Ingest:
    """What the contract says, on a thread of its own. ``before`` may answer a request in its place."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.received: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.before: Callable[[int, list[dict[str, Any]]], web.Response | None] = lambda _number, _events: None
        self.after: Callable[[int, web.Request], None] = lambda _number, _request: None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/api/v1/events", self._post)
        app.router.add_get("/healthz", self._healthz)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _post(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-ndjson"
        events = [json.loads(line) for line in (await request.text()).splitlines()]
        number = len(self.received)
        self.received.append(len(events))
        self.headers.append(dict(request.headers))
        if (answer := self.before(number, events)) is not None:
            return answer
        rejected = [
            {"index": index, "field": "event", "message": "is 'refused'"}
            for index, event in enumerate(events)
            if event["event"] == "refused"
        ]
        good = [event for event in events if event["event"] != "refused"]
        fresh = {e["messageId"]: e for e in good if e["messageId"] not in self.events}
        self.events |= fresh
        self.after(number, request)
        reply = {"accepted": len(fresh), "duplicates": len(good) - len(fresh), "rejected": rejected, "seq": 1}
        return web.json_response(reply, status=202 if good else 422)


def problem(status: int, detail: str, **headers: str) -> web.Response:
    body = json.dumps({"title": "A title", "detail": detail})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=body, content_type="application/problem+json", headers=named)


@pytest.fixture
def server() -> Iterator[Ingest]:
    ingest = Ingest()
    ingest.start()
    yield ingest
    ingest.stop()


def run(path: Path, server: Ingest, data: Path, *, batch: int = 100, **told: Any) -> Summary:
    opened = FileImport(path, Wanted(), batch=batch)
    try:
        return asyncio.run(opened.run(server.url, data, **told))
    finally:
        opened.close()


def command(path: Path, server: Ingest | str, tmp_path: Path, *more: str) -> Result:
    url = server if isinstance(server, str) else server.url
    told = ["import", str(path), "--url", url, "--data-dir", str(tmp_path / "data"), *more]
    return CliRunner().invoke(main, [*told, "--manifests", str(tmp_path)])


# --- once


def test_every_row_arrives_once_as_it_is_in_the_file(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 1_234)
    summary = run(path, server, tmp_path)
    assert (summary.accepted, summary.duplicates, summary.rejected) == (1_234, 0, 0)
    assert max(server.received) == 100
    with gzip.open(path, "rt") as text:
        rows = [line.rstrip("\n").split(",") for line in text][1:]
    got = sorted(server.events.items(), key=lambda item: int(item[0].rpartition("-")[2]))
    assert [
        [e["userId"], e["sessionId"], e["event"], e["timestamp"], *e["properties"].values()] for _, e in got
    ] == rows


def test_a_second_import_sends_nothing(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 500)
    run(path, server, tmp_path)
    requests = len(server.received)
    again = run(path, server, tmp_path)
    assert (again.accepted, again.skipped, again.progress.accepted) == (0, 500, 500)
    assert len(server.received) == requests


def test_a_restart_sends_all_and_adds_nothing(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 500)
    run(path, server, tmp_path)
    again = run(path, server, tmp_path, restart=True)
    assert (again.accepted, again.duplicates, again.skipped) == (0, 500, 0)
    assert len(server.events) == 500


def test_a_copy_elsewhere_is_the_same_file_and_another_server_is_not(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 300)
    run(path, server, tmp_path)
    copy = tmp_path / "renamed.csv.gz"
    copy.write_bytes(path.read_bytes())
    assert run(copy, server, tmp_path).skipped == 300
    other = Ingest()
    other.start()
    try:
        assert run(path, other, tmp_path).accepted == 300
    finally:
        other.stop()


def test_another_key_may_be_of_another_tenant(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 300)
    run(path, server, tmp_path, api_key="a")
    assert run(path, server, tmp_path, api_key="b").skipped == 0
    assert run(path, server, tmp_path, api_key="a").skipped == 300


def test_another_mapping_of_the_same_file_is_refused_until_insisted_upon(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 300)
    run(path, server, tmp_path)
    opened = FileImport(path, Wanted(user="platform"))
    with pytest.raises(ConfigError, match=r"user was 'user_id' and is now 'platform'.*--restart"):
        asyncio.run(opened.run(server.url, tmp_path))
    assert asyncio.run(opened.run(server.url, tmp_path, restart=True)).duplicates == 300


# --- again


def test_a_stopped_import_goes_on_where_the_server_had_answered(server: Ingest, tmp_path: Path) -> None:
    """Stopped while some requests are answered and others are not: nothing is lost, little is sent twice."""
    path = clickstream(tmp_path / "c.csv.gz", 2_000)
    opened = FileImport(path, batch=100)
    release = threading.Event()

    def hold(number: int, _events: object) -> None:
        if number >= 6:
            release.wait(10)  # this server's one thread stands still: no later request is answered

    async def interrupted() -> None:
        reached = asyncio.Event()
        job = asyncio.create_task(
            opened.run(
                server.url,
                tmp_path,
                report=lambda progress, _position: reached.set() if progress.rows >= 500 else None,
            )
        )
        await reached.wait()
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        assert job.cancelled()

    server.before = hold
    asyncio.run(interrupted())
    release.set()
    server.before = lambda _number, _events: None
    sent = sum(server.received)
    assert sent < 2_000
    rest = FileImport(path, batch=250)
    summary = asyncio.run(rest.run(server.url, tmp_path))
    assert summary.skipped >= 500
    assert summary.accepted + summary.duplicates == 2_000 - summary.skipped
    assert len(server.events) == 2_000
    assert summary.progress.complete


def test_only_what_was_answered_without_a_gap_is_done(server: Ingest, tmp_path: Path) -> None:
    """The third request fails while later ones succeed: the record must not go beyond it."""
    path = clickstream(tmp_path / "c.csv.gz", 1_000)
    broken = {"on": True}

    def refuse(_number: int, events: list[dict[str, Any]]) -> web.Response | None:
        third = any(e["messageId"].endswith("-250") for e in events)
        return problem(500, "a bad day") if third and broken["on"] else None

    server.before = refuse
    with pytest.raises(ServerRefusedError, match="answered 500: a bad day"):
        run(path, server, tmp_path)
    (record,) = (tmp_path / "imports").iterdir()
    assert json.loads(record.read_bytes())["rows"] == 200
    broken["on"] = False
    summary = run(path, server, tmp_path)
    assert summary.skipped == 200
    assert len(server.events) == 1_000


def test_a_busy_server_is_waited_for_as_it_says(server: Ingest, tmp_path: Path) -> None:
    busy = {0: problem(503, "the queue is full", Retry_After="1"), 2: problem(429, "slowly")}
    server.before = lambda number, _events: busy.get(number)
    began = time.monotonic()
    summary = run(clickstream(tmp_path / "c.csv.gz", 300), server, tmp_path)
    assert time.monotonic() - began >= 1
    assert summary.accepted == 300
    assert len(server.received) == 5


def test_a_server_that_stays_busy_is_given_up_with_its_reason(server: Ingest, tmp_path: Path) -> None:
    server.before = lambda _number, _events: problem(503, "the disk is full")
    with pytest.raises(NoServerError, match="busy: the disk is full, for 0 s"):
        run(clickstream(tmp_path / "c.csv.gz", 300), server, tmp_path, patience=0.3)


def test_a_lost_connection_is_tried_again(server: Ingest, tmp_path: Path) -> None:
    """The answer to a stored request is lost: the same events go out again and count as duplicates."""

    def cut(number: int, request: web.Request) -> None:
        if number == 1:
            assert request.transport is not None
            request.transport.abort()

    server.after = cut
    summary = run(clickstream(tmp_path / "c.csv.gz", 500), server, tmp_path)
    assert (summary.accepted, summary.duplicates) == (400, 100)
    assert len(server.events) == 500


def test_too_large_requests_are_halved(server: Ingest, tmp_path: Path) -> None:
    def limit(_number: int, events: list[dict[str, Any]]) -> web.Response | None:
        return problem(413, "the body is too large") if len(events) > 30 else None

    server.before = limit
    summary = run(clickstream(tmp_path / "c.csv.gz", 300), server, tmp_path)
    assert summary.accepted == 300
    assert {size for size in server.received if size <= 30} == {25}


def test_one_event_that_is_too_large_is_a_refused_row(server: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("event,time,note\n" + "".join(f"e{i},2024-01-01,{'x' * (99 if i == 6 else 1)}\n" for i in range(9)))
    big = lambda events: any(len(e["properties"]["note"]) > 9 for e in events)  # noqa: E731
    server.before = lambda _number, events: problem(413, "over the limit") if big(events) else None
    summary = run(path, server, tmp_path)
    assert (summary.accepted, summary.rejected) == (8, 1)
    assert (summary.first_rejected[0].row, summary.first_rejected[0].message) == (7, "over the limit")


# --- refused


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "--api-key"), (403, "needs the role 'writer'"), (404, "an analytics server"), (400, "what is wrong")],
)
def test_a_refusal_ends_the_import_with_advice(server: Ingest, tmp_path: Path, status: int, advice: str) -> None:
    server.before = lambda _number, _events: problem(status, "what is wrong")
    result = command(clickstream(tmp_path / "c.csv.gz", 10), server, tmp_path)
    assert result.exit_code == 1
    assert f"answered {status}: what is wrong" in result.stderr
    assert advice in result.stderr


def test_refused_rows_are_named_by_their_row(server: Ingest, tmp_path: Path) -> None:
    rows = [f"{'refused' if i % 20 == 0 else 'fine'},2024-01-01" for i in range(1, 401)]
    rows[4], rows[399] = ",2024-01-01", "too,many,values"
    path, kept = tmp_path / "a.csv", tmp_path / "rejects.ndjson"
    path.write_text("event,time\n" + "\n".join(rows) + "\n")
    result = command(path, server, tmp_path, "--rejects", str(kept), "--batch", "30")
    assert result.exit_code == 0
    assert "379 accepted, 0 duplicates, 21 rejected" in result.stdout
    assert "row 20: event: is 'refused'" in result.stderr
    assert "row 5: no value in the event column" in result.stderr
    assert f"and 11 more; all are in {kept}" in result.stderr
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["row"] for line in lines] == sorted([5, *range(20, 400, 20), 400])
    assert json.loads(lines[1]["event"])["event"] == "refused"


def test_a_request_of_refused_rows_alone_is_an_answer_too(server: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("event,time\n" + "refused,2024-01-01\n" * 20 + "fine,2024-01-01\n")
    summary = run(path, server, tmp_path, batch=10)
    assert (summary.accepted, summary.rejected) == (1, 20)
    assert [one.row for one in summary.first_rejected] == list(range(1, 11))


def test_a_file_that_breaks_off_leaves_what_came_before(server: Ingest, tmp_path: Path) -> None:
    rng = random.Random(3)
    lines = (json.dumps({"event": "a", "time": 1, "pad": rng.randbytes(40).hex() * 50}) for _ in range(3_000))
    whole = gzip.compress("\n".join(lines).encode(), 1)
    path = tmp_path / "cut.ndjson.gz"
    path.write_bytes(whole[: len(whole) * 5 // 6])
    with pytest.raises(ImportFileError, match="near row"):
        run(path, server, tmp_path)
    (record,) = (tmp_path / "imports").iterdir()
    progress = json.loads(record.read_bytes())
    assert progress["accepted"] == len(server.events) > 0
    assert not progress["complete"]


# --- the command


def test_nothing_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = command(clickstream(tmp_path / "c.csv.gz", 10), url, tmp_path)
    assert result.exit_code == 1
    assert f"no server answers at {url}" in result.stderr
    assert "start one with 'analytics serve'" in result.stderr


def test_the_command_sends_the_key_and_reports_repetition(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 50)
    first = command(path, server, tmp_path, "--api-key", "secret")
    assert first.exit_code == 0, first.stderr
    assert first.stdout == "50 accepted, 0 duplicates, 0 rejected\n"
    assert {headers["X-API-Key"] for headers in server.headers} == {"secret"}
    second = command(path, server, tmp_path, "--api-key", "secret")
    assert "all 50 rows of this file were imported before (50 accepted); nothing was sent" in second.stdout
    assert "secret" not in next((tmp_path / "data" / "imports").iterdir()).read_text()


def test_a_dry_run_shows_the_mapping_and_sends_nothing(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 50)
    result = command(path, server, tmp_path, "--dry-run", "--properties", "platform")
    assert result.exit_code == 0
    shown = [line.strip("│ ").split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert ["userId", "user_id"] in [[cell.strip() for cell in row] for row in shown]
    assert ["properties", "platform"] in [[cell.strip() for cell in row] for row in shown]
    assert "acquisition_channel, user_cohort, user_lifecycle" in result.stdout
    previewed = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(previewed) == 5
    assert previewed[0]["event"] == "home"
    assert not server.received


def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(server: Ingest, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 3_000)
    held, release = threading.Event(), threading.Event()

    def hold(number: int, _events: object) -> None:
        if number == 8:
            held.set()
            release.wait(20)

    server.before = hold
    told = ["--url", server.url, "--data-dir", str(tmp_path / "data"), "--batch", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "analytics_core.cli", "import", str(path), *told], stderr=subprocess.PIPE, text=True
    )
    assert held.wait(20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    release.set()
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    server.before = lambda _number, _events: None
    result = command(path, server, tmp_path, "--batch", "100")
    assert result.exit_code == 0, result.stderr
    assert "rows imported before" in result.stdout
    assert len(server.events) == 3_000


# --- the true server


@pytest.fixture
def true_server(tmp_path: Path) -> Iterator[str]:
    if find_spec("analytics_core.app") is None or not _app_imports():
        pytest.skip("the server is not there yet")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = ["--port", str(port), "--data-dir", str(tmp_path / "server"), "--log-level", "WARNING"]
    process = subprocess.Popen([sys.executable, "-m", "analytics_core.cli", "serve", *told])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while not _answers(url):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _app_imports() -> bool:
    return subprocess.run([sys.executable, "-c", "import analytics_core.app"], capture_output=True).returncode == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _count(url: str, event: str, start: str, end: str) -> float:
    query = f"metrics={event}&startDate={start}&endDate={end}&interval=day&timezone=UTC"
    with urllib.request.urlopen(f"{url}/api/v1/metrics?{query}", timeout=20) as response:
        return float(json.load(response)["metrics"][0]["value"])


@pytest.mark.server
def test_the_true_server_counts_what_the_file_holds(true_server: str, tmp_path: Path) -> None:
    path = clickstream(tmp_path / "c.csv.gz", 20_000)
    result = command(path, true_server, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "20,000 accepted, 0 duplicates, 0 rejected\n"
    with gzip.open(path, "rt") as text:
        names = [line.split(",")[2] for line in text][1:]
    for step in STEPS:
        assert _count(true_server, step, "2024-01-01", "2024-02-15") == names.count(step)
    again = command(path, true_server, tmp_path, "--restart")
    assert again.stdout == "0 accepted, 20,000 duplicates, 0 rejected\n"
    assert _count(true_server, "home", "2024-01-01", "2024-02-15") == names.count("home")


@pytest.mark.server
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not beside this checkout")
def test_the_true_server_takes_the_shared_clickstream(true_server: str, tmp_path: Path) -> None:
    result = command(SHARED, true_server, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "31,106 accepted, 0 duplicates, 0 rejected\n"
    assert _count(true_server, "purchase", "2024-01-01", "2025-01-01") == 470
