"""All that is stored about one user, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from analytics_core.erasure.erasures import IdsOf, counted, only, owners_of
from analytics_core.errors import NotFoundError
from analytics_core.events.owners import Bound, Owners
from analytics_core.host.views import PluginView
from analytics_core.queries.history import History
from analytics_core.queries.reader import Reader
from analytics_core.state.erasing import StateEraser

_ROWS: Final = 5_000
_COLUMNS: Final = (
    "name, user_id, anonymous_id, session_id, timestamp, received_at, event_id, source, properties, context, "
    "partition, seq"
)
_PLACE: Final = "(timestamp, partition, seq)"


class Stored(Struct, frozen=True, rename="camel"):
    """The first line of an export: who it is, and what there is. ``ids`` are all that belong to the user. ``outputs``
    counts what of the host's findings names one of them, by kind. ``plugins`` fold events, so their state may hold
    something that they made of these."""

    user: str
    ids: Sequence[str]
    exported_at: datetime
    events: int
    first: datetime | None
    last: datetime | None
    outputs: dict[str, int]
    plugins: list[str]


class UserExports:
    """Safe for use from any thread. One export reads one snapshot, whatever is asked for or erased meanwhile."""

    def __init__(
        self,
        history: History,
        state: StateEraser,
        plugins: Callable[[], Sequence[PluginView]],
        *,
        ids_of: IdsOf = only,
    ) -> None:
        self._history = history
        self._state = state
        self._plugins = plugins
        self._ids_of = ids_of

    def lines(self, tenant: str, user: str) -> Iterator[bytes]:
        """Some lines of NDJSON at a time: `Stored`, then each event with the wire's names, in order of time.

        :raises NotFoundError: before the first line, for a user of whom nothing is stored.
        """
        owners = owners_of(tenant, [user], self._ids_of)
        with self._history.reader(tenant) as reader:
            stored = self._stored(reader, user, owners)
            if not stored.events and not any(stored.outputs.values()):
                raise NotFoundError("user", user)
            yield msgspec.json.encode(stored) + b"\n"
            yield from _events(reader, owners)

    def _stored(self, reader: Reader, user: str, owners: Owners) -> Stored:
        return Stored(
            user=user,
            ids=owners.ids,
            exported_at=datetime.now(UTC),
            outputs=dict(self._state.find(reader.tenant, owners.ids)),
            plugins=[view.name for view in self._plugins() if "process" in view.hooks],
            **counted(reader, owners),
        )


def _events(reader: Reader, owners: Owners) -> Iterator[bytes]:
    """Page by page, each after the last one's end, so that the memory is that of a page."""
    bound = Bound()
    theirs, asked, after = owners.sql(bound), bound.parameters, ""
    while True:
        query = f"SELECT {_COLUMNS} FROM events WHERE {theirs} {after} ORDER BY {_PLACE} LIMIT {_ROWS}"
        rows = reader.sql(query, asked).to_pylist()
        if rows:
            yield b"".join(msgspec.json.encode(_line(row)) + b"\n" for row in rows)
        if len(rows) < _ROWS:
            return
        asked = {**bound.parameters, **{name: rows[-1][name] for name in ("timestamp", "partition", "seq")}}
        after = f"AND {_PLACE} > ($timestamp, $partition, $seq)"


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": row["name"],
        "userId": row["user_id"],
        "anonymousId": row["anonymous_id"],
        "sessionId": row["session_id"],
        "timestamp": row["timestamp"],
        "receivedAt": row["received_at"],
        "messageId": row["event_id"],
        "source": row["source"],
        "properties": Raw(row["properties"]),
        "context": Raw(row["context"]),
        "partition": row["partition"],
        "seq": row["seq"],
    }
