"""The state of earlier versions, as this one understands it."""

from __future__ import annotations

from typing import Any, Final

from shopping_carts.carts import MINUTE

VERSION: Final = 2
"""``reload.state_version`` of ``plugin.yaml``."""


def migrated(state: dict[str, Any], version: int) -> dict[str, Any]:
    """A state of any known version as one of `VERSION`.

    :raises ValueError: for a later version, of which nobody here knows what it means.
    """
    match version:
        case 1:
            return {tenant: _from_v1(part) for tenant, part in state.items()}
        case 2:
            return state
    raise ValueError(f"state version {version} is not known; valid are 1 and {VERSION}")


def _from_v1(part: dict[str, Any]) -> dict[str, Any]:
    """Version 1 kept the latest minute, its counts, and the number of items by visitor.

    When a cart was last touched it did not know: the wait of all begins anew at its clock. What the items cost it did
    not know either: their value is 0, and only what is added from now on has one.
    """
    clock = part["minute"] * MINUTE
    rows = [[who, items, 0, clock] for who, items in part["open"].items()]
    return {"clock": clock, "minute": part["minute"], "totals": part["counts"], "open": rows}
