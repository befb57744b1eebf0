"""What an operator does about who is who: look at a person, merge, undo. Each change is an event in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from analytics_core.errors import MergeRefusedError, NotFoundError, ParameterError
from analytics_core.events import MAX_ID, Event
from analytics_core.queries.identity.links import OPERATOR
from analytics_core.queries.identity.persons import Merge, State
from analytics_core.queries.identity.reading import Identities
from analytics_core.queries.reader import Reader
from analytics_core.records import Outcome

MAX_PAGE = 1_000


class Accept(Protocol):
    """`intake.Intake.accept_events`."""

    def __call__(self, events: Sequence[Event], *, tenant: str, source: str) -> Awaitable[Outcome]: ...


class Person(Struct, frozen=True, rename="camel"):
    """Who one id belongs to: ``user`` stands for all ``ids``. ``merges``: the newest links made or refused."""

    user: str
    ids: list[str]
    events: int
    first_seen: datetime | None
    last_seen: datetime | None
    merges: list[Merge]


class Merging:
    """Lives on one event loop; `person` and `merges` block, so call them on a thread."""

    def __init__(self, accept: Accept, identities: Identities, reader: Callable[[str], Reader]) -> None:
        self._accept = accept
        self._identities = identities
        self._reader = reader

    async def merge(self, tenant: str, former: str, into: str, *, force: bool = False) -> Merge:
        """Make ``into`` the user of all that the person of ``former`` did and will do.

        :raises ParameterError: for what is no id.
        :raises MergeRefusedError: for two known users without ``force``, and for what is one person already.
        """
        for name, given in (("from", former), ("into", into)):
            if not 0 < len(given.encode(errors="surrogatepass")) <= MAX_ID:
                raise ParameterError(name, f"{given[:40]!r} is no id; valid are 1 to {MAX_ID} bytes")
        if former == into:
            raise ParameterError("into", f"is {into!r}, as from is; give two ids")
        before = await asyncio.to_thread(self._identities.now, tenant)
        _made(before.would(former, into, force=force), former, into, before.canonical_id(into))
        properties = {"previousId": former, "force": force}
        # the former id is in a column of its own too: there erasure finds it
        asked = Event.of("alias", properties, user_id=into, anonymous_id=former)
        await self._accept([asked], tenant=tenant, source=OPERATOR)
        now = await asyncio.to_thread(self._identities.now, tenant)
        news = [m for m in now.merges(into) if (m.former, m.into) == (former, into) and before.merge(m.id) is None]
        return _made(news[0] if news else None, former, into, now.canonical_id(into))

    async def undo(self, tenant: str, id: int) -> Merge:  # noqa: A002
        """Part again what one merge has joined; the later ones stay.

        :raises NotFoundError: for an id that is none; :raises MergeRefusedError: when the merge is not active.
        """
        merge = (await asyncio.to_thread(self._identities.now, tenant)).merge(id)
        if merge is None:
            raise NotFoundError("merge", str(id))
        if merge.state != "active":
            raise MergeRefusedError(merge.former, merge.into, f"merge {id} is {merge.state}: there is nothing to undo")
        await self._accept([Event.of("unmerge", {"mergeId": id})], tenant=tenant, source=OPERATOR)
        undone = (await asyncio.to_thread(self._identities.now, tenant)).merge(id)
        if undone is None or undone.state == "active":
            raise MergeRefusedError(merge.former, merge.into, f"the event that undoes merge {id} {_LOST}")
        return undone

    def person(self, tenant: str, id: str) -> Person:  # noqa: A002
        """:raises NotFoundError: when no event has this id, as user, anonymous or former id."""
        with self._reader(tenant) as reader:
            identity = self._identities.at(reader.snapshot)
            ids = identity.ids_of(id)
            marks = ", ".join(f"$id{n}" for n in range(len(ids)))
            found = reader.sql(
                "SELECT count(*) AS n, min(timestamp) AS first, max(timestamp) AS last FROM events "
                f"WHERE user_id IN ({marks}) OR (user_id IS NULL AND anonymous_id IN ({marks}))",
                {f"id{n}": each for n, each in enumerate(ids)},
            ).to_pylist()[0]
        merges = identity.merges(id, limit=MAX_PAGE)
        if not found["n"] and not merges:
            raise NotFoundError("user", id)
        return Person(ids[0], ids, found["n"], found["first"], found["last"], merges)

    def merges(
        self, tenant: str, *, state: State | None = None, before: int | None = None, limit: int = 100
    ) -> list[Merge]:
        """The newest links that were made or refused, with ids below ``before``.

        :raises ParameterError: for a limit outside 1..1000.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ParameterError("limit", f"{limit} is outside 1..{MAX_PAGE}")
        return self._identities.now(tenant).merges(state=state, before=before, limit=limit)


_LOST = "is not in the log as it was sent: a plugin that enriches events has dropped or changed it"


def _made(merge: Merge | None, former: str, into: str, user: str) -> Merge:
    """:raises MergeRefusedError: when it was not."""
    if merge is None:
        raise MergeRefusedError(former, into, f"{former!r} and {into!r} are one person already, {user!r}")
    if merge.state == "refused":
        raise MergeRefusedError(former, into, merge.reason)
    return merge
