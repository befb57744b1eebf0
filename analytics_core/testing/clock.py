"""The time of a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = datetime(2025, 1, 1, tzinfo=UTC)
"""When a row happens that says nothing about time; each later row of the batch comes a second later."""


class Clock:
    """Stands still until it is told otherwise, and never goes back, as the log's watermark never does."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __repr__(self) -> str:
        return f"<Clock at {self.now.isoformat()}>"

    def set(self, at: datetime) -> datetime:
        """:raises ValueError: for a time that is over, or that has no time zone."""
        if at.tzinfo is None:
            raise ValueError(f"{at.isoformat()} has no time zone; valid is an aware datetime")
        if at < self.now:
            raise ValueError(f"the clock is at {self.now.isoformat()} and never goes back, here to {at.isoformat()}")
        self.now = at.astimezone(UTC)
        return self.now

    def advance(self, **duration: float) -> datetime:
        """Go on by ``days``, ``hours``, ``minutes``, ``seconds``, ... as `datetime.timedelta` takes them."""
        return self.set(self.now + timedelta(**duration))
