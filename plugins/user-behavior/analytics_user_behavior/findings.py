"""Patterns and insights of the live fold: each says only what its own figures show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from analytics_core import Insight, Pattern, Window
from analytics_user_behavior.tallies import CODES, HOURS, HourlyTally, ranked

SHOWN = 10
_LEAST_HOUR, _LEAST_DAY = 30, 300
_LEAST_RISE, _LEAST_Z = 0.10, 4.0


class Shown(NamedTuple):
    """A step as it was last given: how often in the 24 hours up to and with ``hour``."""

    times: int
    hour: int


def shown_steps(tally: HourlyTally, hour: int, sent: set[int]) -> dict[int, Shown]:
    """The most frequent steps of the 24 hours up to and with ``hour``, and those in ``sent`` at their present counts.

    ``sent`` takes up what is shown, so that a pattern that has lost its rank is corrected once more and not left stale.
    """
    leading = tally.leading(hour, SHOWN)
    counts = tally.trailing(hour)
    shown = {code: Shown(counts.get(code, 0), hour) for code in (*leading, *sorted(sent.difference(leading)))}
    sent.clear()
    sent.update(leading)
    return shown


def transition(step: int, shown: Shown, words: list[str]) -> Pattern:
    source, target = words[step // CODES], words[step % CODES]
    return Pattern(
        key=f"transition:{source}>{target}",
        name="transition",
        description=f"{source} is followed by {target}",
        count=shown.times,
        window=_trailing(shown.hour),
        data={"from": source, "to": target},
    )


def session_insights(exits: HourlyTally, words: list[str], hour: int) -> list[Insight]:
    """What most of the sessions that ended in the trailing 24 hours, up to ``hour``, have in common.

    ``exits`` counts codes of (last event's name, whether it was the only event), as ``name * 2 + bounce``.
    """
    totals = exits.trailing(hour)
    ended, bounces = _count(totals)
    by_name: dict[int, int] = {}
    for code, count in totals.items():
        by_name[code // 2] = by_name.get(code // 2, 0) + count
    found = []
    name = ranked(by_name)[0] if by_name else 0
    count = by_name.get(name, 0)
    if name and count > ended / 2:
        found.append(
            Insight(
                key="drop-off",
                title=f"Most sessions end after {words[name]}",
                description=f"{count} of the {ended} sessions that ended ({count / ended:.0%}) had {words[name]} as "
                "their last event.",
                confidence=_majority(count, ended),
                window=_trailing(hour),
                data={"event": words[name], "sessions": ended, "exits": count, "share": count / ended},
            )
        )
    if bounces > ended / 2:
        found.append(
            Insight(
                key="bounces",
                title="Most sessions bounce",
                description=f"{bounces} of the {ended} sessions that ended ({bounces / ended:.0%}) had one event only.",
                severity="low",
                confidence=_majority(bounces, ended),
                window=_trailing(hour),
                data={"sessions": ended, "bounces": bounces, "bounce_rate": bounces / ended},
            )
        )
    return found


def bounce_rise(exits: HourlyTally, hour: int) -> list[Insight]:
    """Whether the sessions that ended in the hour before last bounced far more often than those of the day before it.

    ``hour`` has just begun, so those sessions have been closed (for gaps up to an hour). "Far" is 10 points and 4
    standard errors of the difference (two-proportion z, pooled), with 30 sessions in the hour and 300 before it.
    """
    hour -= 2
    ended, bounces = _count(exits.between(hour, hour))
    if ended < _LEAST_HOUR:
        return []
    before, before_bounces = _count(exits.between(hour - HOURS, hour - 1))
    if before < _LEAST_DAY:
        return []
    rate, usual = bounces / ended, before_bounces / before
    pooled = (bounces + before_bounces) / (ended + before)
    error = math.sqrt(pooled * (1 - pooled) * (1 / ended + 1 / before))
    if rate - usual < _LEAST_RISE or rate - usual < _LEAST_Z * error:
        return []
    window = Window(datetime.fromtimestamp(hour * 3600, UTC), 3600)
    return [
        Insight(
            key=f"bounce-rise:{window.start:%Y-%m-%dT%H}",
            title="Bounce rate far above the day before",
            description=f"{bounces} of {ended} sessions that ended in the hour from {window.start:%H:%M} UTC bounced "
            f"({rate:.0%}); in the day before it {before_bounces} of {before} did ({usual:.0%}).",
            severity="medium",
            confidence=_phi((rate - usual) / error),
            window=window,
            data={"bounce_rate": rate, "sessions": ended, "usual_rate": usual, "usual_sessions": before},
        )
    ]


def _count(totals: Mapping[int, int]) -> tuple[int, int]:
    """Sessions, and those of one event."""
    return sum(totals.values()), sum(count for code, count in totals.items() if code % 2)


def _trailing(hour: int) -> Window:
    return Window(datetime.fromtimestamp((hour - HOURS + 1) * 3600, UTC), HOURS * 3600)


def _majority(count: int, n: int) -> float:
    """The probability that the true share is over one half: a uniform prior, and the normal form of the posterior."""
    return _phi((count + 0.5 - (n + 1) / 2) / math.sqrt((n + 1) / 4))


def _phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))
