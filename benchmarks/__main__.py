"""``python -m benchmarks [PART ...]``: run the parts and print their figures as JSON lines and a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from benchmarks import busy, listing, measures, reloads


class Effort(NamedTuple):
    """How much to do: ``quick`` takes seconds a part; ``count`` says how many reloads, None for as many as promised."""

    quick: bool
    count: int | None


PARTS: dict[str, tuple[str, Callable[[Effort], Any]]] = {
    "startup": (
        "time to the first answer, memory when idle",
        lambda effort: measures.startup(1 if effort.quick else 5),
    ),
    "ingest": (
        "burst: durable events/s at batch 1, 10, 100, 1000",
        lambda effort: measures.ingest(3 if effort.quick else 10, 1 if effort.quick else 3),
    ),
    "sustained": (
        "the rate at which no lane falls behind",
        lambda effort: measures.sustained(10 if effort.quick else 45),
    ),
    "push": ("POST to the socket client's metric", lambda effort: measures.push(30 if effort.quick else 300)),
    "kills": ("kill -9 under load", lambda effort: measures.kills(5 if effort.quick else 50)),
    "reloads": (
        "hot reload under load: what is lost, how long a lane stands still",
        lambda effort: reloads.measure(effort.count or (reloads.WARM if effort.quick else 500)),
    ),
    "memory": (
        "resident memory after 10 M events",
        lambda effort: measures.memory(500_000 if effort.quick else 10_000_000),
    ),
    "listing": (
        "'analytics plugins list' with 100 plugins",
        lambda effort: listing.measure(100, 1 if effort.quick else 5),
    ),
    "busy": (
        "ack p99 beside a busy pure-Python plugin, in a thread and in a process",
        lambda effort: busy.measure(3 if effort.quick else 15),
    ),
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help="A few seconds a part: to see that it runs, not to quote.")
@click.option("--count", type=click.IntRange(reloads.WARM), help="How many reloads; 500 unless told.")
def main(parts: tuple[str, ...], quick: bool, count: int | None) -> None:
    """Measure the running system on this machine; without PART, all of it. The load runs on the same cores."""
    print(json.dumps({"machine": platform.platform(), "python": platform.python_version(), "quick": quick}))
    for name in parts or PARTS:
        title, measure = PARTS[name]
        print(f"# {name}: {title}", flush=True)
        print(json.dumps({name: measure(Effort(quick, count))}), flush=True)


if __name__ == "__main__":
    main()
