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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import load
from benchmarks import questions_sql as sql
from benchmarks.questions_asked import PATIENCE, QUESTIONS, Answer, Asked, MissingError
from benchmarks.questions_data import Month, month
from benchmarks.server import Server

MANIFESTS = Path(__file__).parent / "manifests"
DEFAULT_DATA = Path(tempfile.gettempdir()) / "analytics-benchmarks"
INGEST_RATE = 50_000


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
            print(json.dumps(rows[asked.name]), flush=True)
        report |= {"rss_mb": round(server.rss_mb()), "peak_rss_mb": _peak_mb(server)}
    _measure_yardstick(made, runs, rows, answers)
    if ingest:
        report["ingest"] = _under_load(made, runs, rows)
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
            began, position = time.monotonic(), _taken(server)
            for asked in QUESTIONS:
                row = rows[asked.name]
                if "missing" not in row:
                    tomorrow = copied.end + timedelta(days=2)
                    row["loaded_ms"] = _median(asked, server, copied, runs, tomorrow)
                    row["loaded_ratio"] = round(row["loaded_ms"] / row["warm_ms"], 2)
            rate = (_taken(server) - position) / (time.monotonic() - began)
            memory = {"rss_mb": round(server.rss_mb()), "peak_rss_mb": _peak_mb(server)}
            return {"events_per_s": round(rate), "lag": server.lag(), **memory}


def _taken(server: Server) -> int:
    """How far the lane is that follows the log at once."""
    lanes = server.get("/api/v1/lanes")["lanes"]
    assert isinstance(lanes, list)
    return int(next(lane["position"] for lane in lanes if lane["name"] == "live-metrics"))


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
    asyncio.run(load.run(port, batch=1000, connections=8, seconds=PATIENCE, rate=INGEST_RATE))


def _drawn(rows: list[dict[str, Any]]) -> str:
    heads = ["question", "limit_ms", "first_ms", "warm_ms", "repeated_ms", "cpu_ms"]
    heads += ["duckdb_ms", "duckdb_cpu_ms", "ratio", "agrees"]
    heads += ["loaded_ms", "loaded_ratio"] if any("loaded_ms" in row for row in rows) else []
    lines = [heads, *([str(row.get(head, "-")) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    missing = [f"{row['question']} is missing: {row['missing']}" for row in rows if "missing" in row]
    return "\n".join(["  ".join(map(str.ljust, line, widths)) for line in lines] + missing)
