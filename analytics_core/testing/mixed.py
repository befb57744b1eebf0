"""Events as they come in a real log, made up: what a fold meets there that its author did not think of."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

_BEGIN: Final = datetime(2025, 3, 1, 21, 40, tzinfo=UTC)
_NAMES: Final = ("page_view", "product_view", "add_to_cart", "purchase", "signup", "GET /", "größe geändert", "購入 🛒")
_VISITORS: Final = ("ada", "bob", "cat", "dan", "eve", "fay", "ольга", "null", "0")
_STEPS: Final = (0.0, 0.0, 0.2, 7.0, 61.0, 500.0, 1_790.0, 1_900.0)
"""Seconds from one receipt to the next: the same moment, the next minute, around half an hour."""
_BEHIND: Final = (0.0, 0.0, 0.0, 0.5, 45.0, 310.0, 7_300.0, 90_000.0, -80.0)
"""Seconds from when an event happened to its receipt: late by up to a day and more, or ahead of its time."""
_LONG: Final = 5 * 3_600.0


def mixed_rows(seed: int = 0, count: int = 60) -> list[dict[str, Any]]:
    """Rows for `batch`, in log order, equal for equal ``seed``: several visitors with and without sessions, nobody's
    events, times late, early, out of order and missing, unicode, and properties of every type or none.
    """
    choose = random.Random(seed)
    received, rows = _BEGIN, []
    for index in range(count):
        pause = _LONG if index == count // 2 else choose.choice(_STEPS)
        received += timedelta(seconds=pause, microseconds=choose.randrange(1_000))
        crossing = timedelta(milliseconds=choose.choice((0, 0, 0, 3)))  # two requests on their way at once
        row: dict[str, Any] = {"event": choose.choice(_NAMES), "received_at": received - crossing, **_ids(choose)}
        if choose.random() < 0.9:
            row["timestamp"] = received - crossing - timedelta(seconds=choose.choice(_BEHIND))
        if choose.random() < 0.8:
            row["properties"] = _properties(choose)
        rows.append(row)
    return rows


def _ids(choose: random.Random) -> dict[str, str]:
    visitor = choose.choice(_VISITORS)
    match choose.randrange(8):
        case 0:
            return {}
        case 1 | 2:
            return {"anonymous_id": f"a-{visitor}"}
        case 3:
            return {"user_id": visitor, "anonymous_id": f"a-{visitor}", "session_id": "s1"}
        case 4:
            return {"user_id": visitor, "session_id": f"s-{visitor}"}
    return {"user_id": visitor}


def _properties(choose: random.Random) -> dict[str, Any] | str:
    match choose.randrange(7):
        case 0:
            return {}
        case 1:
            return {"path": "/größe?q=1", "title": "ナイキ 👟", "referrer": None}
        case 2:
            return {"revenue": round(choose.uniform(0, 200), 2), "currency": "EUR", "items": ["a", None, 3]}
        case 3:
            return '{ "\\u0064uration": 1e2, "dup": 1, "dup": "\\ud83d\\uded2" }'
        case 4:
            return {"cart": {"total": choose.randrange(5), "": {}}, "error": True, "n": 2**53, "status": "503"}
    status = choose.choice((200, 200, 404, 503))
    return {"duration": round(choose.lognormvariate(4, 1), 3), "status": status, "value": -0.0}
