"""How many people are in a cohort: over the API, by a plain reading of the events, and never an old answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_core.config import Settings
from analytics_core.errors import NotFoundError, ParameterError
from analytics_core.manifest import CohortManifest, Deployment, read_deployment
from analytics_core.queries.cohort_sizes import Asked, CohortSizes
from analytics_core.queries.cohorts import declared_cohorts
from analytics_core.queries.declarations import Declared
from tests.flow.api_house import AUTH, opened
from tests.flow.history_house import NOW, House

BUYERS = {"all": [{"did": {"event": "buy"}, "at_least": 2, "within": "60d"}]}
QUIET = {"all": [{"did_not": {"event": "buy"}}, {"has": {"properties.plan": ["pro", "free"]}}]}
ACME = Asked("acme")


class Behind:
    """`CohortSizes` of a house, with the cohorts that are ``declared`` now."""

    def __init__(self, directory: Path) -> None:
        self.house = House(directory)
        self.read = self.tenants = 0
        self.declare()
        self.sizes = CohortSizes(self.house.history, lambda: self.declared, clock=lambda: NOW)
        reader = self.house.history.reader

        def counted(*asked: Any, **given: Any) -> Any:
            self.read += 1
            return reader(*asked, **given)

        self.house.history.reader = counted  # type: ignore[method-assign]

    def declare(self, **definitions: Any) -> None:
        manifests = {
            name: msgspec.convert({"name": name, **definition}, CohortManifest)
            for name, definition in definitions.items()
        }
        deployment = Deployment(cohorts=manifests)
        nothing: Any = None
        self.declared = Declared(deployment, nothing, declared_cohorts(deployment))

    def post(self, *rows: tuple[str, str, float], tenant: str = "acme", **properties: Any) -> None:
        made = [
            {"event": name, "user_id": user, "timestamp": NOW - timedelta(days=days), "properties": properties}
            for name, user, days in rows
        ]
        if made:
            self.house.post(*made, tenant=tenant)

    def all(self, asked: Asked = ACME) -> dict[str, Any]:
        return asyncio.run(self.sizes.all(asked))

    def preview(self, definition: Any, asked: Asked = ACME) -> dict[str, Any]:
        return asyncio.run(self.sizes.preview(definition, asked))


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    made = Behind(tmp_path)
    yield made
    made.house.close()


def size(answer: dict[str, Any]) -> tuple[int, int, float | None]:
    return answer["people"], answer["active"], answer["share"]


def test_who_is_in_it_and_who_of_them_was_active(behind: Behind) -> None:
    behind.declare(buyers=BUYERS, quiet={**QUIET, "title": "Those who look"})
    behind.post(("buy", "ada", 1), ("buy", "ada", 2), ("buy", "bob", 50), ("buy", "bob", 59), ("buy", "cat", 70))
    behind.post(("view", "dan", 3), ("view", "eve", 40), plan="pro")
    behind.post(*[("buy", f"u{n}", days) for n in range(9) for days in (1, 2)], tenant="other")
    answer = behind.all()
    buyers, quiet = answer.pop("cohorts")
    span = {"start": (NOW - timedelta(days=30)).isoformat(), "end": NOW.isoformat()}
    as_of = {"data_as_of": NOW.isoformat(), "watermark": NOW.isoformat(), "notes": []}
    assert answer == {"note": None, "timeRange": span, "timezone": "UTC", **as_of}
    assert buyers == {
        "name": "buyers", "title": "buyers", "definition": BUYERS, "people": 2, "active": 1, "share": 0.5
    }  # fmt: skip
    assert (quiet["title"], quiet["definition"], size(quiet)) == ("Those who look", QUIET, (2, 1, 0.5))
    alone = asyncio.run(behind.sizes.one("buyers", ACME))
    assert alone == {**buyers, "timeRange": span, "timezone": "UTC", **as_of}
    assert size(behind.preview(BUYERS)) == (2, 1, 0.5)


def test_the_ends_of_the_range_are_when_people_are_in_it(behind: Behind) -> None:
    behind.post(("view", "ada", 20), ("buy", "ada", 5), ("view", "bob", 3))
    ended = Asked("acme", "Europe/Berlin", {"start": "2025-02-01", "end": "2025-02-15"})
    answer = behind.preview({"all": [{"did_not": {"event": "buy"}}]}, ended)
    assert size(answer) == (1, 1, 1.0), "bob was not there yet"
    assert answer["timeRange"]["end"] == answer["data_as_of"] == "2025-02-14T23:00:00+00:00"
    assert size(behind.preview(BUYERS, Asked("acme", "UTC", "1h"))) == (0, 0, None)


def test_what_nobody_has_sent_is_said(behind: Behind) -> None:
    behind.post(("purchase", "ada", 1), plan="pro")
    asked = {"all": [{"did": {"event": "purchse"}}, {"has": {"properties.plam": "pro"}}]}
    event, path = behind.preview(asked)["notes"]
    assert event == "no event is named 'purchse'; did you mean 'purchase'?"
    assert path.startswith("no 'properties.plam' in the")
    assert path.endswith("did you mean 'properties.plan'?")
    behind.declare(buyers=asked)
    assert behind.all()["notes"] == [event, path]


def test_what_a_reference_fills_in_is_text_like_any_other(behind: Behind, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    text = "kind: cohort\nname: on-plan\nall:\n- has: {properties.plan: '${PLAN}'}\n"
    (manifests / "cohorts.yaml").write_text(text)
    deployment = read_deployment(manifests, {"PLAN": "pro"})
    behind.declared = behind.declared._replace(deployment=deployment, cohorts=declared_cohorts(deployment))
    behind.post(("view", "ada", 1), plan="pro")
    (cohort,) = msgspec.json.decode(msgspec.json.encode(behind.all()))["cohorts"]
    assert (cohort["definition"], cohort["people"]) == ({"all": [{"has": {"properties.plan": "pro"}}]}, 1)


def test_none_is_declared_says_how(behind: Behind) -> None:
    answer = behind.all()
    assert answer["cohorts"] == []
    assert "kind: cohort" in answer["note"]
    assert "purchase" in answer["note"]
    with pytest.raises(NotFoundError, match="no cohort is named 'buyer'"):
        asyncio.run(behind.sizes.one("buyer", ACME))
    behind.declare(buyers=BUYERS)
    with pytest.raises(NotFoundError, match="did you mean 'buyers'"):
        asyncio.run(behind.sizes.one("buyer", ACME))


def test_an_answer_is_read_once_until_an_event_comes_or_another_cohort_is_declared(behind: Behind) -> None:
    behind.declare(buyers=BUYERS)
    behind.post(("buy", "ada", 1))

    async def together() -> list[dict[str, Any]]:
        return await asyncio.gather(*[behind.sizes.all(ACME) for _ in range(3)], behind.sizes.one("buyers", ACME))

    first = asyncio.run(together())
    assert behind.read == 1
    behind.post(("buy", "ada", 2))
    assert [answer["cohorts"][0]["people"] for answer in (first[0], behind.all())] == [0, 1]
    assert behind.read == 2
    behind.declare(buyers={"all": [{"did": {"event": "view"}}]})
    assert behind.all()["cohorts"][0]["people"] == 0
    assert behind.read == 3


@pytest.mark.parametrize(
    ("definition", "time_range", "said"),
    [
        ({"all": [{"did": {"event": "a"}, "within": "soon"}]}, "7d", "definition.all.*within: 'soon'"),
        ({"all": [{"has": {"plan": "pro"}}]}, "7d", "definition.*did you mean 'properties.plan'"),
        ({"all": []}, "7d", "definition.all: .*valid are 1 to 20"),
        (BUYERS, "soon", "timeRange: 'soon' is no span"),
    ],
)
def test_what_is_no_definition_or_range_is_refused(behind: Behind, definition: Any, time_range: str, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        behind.preview(definition, Asked("acme", "UTC", time_range))
    assert behind.read == 0


days = st.integers(0, 60).map(lambda n: n + 0.5)
histories = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("uvw"), days), max_size=10)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories, st.integers(1, 3), st.integers(1, 60), st.integers(1, 60))
def test_a_plain_reading_counts_the_same(
    behind: Behind, history: list[tuple[str, str, float]], often: int, within: int, last: int
) -> None:
    behind.tenants += 1
    tenant = f"t{behind.tenants}"
    behind.post(*history, tenant=tenant)
    definition = {"all": [{"did": {"event": "a"}, "at_least": often, "within": f"{within}d"}]}
    found = behind.preview(definition, Asked(tenant, "UTC", f"{last}d"))
    members = {
        user
        for user in "uvw"
        if sum(name == "a" and whose == user and ago <= within for name, whose, ago in history) >= often
    }
    seen = {user for _, user, ago in history if ago <= last}
    share = round(len(members & seen) / len(seen), 4) if seen else None
    assert size(found) == (len(members), len(members & seen), share)


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_requests_are_handed_on_with_the_tenants_zone() -> None:
    async def scenario() -> None:
        async with opened(Settings(auth=AUTH)) as house:

            async def ask(method: str, path: str, key: str, **given: Any) -> Any:
                answer = await house.ask(method, path, key, **given)
                assert answer.status == 200, answer.body
                return house.behind.asked.pop()

            berlin = "Europe/Berlin"
            assert await ask("GET", "/api/v1/cohorts", "acme-reader") == ("cohorts", Asked("acme", berlin, "30d"))
            path = "/api/v1/cohorts/buyers?timeRange=7d&timezone=Asia/Kolkata"
            assert await ask("GET", path, "acme-reader") == ("cohort", "buyers", Asked("acme", "Asia/Kolkata", "7d"))
            path = "/api/v1/cohorts?start=2025-01-01&end=2025-02-01"
            span = {"start": "2025-01-01", "end": "2025-02-01"}
            assert await ask("GET", path, "other-operator") == ("cohorts", Asked("other", "UTC", span))
            body = {**BUYERS, "timeRange": "7d"}
            assert await ask("POST", "/api/v1/cohorts/preview", "acme-reader", json=body) == (
                "preview", BUYERS, Asked("acme", berlin, "7d")
            )  # fmt: skip
            for body, said in (({}, "missing required field `all`"), ({"al": []}, "did you mean 'all'")):
                refused = await house.ask("POST", "/api/v1/cohorts/preview", "acme-reader", json=body)
                assert refused.status == 422
                assert said in refused.body["detail"]
            refused = await house.ask("GET", "/api/v1/cohorts?range=7d", "acme-reader")
            assert (refused.status, refused.body["parameter"]) == (422, "range")

    asyncio.run(scenario())
