"""How a plugin author tests: rows in, metrics out, and the contract that every fold keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from analytics_core.testing import batch, check_deterministic, run
from my_purchases.plugin import Purchases

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
ROWS = [
    {"name": name, "user_id": "ada", "timestamp": NOON + timedelta(seconds=20 * at)}
    for at, name in enumerate(["purchase", "page_view", "purchase", "purchase", "purchase"])
]


def test_purchases_are_counted_by_the_minute() -> None:
    found = run(Purchases, [batch(ROWS)])
    assert [(m.window.start, m.value) for m in found.metrics] == [
        (NOON, 2.0),
        (NOON + timedelta(minutes=1), 2.0),
    ]


def test_batches_and_restarts_change_nothing() -> None:
    check_deterministic(Purchases, ROWS)
