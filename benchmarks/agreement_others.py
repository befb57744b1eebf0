"""What answers the questions of `agreement` beside us: chDB, the ClickHouse engine in a process, and retentioneering.

Both are imported when they are asked. Rows are dicts with ``user_id``, ``session_id``, ``event`` and ``timestamp``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analytics_core.events import micros

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_TEXTS: Final = ("user_id", "session_id", "event")
_ENDS: Final = ("path_start", "path_end")
_TIES: Final = 1 << 16
"""More events than there are. Times are multiplied by it and the event's number is added: then no two are equal, and
their order is that of seq."""


def _seconds(window: str) -> int:
    return int(window[:-1]) * _UNITS[window[-1]]


class ChDb:
    """Questions as ClickHouse SQL. :raises ImportError: when chDB is not installed."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        import chdb

        self._query = chdb.query
        self._folder = TemporaryDirectory(prefix="agreement-")
        self._path = Path(self._folder.name) / "events.parquet"
        ordered = sorted(rows, key=lambda row: row["timestamp"])  # stable: equal times stay in log order
        at = np.array([micros(row["timestamp"]) for row in ordered], np.int64)
        since = (at - at.min(initial=at[0] if len(at) else 0)).astype(np.uint64)
        columns = {name: pa.array([row[name] for row in ordered], pa.string()) for name in _TEXTS}
        columns["at"] = pa.array(since)
        columns["place"] = pa.array(since * np.uint64(_TIES) + np.arange(len(at), dtype=np.uint64))
        columns["day"] = pa.array((at // 86_400_000_000).astype(np.uint16))
        pq.write_table(pa.table(columns), self._path)

    def _ask(self, sql: str) -> list[list[Any]]:
        return pa.ipc.open_file(self._query(sql, "Arrow").bytes()).read_all().to_pylist()

    def funnel(
        self, steps: Sequence[str], window: str, *, mode: str = "", ties: str = "seq", by: str = "user_id"
    ) -> list[int]:
        """``windowFunnel``: users (or values of ``by``) by step.

        ``ties``: whether equal times stand as ``seq`` says or, as the function has it, by the number of the ``step``.
        """
        micro = _seconds(window) * 1_000_000
        time, width = ("at", micro) if ties == "step" else ("place", micro * _TIES + _TIES - 1)
        conditions = ", ".join(f"event = '{step}'" for step in steps)
        strict = f", '{mode}'" if mode else ""
        found = self._ask(
            f"WITH levels AS (SELECT windowFunnel({width}{strict})(assumeNotNull({time}), {conditions}) AS level "
            f"FROM {self._events} GROUP BY {by}) SELECT level, count() AS n FROM levels GROUP BY level"
        )
        return [sum(row["n"] for row in found if row["level"] >= step) for step in range(1, len(steps) + 1)]

    def retention(self, *, periods: int) -> dict[str, int]:
        """``retention`` of every user in every week in which there was an event, by week and weeks after it."""
        return self._triangle("SELECT DISTINCT user_id, week AS cohort FROM weeks", "1", "1", periods)

    def first_time_retention(self, start: str, back: str, *, periods: int) -> dict[str, int]:
        """The same of the week of a user's first ``start``, with ``back`` for a return."""
        cohorts = f"SELECT user_id, min(week) AS cohort FROM weeks WHERE event = '{start}' GROUP BY user_id"
        return self._triangle(cohorts, f"event = '{start}'", f"event = '{back}'", periods)

    def _triangle(self, cohorts: str, start: str, back: str, periods: int) -> dict[str, int]:
        later = ", ".join(f"week = cohort + {7 * k} AND {back}" for k in range(1, periods + 1))
        found = self._ask(
            f"WITH weeks AS (SELECT user_id, event, toInt64(toStartOfWeek(toDate(assumeNotNull(day)), 1)) AS week "
            f"FROM {self._events}), "
            f"each AS (SELECT cohort, retention(week = cohort AND {start}, {later}) AS met FROM weeks "
            f"INNER JOIN ({cohorts}) AS c USING (user_id) GROUP BY user_id, cohort) "
            f"SELECT toString(toDate(cohort)) AS week, sumForEach(met) AS users, "
            f"(SELECT max(week) FROM weeks) AS last, cohort FROM each GROUP BY cohort"
        )
        return {
            f"{row['week']} +{k}": users
            for row in sorted(found, key=lambda row: row["cohort"])
            for k, users in enumerate(row["users"])
            if row["cohort"] + 7 * k <= row["last"]
        }

    @property
    def _events(self) -> str:
        return f"file('{self._path}', 'Parquet')"


class Retentioneering:
    """Questions to its event stream. :raises ImportError: when it is not installed."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        os.environ["RETENTIONEERING_NO_TRACK"] = "1"  # a comparison tells nobody of itself
        import pandas as pd
        from retentioneering.eventstream.eventstream import Eventstream

        frame = pd.DataFrame([{**row, "timestamp": row["timestamp"].replace(tzinfo=None)} for row in rows])
        self._stream = Eventstream(frame, {"path_cols": ["user_id", "session_id"]})
        self._users = Eventstream(frame.drop(columns="session_id"), {"path_cols": ["user_id"]})

    def funnel(self, steps: Sequence[str], *, by: str = "user_id") -> list[int]:
        """``funnel_data``: paths by step; it knows no window."""
        return [step["unique_paths"] for step in self._stream.funnel_data(steps=list(steps), path_col=by)["steps"]]

    def conversion(self, start: str, end: str, within: str) -> list[int]:
        """``get_conversion_rate``: paths with the start, and those of them with the end in time."""
        (row,) = self._stream.get_conversion_rate(start, end, within=f"{_seconds(within)}s").to_dict("records")
        return [int(row["paths_with_start"]), int(row["converted"])]

    def sessions(self, pause: str) -> int:
        """``split_sessions``: how many there are when a longer pause ends one."""
        split = self._users.split_sessions(timeout=pause)
        return int(split.to_dataframe()["session_id"].nunique())

    def transitions(self, by: str) -> dict[str, int]:
        """``transition_graph_data``: how often one event came right after another."""
        counts = self._stream.transition_graph_data(edge_weight="count", path_col=by)
        inside = [event for event in counts.index if event not in _ENDS]
        return {f"{a} > {b}": int(counts.loc[a, b]) for a in inside for b in inside if counts.loc[a, b]}

    def steps(self, most: int) -> dict[str, int]:
        """``step_matrix_data``: how many paths had an event as their first, second, ... one, up to ``most``."""
        shares = self._stream.step_matrix_data(max_steps=most) * self._stream.df["user_id"].nunique()
        counts = {
            f"{step} {event}": round(shares.loc[event, step])
            for event in shares.index
            if event not in _ENDS
            for step in range(1, most + 1)
        }
        return {name: count for name, count in sorted(counts.items()) if count}
