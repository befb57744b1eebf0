"""Who is who: the ids of one tenant that are the same person, as a fold of its own events.

- ``identify`` (``userId``, ``anonymousId``): the anonymous id's whole history becomes the user's. The first link of an
  id holds, so that a device which several people share stays with the first of them.
- ``alias`` (``userId``, ``properties.previousId``): what was known as the former id is the user from the start on.
  Links go on: after a -> b and b -> c all three are c. A link back is refused.
- Two known users, ids that events have had as their ``userId``, are joined only by an operator's alias with ``force``.
- ``unmerge`` (``properties.mergeId``), an operator's too, undoes one link exactly; later ones stay. What was undone is
  not joined again by the clients that go on saying it.

An event that merely has both ids links nothing: a shared device would join people, and every event would be a link.
The order is that of the log, so each link is judged by what was said before it, and what clients repeat is not judged
again until an operator undoes something.
"""

from __future__ import annotations

import json
from copy import copy
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.events import moment
from analytics_core.lake.user_order import U64, visitor_keys
from analytics_core.queries.identity.leaves import deduplicated, divided, in_order, inserted, replaced
from analytics_core.queries.identity.links import (
    NEVER,
    OPERATOR,
    Links,
    Users,
    distinct,
    find,
    no_links,
    no_users,
    read_links,
)
from analytics_core.queries.identity.persons import KINDS, Persons, State
from analytics_core.queries.identity.persons import Merge as Merge

MAX_MERGES: Final = 1_000


class Identity:
    """Who is who up to some position of the log. Immutable; `extended` gives the next one.

    Most links are plain: an id that was nobody's, one user, nothing else said of it. Those stay columns (``_leaves``,
    in order of the former id); `Persons` judges the others one by one. A key is that of `visitor_keys`.
    """

    def __init__(self) -> None:
        self._leaves = self._others = no_links()
        self._known = no_users()
        self._seen: U64 = np.empty(0, np.uint64)  # all keys that a link names, ascending
        self._persons = Persons(self._others, self._known)
        self._moved: U64 = np.empty(0, np.uint64)
        self._users: U64 = np.empty(0, np.uint64)

    @property
    def empty(self) -> bool:
        """Whether nothing has been said: every id is a person."""
        return not len(self._seen)

    def extended(self, links: Links, users: Users) -> Identity:
        """With what later events say, in order of ``seq``: ``users`` are those that all of these events name.

        The same, however the events are cut into batches. This one stays as it is; when nothing changes it is returned.
        """
        known = self._known.joined(users)
        if known is self._known and not len(links.seq):
            return self
        made = copy(self)
        made._known = known
        if len(links.seq):
            made._leaves, others = divided(self._leaves, links, self._seen, known)
            made._seen = inserted(self._seen, links)
            if len(others.seq):
                made._others = deduplicated(in_order(self._others.followed_by(others)))
                made._persons = Persons(made._others, known)
            made._resolve()
        return made

    def _resolve(self) -> None:
        """Each key for which another one stands: the plain ones, and those that were judged."""
        judged = self._persons.moved()
        keys, users = (np.fromiter(some, np.uint64, len(judged)) for some in (judged.keys(), judged.values()))
        order = np.argsort(keys)
        keys, users = keys[order], users[order]
        place = np.searchsorted(self._leaves.former, keys)
        self._moved = np.insert(self._leaves.former, place, keys)
        self._users = np.insert(replaced(self._leaves.into, keys, users), place, users)

    def canonical(self, keys: U64) -> U64:
        """The key of the user who stands for each, shape ``(len(keys),)``; the same key where nobody else does.

        About 20 ns each when ``keys`` are in order, several times that when they are not.
        """
        return replaced(keys, self._moved, self._users)

    def moved_since(self, earlier: Identity) -> tuple[U64, U64]:
        """The keys that have another canonical key than under ``earlier``, ascending, and the one that they have now.

        What it was is ``earlier.canonical`` of them.
        """
        if earlier._moved is self._moved:
            return self._moved[:0], self._moved[:0]
        joined = self._moved[earlier.canonical(self._moved) != self._users]
        parted = earlier._moved[self.canonical(earlier._moved) != earlier._users]
        keys = distinct(np.concatenate([joined, parted]))
        return keys, self.canonical(keys)

    def canonical_id(self, id: str) -> str:  # noqa: A002
        """The user id that stands for the person of ``id``; ``id`` itself when nothing is said of it."""
        key = visitor_keys([id])
        user = self.canonical(key)
        if user[0] == key[0]:
            return id
        plain, _ = find(self._leaves.former, key)
        judged = self._persons.names.get(int(user[0]))
        return str(self._leaves.into_id[int(plain[0])]) if judged is None else judged

    def ids_of(self, id: str) -> list[str]:  # noqa: A002
        """All ids of the person of ``id``: the one that stands for them first, then the others in order."""
        first = self.canonical_id(id)
        theirs = self._persons.ids_of(int(visitor_keys([first])[0]))
        names = self._persons.names
        found = {names[key] for key in theirs if key in names}
        plain = np.isin(self._leaves.into, np.fromiter(theirs, np.uint64, len(theirs)))
        found.update(self._leaves.take(plain).former_id.to_pylist())
        return [first, *sorted(found - {first})]

    def would(self, former: str, into: str, *, force: bool = False) -> Merge | None:
        """What would become of an operator's alias now; None when the two are one person already."""
        asked = {"seq": NEVER - 1, "name": "alias", "user_id": into, "source": OPERATOR, "received_at": moment(0)}
        said = json.dumps({"previousId": former, "force": force})
        rows = pa.Table.from_pylist([{**asked, "anonymous_id": former, "properties": said}])
        return self.extended(read_links(rows), no_users()).merge(NEVER - 1)

    def merge(self, id: int) -> Merge | None:  # noqa: A002
        """The link that the event at this log position asked for; None when it asked for none, or for nothing new."""
        held = np.flatnonzero(self._leaves.seq == id)
        return _merge(self._leaves, int(held[0])) if len(held) else self._persons.merge(id)

    def merges(
        self, of: str | None = None, *, state: State | None = None, before: int | None = None, limit: int = MAX_MERGES
    ) -> list[Merge]:
        """The links that were made or refused, newest first; at most ``limit``, with ids below ``before``.

        ``of``: only those that name an id of this person.
        """
        keys = None if of is None else set(visitor_keys(self.ids_of(of)).tolist())
        below = NEVER if before is None else before
        found = self._persons.merges(keys, state, below, limit)
        if state in (None, "active"):
            chosen = self._leaves.seq < below
            if keys is not None:
                chosen &= np.isin(self._leaves.into, np.fromiter(keys, np.uint64, len(keys)))
            at = np.flatnonzero(chosen)
            newest = at[np.argsort(self._leaves.seq[at])[-limit:]]
            found += [_merge(self._leaves, row) for row in newest.tolist()]
        return sorted(found, key=lambda one: -one.id)[:limit]

    def people(self) -> pa.Table:
        """Each id for which another one stands: ``id`` and ``person``, strings, each id once."""
        leaves, names = self._leaves, self._persons.names
        judged = {names[key]: names[user] for key, user in self._persons.moved().items()}
        at = pc.index_in(leaves.into_id, pa.array(judged.keys(), pa.string()))
        ends = pc.coalesce(pa.array(judged.values(), pa.string()).take(at), leaves.into_id)
        ids = pa.concat_arrays([leaves.former_id, pa.array(judged.keys(), pa.string())])
        return pa.table({"id": ids, "person": pa.concat_arrays([ends, pa.array(judged.values(), pa.string())])})


def _merge(leaves: Links, row: int) -> Merge:
    return Merge(
        id=int(leaves.seq[row]),
        former=leaves.former_id[row].as_py(),
        into=leaves.into_id[row].as_py(),
        at=moment(int(leaves.at[row])),
        kind=KINDS[leaves.kind[row]],
        state="active",
        forced=bool(leaves.forced[row]),
    )
