"""Questions as the host asks them: parameters checked against the manifest, defaults filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import analytics_user_behavior
from analytics_core import Answer, Question, TimeRange, UserOrder
from analytics_core.events import micros
from analytics_core.manifest import fit_schema, read_plugin
from analytics_core.records import COLUMNS
from analytics_core.testing import MemoryReader, batch, started
from analytics_user_behavior.plugin import UserBehavior

Asking = Callable[..., Answer]
Over = Callable[..., AbstractContextManager[Asking]]


@pytest.fixture(scope="session")
def over() -> Over:
    """``with over(rows, range, watermark=None) as ask: ask(analysis, **parameters)``, all over one reader.

    The watermark defaults to the last receipt. A parameter that the manifest refuses is a ValueError.
    """
    manifest = read_plugin(Path(analytics_user_behavior.__file__).parent / "plugin.yaml")
    schemas = {analysis.name: analysis.parameters for analysis in manifest.provides.analyses}
    plugin = started(UserBehavior)

    @contextmanager
    def reading(
        rows: list[dict[str, Any]],
        range: TimeRange,  # noqa: A002
        watermark: datetime | None = None,
    ) -> Iterator[Asking]:
        with MemoryReader([batch(rows, watermark=watermark)], range) as events:

            def ask(analysis: str, **parameters: Any) -> Answer:
                given, problems = fit_schema(schemas[analysis], parameters)
                if problems:
                    raise ValueError(problems)
                answer: Answer = plugin.insight(
                    Question(analysis=analysis, tenant="default", range=range, parameters=given), events
                )
                return answer

            yield ask

    return reading


@pytest.fixture(scope="session")
def ask(over: Over) -> Asking:
    """``ask(rows, analysis, range, watermark=None, **parameters)``: one question over a reader of its own."""

    def asked(
        rows: list[dict[str, Any]],
        analysis: str,
        range: TimeRange,  # noqa: A002
        watermark: datetime | None = None,
        **parameters: Any,
    ) -> Answer:
        with over(rows, range, watermark) as question:
            return question(analysis, **parameters)

    return asked


class Visitors:
    """An `EventReader` of which only `in_user_order` can be asked: rows put in order by plain Python, one or two
    visitors in each part, without the columns that are not asked for.

    Marks are ``{"event": name or names, "properties.x": value}``.
    """

    def __init__(self, rows: list[dict[str, Any]], each: int) -> None:
        self._each = each
        self._names = sorted({row["event"] for row in rows})
        self._visitors: dict[tuple[bool, str], list[tuple[int, dict[str, Any]]]] = {}
        for seq, row in sorted(enumerate(rows), key=lambda pair: pair[1]["timestamp"]):  # stable: ties go by seq
            person = row.get("user_id") or row.get("anonymous_id")
            if visitor := person or row.get("session_id"):
                self._visitors.setdefault((bool(person), visitor), []).append((seq, row))

    def in_user_order(
        self,
        step: Callable[[UserOrder], Any],
        *,
        marks: Mapping[str, Any] = {},
        values: Sequence[str] = (),
        columns: Sequence[str] = COLUMNS,
        **_: Any,
    ) -> list[Any]:
        words = {field: sorted({text for _, row in self._rows() if (text := _value(row, field))}) for field in values}
        listed = list(self._visitors.items())
        parts = [listed[low : low + self._each] for low in range(0, len(listed), self._each)]
        left = {name: np.zeros(0, np.int64) for name in COLUMNS if name not in columns}
        return [step(replace(self._part(part, marks, words), **left)) for part in parts]

    def _rows(self) -> list[tuple[int, dict[str, Any]]]:
        return [pair for pairs in self._visitors.values() for pair in pairs]

    def _part(self, visitors: list[Any], marks: Mapping[str, Any], words: dict[str, list[str]]) -> UserOrder:
        pairs = [pair for _, mine in visitors for pair in mine]
        at = [micros(row["timestamp"]) for _, row in pairs]
        sessions = [row.get("session_id") for _, row in pairs]
        return UserOrder(
            key=np.array([hash(visitor) % 2**63 for visitor, _ in visitors], np.uint64),
            known=np.array([known for (known, _), _ in visitors]),
            end=np.cumsum([len(mine) for _, mine in visitors]),
            first_at=np.array([micros(mine[0][1]["timestamp"]) for _, mine in visitors]),
            at=np.array(at, np.int64),
            seq=np.array([seq for seq, _ in pairs], np.int64),
            name=np.array([self._names.index(row["event"]) for _, row in pairs], np.int32),
            session=np.array([hash(session) % 2**63 + 1 if session else 0 for session in sessions], np.uint64),
            names=self._names,
            marks={mark: np.array([_holds(row, meant) for _, row in pairs]) for mark, meant in marks.items()},
            values={
                field: np.array([_code(row, field, texts) for _, row in pairs], np.int32)
                for field, texts in words.items()
            },
            words=words,
        )


def _value(row: dict[str, Any], field: str) -> str | None:
    found: str | None = row.get("properties", {}).get(field.removeprefix("properties."))
    return found


def _code(row: dict[str, Any], field: str, words: list[str]) -> int:
    text = _value(row, field)
    return -1 if text is None else words.index(text)


def _holds(row: dict[str, Any], meant: dict[str, Any]) -> bool:
    def has(field: str, wanted: Any) -> bool:
        found = row["event"] if field == "event" else _value(row, field)
        return found in (wanted if isinstance(wanted, list) else [wanted])

    return all(has(field, wanted) for field, wanted in meant.items())


@pytest.fixture(scope="session")
def visitors() -> type[Visitors]:
    """``visitors(rows, each)``: a reader of parts of ``each`` visitors, fast enough for hundreds of examples."""
    return Visitors
