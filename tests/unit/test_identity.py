"""Who is who: identify, alias, undo, against a naive fold in plain Python, and however the events are cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.queries.identity import Identity, Merge
from analytics_core.queries.identity.links import COLUMNS, OPERATOR, Users, read_links, visitor_keys
from analytics_core.testing import batch
from analytics_core.testing.rows import START

IDS = ("u1", "u2", "u3", "a1", "a2", "a3")

Row = dict[str, Any]


def identify(anonymous: str | None, user: str | None) -> Row:
    return {"event": "identify", "user_id": user, "anonymous_id": anonymous}


def alias(former: str | int | None, user: str | None, *, force: bool = False, operator: bool = False) -> Row:
    properties = {"previousId": former, "force": force}
    return {"event": "alias", "user_id": user, "properties": properties, "source": OPERATOR if operator else "native"}


def unmerge(merge: int, *, operator: bool = True) -> Row:
    return {"event": "unmerge", "properties": {"mergeId": merge}, "source": OPERATOR if operator else "native"}


def seen(user: str | None, anonymous: str | None = None) -> Row:
    return {"event": "view", "user_id": user, "anonymous_id": anonymous}


def told(rows: Sequence[Row], since: Identity | None = None, first_seq: int = 0) -> Identity:
    """The identity after ``rows``, as a reader of the log makes it."""
    at = [{"timestamp": START + timedelta(seconds=first_seq + index)} for index in range(len(rows))]
    made = batch([{**row, **time} for row, time in zip(rows, at, strict=True)], first_seq=first_seq)
    table = pa.Table.from_batches([made.record_batch]).select(COLUMNS)
    users = table.filter(table["user_id"].is_valid())
    named = Users.of(users["user_id"].combine_chunks(), users["seq"].to_numpy())
    return (since or Identity()).extended(read_links(table), named)


class Naive:
    """The rules of the package's docstring, one event after the other, with sets and lists."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.known: set[str] = set()
        self.active: list[tuple[int, str, str]] = []
        self.parted: list[set[str]] = []
        self.states: dict[int, str] = {}
        self.refused: set[tuple[str, str, str]] = set()
        self.said: set[tuple[bool, str, str]] = set()
        for seq, row in enumerate(rows):
            self.tell(seq, row)
            if row.get("user_id"):
                self.known.add(row["user_id"])

    def person(self, id_: str) -> set[str]:
        """Everything that links connect, in either direction."""
        found = {id_}
        while True:
            more = {x for _, *pair in self.active if found & set(pair) for x in pair} - found
            if not more:
                return found
            found |= more

    def user(self, id_: str) -> str:
        """Who stands for the person: links are made again one by one, and each gives the former ones a new user."""
        users = {one: one for one in self.person(id_)}
        for _, former, into in sorted(self.active):
            if former in users:
                old, new = users[former], users[into]
                users = {one: new if user == old else user for one, user in users.items()}
        return users[id_]

    def leads(self, start: str, end: str) -> bool:
        return start == end or any(self.leads(into, end) for _, former, into in self.active if former == start)

    def tell(self, seq: int, row: Row) -> None:
        properties, operator = row.get("properties", {}), row.get("source") == OPERATOR
        if row["event"] == "unmerge" and operator:
            self.said.clear()
            for link in [link for link in self.active if link[0] == properties["mergeId"]]:
                self.active.remove(link)
                self.parted.append(set(link[1:]))
                self.states[link[0]] = "undone"
        if row["event"] not in ("identify", "alias"):
            return
        aliased = row["event"] == "alias"
        into, former = row["user_id"], properties["previousId"] if aliased else row["anonymous_id"]
        again = not operator and (aliased, former, into) in self.said
        if again or former == into or not former or not into:
            return
        if not operator:
            self.said.add((aliased, former, into))
        why = self.why_not(former, into, aliased, operator, operator and properties.get("force", False))
        if why == "":
            self.active.append((seq, former, into))
            self.states[seq] = "active"
        elif why != "nothing new" and (operator or (former, into, why) not in self.refused):
            self.refused.add((former, into, why))
            self.states[seq] = "refused"

    def why_not(self, former: str, into: str, aliased: bool, operator: bool, force: bool) -> str:
        mine, theirs = self.person(former), self.person(into)
        if mine == theirs:
            return "cycle" if aliased and self.leads(into, former) else "nothing new"
        if {former, into} in self.parted and not operator:
            return "undone"
        if mine & self.known and (not aliased or theirs & self.known) and not force:
            return "known" if former in self.known else "taken"
        return ""


_id = st.sampled_from(IDS)
_row = st.one_of(
    st.builds(identify, _id, _id),
    st.builds(alias, _id, _id, force=st.booleans(), operator=st.booleans()),
    st.builds(unmerge, st.integers(0, 12), operator=st.sampled_from([True, True, False])),
    st.builds(seen, _id, st.none() | _id),
)
_log = st.lists(_row, max_size=14)


def users_of(identity: Identity) -> dict[str, str]:
    return {id_: identity.canonical_id(id_) for id_ in IDS}


def states_of(identity: Identity) -> dict[int, str]:
    return {merge.id: merge.state for merge in reversed(identity.merges())}


@given(_log)
def test_it_is_the_naive_fold(rows: list[Row]) -> None:
    identity, naive = told(rows), Naive(rows)
    assert users_of(identity) == {id_: naive.user(id_) for id_ in IDS}
    assert states_of(identity) == naive.states
    for id_ in IDS:
        first, *others = identity.ids_of(id_)
        assert (first, {first, *others}) == (naive.user(id_), naive.person(id_))
    keys = visitor_keys(IDS)
    ends = identity.canonical(keys)
    assert ends.tolist() == visitor_keys(list(users_of(identity).values())).tolist()
    assert identity.canonical(ends).tolist() == ends.tolist()
    moved = {row["id"]: row["person"] for row in identity.people().to_pylist()}
    assert moved == {id_: user for id_, user in users_of(identity).items() if id_ != user}


@given(_log, st.lists(st.integers(0, 14), max_size=4))
def test_however_the_events_are_cut_into_batches_the_result_is_the_same(rows: list[Row], cuts: list[int]) -> None:
    identity = Identity()
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for low, high in pairwise(bounds):
        earlier, identity = identity, told(rows[low:high], identity, low)
        keys, ends = identity.moved_since(earlier)
        moved = dict(zip(keys.tolist(), ends.tolist(), strict=True))
        for id_, key in zip(IDS, visitor_keys(IDS).tolist(), strict=True):
            now = int(visitor_keys([identity.canonical_id(id_)])[0])
            assert moved.get(key) == (now if identity.canonical_id(id_) != earlier.canonical_id(id_) else None)
    whole = told(rows)
    assert users_of(identity) == users_of(whole)
    assert identity.merges() == whole.merges()


@settings(max_examples=50)
@given(_log, _id, _id)
def test_an_undo_leaves_what_was_before_the_merge(rows: list[Row], former: str, into: str) -> None:
    before = told(rows)
    merged = told([alias(former, into, force=True, operator=True)], before, len(rows))
    if merged.merge(len(rows)) is None or merged.merge(len(rows)).state == "refused":
        assert users_of(merged) == users_of(before)
    after = told([unmerge(len(rows))], merged, len(rows) + 1)
    assert users_of(after) == users_of(before)


@given(
    st.lists(st.one_of(st.builds(identify, _id, _id), st.builds(alias, _id, _id), st.builds(seen, _id)), max_size=14)
)
def test_without_force_no_two_known_users_become_one(rows: list[Row]) -> None:
    before, known = Identity(), set()
    for seq, row in enumerate(rows):
        after = told([row], before, seq)
        for one, other in permutations(known, 2):
            if before.canonical_id(one) != before.canonical_id(other):
                assert after.canonical_id(one) != after.canonical_id(other)
        before, known = after, {*known, row["user_id"]}


def test_what_was_done_before_the_first_login_is_the_users_and_a_shared_device_stays_with_the_first() -> None:
    identity = told([seen(None, "a1"), identify("a1", "u1"), identify("a2", "u1"), identify("a1", "u2")])
    assert identity.ids_of("a2") == ["u1", "a1", "a2"]
    assert identity.ids_of("u2") == ["u2"]
    assert [(m.id, m.state, m.reason) for m in identity.merges()] == [
        (3, "refused", "'a1' belongs to 'u1'; the first link of an id holds"),
        (2, "active", ""),
        (1, "active", ""),
    ]


def test_a_user_who_never_identified_is_known_all_the_same() -> None:
    identity = told([seen("alice"), seen("bob"), alias("alice", "bob"), identify("alice", "mallory")])
    assert [identity.canonical_id(id_) for id_ in ("alice", "bob", "mallory")] == ["alice", "bob", "mallory"]
    assert [(m.kind, m.state) for m in identity.merges()] == [("identify", "refused"), ("alias", "refused")]
    assert "both known users" in identity.merges()[0].reason


def test_an_alias_gives_a_known_user_a_new_id_and_chains_end_at_the_last() -> None:
    identity = told(
        [identify("a1", "jo@example.org"), alias("jo@example.org", "17"), alias("17", "18"), alias("18", "a1")]
    )
    assert identity.ids_of("a1") == ["18", "17", "a1", "jo@example.org"]
    assert identity.merges(state="refused")[0].reason.startswith("'18' and 'a1' are one person already")


def test_a_number_and_the_anonymous_id_of_the_event_are_former_ids_too() -> None:
    assert told([alias(17, "u1")]).ids_of("17") == ["u1", "17"]
    assert told([{**alias(None, "u1"), "anonymous_id": "a1"}]).ids_of("a1") == ["u1", "a1"]


@pytest.mark.parametrize(
    "row",
    [
        identify(None, "u1"),
        identify("a1", None),
        identify("u1", "u1"),
        identify("", "u1"),
        alias(None, "u1"),
        {"event": "identity", "user_id": "u1", "anonymous_id": "a1"},
        {"event": "view", "user_id": "u1", "anonymous_id": "a1"},
    ],
)
def test_what_names_fewer_than_two_ids_or_is_another_event_links_nothing(row: Row) -> None:
    assert told([row]).merges() == []


def test_force_and_undo_are_the_operators_alone() -> None:
    users = [seen("u1"), seen("u2")]
    assert told([*users, alias("u1", "u2", force=True)]).merges()[0].state == "refused"
    merged = [*users, alias("u1", "u2", force=True, operator=True)]
    assert told(merged).merges() == [
        Merge(id=2, former="u1", into="u2", at=START + timedelta(seconds=2), kind="alias", state="active", forced=True)
    ]
    assert told([*merged, unmerge(2, operator=False)]).canonical_id("u1") == "u2"
    assert told([*merged, unmerge(2)]).canonical_id("u1") == "u1"


def test_an_undo_parts_what_its_merge_joined_and_the_clients_do_not_join_it_again() -> None:
    rows = [identify("a1", "u1"), seen("u2"), alias("u1", "u2", force=True, operator=True), identify("a2", "u1")]
    parted = told([*rows, unmerge(2)])
    assert (parted.ids_of("u1"), parted.ids_of("u2")) == (["u1", "a1", "a2"], ["u2"])

    again = told([*rows, unmerge(0), identify("a1", "u1")])
    assert again.ids_of("a1") == ["a1"]
    assert "parted by an operator" in again.merges(state="refused")[0].reason
    elsewhere = told([identify("a1", "u3")], again, 6)  # somebody else's now
    assert elsewhere.ids_of("a1") == ["u3", "a1"]
    assert told([alias("a1", "u1", operator=True)], again, 6).canonical_id("a1") == "u2"


def test_merges_are_paged_and_chosen() -> None:
    rows = [identify(f"a{n}", f"u{n % 3}") for n in range(10)]
    identity = told([*rows, identify("a1", "u2"), identify("a1", "u2")])
    assert [m.id for m in identity.merges(limit=3)] == [10, 9, 8]
    assert [m.id for m in identity.merges(before=8, limit=2)] == [7, 6]
    assert [m.id for m in identity.merges("a3")] == [9, 6, 3, 0]
    assert [m.id for m in identity.merges("u2", state="refused")] == [10]
    assert identity.merge(10).state == "refused"
    assert identity.merge(11) is None


def test_keys_that_nobody_has_named_stay_as_they_are() -> None:
    keys = visitor_keys(["x", "y"])
    assert Identity().canonical(keys).tolist() == told([identify("a1", "u1")]).canonical(keys).tolist() == keys.tolist()
    assert (keys & np.uint64(1)).all()
