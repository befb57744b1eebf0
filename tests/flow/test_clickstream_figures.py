"""The documented questions over a clickstream, each figure checked by a computation that shares nothing with ours.

Once over a synthetic shop of the same shape, and over the real export where it lies beside the checkout.
"""

from __future__ import annotations

import csv
import gzip
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from analytics_core import Answer, Question
from analytics_core.testing import MemoryReader, batch, started
from analytics_user_behavior.plugin import UserBehavior

ECOM = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "clickstream" / "ecom.csv.gz"
FUNNEL = ("catalog", "product_view", "add_to_cart", "purchase")
WINDOW = timedelta(days=1)
GAP = timedelta(minutes=30)
ZONE = ZoneInfo("Europe/Berlin")

Row = dict[str, Any]


def synthetic() -> list[Row]:
    """About 6 000 events of 150 visitors from February to April 2024, every third visitor without session ids."""
    draw = random.Random(20240210)
    pages = ["home", "catalog", "product_view", "search", "add_to_cart", "cart", "purchase", "support_chat"]
    weights = [8, 18, 20, 12, 6, 4, 3, 1]
    rows = []
    for visitor in range(150):
        at = datetime(2024, 2, 10, tzinfo=UTC) + timedelta(minutes=draw.uniform(0, 30 * 1440))
        for visit in range(draw.randint(1, 9)):
            for _ in range(1 + int(draw.expovariate(0.2))):
                rows.append(
                    {
                        "user_id": f"user_{visitor:04d}",
                        "session_id": f"sess_{visitor}_{visit}" if visitor % 3 else None,
                        "event": draw.choices(pages, weights)[0],
                        "timestamp": at.replace(microsecond=0),
                        "properties": {"platform": draw.choice(["desktop", "ios", "android"])},
                    }
                )
                at += timedelta(seconds=draw.choice([0, draw.expovariate(1 / 60), draw.expovariate(1 / 600)]))
            at += timedelta(minutes=draw.choice([31, 45, 300, 1440 * draw.uniform(0.5, 14)]))
    draw.shuffle(rows)
    return rows


def real() -> list[Row]:
    if not ECOM.exists():
        pytest.skip(f"{ECOM} is absent: the export is not part of the project")
    with gzip.open(ECOM, "rt", newline="") as file:
        return [
            {
                "user_id": row["user_id"],
                "session_id": row["session_id"],
                "event": row["event"],
                "timestamp": datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC),
                "properties": {"platform": row["platform"]},
            }
            for row in csv.DictReader(file)
        ]


class Stream:
    """The rows in user order for the reference, and a reader over the same rows for the plugin."""

    def __init__(self, rows: list[Row], reader: MemoryReader) -> None:
        self._reader = reader
        self.by_user: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["timestamp"]):  # stable: ties stay in log order
            self.by_user[row["user_id"]].append(row)

    def ask(self, analysis: str, **parameters: Any) -> Answer:
        question = Question(analysis=analysis, tenant="default", range=self._reader.range, parameters=parameters)
        return started(UserBehavior).insight(question, self._reader)


@pytest.fixture(scope="module", params=["synthetic", pytest.param("real", marks=pytest.mark.shared)])
def stream(request: pytest.FixtureRequest) -> Iterator[Stream]:
    rows = synthetic() if request.param == "synthetic" else real()
    with MemoryReader([batch(rows)], timezone=ZONE.key) as reader:
        yield Stream(rows, reader)


def local_day(row: Row) -> date:
    return row["timestamp"].astimezone(ZONE).date()


def visits(rows: list[Row]) -> list[list[Row]]:
    """The sessions of one visitor, event by event."""
    named: dict[str, list[Row]] = defaultdict(list)
    unnamed: list[list[Row]] = []
    for row in rows:
        if row["session_id"]:
            named[row["session_id"]].append(row)
        elif unnamed and row["timestamp"] - unnamed[-1][-1]["timestamp"] <= GAP:
            unnamed[-1].append(row)
        else:
            unnamed.append([row])
    return [*named.values(), *unnamed]


def test_sessions_per_day(stream: Stream) -> None:
    expected: dict[date, list[list[Row]]] = defaultdict(list)
    for rows in stream.by_user.values():
        for visit in visits(rows):
            expected[local_day(visit[0])].append(visit)
    days = {local_day(row) for rows in stream.by_user.values() for row in rows}
    table = stream.ask("sessions").table.to_pylist()
    assert [row["day"] for row in table] == [
        min(days) + timedelta(days=n) for n in range((max(days) - min(days)).days + 1)
    ]
    for row in table:
        found = expected.get(row["day"], [])
        assert row["sessions"] == len(found)
        assert row["users"] == len({visit[0]["user_id"] for visit in found})
        if not found:
            assert row["median_duration"] is None
            continue
        seconds = [(visit[-1]["timestamp"] - visit[0]["timestamp"]).total_seconds() for visit in found]
        assert row["median_duration"] == pytest.approx(statistics.median(seconds))
        assert row["mean_duration"] == pytest.approx(statistics.fmean(seconds))
        assert row["p90_duration"] == pytest.approx(percentile(seconds, 0.9))
        assert row["events_per_session"] == pytest.approx(sum(map(len, found)) / len(found))
        assert row["bounce_rate"] == pytest.approx(sum(len(visit) == 1 for visit in found) / len(found))


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def test_engagement_per_day(stream: Stream) -> None:
    days = {user: {local_day(row) for row in rows} for user, rows in stream.by_user.items()}
    active: dict[date, set[str]] = defaultdict(set)
    for user, own in days.items():
        for day in own:
            active[day].add(user)
    for row in stream.ask("engagement").table.to_pylist():
        day = row["day"]
        week, month = (
            set().union(*(active.get(day - timedelta(days=n), set()) for n in range(width))) for width in (7, 30)
        )
        today = active.get(day, set())
        assert (row["dau"], row["wau"], row["mau"]) == (len(today), len(week), len(month))
        assert row["stickiness"] == (pytest.approx(len(today) / len(month)) if month else None)
        assert row["new"] == sum(min(days[user]) == day for user in today)
        assert row["returning"] == len(today) - row["new"]


def test_weekly_retention(stream: Stream) -> None:
    def week(row: Row) -> date:
        day = local_day(row)
        return day - timedelta(days=day.weekday())

    weeks = {user: [week(row) for row in rows] for user, rows in stream.by_user.items()}
    asked = {"period": "week", "cohorts": "first-time", "kind": "on", "periods": 6, "weekStart": "monday"}
    table = [row for row in stream.ask("retention", **asked).table.to_pylist() if row["cohort"]]
    assert sum(row["users"] for row in table if row["period"] == 0) == len(weeks)
    assert any(row["retention"] for row in table if row["period"] > 0)
    for row in table:
        cohort = [own for own in weeks.values() if own[0] == row["cohort"]]
        assert row["users"] == len(cohort)
        assert row["returned"] == sum(row["cohort"] + timedelta(weeks=row["period"]) in own for own in cohort)


def test_the_lifecycle_of_weeks(stream: Stream) -> None:
    days = {user: {local_day(row) for row in rows} for user, rows in stream.by_user.items()}
    before: set[str] = set()
    for row in stream.ask("lifecycle", period="week", weekStart="monday").table.to_pylist():
        begins = row["begins"]
        now = {user for user, own in days.items() if any(0 <= (day - begins).days < 7 for day in own)}
        new = {user for user in now if 0 <= (min(days[user]) - begins).days < 7}
        assert (row["active"], row["new"], row["returning"]) == (len(now), len(new), len(now & before))
        assert row["resurrecting"] == len(now - before - new)
        assert row["dormant"] == (len(before - now) if row["complete"] else None)
        before = now


@pytest.mark.parametrize("where", [{}, {"properties.platform": "desktop"}], ids=["all", "desktop"])
def test_funnel(stream: Stream, where: dict[str, str]) -> None:
    platform = where.get("properties.platform")
    users: Counter[int] = Counter()
    for rows in stream.by_user.values():
        fitting = [row for row in rows if platform in (None, row["properties"]["platform"])]
        users.update(range(deepest(fitting)))
    steps = [{"event": name, "where": where} for name in FUNNEL]
    answer = stream.ask("funnel", steps=steps, window="1d")
    table = answer.table.to_pylist()
    expected = [users[k] for k in range(len(FUNNEL))]
    assert [row["users"] for row in table] == expected
    assert expected[-1] > 0, "a funnel that nobody finishes would show little"
    assert [row["conversion_from_start"] for row in table] == pytest.approx([n / expected[0] for n in expected])
    lost = [a - b - row["open"] for (a, b), row in zip(pairwise(expected), table, strict=False)]
    assert [row["dropped"] for row in table[:-1]] == lost
    worst = lost.index(max(lost))
    assert answer.insights[0].data["lost"] == lost[worst]
    assert answer.insights[0].data["from"] == FUNNEL[worst]


def deepest(rows: list[Row]) -> int:
    """How many steps the visitor got to: from every begin go greedily to the earliest next step inside the window."""
    best = 0
    for first, row in enumerate(rows):
        if row["event"] != FUNNEL[0]:
            continue
        step = 1
        for later in rows[first + 1 :]:
            if later["timestamp"] - row["timestamp"] > WINDOW or step == len(FUNNEL):
                break
            step += later["event"] == FUNNEL[step]
        best = max(best, step)
    return best
