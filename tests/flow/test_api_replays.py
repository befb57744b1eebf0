"""Replays over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from analytics_core.api.plugin_replays import since_of
from analytics_core.config import Settings
from analytics_core.errors import ParameterError, ReplayError
from tests.flow.api_house import AUTH, opened

PATH = "/api/v1/plugins/user-behavior/replays"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_replay_over_http() -> None:
    async def scenario() -> None:
        async with opened(Settings(auth=AUTH)) as house:
            begun = await house.ask("POST", PATH, "acme-operator", json={"since": "2025-01-02"})
            assert (begun.status, begun.body["id"]) == (202, "acme-1")
            assert house.behind.asked == [("begin", "user-behavior", datetime(2025, 1, 2, tzinfo=UTC))]
            seen = await house.ask("GET", f"{PATH}/acme-1", "acme-operator")
            assert seen.body["difference"]["equal"] is True
            assert (await house.ask("GET", PATH, "acme-operator")).body == {"replays": [seen.body]}
            switched = await house.ask("POST", f"{PATH}/acme-1/switch", "acme-operator")
            assert (switched.status, switched.body["state"]) == (200, "switched")
            gone = await house.ask("DELETE", f"{PATH}/acme-1", "acme-operator")
            assert (gone.status, gone.body["state"]) == (200, "discarded")
            assert house.behind.asked[1:] == [
                ("switch to", "user-behavior", "acme-1"),
                ("discard", "user-behavior", "acme-1"),
            ]

    asyncio.run(scenario())


def test_refusals_are_problems() -> None:
    async def scenario() -> None:
        async with opened(Settings(auth=AUTH)) as house:
            unknown = await house.ask("GET", f"{PATH}/acme-2", "acme-operator")
            assert (unknown.status, unknown.body["detail"]) == (
                404,
                "no replay of 'user-behavior' is named 'acme-2'; did you mean 'acme-1'?",
            )
            strange = await house.ask("GET", PATH.replace("behavior", "behaviour"), "acme-operator")
            assert (strange.status, strange.body["detail"]) == (
                404,
                "no plugin is named 'user-behaviour'; did you mean 'user-behavior'?",
            )
            for body, said in (
                (
                    {"since": "banana"},
                    "since: 'banana' is no past time; valid are a span such as '30d' or '12w', a date",
                ),
                ({"sinse": "30d"}, "sinse: is not known here; did you mean 'since'?"),
                ({"every": "30d"}, "every: is not known here; valid are: since"),
            ):
                bad = await house.ask("POST", PATH, "acme-operator", json=body)
                assert (bad.status, bad.body["detail"][: len(said)]) == (422, said)
            house.behind.fail = ReplayError("shop", "replay 1 is ready")
            twice = await house.ask("POST", PATH, "acme-operator", json={})
            assert (twice.status, twice.body["title"]) == (409, "Replay not possible")
            for method in ("POST", "GET"):
                assert (await house.ask(method, PATH, "acme-writer", json={})).status == 403

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("given", "since"),
    [
        (None, None),
        ("30d", NOW - timedelta(days=30)),
        ("12h", NOW - timedelta(hours=12)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T06:00:00+02:00", datetime(2026, 1, 1, 4, tzinfo=UTC)),
        ("2026-01-01T06:00:00Z", datetime(2026, 1, 1, 6, tzinfo=UTC)),
    ],
)
def test_since_is_a_span_a_date_or_a_time(given: str | None, since: datetime | None) -> None:
    assert since_of(given, NOW) == since


@pytest.mark.parametrize("given", ["", "d", "30 days", "0d", "last week", "2027-01-01", "1900-01-01"])
def test_what_is_no_past_time_is_refused(given: str) -> None:
    with pytest.raises(ParameterError, match="since"):
        since_of(given, NOW)
