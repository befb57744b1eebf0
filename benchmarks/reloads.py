"""Hot reload under load: nothing lost, how long a lane stands still, and whether old generations are collected."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from benchmarks.load import Result, run
from benchmarks.packages import install
from benchmarks.server import Server, fresh_server

STATE_BYTES: Final = 16_000_000
HEAVY: Final = {"heavy": "thread", "heavy-apart": "process"}
"""Plugins whose state is of ``STATE_BYTES``, and where each runs."""
PLUGINS: Final = ("user-behavior", "performance", *HEAVY)
"""All that fold; they are reloaded in turn."""
WARM: Final = 2 * len(PLUGINS)
_SETTLE_SECONDS: Final = 180.0
"""The store writer gathers for a minute by intent."""
_CHECKPOINT_SECONDS: Final = 20.0
"""A lane writes its metrics each five seconds."""

_CODE: Final = f'''\
"""Counts events, and carries a large state that does not compress."""

import gc
import random
from datetime import UTC, datetime
from types import ModuleType

from analytics_core import Answer, Metric, ProcessResult, Window, hookimpl

DAY = Window(datetime(2025, 1, 1, tzinfo=UTC), 86_400)


class Plugin:
    def __init__(self):
        self.count = 0
        self.ballast = b""

    @hookimpl
    def process(self, batch):
        self.count += len(batch)
        self.ballast = self.ballast or random.Random(1).randbytes({STATE_BYTES})
        return ProcessResult([Metric(name="events", value=self.count, window=DAY)]) if len(batch) else None

    @hookimpl
    def export_state(self):
        return self.count.to_bytes(8, "big") + self.ballast

    @hookimpl
    def import_state(self, state, version):
        self.count, self.ballast = int.from_bytes(state[:8], "big"), state[8:]

    @hookimpl
    def insight(self, question, events):
        """The packages of generations that are alive in this process."""
        gc.collect()
        modules = [each.__name__ for each in gc.get_objects() if isinstance(each, ModuleType)]
        return Answer([{{"package": name}} for name in modules if "__g" in name and "." not in name])
'''

_MANIFEST: Final = """\
hooks: [process, export_state, import_state, insight]
isolation: {isolation}
provides:
  analyses:
    - {{name: generations-of-{name}, title: Generations, description: The generations that are alive.}}
"""


class Sample(Struct, frozen=True):
    """What the server holds after so many reloads. ``host_mb``: resident memory of the host's own process; ``all_mb``:
    with its ``processes``. ``generations``: those alive in the host's process, of each plugin there one if none leaks.
    """

    reloads: int
    host_mb: int
    all_mb: int
    threads: int
    processes: int
    generations: dict[str, int]


class Done(Struct, frozen=True):
    """The receipts in order, and a sample when each plugin has been reloaded twice, at half time and at the end."""

    receipts: list[dict[str, Any]]
    samples: list[Sample]


def measure(count: int, rate: int = 50_000) -> dict[str, Any]:
    """``count`` reloads of four plugins in turn, two of them with a large state, while ``rate`` events/s come in.

    :raises ValueError: for so few that a plugin is not reloaded twice.
    :raises RuntimeError: for a reload that the server refuses.
    """
    if count < WARM:
        raise ValueError(f"{count} reloads are too few: {WARM} reload each plugin twice")
    with tempfile.TemporaryDirectory(prefix="analytics-bench-site-") as folder:
        for name, isolation in HEAVY.items():
            install(Path(folder), name, _CODE, _MANIFEST.format(name=name, isolation=isolation))
        with fresh_server({"PYTHONPATH": folder}) as server, ThreadPoolExecutor(1) as thread:
            warm_up = _load(server, rate, 0)
            done = Done([], [])
            began = time.monotonic()
            rounds = list(_rounds(server, rate, done, thread.submit(_reload_all, server, count, done)))
            seconds = time.monotonic() - began
            return {
                "reloads": len(done.receipts),
                "events_per_s": round(sum(each.events for each in rounds) / seconds),
                "ack_p99_ms": round(1000 * _p99(rounds), 1),
                "refused": sum(each.refused for each in rounds),
                **_outcomes(done.receipts),
                **_exactness(server, sum(each.events for each in [warm_up, *rounds])),
                "samples": [msgspec.to_builtins(sample) for sample in done.samples],
            }


def _load(server: Server, rate: int, seed: int) -> Result:
    """One round; another seed gives other events."""
    return asyncio.run(run(server.port, batch=1000, connections=8, seconds=5, rate=rate, seed=seed))


def _rounds(server: Server, rate: int, done: Done, reloading: Future[None]) -> Iterator[Result]:
    """Load until the reloads are done. :raises Exception: what ended them."""
    seed = 0
    while not reloading.done():
        seed += 1
        result = _load(server, rate, seed)
        print(f"{len(done.receipts)} reloads, {result.events} events in {result.seconds:.1f} s", file=sys.stderr)
        yield result
    reloading.result()


def _reload_all(server: Server, count: int, done: Done) -> None:
    for number in range(count):
        done.receipts.append(_post(server, f"/api/v1/plugins/{PLUGINS[number % len(PLUGINS)]}/reload"))
        if number + 1 in (WARM, count // 2, count):
            done.samples.append(_sample(server, number + 1))


def _post(server: Server, path: str) -> dict[str, Any]:
    """:raises RuntimeError: for any answer but 200, with what it says."""
    request = urllib.request.Request(f"{server.url}{path}", b"{}", {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=90) as reply:
            return msgspec.json.decode(reply.read(), type=dict[str, Any])
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"POST {path}: {error.code} {error.read().decode('utf-8', 'replace')}") from error


def _sample(server: Server, reloads: int) -> Sample:
    rows = _post(server, "/api/v1/analyses/generations-of-heavy")["data"]
    host, *processes = server.family()
    return Sample(
        reloads=reloads,
        host_mb=host.memory_info().rss >> 20,
        all_mb=round(server.rss_mb()),
        threads=host.num_threads(),
        processes=len(processes),
        generations=dict(Counter(row["package"].partition("__g")[0] for row in rows)),
    )


def _outcomes(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """What became of the reloads; of those that came in, the pauses in ms, the last state in MB, the phases in s."""
    came_in = [receipt for receipt in receipts if receipt["outcome"] == "active"]
    pauses = {name: [1000 * r["pause"] for r in came_in if r["plugin"] == name] for name in PLUGINS}
    return {
        "outcomes": dict(Counter(receipt["outcome"] for receipt in receipts)),
        "reasons": sorted({receipt["reason"] for receipt in receipts} - {""}),
        "survivors": sorted({name for receipt in receipts for name in receipt["survivors"]}),
        "pause_ms": {name: {"p50": _median(each), "max": round(max(each), 1)} for name, each in pauses.items() if each},
        "state_mb": {r["plugin"]: round(r["state_bytes"] / 1e6, 1) for r in came_in},
        "seconds_p50": {
            phase: _median([r["seconds"][phase] for r in came_in if phase in r["seconds"]])
            for phase in sorted({phase for r in came_in for phase in r["seconds"]})
        },
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _p99(rounds: list[Result]) -> float:
    return Result(0, 0.0, [latency for each in rounds for latency in each.latencies], 0).percentile(99)


def _exactness(server: Server, acknowledged: int) -> dict[str, Any]:
    """By how many events each lane, and each count that a large state carries, differs from what was accepted."""
    figures = msgspec.convert(server.get("/api/analytics/metrics")["figures"], dict[str, float])
    accepted = int(figures["events_accepted"])
    lanes = _settled(server, accepted)
    counts = {f"{name}.events": _counted(server, f"{name}.events", accepted) for name in HEAVY}
    off = {name: events - accepted for name, events in {**lanes, **counts, "acknowledged": acknowledged}.items()}
    return {
        "events": accepted,
        "duplicates": int(figures["events_duplicate"]),
        "differences": off,
        "exact": not any(off.values()) and set(PLUGINS) <= off.keys(),
    }


def _settled(server: Server, accepted: int) -> dict[str, int]:
    """How many events each lane has processed: ``accepted``, or what it is when all must have come."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        lanes = msgspec.convert(server.get("/api/v1/lanes")["lanes"], list[dict[str, Any]])
        events = {lane["name"]: int(lane["events"]) for lane in lanes}
        if set(events.values()) == {accepted} or time.monotonic() > deadline:
            return events
        time.sleep(0.5)


def _counted(server: Server, metric: str, expected: int) -> int:
    """The stored value of a plugin's metric: ``expected``, or what it is when its checkpoints must have come."""
    deadline = time.monotonic() + _CHECKPOINT_SECONDS
    while True:
        answer = server.get(f"/api/v1/metrics?metrics={metric}&startDate=2025-01-01&endDate=2025-01-02")
        (found,) = msgspec.convert(answer["metrics"], list[dict[str, Any]])
        if found["value"] == expected or time.monotonic() > deadline:
            return int(found["value"] or 0)
        time.sleep(0.5)
