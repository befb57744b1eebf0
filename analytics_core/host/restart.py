"""Which settings of the host wait for its restart: it reads them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from analytics_core.config import Settings


def restart_required(running: Settings, wanted: Settings) -> tuple[str, ...]:
    """A line for each key that differs: ``host.server.port: 8000 -> 9000``. Secrets are ``***``."""
    waiting = []
    for section in running.__struct_fields__:
        before, after = getattr(running, section), getattr(wanted, section)
        if isinstance(before, Struct):
            keys = (key for key in before.__struct_fields__ if getattr(before, key) != getattr(after, key))
            waiting += [f"host.{section}.{key}: {_change(before, after, key)}" for key in keys]
    return tuple(waiting)


def _change(before: Struct, after: Struct, key: str) -> str:
    shown, then = _text(_shown(before)[key]), _text(_shown(after)[key])
    return f"{shown} -> {then}" if shown != then else "*** -> ***"


def _shown(section: Struct) -> dict[str, Any]:
    """The values by key, secret ones masked."""
    return {key: value for key, value, *_ in section.__rich_repr__()}


def _text(value: Any) -> str:
    """As a manifest would say it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_text, value))}]"
        case str() | Path() if not str(value):
            return "''"
    return str(value)
