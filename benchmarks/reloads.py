"""Hot reload under load: nothing lost, how long a lane stands still, and what memory does."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
import urllib.request
from typing import Any

import msgspec

from benchmarks.load import run
from benchmarks.server import Server, fresh_server

PLUGINS = ("user-behavior", "performance")


def measure(count: int, rate: int = 50_000) -> dict[str, Any]:
    """``count`` reloads, of the two bundled plugins that fold in turn, while ``rate`` events/s come in."""
    with fresh_server() as server:
        asyncio.run(run(server.port, batch=1000, connections=8, seconds=5, rate=rate, seed=90))
        before = server.rss_mb()
        receipts: list[dict[str, Any]] = []
        reloading = threading.Thread(target=_reload, args=(server, count, receipts))
        reloading.start()
        accepted = 0
        seed = 1
        while reloading.is_alive():
            result = asyncio.run(run(server.port, batch=1000, connections=8, seconds=5, rate=rate, seed=seed))
            accepted, seed = accepted + result.events, seed + 1
        reloading.join()
        total = _settled(server)
        lanes = {lane["name"]: lane["events"] for lane in _lanes(server)}
        pauses = [1000 * receipt["pause"] for receipt in receipts]
        return {
            "reloads": len(receipts),
            "events_per_s": round(accepted / (5 * (seed - 1))),
            "outcomes": sorted({receipt["outcome"] for receipt in receipts}),
            "events": total,
            "lanes_equal": all(lanes[name] == total for name in PLUGINS),
            "pause_p50_ms": round(statistics.median(pauses), 1),
            "pause_max_ms": round(max(pauses), 1),
            "reload_p50_s": round(statistics.median(sum(r["seconds"].values()) for r in receipts), 2),
            "survivors": sorted({name for receipt in receipts for name in receipt["survivors"]}),
            "rss_mb": [round(before), round(server.rss_mb())],
        }


def _reload(server: Server, count: int, receipts: list[dict[str, Any]]) -> None:
    for number in range(count):
        url = f"{server.url}/api/v1/plugins/{PLUGINS[number % len(PLUGINS)]}/reload"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=90) as reply:
            receipts.append(msgspec.json.decode(reply.read(), type=dict[str, Any]))


def _lanes(server: Server) -> list[dict[str, Any]]:
    return msgspec.convert(server.get("/api/v1/lanes")["lanes"], list[dict[str, Any]])


def _settled(server: Server) -> int:
    """Wait until the lanes have processed all that was accepted; how many events that is."""
    while server.lag():
        time.sleep(0.5)
    figures = msgspec.convert(server.get("/api/analytics/metrics")["figures"], dict[str, float])
    return int(figures["events_accepted"])
