"""What the shop sells, and how its visitors move through it."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Product(Struct, frozen=True):
    id: str
    name: str
    category: str
    price: float


_RANGE: Final = {
    "coffee": (("Espresso Beans", 14.9), ("Filter Roast", 12.5), ("Decaf Beans", 13.9), ("Cold Brew Pack", 18.0)),
    "tea": (("Green Sencha", 9.8), ("Earl Grey", 7.9), ("Herbal Mix", 6.5), ("Matcha Tin", 24.0)),
    "brewing": (("Hand Grinder", 69.0), ("Pour-over Set", 42.0), ("French Press", 35.0), ("Gooseneck Kettle", 79.0)),
    "machines": (
        ("Capsule Machine", 129.0),
        ("Espresso Machine", 449.0),
        ("Milk Frother", 59.0),
        ("Grinder Pro", 219.0),
    ),
    "cups": (("Stoneware Mug", 16.0), ("Glass Set", 28.0), ("Travel Cup", 22.0), ("Espresso Cups", 26.0)),
}
PRODUCTS: Final = tuple(
    Product(f"{category[:3].upper()}-{number:02d}", name, category, price)
    for category, goods in _RANGE.items()
    for number, (name, price) in enumerate(goods, 1)
)
SEARCHES: Final = ("beans", "grinder", "gift", "mug", "green tea", "espresso machine", "filter", "decaf", "kettle")
COUNTRIES: Final = (("DE", 40), ("FR", 18), ("NL", 12), ("US", 12), ("GB", 10), ("AT", 8))
DEVICES: Final = (("mobile", 58), ("desktop", 36), ("tablet", 6))
CHANNELS: Final = (("direct", 34), ("organic", 38), ("referral", 12), ("newsletter", 16))
CAMPAIGNS: Final = (
    ("instagram", "social", "spring_roast"),
    ("google", "cpc", "brand_terms"),
    ("newsletter", "email", "weekend_deal"),
    ("partner", "affiliate", "coffee_week"),
)

LEAVE: Final = "leave"
LANDING: Final = (("home", 52), ("category", 22), ("product", 26))
STEPS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "home": (("category", 38), ("search", 24), ("product", 18), (LEAVE, 20)),
    "category": (("product", 54), ("category", 14), ("search", 8), (LEAVE, 24)),
    "search": (("product", 60), ("search", 12), ("category", 6), (LEAVE, 22)),
    "product": (("product", 22), ("category", 16), ("add_to_cart", 20), ("search", 7), (LEAVE, 35)),
    "add_to_cart": (("cart", 48), ("product", 24), ("category", 14), (LEAVE, 14)),
    "cart": (("checkout", 55), ("product", 17), (LEAVE, 28)),
    "checkout": (("purchase", 78), ("failure", 8), (LEAVE, 14)),
    "failure": (("checkout", 40), (LEAVE, 60)),
    "purchase": (("home", 18), (LEAVE, 82)),
}
"""From each step of a visit the next ones with their weights, which add up to 100."""

EVENTS: Final = {"home": 1, "category": 1, "search": 1, "product": 2, "add_to_cart": 1, "cart": 1, "checkout": 1.4}
"""Events that a step sends on average, where that is not one; a checkout often signs in first."""

_BY_HOUR: Final = (
    30,
    19,
    13,
    10,
    10,
    15,
    30,
    52,
    74,
    88,
    96,
    102,
    110,
    104,
    98,
    98,
    104,
    116,
    134,
    156,
    168,
    152,
    108,
    62,
)
_BY_WEEKDAY: Final = (0.96, 0.93, 0.94, 0.97, 1.0, 1.06, 1.14)
HOURS: Final = tuple(share * 24 / sum(_BY_HOUR) for share in _BY_HOUR)
"""Traffic at the beginning of each local hour, relative to the mean of the day."""
WEEKDAYS: Final = tuple(share * 7 / sum(_BY_WEEKDAY) for share in _BY_WEEKDAY)
"""Traffic of each weekday from Monday, relative to the mean of the week."""


def events_per_visit() -> float:
    """How many events an undisturbed visit sends on average: expected visits of each step, by power iteration."""
    share = {step: weight / 100 for step, weight in LANDING}
    total = 0.0
    for _ in range(200):
        total += sum(part * EVENTS.get(step, 1) for step, part in share.items())
        after: dict[str, float] = {}
        for step, part in share.items():
            for name, weight in STEPS[step]:
                if name != LEAVE:
                    after[name] = after.get(name, 0.0) + part * weight / 100
        share = after
    return total
