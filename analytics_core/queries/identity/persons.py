"""The links that need judging one by one, in log order: chains, aliases, shared devices, and what was undone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import numpy as np
from msgspec import Struct, field

from analytics_core.events import moment
from analytics_core.queries.identity.links import ALIAS, UNMERGE, Links, Users

Kind = Literal["identify", "alias"]
State = Literal["active", "undone", "refused"]
KINDS: Final[tuple[Kind, ...]] = ("identify", "alias")
"""By `links.IDENTIFY` and `links.ALIAS`."""
STATES: Final[tuple[State, ...]] = ("active", "undone", "refused")


class Merge(Struct, frozen=True, kw_only=True):
    """One link that was made or refused. ``id`` is the log position of the event that asked for it."""

    id: int
    former: str = field(name="from")
    into: str
    at: datetime
    kind: Kind
    state: State
    forced: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Link:
    """A row of `Links`, and what became of it."""

    seq: int
    at: int
    kind: int
    operator: bool
    forced: bool
    former: int
    into: int
    state: State = "active"
    reason: str = ""


@dataclass(slots=True)
class _Person:
    """Ids that are one: ``user`` stands for all. ``first``: the first event that has one of them as its ``userId``."""

    user: int
    ids: set[int]
    first: int
    links: list[_Link]

    def leads(self, start: int, end: int) -> bool:
        """Whether the links lead from ``start`` to ``end``, each from a former id to the one after it."""
        after: dict[int, list[int]] = {}
        for link in self.links:
            after.setdefault(link.former, []).append(link.into)
        ahead = [start]
        while ahead:
            key = ahead.pop()
            if key == end:
                return True
            ahead += after.get(key, ())
        return False

    def parted(self, link: _Link) -> list[_Person]:
        """The two persons that there are without ``link``: its other links, told again in log order."""
        links = sorted((one for one in self.links if one is not link), key=lambda one: one.seq)
        users = {key: key for key in self.ids}
        for one in links:
            former, into = users[one.former], users[one.into]
            users.update({key: into for key, user in users.items() if user == former})
        found = []
        for user in (users[link.former], users[link.into]):
            ids = {key for key, its in users.items() if its == user}
            found.append(_Person(user, ids, 0, [one for one in links if one.into in ids]))
        return found


class Persons:
    """A fold over ``links`` in log order.

    Each link that is made joins two persons, so the links of a person are a tree over its ids, and to undo one parts it
    in two. The later links stay with the ids that they name.
    """

    def __init__(self, links: Links, known: Users) -> None:
        self.names: dict[int, str] = {}
        self._first: dict[int, int] = {}
        self._persons: dict[int, _Person] = {}
        self._links: dict[int, _Link] = {}
        self._parted: set[frozenset[int]] = set()
        self._refused: set[tuple[int, int, str]] = set()
        self._meet(links, known)
        columns = (links.seq, links.at, links.kind, links.operator, links.forced, links.former, links.into)
        for row, undoes in zip(zip(*(c.tolist() for c in columns), strict=True), links.undoes.tolist(), strict=True):
            if row[2] == UNMERGE:
                self._undo(undoes)
            else:
                self._judge(_Link(*row))

    def ids_of(self, key: int) -> set[int]:
        """All judged ids of the person of ``key``."""
        return self._persons[key].ids if key in self._persons else {key}

    def moved(self) -> dict[int, int]:
        """Each id for which another one stands, with that one."""
        return {key: person.user for key, person in self._persons.items() if person.user != key}

    def merge(self, id: int) -> Merge | None:  # noqa: A002
        """The link that the event at this log position asked for, made or refused."""
        link = self._links.get(id)
        return None if link is None else self._shown(link)

    def merges(self, keys: set[int] | None, state: State | None, before: int, limit: int) -> list[Merge]:
        """The newest links below ``before`` that name one of ``keys``, in log order; None: any."""
        found: list[Merge] = []
        for seq in reversed(self._links):
            link = self._links[seq]
            if len(found) == limit:
                break
            if seq < before and state in (None, link.state) and (keys is None or keys & {link.former, link.into}):
                found.append(self._shown(link))
        return found[::-1]

    def _meet(self, links: Links, known: Users) -> None:
        asked = np.minimum(known.first_of(links.into), links.seq)  # the link itself makes its user known
        for keys, ids, firsts in (
            (links.former, links.former_id, known.first_of(links.former)),
            (links.into, links.into_id, asked),
        ):
            for key, id_, first in zip(keys.tolist(), ids.to_pylist(), firsts.tolist(), strict=True):
                if key:
                    self.names[key] = id_
                    self._first[key] = min(first, self._first.get(key, first))

    def _person(self, key: int) -> _Person:
        return self._persons.setdefault(key, _Person(key, {key}, self._first[key], []))

    def _judge(self, link: _Link) -> None:
        former, into = self._person(link.former), self._person(link.into)
        if former is into:
            if link.kind == ALIAS and former.leads(link.into, link.former):
                self._refuse(link, "cycle", former)
        elif not link.operator and frozenset((link.former, link.into)) in self._parted:
            self._refuse(link, "undone", former)
        elif former.first < link.seq and (link.kind != ALIAS or into.first < link.seq) and not link.forced:
            self._refuse(link, "known" if self._first[link.former] < link.seq else "taken", former)
        else:
            self._join(link, former, into)

    def _refuse(self, link: _Link, why: str, former: _Person) -> None:
        """Told once, however often clients ask for it; an operator is always told."""
        told = link.former, link.into, why
        if link.operator or told not in self._refused:
            self._refused.add(told)
            link.state, link.reason = "refused", self._reason(link, why, former)
            self._links[link.seq] = link

    def _join(self, link: _Link, former: _Person, into: _Person) -> None:
        small, large = (former, into) if len(former.ids) < len(into.ids) else (into, former)
        large.user = into.user
        large.first = min(former.first, into.first)
        large.ids |= small.ids
        large.links += [*small.links, link]
        self._persons.update(dict.fromkeys(small.ids, large))
        self._links[link.seq] = link

    def _undo(self, seq: int) -> None:
        link = self._links.get(seq)
        if link is None or link.state != "active":
            return
        link.state = "undone"
        self._parted.add(frozenset((link.former, link.into)))
        for person in self._persons[link.former].parted(link):
            person.first = min(self._first[key] for key in person.ids)
            self._persons.update(dict.fromkeys(person.ids, person))

    def _reason(self, link: _Link, why: str, former: _Person) -> str:
        one, other = self.names[link.former], self.names[link.into]
        return {
            "cycle": f"{one!r} and {other!r} are one person already, for whom {self.names[former.user]!r} stands",
            "undone": f"{one!r} and {other!r} were parted by an operator, who alone can join them again",
            "known": f"{one!r} and {other!r} are both known users; only an operator's merge with force joins them",
            "taken": f"{one!r} belongs to {self.names[former.user]!r}; the first link of an id holds",
        }[why]

    def _shown(self, link: _Link) -> Merge:
        return Merge(
            id=link.seq,
            former=self.names[link.former],
            into=self.names[link.into],
            at=moment(link.at),
            kind=KINDS[link.kind],
            state=link.state,
            forced=link.forced,
            reason=link.reason,
        )
