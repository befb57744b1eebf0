"""The seven questions of an analyst over a month of history: how long each takes over HTTP, beside DuckDB's own time.

*First* is the first question after a start; *warm* the median of questions that each end a second earlier than the one
before, so that no cache has the answer; *repeated* the same question again.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from benchmarks import load
from benchmarks import questions_sql as sql
from benchmarks.questions_data import DAYS, Month, month
from benchmarks.server import Server

MANIFESTS = Path(__file__).parent / "manifests"
DEFAULT_DATA = Path(tempfile.gettempdir()) / "analytics-benchmarks"
INGEST_RATE = 50_000
_PATIENCE = 600.0
Answer = dict[str, Any]


class MissingError(Exception):
    """The server does not answer this question; the text says why."""


class Asked(NamedTuple):
    """One of the seven. ``figures`` and ``yardstick`` make comparable figures of our answer and of DuckDB's."""

    name: str
    limit_ms: int
    send: Callable[[Server, datetime, datetime], Answer]
    query: str
    figures: Callable[[Answer], Any]
    yardstick: Callable[[pa.Table], Any]


def metric(name: str, interval: str) -> Callable[[Server, datetime, datetime], Answer]:
    def send(server: Server, start: datetime, end: datetime) -> Answer:
        asked = {"metrics": name, "interval": interval, "startDate": start.isoformat(), "endDate": end.isoformat()}
        return _answer(server, f"/api/v1/metrics?{urllib.parse.urlencode(asked)}")

    return send


def analysis(name: str, parameters: Mapping[str, Any]) -> Callable[[Server, datetime, datetime], Answer]:
    def send(server: Server, start: datetime, end: datetime) -> Answer:
        body = {**parameters, "timeRange": {"start": start.isoformat(), "end": end.isoformat()}}
        return _answer(server, f"/api/v1/analyses/{name}", body)

    return send


def _answer(server: Server, path: str, body: Answer | None = None) -> Answer:
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(f"{server.url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as reply:
            return msgspec.json.decode(reply.read(), type=dict[str, Any])
    except urllib.error.HTTPError as error:
        raise MissingError(f"{error.code}: {json.loads(error.read()).get('detail', error.reason)}") from None


def _points(answer: Answer) -> list[float]:
    return [point["value"] for point in answer["metrics"][0]["points"] if point["value"]]


def _column(name: str) -> Callable[[pa.Table], list[Any]]:
    return lambda table: table.column(name).to_pylist()


def _rows(answer: Answer, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in answer["data"]]


_RETENTION: Answer = {"start": {"event": sql.RETENTION[0]}, "return": {"event": sql.RETENTION[1]}, "period": "day"}
_RETENTION |= {"periods": DAYS - 1}
_OUTSIDE = {"(entry)", "(exit)"}
_SESSIONS = ("sessions", "users", "median_duration", "bounce_rate")
QUESTIONS = (
    Asked("daily counts", 100, metric("page_view", "day"), sql.COUNTS, _points, _column("events")),
    Asked("daily uniques", 200, metric("visitors", "day"), sql.UNIQUES, _points, _column("visitors")),
    Asked("percentiles per minute", 300, metric("duration_p95", "minute"), sql.PERCENTILES, _points, _column("p95")),
    Asked(
        "retention",
        300,
        analysis("retention", _RETENTION),
        sql.FIRST_TIME_RETENTION,
        lambda answer: sum(row["returned"] for row in answer["data"] if row["cohort"] and row["period"] > 0),
        lambda table: sum(table.column("users").to_pylist()),
    ),
    Asked(
        "3-step funnel",
        300,
        analysis("funnel", {"steps": [{"event": name} for name in sql.FUNNEL], "window": "1d"}),
        sql.FUNNEL_OF_THREE,
        lambda answer: [row["users"] for row in answer["data"]],
        lambda table: list(table.to_pylist()[0].values()),
    ),
    Asked(
        "sessions",
        200,
        analysis("sessions", {}),
        sql.SESSIONS,
        lambda answer: _rows(answer, *_SESSIONS),
        lambda table: [tuple(row[name] for name in _SESSIONS) for row in table.to_pylist()],
    ),
    Asked(
        "paths",
        250,
        analysis("paths", {"mode": "transitions", "by": "user", "collapse": False, "limit": 20}),
        sql.TRANSITIONS,
        lambda answer: sorted(row["transitions"] for row in answer["data"] if not {row["from"], row["to"]} & _OUTSIDE),
        lambda table: sorted(table.column("n").to_pylist()),
    ),
)


# --- the run ---------------------------------------------------------------------------------------------------------


def measure(events: int, runs: int, root: Path = DEFAULT_DATA, *, ingest: bool = False) -> dict[str, Any]:
    """One row for each question, and the server's memory after them. ``root`` keeps the history for later runs."""
    began = time.perf_counter()
    made = month(root, events)
    report: dict[str, Any] = {"events": events, "users": made.users, "ready_s": round(time.perf_counter() - began, 1)}
    rows: dict[str, dict[str, Any]] = {asked.name: {"question": asked.name} for asked in QUESTIONS}
    shutil.rmtree(made.data / "cache", ignore_errors=True)
    with _serving(made) as server:
        report["caught_up_s"] = _caught_up(server)
        report["without_cache"] = _once(QUESTIONS[4], server, made)
    for asked in QUESTIONS:
        with _serving(made) as server:
            _caught_up(server)
            rows[asked.name] |= _once(asked, server, made)
    answers: dict[str, Answer] = {}
    with _serving(made) as server:
        _caught_up(server)
        for asked in QUESTIONS:
            answers[asked.name] = _warm(asked, server, made, runs, rows[asked.name])
        report |= {"rss_mb": round(server.rss_mb()), "peak_rss_mb": _peak_mb(server)}
    _measure_yardstick(made, runs, rows, answers)
    if ingest:
        report["ingest"] = _under_load(made, runs, rows)
    for row in rows.values():
        print(json.dumps(row), flush=True)
    print(_drawn(list(rows.values())), flush=True)
    return {**report, "questions": list(rows.values())}


@contextmanager
def _serving(made: Month) -> Iterator[Server]:
    server = Server(made.data, {}, MANIFESTS)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()


def _caught_up(server: Server) -> float:
    """Seconds until the plugin has started, if it can, and no lane is behind."""
    began = time.monotonic()
    while _starting(server) or server.lag() > INGEST_RATE / 10:
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


def _starting(server: Server) -> bool:
    plugins = server.get("/api/v1/plugins")["plugins"]
    assert isinstance(plugins, list)
    return any(plugin["state"] in ("loading", "retrying") for plugin in plugins)


def _timed(asked: Asked, server: Server, start: datetime, end: datetime) -> tuple[float, Answer]:
    began = time.perf_counter()
    answer = asked.send(server, start, end)
    return (time.perf_counter() - began) * 1000, answer


def _once(asked: Asked, server: Server, made: Month) -> dict[str, Any]:
    try:
        return {"first_ms": round(_timed(asked, server, made.start, made.end)[0], 1)}
    except MissingError as problem:
        return {"missing": str(problem)}


def _warm(asked: Asked, server: Server, made: Month, runs: int, row: dict[str, Any]) -> Answer:
    """Fills the row; the answer to the whole range, or nothing when there is none."""
    try:
        _, answer = _timed(asked, server, made.start, made.end)
        cpu = server.cpu_seconds()
        row["warm_ms"] = _median(asked, server, made, runs)
        row["cpu_ms"] = round((server.cpu_seconds() - cpu) / runs * 1000, 1)
        repeated = [_timed(asked, server, made.start, made.end)[0] for _ in range(runs + 1)]
        row["repeated_ms"] = round(statistics.median(repeated[1:]), 1)
    except MissingError as problem:
        row["missing"] = str(problem)
        return {}
    row.pop("missing", None)
    row |= {"limit_ms": asked.limit_ms, "bytes": len(msgspec.json.encode(answer))}
    return answer


def _median(asked: Asked, server: Server, made: Month, runs: int, end: datetime | None = None) -> float:
    ends = [(end or made.end) - timedelta(seconds=second) for second in range(1, runs + 1)]
    return round(statistics.median(_timed(asked, server, made.start, each)[0] for each in ends), 1)


def _measure_yardstick(made: Month, runs: int, rows: dict[str, dict[str, Any]], answers: Mapping[str, Answer]) -> None:
    yardstick = sql.Yardstick(made.lake)
    for asked in QUESTIONS:
        row, answer = rows[asked.name], answers[asked.name]
        found = yardstick.ask(asked.query, made.start, made.end)
        times, cpu = [], time.process_time()
        for second in range(1, runs + 1):
            began = time.perf_counter()
            yardstick.ask(asked.query, made.start, made.end - timedelta(seconds=second))
            times.append((time.perf_counter() - began) * 1000)
        row["duckdb_ms"] = round(statistics.median(times), 1)
        row["duckdb_cpu_ms"] = round((time.process_time() - cpu) / runs * 1000, 1)
        if answer:
            row["ratio"] = round(row["warm_ms"] / row["duckdb_ms"], 2)
            row["agrees"] = _agree(asked.figures(answer), asked.yardstick(found))
    yardstick.close()


def _peak_mb(server: Server) -> int:
    """The most that the server's own process has held so far."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _agree(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(_agree, ours, theirs))
    return bool(ours == theirs or (isinstance(ours, float) and abs(ours - theirs) <= 1e-6 * abs(theirs)))


# --- under load ------------------------------------------------------------------------------------------------------


def _under_load(made: Month, runs: int, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The warm questions again while events come in, over a range that holds those too; on a copy of the history."""
    with tempfile.TemporaryDirectory(dir=made.folder.parent, prefix="ingest-") as folder:
        copied = made.copy(Path(folder))
        with _serving(copied) as server, _loading(server):
            time.sleep(3)
            for asked in QUESTIONS:
                row = rows[asked.name]
                if "missing" not in row:
                    tomorrow = copied.end + timedelta(days=2)
                    row["loaded_ms"] = _median(asked, server, copied, runs, tomorrow)
                    row["loaded_ratio"] = round(row["loaded_ms"] / row["warm_ms"], 2)
            return {"rss_mb": round(server.rss_mb()), "peak_rss_mb": _peak_mb(server), "lag": server.lag()}


@contextmanager
def _loading(server: Server) -> Iterator[None]:
    """50,000 events/s from another process, since this one measures."""
    process = multiprocessing.get_context("spawn").Process(target=_load, args=(server.port,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _load(port: int) -> None:
    asyncio.run(load.run(port, batch=1000, connections=8, seconds=_PATIENCE, rate=INGEST_RATE))


def _drawn(rows: list[dict[str, Any]]) -> str:
    heads = ["question", "limit_ms", "first_ms", "warm_ms", "repeated_ms", "cpu_ms"]
    heads += ["duckdb_ms", "duckdb_cpu_ms", "ratio", "agrees"]
    heads += ["loaded_ms", "loaded_ratio"] if any("loaded_ms" in row for row in rows) else []
    lines = [heads, *([str(row.get(head, "-")) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    missing = [f"{row['question']} is missing: {row['missing']}" for row in rows if "missing" in row]
    return "\n".join(["  ".join(map(str.ljust, line, widths)) for line in lines] + missing)
