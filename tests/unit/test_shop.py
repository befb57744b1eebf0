"""The simulated shop: deterministic, and with the statistical properties that make it worth looking at."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from zoneinfo import ZoneInfo

import msgspec
import pytest

from analytics_core.demo.catalogue import HOURS, STEPS, WEEKDAYS, events_per_visit
from analytics_core.demo.shop import Shop
from analytics_core.events import Event

WEDNESDAY = datetime(2025, 3, 12, tzinfo=UTC)


def of(shop: Shop, hours: float) -> list[dict]:
    return shop.until(shop.start + timedelta(hours=hours))


def at(event: dict) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


@pytest.fixture(scope="module")
def day() -> list[dict]:
    return of(Shop(5, WEDNESDAY, rate=0.5), 24)


@pytest.fixture(scope="module")
def busy() -> tuple[Shop, list[dict]]:
    shop = Shop(11, WEDNESDAY.replace(hour=12), rate=8)
    return shop, of(shop, 1.5)


def test_a_seed_and_a_start_give_the_same_events() -> None:
    assert of(Shop(3, WEDNESDAY, rate=5), 0.2) == of(Shop(3, WEDNESDAY, rate=5), 0.2)
    assert of(Shop(3, WEDNESDAY, rate=5), 0.2) != of(Shop(4, WEDNESDAY, rate=5), 0.2)


def test_the_steps_of_the_clock_change_nothing() -> None:
    stepped = Shop(3, WEDNESDAY, rate=5)
    pieces = [stepped.until(WEDNESDAY + timedelta(seconds=7.3 * step)) for step in range(1, 81)]
    assert [event for piece in pieces for event in piece] == Shop(3, WEDNESDAY, rate=5).until(
        WEDNESDAY + timedelta(seconds=7.3 * 80)
    )


def test_another_start_gives_other_ids_to_the_same_shop() -> None:
    """A second run with the same seed must not be taken for a repetition of the first."""
    first, second = (of(Shop(3, start, rate=5), 0.2) for start in (WEDNESDAY, WEDNESDAY + timedelta(minutes=5)))
    for key in ("messageId", "sessionId"):
        assert not {e[key] for e in first} & {e[key] for e in second}
    assert {e.get("userId") for e in first} & {e.get("userId") for e in second} > {None}


def test_events_are_what_the_server_takes_in_time_order_and_once(day: list[dict]) -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(day), type=list[Event])
    assert len({event.message_id for event in decoded}) == len(day)
    times = [at(event) for event in day]
    assert times == sorted(times)
    assert times[0] >= WEDNESDAY
    assert times[-1] < WEDNESDAY + timedelta(days=1)


def test_visits_are_in_progress_when_the_shop_opens(busy: tuple[Shop, list[dict]]) -> None:
    shop, events = busy
    first_minute = sum(at(event) < shop.start + timedelta(minutes=1) for event in events)
    assert first_minute > 0.6 * 8 * 60 * HOURS[12] * WEEKDAYS[2]


def test_traffic_follows_the_local_hour(day: list[dict]) -> None:
    hours = Counter(at(event).hour for event in day)
    evening, night = sum(hours[h] for h in (18, 19, 20, 21)), sum(hours[h] for h in (2, 3, 4, 5))
    assert 6 < evening / night < 25
    shifted = Counter(at(e).hour for e in of(Shop(5, datetime(2025, 3, 12, tzinfo=ZoneInfo("Asia/Tokyo")), 0.1), 24))
    assert sum(shifted[h] for h in (9, 10, 11, 12)) > 4 * sum(shifted[h] for h in (17, 18, 19, 20))


def test_the_rate_is_what_was_asked_for(day: list[dict]) -> None:
    """On a Wednesday, and with campaigns on top."""
    assert 0.9 * 0.5 * WEEKDAYS[2] < len(day) / 86_400 < 1.5 * 0.5 * WEEKDAYS[2]
    assert sum(HOURS) == pytest.approx(24)
    assert sum(WEEKDAYS) == pytest.approx(7)


def test_the_chain_is_a_chain(day: list[dict]) -> None:
    for step, after in STEPS.items():
        assert sum(weight for _, weight in after) == 100, step
        assert {name for name, _ in after} <= {*STEPS, "leave"}
    visits = len({event["sessionId"] for event in day})
    assert len(day) / visits == pytest.approx(events_per_visit(), rel=0.05)


def test_the_funnel_narrows_at_every_step(day: list[dict]) -> None:
    reached = [
        len({e["sessionId"] for e in day if e["event"] == name})
        for name in ("page_view", "product_view", "add_to_cart", "checkout", "purchase")
    ]
    assert all(wider > narrower > 0 for wider, narrower in pairwise(reached))
    assert 0.01 < reached[-1] / reached[0] < 0.1


def test_a_visit_is_of_one_visitor_who_may_become_known(day: list[dict]) -> None:
    visits: dict[str, list[dict]] = {}
    for event in day:
        visits.setdefault(event["sessionId"], []).append(event)
    became_known = 0
    for events in visits.values():
        assert len({e["anonymousId"] for e in events}) == 1
        known = ["userId" in e for e in events]
        assert known == sorted(known), "a user who has signed in stays signed in"
        assert len({e["userId"] for e in events if "userId" in e}) <= 1
        became_known += known[-1] and not known[0]
    assert became_known > 20
    bought = [e for e in day if e["event"] == "purchase"]
    assert all("userId" in e for e in bought)


def test_purchases_carry_the_value_of_what_was_put_in_the_cart(day: list[dict]) -> None:
    carts: Counter[str] = Counter()
    for event in day:
        facts = event["properties"]
        if event["event"] == "add_to_cart":
            carts[event["sessionId"]] += round(facts["quantity"] * facts["price"] * 100)
        if event["event"] == "purchase" and event["timestamp"] > "2025-03-12T01":  # its cart began inside the day
            assert round(facts["revenue"] * 100) == carts.pop(event["sessionId"])
            assert facts["currency"] == "EUR"


def test_checkouts_slow_down_for_minutes_and_fewer_buy(busy: tuple[Shop, list[dict]]) -> None:
    shop, events = busy
    times: dict[bool, list[float]] = {True: [], False: []}
    orders: Counter[bool] = Counter()
    for event in events:
        slow = shop.slowdown(at(event)) > 1
        if event["event"] == "checkout":
            times[slow].append(event["properties"]["duration"])
        orders[slow] += event["event"] == "purchase"
    assert median(times[True]) > 4 * median(times[False])
    assert 300 < median(times[False]) < 600
    assert orders[True] / len(times[True]) < 0.7 * orders[False] / len(times[False])
    minutes = [shop.slowdown(shop.start + timedelta(minutes=m)) > 1 for m in range(90)]
    assert 2 <= sum(minutes) <= 45


def test_a_campaign_brings_visitors_of_its_source_for_a_while(busy: tuple[Shop, list[dict]]) -> None:
    shop, events = busy
    running = {m: shop.campaign(shop.start + timedelta(minutes=m)) for m in range(90)}
    assert {source for source in running.values() if source}
    assert not all(running.values())
    per_minute = Counter(int((at(e) - shop.start).total_seconds() // 60) for e in events if e["event"] == "page_view")
    on = [per_minute[m] for m in range(90) if running[m]]
    off = [per_minute[m] for m in range(90) if not running[m]]
    assert sum(on) / len(on) > 1.2 * sum(off) / len(off)
    tagged = [e for e in events if "campaign" in e["context"]]
    assert tagged
    sources = {source for source in running.values() if source}
    assert {e["context"]["campaign"]["source"] for e in tagged} <= sources
