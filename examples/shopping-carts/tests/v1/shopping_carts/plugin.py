"""Version 0.1 of the plugin: the one whose state version 2 has to take over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from analytics_core import EventBatch, Metric, ProcessResult, Window, hookimpl


class ShoppingCarts:
    """Carts and items by the minute."""

    def __init__(self) -> None:
        self.tenants: dict[str, dict[str, Any]] = {}

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        changed: dict[tuple[str, int], int] = {}
        part = self.tenants.setdefault(batch.tenant, {"minute": 0, "counts": {}, "open": {}})
        for row in batch.rows():
            minute = int(row.received_at.timestamp()) // 60
            if minute > part["minute"]:
                part["minute"], part["counts"] = minute, {}
            if row.user_id:
                for name, number in self.changes(part["open"], row.name, row.user_id):
                    part["counts"][name] = part["counts"].get(name, 0) + number
                    changed[name, part["minute"]] = part["counts"][name]
        metrics = [
            Metric(name=name, value=value, window=Window(datetime.fromtimestamp(minute * 60, UTC)))
            for (name, minute), value in changed.items()
        ]
        return ProcessResult(metrics) if metrics else None

    def changes(self, carts: dict[str, int], event: str, who: str) -> list[tuple[str, int]]:
        if event == "add_to_cart":
            opened = [] if who in carts else [("opened", 1)]
            carts[who] = carts.get(who, 0) + 1
            return [*opened, ("items", 1)]
        return [("purchased", 1)] if event == "purchase" and carts.pop(who, 0) else []

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return self.tenants

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        if version != 1:
            raise ValueError(f"state version {version} is not known; valid is 1")
        self.tenants = state
