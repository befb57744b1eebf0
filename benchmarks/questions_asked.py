"""The seven questions: how each is asked over HTTP, and which figures of our answer are those of DuckDB's."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from benchmarks import questions_sql as sql
from benchmarks.questions_data import DAYS
from benchmarks.server import Server

PATIENCE = 600.0
"""Seconds to wait for one answer."""
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
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
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
