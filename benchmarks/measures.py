"""The parts of the benchmark: each measures one promise on a fresh server and prints its figures."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import urllib.request
from typing import Any

import msgspec
import socketio

from benchmarks.load import Bodies, Result, run
from benchmarks.server import Server, fresh_server

BATCHES = ((1, 64), (10, 16), (100, 16), (1000, 8))
"""Batch sizes with the number of connections that each is measured over."""


def ingest(seconds: float, runs: int) -> list[dict[str, Any]]:
    """Burst: durable events/s over HTTP with the three plugins running, and what one event costs in CPU."""
    rows = []
    for batch, connections in BATCHES:
        results = []
        for seed in range(runs):
            with fresh_server() as server:
                asyncio.run(run(server.port, batch=batch, connections=connections, seconds=1, seed=900 + seed))
                cpu = server.cpu_seconds()
                result = asyncio.run(run(server.port, batch=batch, connections=connections, seconds=seconds, seed=seed))
                results.append((result, (server.cpu_seconds() - cpu) / max(result.events, 1) * 1e6, server.lag()))
        rows.append(
            {
                "batch": batch,
                "connections": connections,
                "events_per_s": round(statistics.median(r.rate for r, _, _ in results)),
                "requests_per_s": round(statistics.median(r.rate / batch for r, _, _ in results)),
                "p50_ms": round(statistics.median(r.percentile(50) for r, _, _ in results) * 1000, 2),
                "p99_ms": round(statistics.median(r.percentile(99) for r, _, _ in results) * 1000, 2),
                "cpu_us_per_event": round(statistics.median(c for _, c, _ in results), 2),
                "lag_at_end": max(lag for _, _, lag in results),
                "refused": sum(r.refused for r, _, _ in results),
            }
        )
        print(rows[-1], flush=True)
    return rows


def sustained(
    seconds: float, rates: tuple[int, ...] = (25_000, 50_000, 75_000, 100_000, 150_000)
) -> list[dict[str, Any]]:
    """The highest steady rate at which no lane falls behind: its lag at the end is under two seconds of events."""
    rows = []
    for rate in rates:
        with fresh_server() as server:
            result = asyncio.run(run(server.port, batch=1000, connections=8, seconds=seconds, rate=rate))
            lag = server.lag()
            rows.append(
                {
                    "asked_per_s": rate,
                    "events_per_s": round(result.rate),
                    "lag_at_end": lag,
                    "keeps_up": lag < 2 * rate and result.rate > 0.95 * rate,
                    "p99_ms": round(result.percentile(99) * 1000, 2),
                    "rss_mb": round(server.rss_mb()),
                }
            )
        print(rows[-1], flush=True)
    return rows


def push(count: int) -> dict[str, Any]:
    """From POST to the socket client's ``metric`` message that shows it, one at a time, in milliseconds."""

    async def measure(server: Server) -> list[float]:
        client = socketio.AsyncClient()
        arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        client.on("metric", arrived.put_nowait)
        await client.connect(server.url, transports=["websocket"])
        await client.call("subscribe", {"metrics": ["page_views"]})
        latencies = []
        for number in range(count):
            sent = time.perf_counter()
            await asyncio.to_thread(post, server, [{"event": "page_view", "userId": f"u{number}"}])
            await asyncio.wait_for(arrived.get(), 10)
            latencies.append(time.perf_counter() - sent)
            while not arrived.empty():
                arrived.get_nowait()
            await asyncio.sleep(0.06)
        await client.disconnect()
        return latencies

    with fresh_server() as server:
        latencies = asyncio.run(measure(server))
    figures = Result(0, 0.0, latencies, 0)
    return {
        "pushes": count,
        "p50_ms": round(figures.percentile(50) * 1000, 1),
        "p99_ms": round(figures.percentile(99) * 1000, 1),
    }


def post(server: Server, events: list[dict[str, Any]]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.url}/api/v1/events", msgspec.json.encode(events), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        return msgspec.json.decode(reply.read(), type=dict[str, Any])


def startup(runs: int) -> dict[str, Any]:
    """From the command to the first answer on an empty folder, with the processor time until the plugins are up, which
    does not depend on what else runs; and the memory when idle."""
    seconds, cpu, memory = [], [], []
    for _ in range(runs):
        with fresh_server() as server:
            cpu.append(server.cpu_seconds())
            seconds.append(server.start_seconds)
            time.sleep(2)
            memory.append(server.rss_mb())
    return {
        "start_s": round(statistics.median(seconds), 2),
        "start_s_range": [round(min(seconds), 2), round(max(seconds), 2)],
        "start_cpu_s": round(statistics.median(cpu), 2),
        "idle_rss_mb": round(statistics.median(memory)),
    }


def memory(events: int) -> dict[str, Any]:
    """Resident memory after ``events`` events were taken in and processed by every lane."""
    with fresh_server() as server:
        sent = 0
        seed = 0
        while sent < events:
            seed += 1
            result = asyncio.run(run(server.port, batch=1000, connections=4, seconds=10, rate=150_000, seed=seed))
            sent += result.events
        deadline = time.monotonic() + 120
        while server.lag() > 1000 and time.monotonic() < deadline:
            time.sleep(0.5)
        return {"events": sent, "rss_mb": round(server.rss_mb()), "lag": server.lag()}


def kills(rounds: int) -> dict[str, Any]:
    """``kill -9`` at a random moment under load, ``rounds`` times: acknowledged events that are missing or double."""
    with fresh_server() as server:
        acknowledged = 0
        ids: set[str] = set()
        for number in range(rounds):
            acknowledged += asyncio.run(_until_killed(server, number, ids))
            server.start()
        stored = _stored_ids(server)
        return {
            "kills": rounds,
            "acknowledged": acknowledged,
            "lost": len(ids - stored.keys()),
            "stored_twice": sum(count > 1 for count in stored.values()),
        }


async def _until_killed(server: Server, number: int, ids: set[str]) -> int:
    bodies = Bodies(50, 10_000 + number)
    acknowledged = 0
    kill_at = time.monotonic() + 0.2 + (number * 37 % 80) / 100

    async def load() -> None:
        nonlocal acknowledged
        while True:
            body = bodies.next()
            try:
                await asyncio.to_thread(_post_body, server, body)
            except OSError:
                return
            acknowledged += 50
            ids.update(event["messageId"] for event in json.loads(body))

    task = asyncio.create_task(load())
    await asyncio.sleep(max(0.0, kill_at - time.monotonic()))
    server.kill()
    await task
    return acknowledged


def _post_body(server: Server, body: bytes) -> None:
    request = urllib.request.Request(f"{server.url}/api/v1/events", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        reply.read()


def _stored_ids(server: Server) -> dict[str, int]:
    found: dict[str, int] = {}
    cursor: str | None = None
    while True:
        query: dict[str, Any] = {"limit": 1000} if cursor is None else {"limit": 1000, "cursor": cursor}
        request = urllib.request.Request(
            f"{server.url}/api/analytics/query", msgspec.json.encode(query), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            page = msgspec.json.decode(reply.read(), type=dict[str, Any])
        for row in page["data"]:
            found[row["messageId"]] = found.get(row["messageId"], 0) + 1
        cursor = page["nextCursor"]
        if not cursor:
            return found
