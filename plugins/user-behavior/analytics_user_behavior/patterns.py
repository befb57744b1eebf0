"""The analysis ``patterns``: what recurs in sessions, and what those did who came to a goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analytics_core import Answer, EventReader, ParameterError
from analytics_user_behavior.repeats import repeats
from analytics_user_behavior.separators import separators
from analytics_user_behavior.sequences import loops, sequences


def patterns(events: EventReader, given: Mapping[str, Any], gap_minutes: int) -> Answer:
    """One of four questions, by ``kind``; each has rows of its own:

    - ``sequences`` (default): `analytics_user_behavior.sequences.sequences`
    - ``loops``: `analytics_user_behavior.sequences.loops`
    - ``repeats``: `analytics_user_behavior.repeats.repeats`
    - ``separators``: `analytics_user_behavior.separators.separators`, which needs a ``goal``

    :raises ParameterError: for separators without a goal, and sequences too long for the number of event names.
    """
    match given.get("kind", "sequences"):
        case "loops":
            return loops(events, given, gap_minutes)
        case "repeats":
            return repeats(events, given)
        case "separators":
            if not given.get("goal"):
                raise ParameterError("goal", 'is needed for separators: a name or {"event", "where"}')
            return separators(events, given)
    return sequences(events, given, gap_minutes)
