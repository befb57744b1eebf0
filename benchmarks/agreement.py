"""The same questions to us, to chDB and to retentioneering, over a shop's clickstream.

Answers are equal, or the rule in which the two differ is named in `EXPLAINED` and the answers are equal once what the
rule is about is taken out of the question. What the others said is kept in ``agreement.json`` (``--record`` writes it
anew), so that we can be held to it where they are not installed.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.agreement_others import ChDb, Retentioneering
from benchmarks.agreement_ours import Clickstream

ECOM: Final = Path(__file__).parents[1] / ".." / "shared" / "data" / "clickstream" / "ecom.csv.gz"
RECORDED: Final = Path(__file__).with_name("agreement.json")

SHOP: Final = ("catalog", "product_view", "add_to_cart", "purchase")
VIEWS: Final = ("product_view", "product_view", "product_view", "add_to_cart")
ORDER: Final = ("add_to_cart", "shipping_details", "purchase")
LOOK_BACK: Final = ("product_view", "catalog")
STEPS: Final = 4
DAY, WEEK, EVER = "1d", "1w", "3650d"


EXPLAINED: Final = {
    "ties": "Events of equal time: windowFunnel orders them by the number of the step, so that they fit the funnel "
    "however they came; we by seq, as they came.",
    "one event, two steps": "An event that fits several steps: windowFunnel without a mode takes it for several of one "
    "chain; we never do, as its mode strict_once.",
    "first attempt": "strict_order ends the search at the first event that breaks an attempt; to us the next event of "
    "the first step begins another.",
    "repetitions": "strict_deduplication ends the search when a later step comes twice; to us a repetition is an event "
    "like any between two steps, and there is no such mode.",
    "first occurrence": "get_conversion_rate measures its window from the first start of a path alone; we from each.",
}
"""The rules in which others differ from us."""

Figures = list[int] | dict[str, int]


class Others:
    """The rivals over a clickstream, made when they are asked."""

    def __init__(self, events: Clickstream) -> None:
        self.events = events

    @cached_property
    def chdb(self) -> ChDb:
        return ChDb(self.events.rows)

    @cached_property
    def rete(self) -> Retentioneering:
        return Retentioneering(self.events.rows)


Ours = Callable[[Clickstream], Figures]
Theirs = Callable[[Others], Figures]


class Compared(NamedTuple):
    """One question. With a ``rule`` the answers may differ, but ``alike`` (ours, theirs) may not."""

    name: str
    other: str
    ours: Ours
    theirs: Theirs
    rule: str = ""
    alike: tuple[Ours, Theirs] | None = None


def _levels(steps: Sequence[str], window: str, **how: Any) -> Theirs:
    return lambda others: others.chdb.funnel(steps, window, **how)


def _of(change: Callable[[Clickstream], Clickstream], theirs: Theirs) -> Theirs:
    return lambda others: theirs(Others(change(others.events)))


QUESTIONS: Final = (
    Compared("funnel", "chdb", lambda e: e.funnel(SHOP, DAY), _levels(SHOP, DAY)),
    Compared(
        "funnel, equal times",
        "chdb",
        lambda e: e.funnel(LOOK_BACK, "1s"),
        _levels(LOOK_BACK, "1s", ties="step"),
        "ties",
        (lambda e: e.funnel(LOOK_BACK, "1s"), _levels(LOOK_BACK, "1s")),
    ),
    Compared(
        "funnel, repeated steps",
        "chdb",
        lambda e: e.funnel(VIEWS, "1h"),
        _levels(VIEWS, "1h"),
        "one event, two steps",
        (lambda e: e.funnel(VIEWS, "1h"), _levels(VIEWS, "1h", mode="strict_once")),
    ),
    Compared(
        "funnel by session", "chdb", lambda e: e.funnel(SHOP, DAY, by="session"), _levels(SHOP, DAY, by="session_id")
    ),
    Compared(
        "funnel, strict order",
        "chdb",
        lambda e: e.funnel(ORDER, DAY, order="strict"),
        _levels(ORDER, DAY, mode="strict_order"),
        "first attempt",
        (
            lambda e: e.first_attempts(ORDER).funnel(ORDER, DAY, order="strict"),
            _levels(ORDER, DAY, mode="strict_order"),
        ),
    ),
    Compared(
        "funnel without repetitions",
        "chdb",
        lambda e: e.funnel(ORDER, WEEK),
        _levels(ORDER, WEEK, mode="strict_deduplication"),
        "repetitions",
        (
            lambda e: e.without_repetitions(ORDER).funnel(ORDER, WEEK),
            _of(lambda e: e.without_repetitions(ORDER), _levels(ORDER, WEEK, mode="strict_deduplication")),
        ),
    ),
    Compared(
        "weekly retention, recurring",
        "chdb",
        lambda e: e.retention(period="week", cohorts="recurring", periods=4),
        lambda others: others.chdb.retention(periods=4),
    ),
    Compared(
        "weekly retention, first time",
        "chdb",
        lambda e: e.retention(
            period="week", periods=4, start={"event": "catalog"}, **{"return": {"event": "purchase"}}
        ),
        lambda others: others.chdb.first_time_retention("catalog", "purchase", periods=4),
    ),
    Compared("funnel for ever", "retentioneering", lambda e: e.funnel(SHOP, EVER), lambda o: o.rete.funnel(SHOP)),
    Compared(
        "funnel for ever by session",
        "retentioneering",
        lambda e: e.funnel(SHOP, EVER, by="session"),
        lambda others: others.rete.funnel(SHOP, by="session_id"),
    ),
    Compared(
        "conversion within a day",
        "retentioneering",
        lambda e: e.funnel(ORDER[:2], DAY),
        lambda others: others.rete.conversion(*ORDER[:2], DAY),
        "first occurrence",
        (
            lambda e: e.first_alone(ORDER[0]).funnel(ORDER[:2], DAY),
            lambda others: others.rete.conversion(*ORDER[:2], DAY),
        ),
    ),
    Compared(
        "transitions of users",
        "retentioneering",
        lambda events: events.transitions("user"),
        lambda others: others.rete.transitions("user_id"),
    ),
    Compared(
        "transitions in sessions",
        "retentioneering",
        lambda events: events.transitions("session"),
        lambda others: others.rete.transitions("session_id"),
    ),
    Compared(
        "first steps of users",
        "retentioneering",
        lambda events: events.steps("user", STEPS),
        lambda others: others.rete.steps(STEPS),
    ),
    Compared(
        "sessions by pauses",
        "retentioneering",
        lambda e: [sum(row["sessions"] for row in e.without_sessions().ask("sessions"))],
        lambda others: [others.rete.sessions("30m")],
    ),
)


# --- the run ---------------------------------------------------------------------------------------------------------


def ecom() -> Clickstream:
    """:raises FileNotFoundError: where the export is not beside the checkout."""
    with gzip.open(ECOM, "rt", newline="") as file:
        return Clickstream(
            [
                {
                    **{name: row[name] for name in ("user_id", "session_id", "event")},
                    "timestamp": datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC),
                }
                for row in csv.DictReader(file)
            ]
        )


def recorded() -> dict[str, list[Figures]]:
    """By question what the other said, and what it said to the alike question if there is one."""
    return msgspec.json.decode(RECORDED.read_bytes(), type=dict[str, list[Figures]])


def said(question: Compared, others: Others) -> list[Figures]:
    """As `recorded`, asked now. :raises ImportError: when the other is not installed."""
    return [question.theirs(others), *([question.alike[1](others)] if question.alike else [])]


def verdict(question: Compared, events: Clickstream, theirs: Sequence[Figures]) -> tuple[str, Figures]:
    """``agrees``, a rule of `EXPLAINED`, or ``differs``; and our figures."""
    ours = question.ours(events)
    if question.alike and question.alike[0](events) != theirs[1]:
        return "differs", ours
    if ours == theirs[0]:
        return "agrees", ours
    return question.rule or "differs", ours


def measure(*, record: bool = False) -> list[dict[str, Any]]:
    """One row for each question: our figures, theirs, and whether they agree."""
    if not ECOM.exists():
        return [{"missing": f"{ECOM.resolve()}: the export is not part of the project"}]
    events = ecom()
    others = Others(events)
    kept: Mapping[str, list[Figures]] = {} if record else recorded()
    rows, answers = [], {}
    for question in QUESTIONS:
        try:
            theirs, asked = said(question, others), "now"
        except ImportError:
            if question.name not in kept:
                raise
            theirs, asked = kept[question.name], "recorded"
        answers[question.name] = theirs
        how, ours = verdict(question, events, theirs)
        row = {"question": question.name, "other": question.other, "asked": asked, "verdict": how}
        rows.append({**row, "ours": _short(ours), "theirs": _short(theirs[0]), "why": EXPLAINED.get(how, "")})
        print(rows[-1], flush=True)
    if record:
        lines = [f"  {json.dumps(name)}: {json.dumps(theirs)}" for name, theirs in answers.items()]
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return rows


def _short(figures: Figures) -> Figures:
    """Of many figures their number and sum: equal ones are not worth reading."""
    return figures if isinstance(figures, list) else {"figures": len(figures), "sum": sum(figures.values())}
