"""A simulated shop: visits as a Markov chain in continuous time, with a daily rhythm, campaigns and slow checkouts.

Nothing here does any input or output, or knows the time: the same seed and start give the same events, whatever steps
the clock is moved in.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from analytics_core.demo.catalogue import (
    CAMPAIGNS,
    CHANNELS,
    COUNTRIES,
    DEVICES,
    HOURS,
    LANDING,
    LEAVE,
    PRODUCTS,
    SEARCHES,
    STEPS,
    WEEKDAYS,
    Product,
    events_per_visit,
)
from analytics_core.demo.episodes import Episodes

_WARM_UP: Final = 240.0
_KNOWN: Final = 3_000
_REMEMBERED: Final = 50_000
_SURGE: Final = (1.6, 2.6)
_SLOWDOWN: Final = (5.0, 9.0)
_PEAK: Final = max(HOURS) * max(WEEKDAYS) * _SURGE[1]

Weighted = Sequence[tuple[str, float]]


class Visitor(Struct):
    """``user`` is empty until the first sign-up."""

    anonymous: str
    user: str
    device: str
    country: str


class Visit(Struct):
    """One session in progress. ``user`` is empty until the visitor has signed in."""

    visitor: Visitor
    id: str
    channel: str
    context: dict[str, Any]
    step: str
    user: str = ""
    product: Product = PRODUCTS[0]
    items: int = 0
    value: float = 0.0


class Shop:
    """The shop from ``start`` on (aware; its zone is the shop's local time).

    ``rate``: events/s as the mean of a week; campaigns come on top. At ``start`` visits are in progress already.
    """

    def __init__(self, seed: int, start: datetime, rate: float = 200.0) -> None:
        self.start = start
        self._zone: tzinfo = start.tzinfo or UTC
        self._visits_per_second = rate / events_per_visit()
        self._rng = random.Random(f"shop {seed}")
        self._ids = random.Random(f"ids {seed} {start.astimezone(UTC).isoformat()}")
        self._incidents = Episodes(
            random.Random(f"incidents {seed}"),
            first=(150, 360),
            lasts=(120, 300),
            gap=(600, 2400),
            strength=_SLOWDOWN,
        )
        self._campaigns = Episodes(
            random.Random(f"campaigns {seed}"), first=(60, 180), lasts=(240, 600), gap=(900, 3600), strength=_SURGE
        )
        self._visitors = [
            self._visitor(self._rng, f"user-{number:06d}" if self._rng.random() < 0.6 else "")
            for number in range(_KNOWN)
        ]
        self._due: list[tuple[float, int, Visit]] = []
        self._arrivals = 0
        self._next_arrival = -_WARM_UP
        self._minute, self._share = math.nan, 1.0
        self._out: list[dict[str, Any]] = []
        self._run(0.0)

    def until(self, moment: datetime) -> list[dict[str, Any]]:
        """The events since the last call, in time order, as `POST /api/v1/events` takes them."""
        self._run((moment - self.start).total_seconds())
        events, self._out = self._out, []
        return events

    def slowdown(self, moment: datetime) -> float:
        """How many times slower than usual a checkout is then; 1 without an incident."""
        return self._slowdown((moment - self.start).total_seconds())

    def campaign(self, moment: datetime) -> str:
        """The source of the campaign that runs then, empty when none does."""
        episode = self._campaigns.at((moment - self.start).total_seconds())
        return CAMPAIGNS[episode.number % len(CAMPAIGNS)][0] if episode else ""

    # --- the clock

    def _run(self, upto: float) -> None:
        while (second := min(self._next_arrival, self._due[0][0] if self._due else math.inf)) < upto:
            if second == self._next_arrival:
                self._next_arrival += self._rng.expovariate(self._visits_per_second * _PEAK)
                self._arrive(second)
            else:
                self._advance(second, heapq.heappop(self._due)[2])

    def _arrive(self, second: float) -> None:
        """Thinning (Lewis and Shedler 1979): candidates come at the peak's rate, and some are turned away."""
        campaign = self._campaigns.at(second)
        surge = campaign.strength if campaign else 1.0
        if self._rng.random() * _PEAK > self._rhythm(second) * surge:
            return
        paid = campaign is not None and self._rng.random() < 1 - 1 / surge
        visit = self._visit(campaign.number if campaign and paid else None)
        self._advance(second, visit)

    def _rhythm(self, second: float) -> float:
        """Traffic relative to the week's mean, to the minute."""
        if second // 60 != self._minute:
            self._minute, self._share = second // 60, self._measure(second)
        return self._share

    def _measure(self, second: float) -> float:
        local = datetime.fromtimestamp(self.start.timestamp() + second, self._zone)
        part = local.minute / 60
        by_hour = HOURS[local.hour] * (1 - part) + HOURS[(local.hour + 1) % 24] * part
        return by_hour * WEEKDAYS[local.weekday()]

    def _slowdown(self, second: float) -> float:
        incident = self._incidents.at(second)
        return incident.strength if incident else 1.0

    # --- visitors

    def _visitor(self, rng: random.Random, user: str) -> Visitor:
        return Visitor(_uuid(rng), user, _pick(rng, DEVICES), _pick(rng, COUNTRIES))

    def _visit(self, campaign: int | None) -> Visit:
        rng = self._rng
        if rng.random() < 0.45:
            visitor = self._visitor(self._ids, "")
            if len(self._visitors) < _REMEMBERED:
                self._visitors.append(visitor)
            else:
                self._visitors[rng.randrange(_REMEMBERED)] = visitor
        else:
            visitor = self._visitors[rng.randrange(len(self._visitors))]
        channel = _pick(rng, CHANNELS)
        context: dict[str, Any] = {"device": visitor.device, "country": visitor.country}
        if campaign is not None:
            source, medium, name = CAMPAIGNS[campaign % len(CAMPAIGNS)]
            channel, context = source, {**context, "campaign": {"source": source, "medium": medium, "name": name}}
        self._arrivals += 1
        visit = Visit(visitor, _uuid(self._ids), channel, context, _pick(rng, LANDING))
        if visitor.user and rng.random() < 0.4:
            visit.user = visitor.user
        return visit

    # --- steps

    def _advance(self, second: float, visit: Visit) -> None:
        took = getattr(self, f"_{visit.step}")(second, visit)
        if self._rng.random() < 0.004:
            self._emit(second, visit, "error", message="Unhandled rejection", path=f"/{visit.step}", code="js")
        slowdown = self._slowdown(second)
        visit.step = self._next(visit, slowdown)
        if visit.step != LEAVE:
            pause = took + min(self._rng.lognormvariate(math.log(9), 0.8), 240)
            self._arrivals += 1
            heapq.heappush(self._due, (second + pause, self._arrivals, visit))

    def _next(self, visit: Visit, slowdown: float) -> str:
        if visit.step == "checkout" and slowdown > 1:  # who waits too long leaves or meets a timeout
            buys = 78 / (1 + 0.35 * (slowdown - 1))
            return _pick(
                self._rng, (("purchase", buys), ("failure", (92 - buys) * 0.6), (LEAVE, (92 - buys) * 0.4 + 8))
            )
        return _pick(self._rng, STEPS[visit.step])

    def _home(self, second: float, visit: Visit) -> float:
        return self._page(second, visit, "/")

    def _category(self, second: float, visit: Visit) -> float:
        visit.product = self._rng.choice(PRODUCTS)
        return self._page(second, visit, f"/c/{visit.product.category}")

    def _search(self, second: float, visit: Visit) -> float:
        self._emit(second, visit, "search", query=self._rng.choice(SEARCHES), results=self._rng.randrange(0, 40))
        return 0.0

    def _product(self, second: float, visit: Visit) -> float:
        product = visit.product = self._rng.choice(PRODUCTS)
        self._page(second, visit, f"/p/{product.id.lower()}")
        self._emit(second, visit, "product_view", **_facts(product))
        return 0.0

    def _add_to_cart(self, second: float, visit: Visit) -> float:
        quantity = 1 + (self._rng.random() < 0.18)
        visit.items += quantity
        visit.value = round(visit.value + quantity * visit.product.price, 2)
        self._emit(second, visit, "add_to_cart", quantity=quantity, **_facts(visit.product))
        return 0.0

    def _cart(self, second: float, visit: Visit) -> float:
        return self._page(second, visit, "/cart", items=visit.items, value=visit.value)

    def _checkout(self, second: float, visit: Visit) -> float:
        if not visit.user:
            visit.user = visit.visitor.user or f"user-{self._ids.getrandbits(40):010x}"
            self._emit(second, visit, "login" if visit.visitor.user else "sign_up", method="email")
            visit.visitor.user = visit.user
        duration = round(self._rng.lognormvariate(math.log(420), 0.35) * self._slowdown(second), 1)
        self._emit(second, visit, "checkout", duration=duration, items=visit.items, value=visit.value, path="/checkout")
        return duration / 1000

    def _failure(self, second: float, visit: Visit) -> float:
        code = "payment_timeout" if self._slowdown(second) > 1 else "payment_declined"
        self._emit(second, visit, "error", message="Payment failed", path="/checkout", code=code)
        return 0.0

    def _purchase(self, second: float, visit: Visit) -> float:
        order = f"order-{self._ids.getrandbits(48):012x}"
        self._emit(
            second, visit, "purchase", order_id=order, revenue=visit.value, currency="EUR", items=visit.items,
            channel=visit.channel, country=visit.visitor.country, device=visit.visitor.device,
        )  # fmt: skip
        visit.items, visit.value = 0, 0.0
        return 0.0

    def _page(self, second: float, visit: Visit, path: str, /, **more: Any) -> float:
        self._emit(second, visit, "page_view", path=path, channel=visit.channel, device=visit.visitor.device, **more)
        return 0.0

    def _emit(self, second: float, visit: Visit, name: str, /, **properties: Any) -> None:
        message_id = _uuid(self._ids)
        if second < 0:
            return
        at = (self.start + timedelta(seconds=second)).astimezone(UTC)
        event = {
            "event": name,
            "messageId": message_id,
            "anonymousId": visit.visitor.anonymous,
            "sessionId": visit.id,
            "timestamp": at.isoformat(timespec="milliseconds"),
            "properties": properties,
            "context": visit.context,
        }
        if visit.user:
            event["userId"] = visit.user
        self._out.append(event)


def _facts(product: Product) -> dict[str, Any]:
    return {
        "product_id": product.id,
        "name": product.name,
        "category": product.category,
        "price": product.price,
        "currency": "EUR",
    }


def _pick(rng: random.Random, weighted: Weighted) -> str:
    mark = rng.random() * sum(weight for _, weight in weighted)
    for name, weight in weighted:
        mark -= weight
        if mark < 0:
            return name
    return weighted[-1][0]


def _uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))
