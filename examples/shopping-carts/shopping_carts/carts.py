"""The carts of one tenant: what happens to them, and what is counted of it.

Time is the tenant's own clock in microseconds: the running maximum of ``received_at`` in log order, or the watermark of
an empty batch. A cart is abandoned when the clock reaches the end of its wait, and counts in that minute whenever that
is noticed, so the same events give the same figures however they are split into batches.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from analytics_core import Metric, Window

MINUTE: Final = 60_000_000


@dataclass(frozen=True)
class Limits:
    """``wait``: microseconds after which an untouched cart is abandoned. ``most``: open carts of one tenant."""

    wait: int
    most: int


@dataclass
class Cart:
    """``cents`` is what the items cost, ``touched`` the clock's time when the visitor last changed it."""

    items: int = 0
    cents: int = 0
    touched: int = 0


class Carts:
    """The open carts by visitor, the one that was touched longest ago first, and the totals of the latest minute.

    No earlier minute can change any more: every cart whose wait ended before ``clock`` has been counted.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.clock = 0
        self.open: OrderedDict[str, Cart] = OrderedDict()
        self.minute = 0
        self.totals: Counter[str] = Counter()
        self._changed: dict[tuple[str, int], int] = {}

    def reach(self, clock: int) -> None:
        """Let time pass, and give up the carts whose wait ends on the way."""
        while self.open and (due := next(iter(self.open.values())).touched + self.limits.wait) <= clock:
            self._abandon(max(due, self.clock))  # a shorter wait since the last generation ends now, not in the past
        self.clock = max(self.clock, clock)

    def add(self, who: str, items: int, cents: int) -> None:
        if who not in self.open:
            self.open[who] = Cart()
            self._count("opened", 1, self.clock)
        self._touch(who, items, cents)
        self._count("items", items, self.clock)
        self._count("added_value", cents, self.clock)
        while len(self.open) > self.limits.most:
            self._abandon(self.clock)

    def remove(self, who: str, items: int, cents: int) -> None:
        if who not in self.open:
            return
        self._touch(who, -items, -cents)
        if self.open[who].items <= 0:
            del self.open[who]
            self._count("emptied", 1, self.clock)

    def purchase(self, who: str) -> None:
        cart = self.open.pop(who, None)
        if cart is not None:
            self._count("purchased", 1, self.clock)
            self._count("purchased_value", cart.cents, self.clock)

    def sign_in(self, anonymous: str, user: str) -> None:
        """What a visitor has put in before is the user's from now on."""
        cart = self.open.pop(anonymous, None)
        if cart is not None:
            self.open.setdefault(user, Cart())
            self._touch(user, cart.items, cart.cents)

    def forget(self, visitors: Iterable[str]) -> None:
        """Drop their carts uncounted. The totals name nobody."""
        for who in visitors:
            self.open.pop(who, None)

    def drain(self) -> list[Metric]:
        """What has changed since the last call, as absolute values."""
        changed, self._changed = self._changed, {}
        return [_metric(name, minute, total) for (name, minute), total in changed.items()]

    def export(self) -> dict[str, Any]:
        """The whole state as a JSON value."""
        rows = [[who, cart.items, cart.cents, cart.touched] for who, cart in self.open.items()]
        return {"clock": self.clock, "minute": self.minute, "totals": dict(self.totals), "open": rows}

    @classmethod
    def of(cls, state: dict[str, Any], limits: Limits) -> Carts:
        """What `export` gave."""
        carts = cls(limits)
        carts.clock, carts.minute, carts.totals = state["clock"], state["minute"], Counter(state["totals"])
        carts.open.update((who, Cart(*numbers)) for who, *numbers in state["open"])
        return carts

    def _touch(self, who: str, items: int, cents: int) -> None:
        cart = self.open[who]
        cart.items, cart.cents, cart.touched = cart.items + items, max(cart.cents + cents, 0), self.clock
        self.open.move_to_end(who)

    def _abandon(self, at: int) -> None:
        _, cart = self.open.popitem(last=False)
        self._count("abandoned", 1, at)
        self._count("abandoned_value", cart.cents, at)

    def _count(self, name: str, number: int, at: int) -> None:
        minute = at // MINUTE
        if minute > self.minute:
            self.minute, self.totals = minute, Counter()
        self.totals[name] += number
        self._changed[name, minute] = self.totals[name]


def _metric(name: str, minute: int, total: int) -> Metric:
    value = total / 100 if name.endswith("_value") else float(total)
    return Metric(name=name, value=value, window=Window(datetime.fromtimestamp(minute * 60, UTC)))
