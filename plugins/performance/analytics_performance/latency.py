"""The analysis ``latency``: how long events take and how many fail, exactly, over any range."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analytics_core import Answer, Chart, EventReader, Insight, ParameterError

COLUMNS = ("source", "user_id", "session_id")
_INTERVALS = ("minute", "hour", "day", "week", "month")
_NUMBER = "('BIGINT', 'UBIGINT', 'HUGEINT', 'DOUBLE')"
_TIMED = f"""
timed AS (
  SELECT *, TRY_CAST(json_extract_string(properties, '$.duration') AS DOUBLE) AS duration,
    coalesce(json_type(properties, '$.error') = 'BOOLEAN'
      AND json_extract_string(properties, '$.error') = 'true', false)
    OR coalesce(json_type(properties, '$.status') IN {_NUMBER}
      AND TRY_CAST(json_extract_string(properties, '$.status') AS DOUBLE) >= 500, false) AS failed
  FROM events
  WHERE json_type(properties, '$.duration') IN {_NUMBER} AND ($event IS NULL OR name = $event)
)"""
_FIGURES = """
count(*) AS count, count(*) FILTER (failed) AS errors, count(*) FILTER (failed) / count(*) AS error_rate,
quantile_cont(duration, 0.5) AS p50, quantile_cont(duration, 0.9) AS p90,
quantile_cont(duration, 0.95) AS p95, quantile_cont(duration, 0.99) AS p99"""


def latency(
    events: EventReader,
    timezone: str,
    breakdown: str = "event",
    interval: str | None = None,
    event: str | None = None,
    limit: int = 20,
) -> Answer:
    """Events with a numeric ``properties.duration`` of 0 or more (milliseconds), by ``breakdown`` and ``interval``.

    ``breakdown`` is ``event``, ``properties.x``, or one of source, user_id, session_id; ``interval`` is minute, hour,
    day, week or month in ``timezone``, or None for the whole range. The ``limit`` most frequent groups are given; with
    an interval, buckets without such events are left out. An event failed when ``properties.error`` is true or
    ``properties.status`` is a number of 500 or more. Quantiles are linear between neighbours.

    Columns: (bucket, local time, with an interval,) group, count, errors, error_rate, p50, p90, p95, p99.

    :raises ParameterError: for another breakdown. :raises ValueError: for another interval.
    """
    parameters: dict[str, Any] = {"event": event, "limit": limit}
    group = _group(breakdown, parameters)
    bucket = ""
    if interval is not None:
        if interval not in _INTERVALS:
            raise ValueError(f"interval {interval!r}; valid are: {', '.join(_INTERVALS)}")
        parameters["timezone"] = timezone
        bucket = f"date_trunc('{interval}', timezone($timezone, timestamp)) AS bucket, "
    table = events.sql(
        f"""WITH {_TIMED}, grouped AS (SELECT *, {bucket}{group} AS "group" FROM timed WHERE duration >= 0),
        leading_groups AS (SELECT "group" FROM grouped GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT $limit)
        SELECT {"bucket, " if bucket else ""}"group", {_FIGURES} FROM grouped
        SEMI JOIN leading_groups USING ("group")
        GROUP BY ALL ORDER BY {"bucket, " if bucket else ""}count DESC, "group" """,
        parameters,
    )
    quantiles = ("p50", "p95", "p99")
    if bucket:
        return Answer(table, chart=Chart(kind="line", x="bucket", y=quantiles, series="group"))
    return Answer(table, _findings(table, breakdown), chart=Chart(kind="bar", x="group", y=quantiles))


def _group(breakdown: str, parameters: dict[str, Any]) -> str:
    if breakdown == "event":
        return "CAST(name AS VARCHAR)"
    if breakdown in COLUMNS:
        return f"coalesce(CAST({breakdown} AS VARCHAR), '(none)')"
    holder, _, path = breakdown.partition(".")
    if holder != "properties" or not all(path.split(".")):
        raise ParameterError(
            "breakdown", f"{breakdown!r} is none; valid are: event, properties.x, {', '.join(COLUMNS)}"
        )
    parameters["path"] = "$" + "".join(f'."{part}"' for part in path.replace('"', "").split("."))
    return "coalesce(json_extract_string(properties, $path), '(none)')"


def _findings(table: pa.Table, breakdown: str) -> list[Insight]:
    if not len(table):
        return []
    found = []
    slowest = table.take([pc.index(table["p95"], pc.max(table["p95"])).as_py()]).to_pylist()[0]
    found.append(
        Insight(
            key="slowest",
            title=f"{slowest['group']} is the slowest",
            description=f"By {breakdown}, {slowest['group']} has the highest 95th percentile: {slowest['p95']:.0f} ms "
            f"over {slowest['count']} events (median {slowest['p50']:.0f} ms).",
            data={name: slowest[name] for name in ("group", "count", "p50", "p95")},
        )
    )
    failing = table.take([pc.index(table["errors"], pc.max(table["errors"])).as_py()]).to_pylist()[0]
    if failing["errors"]:
        found.append(
            Insight(
                key="failing",
                title=f"{failing['group']} fails most often",
                description=f"{failing['errors']} of its {failing['count']} events failed "
                f"({failing['error_rate']:.1%}); {pc.sum(table['errors']).as_py()} failed in all groups shown.",
                severity="medium",
                data={name: failing[name] for name in ("group", "count", "errors", "error_rate")},
            )
        )
    return found
