"""Who is who over a real log and lake: read as it grows, rebuilt when events vanish, in SQL, and by operators."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from analytics_core.errors import MergeRefusedError, NotFoundError, ParameterError
from analytics_core.events import Event
from analytics_core.events.owners import Owners
from analytics_core.log.tombstones import Tombstone
from analytics_core.queries.history import History
from analytics_core.queries.identity.links import OPERATOR
from analytics_core.queries.identity.merging import Merging
from analytics_core.records import Outcome, TimeRange
from tests.flow.history_house import NOW, House


def identify(anonymous: str, user: str) -> dict[str, Any]:
    return {"event": "identify", "anonymous_id": anonymous, "user_id": user}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def test_it_grows_with_the_log_before_and_after_events_go_to_the_lake(house: House) -> None:
    who = house.history.identities
    house.post({"event": "view", "anonymous_id": "a1"}, {"event": "view", "user_id": "u9"})
    assert who.ids_of("default", "a1") == ["a1"]
    house.post(identify("a1", "u1"))
    assert who.ids_of("default", "a1") == ["u1", "a1"]
    house.store_all()
    house.post(identify("a2", "u1"), identify("u9", "u1"))  # u9 is known from before the first link
    house.store_all(upto=4)
    house.post(identify("a3", "u1"))
    assert who.ids_of("default", "u1") == ["u1", "a1", "a2", "a3"]
    house.store_all()
    house.log.trim(house.store.position)
    assert who.ids_of("default", "u1") == ["u1", "a1", "a2", "a3"]
    anew = History(house.log, house.store).identities.now("default")
    assert anew.merges() == who.now("default").merges()
    assert [merge.state for merge in anew.merges()] == ["active", "refused", "active", "active"]


def test_nothing_is_read_while_nothing_changes_and_tenants_are_apart(house: House) -> None:
    house.post(identify("a1", "u1"))
    house.post(identify("a1", "other"), tenant="acme")
    who = house.history.identities
    first = who.now("default")
    house.history.reader = None  # type: ignore[method-assign,assignment]
    assert who.now("default") is first
    assert History(house.log, house.store).identities.ids_of("acme", "a1") == ["other", "a1"]


def test_links_that_are_erased_are_gone_at_once(house: House) -> None:
    erased: list[Tombstone] = []
    history = History(house.log, house.store, erased=lambda: erased)
    house.post(identify("a1", "u1"), identify("a2", "u2"))
    assert history.identities.ids_of("default", "a1") == ["u1", "a1"]
    erased.append(Tombstone(position=2, tenant="default", owners=Owners(("u1", "a1")), key="k", at=0))
    assert history.identities.ids_of("default", "a1") == ["a1"]
    house.post(identify("a3", "u2"))
    assert history.identities.ids_of("default", "u2") == ["u2", "a2", "a3"]


def test_what_another_user_claimed_of_an_erased_one_is_gone_and_joins_nobody(house: House) -> None:
    erased: list[Tombstone] = []
    history = History(house.log, house.store, erased=lambda: erased)
    said = {"event": "alias", "user_id": "bob", "properties": {"previousId": "ada"}}
    house.post({"event": "view", "user_id": "ada"}, {"event": "view", "user_id": "bob"}, said)
    assert [merge.state for merge in history.identities.now("default").merges()] == ["refused"]
    erased.append(Tombstone(position=3, tenant="default", owners=Owners(("ada",)), key="k", at=0))
    assert history.identities.now("default").merges() == []
    assert history.identities.ids_of("default", "ada") == ["ada"]


def test_sql_counts_people_whatever_the_range_of_the_question(house: House) -> None:
    house.post(
        identify("a1", "u1"), *[{"event": "view", "anonymous_id": a} for a in ("a1", "a1", "a2")], {"event": "x"}
    )
    late = TimeRange(NOW, NOW.replace(year=2030))
    with house.history.reader("default", TimeRange(NOW.replace(second=1), late.end)) as reader:
        rows = "SELECT person, count(*) AS n FROM Person_Events GROUP BY ALL ORDER BY ALL NULLS LAST"
        people = [{"person": "a2", "n": 1}, {"person": "u1", "n": 2}, {"person": None, "n": 1}]
        assert reader.sql(rows).to_pylist() == people
        with pickle.loads(pickle.dumps(reader.to_spec())).open() as there:  # in a plugin's process
            assert there.sql(rows).to_pylist() == people
        assert "person" not in reader.sql("SELECT * FROM events").column_names


class Operator:
    """`Merging` over the house; what it accepts is in the log as the intake would have it."""

    def __init__(self, house: House, *, enriched: bool = False) -> None:
        self.house = house
        self.enriched = enriched
        self.asks = Merging(self.accept, house.history.identities, house.history.reader)

    async def accept(self, events: Sequence[Event], *, tenant: str, source: str) -> Outcome:
        for event in events:
            properties = "{}" if self.enriched else bytes(event.properties).decode()
            ids = {"user_id": event.user_id, "anonymous_id": event.anonymous_id}
            self.house.post({"event": event.name, "properties": properties, "source": source, **ids}, tenant=tenant)
        return Outcome(accepted=len(events))

    def merge(self, former: str, into: str, **given: Any) -> Any:
        return asyncio.run(self.asks.merge("default", former, into, **given))

    def undo(self, id_: int) -> Any:
        return asyncio.run(self.asks.undo("default", id_))


def test_an_operator_merges_two_users_by_force_and_undoes_it(house: House) -> None:
    operator = Operator(house)
    said = {"event": "alias", "user_id": "u2", "properties": {"previousId": "u1", "force": True}}
    house.post(identify("a1", "u1"), {"event": "view", "user_id": "u2"}, said)
    with pytest.raises(MergeRefusedError, match="'u1' and 'u2' are both known users") as refused:
        operator.merge("u1", "u2")
    assert refused.value.extensions() == {"from": "u1", "into": "u2"}
    assert house.log.durable == 3  # nothing was written
    merge = operator.merge("u1", "u2", force=True)
    assert (merge.state, merge.forced) == ("active", True)
    person = operator.asks.person("default", "a1")
    assert (person.user, person.ids, person.events) == ("u2", ["u2", "a1", "u1"], 4)
    assert (person.first_seen, [m.id for m in person.merges]) == (NOW, [3, 2, 0])
    with pytest.raises(MergeRefusedError, match="'a1' and 'u1' are one person already, 'u2'"):
        operator.merge("a1", "u1")

    assert operator.undo(merge.id).state == "undone"
    assert operator.asks.person("default", "a1").ids == ["u1", "a1"]
    with pytest.raises(MergeRefusedError, match="merge 3 is undone"):
        operator.undo(merge.id)
    with pytest.raises(MergeRefusedError, match="both known users"):  # as before, and although it was told before
        operator.merge("u1", "u2")
    again = operator.merge("u1", "u2", force=True)
    assert [m.id for m in operator.asks.merges("default", state="active")] == [again.id, 0]
    (asked,) = [row for row in house.history.page("default")["rows"] if row["seq"] == again.id]
    assert (asked["source"], asked["anonymousId"]) == (OPERATOR, "u1")  # where an erasure of u1 finds it


def test_what_an_enriching_plugin_has_changed_is_told(house: House) -> None:
    operator = Operator(house, enriched=True)
    merge = operator.merge("a1", "u1")  # the former id is still in its column
    with pytest.raises(MergeRefusedError, match="a plugin that enriches events has dropped or changed it"):
        operator.undo(merge.id)


def test_what_does_not_exist_or_is_no_id_is_said(house: House) -> None:
    operator = Operator(house)
    house.post({"event": "view", "user_id": "u1"})
    assert operator.asks.person("default", "u1").ids == ["u1"]
    with pytest.raises(NotFoundError, match="no user is named 'u7'"):
        operator.asks.person("default", "u7")
    with pytest.raises(NotFoundError, match="no merge is named '7'"):
        operator.undo(7)
    for former, into, said in (
        ("", "u1", "from: '' is no id"),
        ("u1", "u1", "into: is 'u1'"),
        ("u" * 513, "u1", "is no id; valid are 1 to 512 bytes"),
    ):
        with pytest.raises(ParameterError, match=said):
            operator.merge(former, into)
    with pytest.raises(ParameterError, match="limit: 0 is outside"):
        operator.asks.merges("default", limit=0)
