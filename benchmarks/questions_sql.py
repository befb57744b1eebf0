"""The yardstick: the seven questions as SQL that DuckDB answers from the same Parquet files with two threads.

Each is written as one who knows DuckDB would write it for this question alone. ``$start`` and ``$end`` bound the range.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

_WHO: Final = "coalesce(user_id, anonymous_id)"
_IN_RANGE: Final = "timestamp >= $start AND timestamp < $end"
FUNNEL: Final = ("product_view", "add_to_cart", "purchase")
RETENTION: Final = ("page_view", "purchase")
_MOMENT: Final = "epoch_us(timestamp)"
_DAY: Final = (
    f"{_MOMENT} // 86_400_000_000"  # a cast to a date asks the calendar of the zone and takes four times as long
)
_MINUTE: Final = f"{_MOMENT} // 60_000_000"
_GAP: Final = 30 * 60_000_000

COUNTS: Final = f"""
SELECT {_DAY} AS day, count(*) AS events
FROM events WHERE {_IN_RANGE} AND name = 'page_view' GROUP BY day ORDER BY day
"""
UNIQUES: Final = f"""
SELECT {_DAY} AS day, count(DISTINCT {_WHO}) AS visitors
FROM events WHERE {_IN_RANGE} GROUP BY day ORDER BY day
"""
PERCENTILES: Final = f"""
SELECT {_MINUTE} AS minute,
       quantile_cont(CAST(properties ->> '$.duration_ms' AS DOUBLE), 0.95) AS p95
FROM events WHERE {_IN_RANGE} AND name = 'api_call' GROUP BY minute ORDER BY minute
"""
FIRST_TIME_RETENTION: Final = f"""
WITH days AS (
    SELECT DISTINCT {_WHO} AS who, name, {_DAY} AS day
    FROM events WHERE {_IN_RANGE} AND name IN {RETENTION} AND {_WHO} IS NOT NULL
), cohorts AS (SELECT who, min(day) AS cohort FROM days WHERE name = '{RETENTION[0]}' GROUP BY who)
SELECT cohort, day - cohort AS period, count(*) AS users
FROM days JOIN cohorts USING (who) WHERE name = '{RETENTION[1]}' AND day > cohort
GROUP BY cohort, period ORDER BY cohort, period
"""
FUNNEL_OF_THREE: Final = f"""
WITH chosen AS (
    SELECT {_WHO} AS who, {_MOMENT} AS moment, seq, name
    FROM events WHERE {_IN_RANGE} AND name IN {FUNNEL} AND {_WHO} IS NOT NULL
), firsts AS (
    SELECT *, max(CASE WHEN name = '{FUNNEL[0]}' THEN moment END) OVER chain AS begun FROM chosen
    WINDOW chain AS (PARTITION BY who ORDER BY moment, seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), seconds AS (
    SELECT *, max(CASE WHEN name = '{FUNNEL[1]}' AND moment - begun <= $window THEN begun END) OVER chain AS begun2
    FROM firsts
    WINDOW chain AS (PARTITION BY who ORDER BY moment, seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT count(DISTINCT who) FILTER (name = '{FUNNEL[0]}') AS step1,
       count(DISTINCT who) FILTER (name = '{FUNNEL[1]}' AND moment - begun <= $window) AS step2,
       count(DISTINCT who) FILTER (name = '{FUNNEL[2]}' AND moment - begun2 <= $window) AS step3
FROM seconds
"""
SESSIONS: Final = f"""
WITH loose AS (
    SELECT {_WHO} AS who, {_MOMENT} AS moment, seq,
           lag({_MOMENT}) OVER (PARTITION BY {_WHO} ORDER BY timestamp, seq) AS previous
    FROM events WHERE {_IN_RANGE} AND session_id IS NULL AND {_WHO} IS NOT NULL
), numbered AS (
    SELECT who, moment, sum(CAST(previous IS NULL OR moment - previous > {_GAP} AS INT))
           OVER (PARTITION BY who ORDER BY moment, seq ROWS UNBOUNDED PRECEDING) AS number
    FROM loose
), whole AS (
    SELECT who, min(moment) AS began, max(moment) AS ended, count(*) AS events FROM numbered GROUP BY who, number
    UNION ALL
    SELECT {_WHO} AS who, min({_MOMENT}), max({_MOMENT}), count(*)
    FROM events WHERE {_IN_RANGE} AND session_id IS NOT NULL GROUP BY who, session_id
)
SELECT began // 86_400_000_000 AS day, count(*) AS sessions, count(DISTINCT who) AS users,
       median(ended - began) / 1e6 AS median_duration, count(*) FILTER (events = 1) / count(*) AS bounce_rate
FROM whole GROUP BY day ORDER BY day
"""
TRANSITIONS: Final = f"""
WITH pairs AS (
    SELECT name, lead(name) OVER (PARTITION BY {_WHO} ORDER BY timestamp, seq) AS following
    FROM events WHERE {_IN_RANGE} AND {_WHO} IS NOT NULL
)
SELECT name, following, count(*) AS n FROM pairs WHERE following IS NOT NULL
GROUP BY name, following ORDER BY n DESC, name, following
"""


class Yardstick:
    """DuckDB over the Parquet files of one lake, warm: one connection for all questions."""

    def __init__(self, lake: Path) -> None:
        self._connection = duckdb.connect(config={"threads": 2})
        self._connection.execute("SET TimeZone = 'UTC'")
        files = ", ".join(f"'{uri}'" for uri in DeltaTable(lake).file_uris())
        self._connection.execute(
            f"CREATE VIEW events AS SELECT * FROM read_parquet([{files}], hive_partitioning = false)"
        )

    def ask(self, sql: str, start: datetime, end: datetime) -> pa.Table:
        known = {"start": start, "end": end, "window": 86_400_000_000}
        used = {name: value for name, value in known.items() if f"${name}" in sql}
        return self._connection.sql(sql, params=used).to_arrow_table()

    def close(self) -> None:
        self._connection.close()
