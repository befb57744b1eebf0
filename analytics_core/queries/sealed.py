"""The DuckDB of one snapshot: in memory, with the tenant's events as views, and sealed against everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa

from analytics_core.events import SCHEMA
from analytics_core.log.tombstones import Tombstone
from analytics_core.metrics.filters import conjunction
from analytics_core.queries.marks import PLACE
from analytics_core.queries.spec import SnapshotSpec

_SEALED: Final = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}

PERSON_EVENTS: Final = "person_events"
"""The view of `join_people`."""


def connect(spec: SnapshotSpec, tail: pa.Table) -> duckdb.DuckDBPyConnection:
    """In memory, with the view ``events``, then sealed: no file but the leased ones, no extension, no setting."""
    config = {**_SEALED, "threads": spec.limits.threads, "memory_limit": spec.limits.memory}
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET TimeZone = $1", [spec.range.timezone])
        connection.execute("SET allowed_paths = $1", [[*spec.files, *spec.others]])
        connection.execute("SET enable_external_access = false")
        connection.register("log_tail", tail)
        if spec.cohort is not None:
            narrow(connection, pa.table({"place": pa.array([], pa.int64())}))
        for view in _views(spec, connection):
            connection.execute(view)
        connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def narrow(connection: duckdb.DuckDBPyConnection, places: pa.Table) -> None:
    """Let the view ``events`` hold only these. ``places``: their log positions, `marks.PLACE`, as ``place``."""
    connection.register("cohort_events", places)


def join_people(connection: duckdb.DuckDBPyConnection, people: pa.Table) -> None:
    """Offer the view `PERSON_EVENTS`. ``people``: `identity.Identity.people`. A view of its own, since DuckDB makes
    a join also for those who do not ask for what it gives."""
    connection.register("people", people)
    connection.execute(
        f"CREATE OR REPLACE VIEW {PERSON_EVENTS} AS SELECT events.*, coalesce(people.person, user_id, anonymous_id) "
        "AS person FROM events LEFT JOIN people ON people.id = coalesce(user_id, anonymous_id)"
    )


def _views(spec: SnapshotSpec, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """The SQL of the views. A view takes no parameters, so each value is a variable of the connection."""
    number = 0

    def bind(value: Any) -> str:
        nonlocal number
        number += 1
        connection.execute(f"SET VARIABLE v{number} = $1", [value])
        return f"getvariable('v{number}')"

    def source(files: Sequence[str]) -> str:
        """All events of the tenant in ``files`` and in the tail, but for those that are erased."""
        rows = [f"SELECT {columns} FROM log_tail"]
        if files:
            stored = f"read_parquet({bind(list(files))}, hive_partitioning = false, union_by_name = false)"
            rows.append(f"SELECT {columns} FROM {stored}")
        left = "".join(f" AND {_lives(tombstone, bind)}" for tombstone in spec.erased)
        return f"SELECT {columns} FROM ({' UNION ALL '.join(rows)}) WHERE tenant = {bind(spec.tenant)}{left}"

    columns = ", ".join(SCHEMA.names)
    cohort = "" if spec.cohort is None else f" AND {PLACE} IN (SELECT place FROM cohort_events)"
    yield (
        f"CREATE VIEW events AS {source(spec.files)}{cohort} AND timestamp >= {bind(spec.range.start)} "
        f"AND timestamp < {bind(spec.range.end)} AND {conjunction(spec.filters, bind)}"
    )
    yield f"CREATE VIEW ever AS {source([*spec.files, *spec.others])}"


def _lives(tombstone: Tombstone, bind: Callable[[Any], str]) -> str:
    """Whether an event is none of those that ``tombstone`` erased."""
    return f"(seq >= {bind(tombstone.position)} OR NOT {tombstone.owners.sql(bind)})"


def in_utc(table: pa.Table) -> pa.Table:
    fields = [
        pa.field(f.name, pa.timestamp("us", "UTC")) if pa.types.is_timestamp(f.type) and f.type.tz else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))
