"""The rows of an answer as a table: what each column holds, and how its values are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

_RATIO: Final = re.compile(r"(^|_)(rates?|ratio|share|shares|conversion|stickiness|retention|confidence)(_|$)")
_SECONDS: Final = re.compile(r"(^|_)(seconds|durations?)(_|$)")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d.*")
_WIDEST: Final = 60
NOTHING: Final = "-"

Show = Callable[[Any], str]


class Column(NamedTuple):
    """``show`` writes a value; ``number``: the values are numbers, and stand to the right."""

    name: str
    show: Show
    number: bool


def columns(answer: Mapping[str, Any]) -> list[Column]:
    """The columns of an answer, in its order."""
    zone = ZoneInfo(str(answer["parameters"].get("timezone", "UTC")))
    return [_column(name, [row.get(name) for row in answer["data"]], zone) for name in answer["columns"]]


def _column(name: str, values: Sequence[Any], zone: ZoneInfo) -> Column:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        if _SECONDS.search(name):
            return Column(name, duration, True)
        ratios = any(isinstance(value, float) for value in present) and all(0 <= value <= 1 for value in present)
        return Column(name, share if ratios and _RATIO.search(name) else number, True)
    if present and all(isinstance(value, str) and _INSTANT.fullmatch(value) for value in present):
        return Column(name, lambda value: instant(value, zone), False)
    return Column(name, text, False)


def text(value: Any) -> str:
    if value is None:
        return NOTHING
    shown = clean(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return shown if len(shown) <= _WIDEST else f"{shown[: _WIDEST - 1]}…"


def clean(words: str) -> str:
    """Without what a terminal would obey: anybody may name an event."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def number(value: float | None) -> str:
    """Whole numbers in thousands, others with four digits that count: ``12,345``, ``0.01234``."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """``250 ms``, ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    sign, size = ("-" if seconds < 0 else ""), abs(seconds)
    if size < 1:
        return f"{sign}{size * 1000:.0f} ms" if size else "0 s"
    if size < 60:
        return f"{sign}{size:.3g} s"
    for unit, length, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        parts = round(size / part)
        if parts * part >= length:
            whole, rest = divmod(parts, length // part)
            return f"{sign}{whole} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("a minute is a unit")


def instant(value: Any, zone: ZoneInfo) -> str:
    """``2025-01-31 17:05`` in the question's zone; seconds where there are any."""
    if value is None:
        return NOTHING
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return str(value)
    there = at if at.tzinfo is None else at.astimezone(zone)
    return f"{there:%Y-%m-%d %H:%M:%S}" if there.second else f"{there:%Y-%m-%d %H:%M}"


def finite(value: Any) -> float | None:
    """``value`` as a number to draw; None when it is none."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
