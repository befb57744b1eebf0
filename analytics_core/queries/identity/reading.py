"""Each tenant's `Identity`, brought forward by each question with what came since."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa

from analytics_core.queries.identity import Identity
from analytics_core.queries.identity.links import Links, Users, column, read_links

_LINKS: Final = (
    "SELECT seq, name, user_id, anonymous_id, received_at, '' AS source, '{}' AS properties "
    "FROM ever WHERE name = 'identify' AND seq >= $since UNION ALL "
    "SELECT seq, name, user_id, anonymous_id, received_at, source, properties "
    "FROM ever WHERE name IN ('alias', 'unmerge') AND seq >= $since"
)
"""The properties of an identify are its user's traits: they link nothing and may be large."""
_USERS: Final = "SELECT user_id, min(seq) AS seq FROM ever WHERE user_id IS NOT NULL AND seq >= $since GROUP BY user_id"
_COUNT: Final = "SELECT count(*) AS n FROM ever WHERE seq >= $since"


class Source(Protocol):
    """`queries.snapshot.Snapshot`, as far as it is needed: one snapshot of all events of a tenant."""

    @property
    def tenant(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def rows(self) -> int: ...

    def ever(self, query: str, parameters: Mapping[str, Any]) -> pa.Table: ...
    def recent(self, position: int) -> pa.Table: ...


def identity_of(source: Source) -> Identity:
    """The identity at a snapshot, from all of its events."""
    return _extended(Identity(), source, _links(source, 0), lambda: _users(source, 0))


def _links(source: Source, since: int) -> Links:
    return read_links(source.ever(_LINKS, {"since": since}))


def _users(source: Source, since: int) -> Users:
    return _named(source.ever(_USERS, {"since": since}))


def _named(rows: pa.Table) -> Users:
    rows = rows.filter(rows.column("user_id").is_valid()).combine_chunks()
    return Users.of(column(rows, "user_id"), column(rows, "seq").to_numpy())


def _extended(identity: Identity, source: Source, links: Links, users: Callable[[], Users]) -> Identity:
    if not identity.empty:
        return identity.extended(links, users())
    if not len(links.seq):
        return identity  # nobody asks who is known
    return identity.extended(links, _users(source, 0))


class Identities:
    """Who is who now, by tenant. Safe for use from any thread.

    ``snapshot`` opens a tenant's events; ``changed`` gives something that is equal as long as they are the same.
    Nothing is stored: after a start the first question reads the links, and if there are any all user ids.
    """

    def __init__(
        self,
        snapshot: Callable[[str], AbstractContextManager[Source]],
        changed: Callable[[str], Sequence[object]],
    ) -> None:
        self._snapshot = snapshot
        self._changed = changed
        self._tenants: dict[str, _Tenant] = {}
        self._lock = threading.Lock()

    def now(self, tenant: str) -> Identity:
        """The identity at the log's end. :raises QueryError: when it cannot be read."""
        held = self._tenant(tenant)
        version = tuple(self._changed(tenant))
        if held.version != version:
            with self._snapshot(tenant) as source:
                self.at(source)
            held.version = version
        return held.held.identity

    def at(self, source: Source) -> Identity:
        """The identity at a snapshot; a newer one when there is one already."""
        return self._tenant(source.tenant).forward(source)

    def ids_of(self, tenant: str, id: str) -> list[str]:  # noqa: A002
        """`Identity.ids_of`, now."""
        return self.now(tenant).ids_of(id)

    def forget(self, tenant: str) -> None:
        """The next question reads all anew. Events that vanish are noticed without it."""
        with self._lock:
            self._tenants.pop(tenant, None)

    def _tenant(self, name: str) -> _Tenant:
        with self._lock:
            return self._tenants.setdefault(name, _Tenant())


class _Held(NamedTuple):
    """What was said below ``upto``, in ``seen`` events."""

    identity: Identity
    upto: int = 0
    seen: int = 0


def _forward(held: _Held, source: Source) -> _Held:
    """With what came since; what the lake does not have yet is read without SQL."""
    since = held.upto
    if source.stored <= since:
        rows = source.recent(since)
        identity = _extended(held.identity, source, read_links(rows), lambda: _named(rows))
        return _Held(identity, source.position, held.seen + len(rows))
    new = source.ever(_COUNT, {"since": since}).column("n")[0].as_py() if since else source.rows
    identity = _extended(held.identity, source, _links(source, since), lambda: _users(source, since))
    return _Held(identity, source.position, held.seen + new)


class _Tenant:
    """``held`` is replaced as a whole under the lock."""

    def __init__(self) -> None:
        self.held = _Held(Identity())
        self.version: tuple[object, ...] | None = None
        self._lock = threading.Lock()

    def forward(self, source: Source) -> Identity:
        with self._lock:
            held = self.held
            if held.upto < source.position:
                held = _forward(held, source)
            if held.upto == source.position and held.seen != source.rows:  # retention or an erasure has taken some
                held = _Held(identity_of(source), source.position, source.rows)
            self.held = held
            return held.identity
