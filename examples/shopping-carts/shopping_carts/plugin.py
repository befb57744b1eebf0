"""The hooks of the plugin; what they do is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analytics_core import EventBatch, PluginContext, ProcessResult, hookimpl
from shopping_carts.carts import MINUTE, Carts, Limits
from shopping_carts.migration import migrated

_MOST_ITEMS: Final = 10_000
_MOST_PRICE: Final = 1_000_000.0


class ShoppingCarts:
    """Carts that are opened, bought and given up."""

    def __init__(self) -> None:
        self._limits = Limits(wait=0, most=0)
        self._deeds: dict[str, str] = {}
        self._tenants: dict[str, Carts] = {}

    @hookimpl
    def setup(self, context: PluginContext) -> None:
        settings = context.settings
        self._limits = Limits(settings["abandon_minutes"] * MINUTE, settings["max_open"])
        self._deeds = {settings[deed]: deed for deed in ("added", "removed", "purchased")}
        if len(self._deeds) < 3:
            raise ValueError("two of the settings added, removed and purchased name one event; valid are three events")

    @hookimpl
    def process(self, batch: EventBatch) -> ProcessResult | None:
        carts = self._tenants.get(batch.tenant)
        if carts is None:
            if not len(batch):
                return None  # time passes for nobody
            carts = self._tenants[batch.tenant] = Carts(self._limits)
        if len(batch):
            self._fold(carts, batch)
        else:
            carts.reach(round(batch.watermark.timestamp() * 1_000_000))
        metrics = carts.drain()
        return ProcessResult(metrics) if metrics else None

    @hookimpl
    def export_state(self) -> dict[str, Any]:
        return {tenant: carts.export() for tenant, carts in sorted(self._tenants.items())}

    @hookimpl
    def import_state(self, state: dict[str, Any], version: int) -> None:
        current = migrated(state, version)
        self._tenants = {tenant: Carts.of(part, self._limits) for tenant, part in current.items()}

    @hookimpl
    def erase(self, tenant: str, ids: Sequence[str]) -> None:
        if tenant in self._tenants:
            self._tenants[tenant].forget(ids)

    def _fold(self, carts: Carts, batch: EventBatch) -> None:
        """The columns say which events are of carts; only those are decoded."""
        clock = np.maximum.accumulate(batch.column("received_at").cast(pa.int64()).to_numpy())
        wanted = pc.is_in(batch.column("name").cast(pa.string()), pa.array(list(self._deeds)))
        times = clock[wanted.to_numpy(zero_copy_only=False)].tolist()
        for at, row in zip(times, batch.filter(wanted).rows(), strict=True):
            carts.reach(at)
            if row.user_id and row.anonymous_id:
                carts.sign_in(row.anonymous_id, row.user_id)
            if who := row.user_id or row.anonymous_id:
                self._apply(carts, self._deeds[row.name], who, row.properties)
        carts.reach(int(clock[-1]))

    def _apply(self, carts: Carts, deed: str, who: str, properties: dict[str, Any]) -> None:
        items = int(_number(properties.get("quantity"), _MOST_ITEMS) or 1)
        cents = round(100 * items * _number(properties.get("price"), _MOST_PRICE))
        match deed:
            case "added":
                carts.add(who, items, cents)
            case "removed":
                carts.remove(who, items, cents)
            case "purchased":
                carts.purchase(who)


def _number(value: object, most: float) -> float:
    """A number from 0 to ``most``; 0 for anything else, so that one strange event does not stop the plugin."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:
        return float(value)
    return 0.0
