"""Cohorts: who is in one, by a plain reading of its definition; and every question about those people alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import ManifestError, ParameterError
from analytics_core.lake.user_order import visitor_keys
from analytics_core.manifest import CohortCondition, CohortManifest, Deployment
from analytics_core.manifest.source import Source
from analytics_core.queries.cohorts import declared_cohorts, read_cohort
from analytics_core.queries.filters import parse_filters
from analytics_core.records import TimeRange
from analytics_core.testing import MemoryReader, batch

NOW = datetime(2025, 1, 10, tzinfo=UTC)
ASKED = TimeRange(NOW - timedelta(days=3), NOW)
BUYERS = {"all": [{"did": {"event": "buy"}, "at_least": 2, "within": "7d"}, {"did_not": {"event": "complain"}}]}


def reader(rows: list[dict[str, Any]], cohort: Any) -> MemoryReader:
    return MemoryReader([batch(rows)], ASKED, cohort=read_cohort(cohort, {}))


def people(rows: list[dict[str, Any]], cohort: Any) -> set[str]:
    """Whose events a question is given, by SQL and in user order, which must agree."""
    with reader(rows, cohort) as asked:
        found = set(asked.sql("SELECT DISTINCT user_id FROM events")["user_id"].to_pylist())
        keys = {key for part in asked.in_user_order(lambda part: part.key.tolist()) for key in part}
        assert keys == set(visitor_keys(sorted(found)).tolist())
    return found


def event(name: str, user: str, days: float = 1, **properties: Any) -> dict[str, Any]:
    return {"event": name, "user_id": user, "timestamp": NOW - timedelta(days=days), "properties": properties}


def test_who_did_it_often_enough_and_not_the_other() -> None:
    rows = [
        *(event("buy", "twice", days) for days in (1, 5)),
        *(event("buy", "long ago", days) for days in (1, 8)),
        *(event("buy", "angry", days) for days in (1, 2)),
        event("complain", "angry", 9),
        event("buy", "once"),
    ]
    assert people(rows, BUYERS) == {"twice"}


def test_the_latest_value_counts() -> None:
    rows = [
        event("view", "went", 3, plan="free"),
        event("view", "went", 2, plan="pro"),
        event("view", "went", 1),
        event("view", "came back", 3, plan="pro"),
        event("view", "came back", 2, plan="free"),
        event("view", "nothing", 1),
    ]
    assert people(rows, {"all": [{"has": {"properties.plan": "pro"}}]}) == {"went"}
    assert people(rows, {"all": [{"has": {"properties.plan": ["pro", "free"]}}]}) == {"went", "came back"}


def test_the_questions_filters_say_what_counts_and_not_who() -> None:
    rows = [event("buy", "a", 2), event("view", "a", 1), event("view", "b", 1)]
    cohort = read_cohort({"all": [{"did": {"event": "buy"}}]}, {})
    with MemoryReader([batch(rows)], ASKED, cohort=cohort, filters=parse_filters({"event": "view"})) as asked:
        assert asked.sql("SELECT name, user_id FROM events").to_pylist() == [{"name": "view", "user_id": "a"}]
        assert asked.in_user_order(len) == [1]


def test_nobody_is_in_a_cohort_without_members() -> None:
    assert people([event("view", "a")], {"all": [{"did": {"event": "buy"}}]}) == set()


def test_a_session_of_nobody_is_in_no_cohort() -> None:
    rows = [{**event("view", "a"), "user_id": None, "session_id": "s"}, event("view", "b")]
    with reader(rows, {"all": [{"did": {"event": "view"}}]}) as asked:
        assert asked.sql("SELECT user_id FROM events")["user_id"].to_pylist() == ["b"]


did = st.fixed_dictionaries(
    {"did": st.fixed_dictionaries({"event": st.sampled_from("ab")}), "at_least": st.integers(1, 3)},
    optional={"within": st.sampled_from(["1d", "2d", "9d"])},
)
conditions = st.lists(
    st.one_of(did, did.map(lambda c: {"did_not" if key == "did" else key: value for key, value in c.items()})),
    min_size=1,
    max_size=3,
)
histories = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["u", "v"]), st.integers(0, 40)), max_size=12)


@settings(max_examples=25)
@given(histories, conditions)
def test_members_are_those_of_a_plain_reading(history: list[tuple[str, str, int]], asked: list[dict[str, Any]]) -> None:
    rows = [event(name, user, quarters / 4) for name, user, quarters in history]

    def holds(user: str, condition: dict[str, Any]) -> bool:
        within = timedelta(days=int(condition.get("within", "99d")[:-1]))
        kind = "did" if "did" in condition else "did_not"
        times = sum(
            row["user_id"] == user
            and row["event"] == condition[kind]["event"]
            and NOW - within <= row["timestamp"] < NOW
            for row in rows
        )
        return (times >= condition["at_least"]) == (kind == "did")

    seen = {row["user_id"] for row in rows if ASKED.start <= row["timestamp"] < ASKED.end}
    assert people(rows, {"all": asked}) == {user for user in seen if all(holds(user, c) for c in asked)}


@pytest.mark.parametrize(
    ("cohort", "said"),
    [
        ("buyer", "did you mean 'buyers'"),
        (3, "valid are a name and"),
        ([], "valid are a name and"),
        ({}, "the key 'all' is missing"),
        ({"all": []}, "valid are 1 to 20"),
        ({"all": [{"did": {"evnt": "a"}}]}, "cohort.all[0].did.evnt: the key is not known; did you mean 'event'?"),
        ({"all": [{"did": {"event": "a"}, "atLeast": 2}]}, "did you mean 'at_least'?"),
        (
            {"all": [{"did": {"event": "a", "where": {"event": "b"}}}]},
            "all[0].did.where.event: names the event a second",
        ),
        ({"all": [{"has": {}}]}, "cohort.all[0].has: is empty"),
        ({"all": [{}]}, "exactly one of 'did', 'did_not' and 'has'; it has none"),
        ({"all": [{"did": {"event": "a"}, "has": {"properties.x": 1}}]}, "it has did and has"),
        ({"all": [{"did": {"event": "a"}, "within": "soon"}]}, "within"),
        ({"all": [{"did": {"event": "a"}, "at_least": 0}]}, "at_least"),
        ({"all": [{"has": {"plan": "pro"}}]}, "did you mean 'properties.plan'"),
        ({"all": [{"has": {"properties.plan": "pro"}, "at_least": 2}]}, "is for 'did' and 'did_not'"),
    ],
)
def test_a_cohort_that_is_none_says_why(cohort: Any, said: str) -> None:
    with pytest.raises(ParameterError, match="cohort") as refused:
        read_cohort(cohort, {"buyers": read_cohort(BUYERS, {})})
    assert said in str(refused.value)


def test_a_manifest_whose_filter_is_none_is_refused_with_its_file() -> None:
    condition = msgspec.convert({"has": {"plan": "pro"}}, CohortCondition)
    where = Source("manifests/pros.yaml", {("all",): 3})
    deployment = Deployment(
        cohorts={"pros": CohortManifest(name="pros", all=(condition,))}, sources={("cohort", "pros"): where}
    )
    with pytest.raises(ManifestError, match=r"manifests/pros.yaml.*did you mean 'properties.plan'.*line 3"):
        declared_cohorts(deployment)
