"""The analysis ``changes``: what differs between the second half of a range and the first, since when and where."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from analytics_core import Answer, Chart, EventReader, Insight, Recommendation, TimeRange
from analytics_user_behavior.calendar import moment
from analytics_user_behavior.change_figures import Figure, compare
from analytics_user_behavior.change_segments import Segment, explain
from analytics_user_behavior.change_tallies import Days, compared_days
from analytics_user_behavior.columns import MINUTE
from analytics_user_behavior.shifts import adjusted

FALSE_FINDINGS = 0.05
"""Which part of the findings may be chance."""
_LEAST_CHANGE = 0.05
_SHOWN = 10
_SUREST = 0.99
_HIGH, _MEDIUM = math.log(2), math.log(1.25)
_SEVERITIES = ("low", "low", "medium", "high")
_WEEK = 7
_SCHEMA = pa.schema(
    {
        "kind": pa.string(),
        "what": pa.string(),
        **dict.fromkeys(("before", "after", "change", "low", "high", "p", "p_adjusted"), pa.float64()),
        "since": pa.timestamp("us", "UTC"),
        "segment": pa.string(),
        "share_explained": pa.float64(),
    }
)


class Change(NamedTuple):
    """A figure with the probability that it is a false finding, and what is known of it when it is a finding."""

    figure: Figure
    doubt: float
    finding: bool
    since: datetime | None = None
    segment: Segment | None = None

    @property
    def size(self) -> float:
        """How many times as much or as little, as a logarithm."""
        more = 0.0 if self.figure.before and self.figure.after else 0.5
        return abs(math.log((self.figure.after + more) / (self.figure.before + more)))


def changes(events: EventReader, asked: TimeRange, gap_minutes: int) -> Answer:
    """One row per figure of the second half of the range, compared with the first half, the surest change first.

    The halves are equally many whole days (weeks, from two on) before the range's end, by the wall clock, as
    `change_tallies.compared_days` has it; what is left over at the range's start is not looked at, nor is a day that is
    not over yet. With fewer than two such days there are no rows. The figures and their tests are those of
    `change_figures.compare`; a figure is a finding when its p, adjusted for all comparisons (Benjamini and Hochberg),
    is 0.05 or less and it has changed by 5 % or more of itself. Halves of fewer than seven days hold different
    weekdays: that is said, and lowers the severity by one grade.

    Columns: kind (events, visitors, sessions, conversion), what, before, after (counts; of a conversion shares of the
    visitors), change with its 95 % interval low and high (relative; of a conversion the difference), p, p_adjusted, and
    of findings since (the begin of the day from which on another rate fits best; null when that one does not go the
    same way), segment and share_explained (`change_segments.explain`). ``change`` is null after nothing.
    """
    gap = gap_minutes * MINUTE
    first = events.sql("SELECT min(epoch_us(timestamp)) AS at FROM events")["at"][0].as_py()
    known = asked.end if events.watermark is None else events.watermark
    days = compared_days(asked, moment(first), known) if first is not None else None
    if days is None:
        return Answer(_SCHEMA.empty_table())
    compared = compare(events, days, gap)
    found = _judged(compared.figures)
    findings = [change for change in found if change.finding]
    segments = explain(events, days, [change.figure for change in findings], compared.counts, gap) if findings else []
    findings = [
        change._replace(since=days.begin(change.figure.turn) if change.figure.consistent else None, segment=segment)
        for change, segment in zip(findings, segments, strict=True)
    ]
    advise = partial(_advice, days=days, usual=compared.usual)
    said = sorted(findings, key=lambda change: -change.size)[:_SHOWN]
    return Answer(
        pa.Table.from_pylist([_row(change) for change in [*findings, *found[len(findings) :]]], _SCHEMA),
        [_insight(change, days) for change in said],
        list({advice.description: advice for advice in map(advise, reversed(said))}.values())[::-1],
        Chart(kind="bar", x="what", y=("change",)),
    )


def _judged(figures: Sequence[Figure]) -> list[Change]:
    """Findings first, then by doubt and size."""
    doubts = adjusted(np.array([figure.shift.p for figure in figures]))
    judged = [
        Change(figure, float(doubt), bool(doubt <= FALSE_FINDINGS and not abs(figure.relative) < _LEAST_CHANGE))
        for figure, doubt in zip(figures, doubts, strict=True)
    ]
    return sorted(judged, key=lambda change: (not change.finding, change.doubt, -change.size))


def _row(change: Change) -> dict[str, Any]:
    figure, segment = change.figure, change.segment
    return {
        "kind": figure.kind,
        "what": figure.what,
        "before": figure.before,
        "after": figure.after,
        "change": None if math.isnan(figure.shift.change) else figure.shift.change,
        "low": figure.shift.low,
        "high": figure.shift.high,
        "p": figure.shift.p,
        "p_adjusted": change.doubt,
        "since": change.since,
        "segment": None if segment is None else str(segment),
        "share_explained": None if segment is None else segment.share,
    }


# --- in words --------------------------------------------------------------------------------------------------------


def _insight(change: Change, days: Days) -> Insight:
    figure = change.figure
    data = {name: value for name, value in _row(change).items() if value is not None}
    if change.since is not None:
        data["since"] = change.since.isoformat()
    bounds = [days.begin(day).isoformat() for day in (0, days.half, len(days))]
    return Insight(
        key=_key(figure),
        title=_title(figure),
        description=" ".join(filter(None, (_how_much(figure, days), _since(change, days), _where(change)))),
        severity=_severity(change, days),
        confidence=min(1 - change.doubt, _SUREST),
        data={**data, "size": change.size, "first_half": bounds[:2], "second_half": bounds[1:]},
    )


def _key(figure: Figure) -> str:
    return ":".join((figure.kind, *figure.names))


def _severity(change: Change, days: Days) -> Any:
    """Twice or half as much is high, a quarter more or a fifth less is medium."""
    grade = 1 + (change.size >= _MEDIUM) + (change.size >= _HIGH)
    return _SEVERITIES[grade - (days.half % _WEEK > 0)]


def _title(figure: Figure) -> str:
    rose = figure.after > figure.before
    if figure.kind == "conversion":
        first, second = figure.names
        more = "More" if rose else "Fewer"
        return f"{more} visitors go on from {first} to {second}: {figure.after:.1%} after {figure.before:.1%}"
    noun = f"{figure.names[0]} events" if figure.names else figure.kind.capitalize()
    if not figure.before:
        return f"{noun} are new"
    return f"{noun} {'rose' if rose else 'fell'} by {abs(figure.relative):.0%}"


def _how_much(figure: Figure, days: Days) -> str:
    shift, half = figure.shift, f"{days.half} days" if days.half > 1 else "day"
    low, high = f"{shift.low:+.0%}", f"{shift.high:+.0%}"
    when = f"in the {half} from {_local(days.begin(days.half), days)}"
    before = f"in the {half} before"
    if figure.kind == "conversion":
        assert figure.tried is not None
        first, second = figure.names
        text = (
            f"Of {figure.tried[1]:,} visitors with {first} {when}, {figure.after:.1%} went on to {second} at once; of "
            f"{figure.tried[0]:,} {before}, {figure.before:.1%} did (a difference of {shift.low * 100:+.1f} to "
            f"{shift.high * 100:+.1f} points at 95 %)."
        )
    else:
        noun = f"{figure.names[0]} events" if figure.names else figure.kind
        text = f"{figure.after:,.0f} {noun} {when}, {figure.before:,.0f} {before} ({low} to {high} at 95 %)."
    return text if days.half % _WEEK == 0 else f"{text} The two hold different weekdays."


def _since(change: Change, days: Days) -> str:
    return "" if change.since is None else f"Most likely since {_local(change.since, days)}."


def _where(change: Change) -> str:
    if change.segment is None:
        return ""
    if change.segment.share > 1.05:
        return f"{change.segment} explains more than the whole change: the others went the other way."
    return f"{change.segment} explains {change.segment.share:.0%} of the change."


def _advice(change: Change, days: Days, usual: dict[str, str]) -> Recommendation:
    """The next question to ask, with its parameters."""
    figure = change.figure
    when = days.begin(days.half) if change.since is None else change.since
    filters = {change.segment.field: change.segment.value} if change.segment else {}
    ranges = [
        json.dumps({"start": start.isoformat(), "end": end.isoformat()})
        for start, end in ((days.begin(0), when), (when, days.begin(len(days))))
    ]
    names = (
        figure.names if len(figure.names) != 1 else tuple(n for n in (usual.get(figure.names[0]), *figure.names) if n)
    )
    if len(names) == 2:
        steps = json.dumps([{"event": name} for name in names], ensure_ascii=False)
        question = f'"funnel" with "steps": {steps}'
        purpose = f"it tells whether the change lies between {names[0]} and {names[1]} or before {names[0]}"
    else:
        question = '"engagement"' if figure.kind == "visitors" else '"sessions"'
        purpose = "it tells " + (
            "new visitors from returning ones" if figure.kind == "visitors" else "when and how long"
        )
    filtered = f', "filters": {json.dumps(filters, ensure_ascii=False)}' if filters else ""
    return Recommendation(
        title=f"Look at what changed around {_local(when, days)}"
        + (f" for {change.segment}" if change.segment else ""),
        description=f'Ask {question}{filtered} with "timeRange": {ranges[0]} and with {ranges[1]}: {purpose}.',
        insight=_key(figure),
        priority=_severity(change, days),
    )


def _local(at: datetime, days: Days) -> str:
    there = at.astimezone(ZoneInfo(days.timezone))
    return f"{there:%Y-%m-%d}" if not (there.hour or there.minute) else f"{there:%Y-%m-%d %H:%M}"
