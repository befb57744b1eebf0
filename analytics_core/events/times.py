"""The rules of time (DESIGN §4): what clients write, as microseconds UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from analytics_core.events import DAY, MINUTE, TIMESTAMP, micros

EARLIEST: Final = 946_684_800_000_000  # 2000-01-01 UTC, microseconds
_SKEW: Final = 10 * MINUTE
_FEW: Final = 16  # below this, reading times one by one is quicker than a cast


class Times(Struct):
    """Checked timestamps, microseconds UTC, shape ``(n,)``, with what was changed or refused on the way."""

    at: npt.NDArray[np.int64]
    errors: dict[int, str]
    clamped: npt.NDArray[np.bool_]


def read_times(
    values: Sequence[str | int | float | None],
    received_at: npt.NDArray[np.int64],
    shift: npt.NDArray[np.int64] | None = None,
) -> Times:
    """Apply the rules of time (DESIGN §4) to ``n`` timestamps as they came.

    ``received_at`` is microseconds UTC, shape ``(n,)``. Missing takes ``received_at``; ISO 8601 without an offset is
    UTC; a number is epoch seconds, or milliseconds from 1e11 up. ``shift`` (from `clock_skew`) is added to the times
    that the client gave. Before 2000 is an error. Over 24 h in the future is clamped to ``received_at``.
    """
    at, errors = _parse(values, received_at)
    if shift is not None:
        given = np.fromiter((v is not None for v in values), np.bool_, len(values))
        at = np.where(given, at + shift, at)
    early = at < EARLIEST
    if early.any():
        for index in np.flatnonzero(early).tolist():
            errors.setdefault(index, f"{values[index]!r} is before 2000-01-01; valid are times from then on")
    clamped = at > received_at + DAY
    if clamped.any():
        at = np.where(clamped, received_at, at)
    return Times(at, errors, clamped)


def clock_skew(sent_at: int, received_at: int) -> int:
    """How far to shift a client's times, in microseconds: whole minutes, and nothing up to 10 minutes.

    A smaller correction would reorder the events of one client.
    """
    skew = received_at - sent_at
    return round(skew / MINUTE) * MINUTE if abs(skew) > _SKEW else 0


def _parse(
    values: Sequence[str | int | float | None], received_at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    kinds = set(map(type, values))
    if kinds <= {type(None)}:
        return received_at, {}
    if kinds <= {str} and len(values) > _FEW:
        column = pa.array(values, pa.string())
        for target in (TIMESTAMP, pa.timestamp("us")):
            try:
                return column.cast(target).view(pa.int64()).to_numpy(), {}
            except pa.ArrowInvalid:
                continue
    at = received_at.copy()
    errors: dict[int, str] = {}
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            at[index] = parse_time(value)
        except ValueError as error:
            errors[index] = str(error)
    return at, errors


def parse_time(value: str | int | float) -> int:
    """One timestamp as microseconds UTC. :raises ValueError: with the text for the client."""
    try:
        if isinstance(value, str):
            read = datetime.fromisoformat(value)
            return micros(read if read.tzinfo else read.replace(tzinfo=UTC))
        scale = 1_000 if abs(value) >= 1e11 else 1_000_000
        result = round(value * scale)
        if not -(2**62) < result < 2**62:
            raise ValueError("out of range")
        return result
    except (ValueError, OverflowError):
        raise ValueError(
            f"{str(value)[:64]!r} is no time; valid are ISO 8601 (2025-01-31T12:00:00Z) and epoch seconds or "
            "milliseconds"
        ) from None
