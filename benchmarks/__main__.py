"""``python -m benchmarks [PART ...]``: run the parts and print their figures as JSON lines and a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks import agreement, busy, listing, measures, questions, reloads


class Effort(NamedTuple):
    """How much to do: ``quick`` takes seconds a part; ``count`` says how many reloads, None for as many as promised.

    The others are of the questions: over how many events, how often each, whether also under load, and which folder
    keeps the history for later runs.
    """

    quick: bool
    count: int | None
    events: int | None
    runs: int
    ingest: bool
    data: Path
    record: bool


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
    "questions": (
        "seven questions over a month of history, beside plain DuckDB",
        lambda effort: questions.measure(
            effort.events or (300_000 if effort.quick else 10_000_000), effort.runs, effort.data, ingest=effort.ingest
        ),
    ),
    "agreement": (
        "the same questions to chDB and retentioneering",
        lambda effort: agreement.measure(record=effort.record),
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
@click.option("--events", type=click.IntRange(1000), help="Of the history that is asked; 10 million unless told.")
@click.option("--runs", type=click.IntRange(1), default=5, help="How often each question is asked; the median counts.")
@click.option("--ingest", is_flag=True, help="The questions also while 50,000 events/s come in.")
@click.option("--data", type=click.Path(path_type=Path), default=questions.DEFAULT_DATA, help="Keeps the history.")
@click.option("--record", is_flag=True, help="Keep what the others answer for where they are not installed.")
def main(parts: tuple[str, ...], **how: Any) -> None:
    """Measure the running system on this machine; without PART, all of it. The load runs on the same cores."""
    print(json.dumps({"machine": platform.platform(), "python": platform.python_version(), "quick": how["quick"]}))
    for name in parts or PARTS:
        title, measure = PARTS[name]
        print(f"# {name}: {title}", flush=True)
        print(json.dumps({name: measure(Effort(**how))}), flush=True)


if __name__ == "__main__":
    main()
