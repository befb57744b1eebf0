"""Our own answers to the questions of `agreement`, and the clickstreams without what a rule is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, Final

from analytics_core import EventBatch, Question
from analytics_core.manifest import fit_schema
from analytics_core.testing import MemoryReader, batch, started
from analytics_core.testing.declared import manifest_of
from analytics_user_behavior.plugin import UserBehavior

_MOST: Final = 50
_OUT: Final = {"(entry)", "(exit)"}
Row = dict[str, Any]


class Clickstream:
    """Events in log order: dicts with ``user_id``, ``session_id``, ``event`` and ``timestamp``; ours is the answer."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    @cached_property
    def _batch(self) -> EventBatch:
        return batch(self.rows)

    def ask(self, analysis: str, **parameters: Any) -> list[Row]:
        """The rows of our answer to the question over all events, in UTC."""
        declared = {each.name: each.parameters for each in manifest_of(UserBehavior).provides.analyses}
        fitted, problems = fit_schema(declared[analysis], parameters)
        assert not problems, problems
        with MemoryReader([self._batch]) as reader:
            question = Question(analysis=analysis, tenant="default", range=reader.range, parameters=fitted)
            table = started(UserBehavior).insight(question, reader).table
        found: list[Row] = table.to_pylist()
        return found

    def funnel(self, steps: Sequence[str], window: str, **parameters: Any) -> list[int]:
        """Users by step."""
        listed = [{"event": step} for step in steps]
        return [row["users"] for row in self.ask("funnel", steps=listed, window=window, **parameters)]

    def retention(self, **parameters: Any) -> dict[str, int]:
        """Users who returned, by cohort and period."""
        rows = self.ask("retention", **parameters)
        return {f"{row['cohort']} +{row['period']}": row["returned"] for row in rows if row["cohort"] is not None}

    def transitions(self, by: str) -> dict[str, int]:
        """How often one event came right after another."""
        rows = self.ask("paths", mode="transitions", by=by, collapse=False, limit=_MOST)
        return {
            f"{row['from']} > {row['to']}": row["transitions"] for row in rows if not {row["from"], row["to"]} & _OUT
        }

    def steps(self, by: str, most: int) -> dict[str, int]:
        """How many paths had an event as their first, second, ... one, up to ``most``."""
        found: dict[str, int] = {}
        for row in self.ask("paths", by=by, collapse=False, limit=_MOST, depth=most + 1):
            if row["depth"] <= most:
                key = f"{row['depth']} {row['from']}"
                found[key] = found.get(key, 0) + row["paths"]
        return dict(sorted(found.items()))

    def users(self) -> Iterator[list[Row]]:
        """The events of each user in the order of (timestamp, seq)."""
        ordered = sorted(self.rows, key=lambda row: (row["user_id"], row["timestamp"]))  # stable
        return (list(rows) for _, rows in groupby(ordered, key=lambda row: row["user_id"]))

    def first_attempts(self, steps: Sequence[str]) -> Clickstream:
        """Each user's events up to the first that breaks an attempt at ``steps`` in strict order."""
        return Clickstream([row for rows in self.users() for row in _first_attempt(rows, steps)])

    def without_repetitions(self, steps: Sequence[str]) -> Clickstream:
        """The users alone who did each of ``steps`` once at most."""
        kept = [rows for rows in self.users() if all(sum(r["event"] == step for r in rows) < 2 for step in steps)]
        return Clickstream([row for rows in kept for row in rows])

    def first_alone(self, event: str) -> Clickstream:
        """Without the events of this name but each user's first."""
        rows = []
        for own in self.users():
            first = next((row for row in own if row["event"] == event), None)
            rows += [row for row in own if row["event"] != event or row is first]
        return Clickstream(rows)

    def without_sessions(self) -> Clickstream:
        return Clickstream([{**row, "session_id": None} for row in self.rows])


def _first_attempt(rows: Sequence[Row], steps: Sequence[str]) -> list[Row]:
    begun = False
    seen: set[str] = set()
    for number, row in enumerate(rows):
        step = steps.index(row["event"]) if row["event"] in steps else None
        if begun and (step is None or (step and steps[step - 1] not in seen)):
            return list(rows[:number])
        begun = begun or step == 0
        seen.add(row["event"])
    return list(rows)
