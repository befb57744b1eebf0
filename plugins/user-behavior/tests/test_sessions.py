"""Sessions against the definition, visitor by visitor: which events are together, and the figures per day."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, TimeRange, UserOrder
from analytics_user_behavior import session_order
from analytics_user_behavior.session_order import by_session
from analytics_user_behavior.sessions import sessions

START = datetime(2025, 3, 28, 23, tzinfo=UTC)  # 29 March, 00:00 in Berlin; clocks change on the 30th
RANGE = TimeRange(START, datetime(2025, 3, 31, 22, tzinfo=UTC), "Europe/Berlin")
GAP = 30

Row = dict[str, Any]
Ask = Callable[..., Answer]


def rows_within(minutes: int) -> st.SearchStrategy[list[Row]]:
    """Ties, two tabs at once, one session id of two visitors, and sessions of nobody."""
    return st.lists(
        st.fixed_dictionaries(
            {
                "event": st.sampled_from("abc"),
                "user_id": st.sampled_from(["u1", "u2", None]),
                "anonymous_id": st.sampled_from(["x", None]),
                "session_id": st.sampled_from(["s1", "s2", None]),
                "timestamp": st.integers(0, minutes // 15).map(lambda n: START + timedelta(minutes=15 * n)),
                "properties": st.sampled_from([{}, {"os": "ios"}, {"os": "linux"}, {"os": "android"}]),
            }
        ),
        max_size=40,
    )


def visits(rows: Iterable[Row], gap: int = GAP) -> dict[tuple[str, str], list[list[tuple[int, Row]]]]:
    """By visitor ``(kind, id)``: its sessions as ``(seq, row)``, in the order of their first events."""
    found: dict[tuple[str, str], list[list[tuple[int, Row]]]] = defaultdict(list)
    for seq, row in sorted(enumerate(rows), key=lambda each: each[1]["timestamp"]):  # stable: ties go by seq
        person, client = row.get("user_id") or row.get("anonymous_id"), row.get("session_id")
        if not person and not client:
            continue
        mine = found["person" if person else "nobody", person or client]
        for session in reversed(mine):
            before = session[-1][1]
            near = row["timestamp"] - before["timestamp"] <= timedelta(minutes=gap)
            if before.get("session_id") == client and (client or near):
                session.append((seq, row))
                break
        else:
            mine.append([(seq, row)])
    return found


@settings(max_examples=100, deadline=None)
@given(rows_within(150), st.integers(1, 3), st.integers(1, 50))
def test_events_are_together_as_the_definition_says(visitors: Any, rows: list[Row], each: int, block: int) -> None:
    def step(part: UserOrder) -> list[tuple[int, bool, list[int]]]:
        order = by_session(part, GAP * 60_000_000)
        events = order.events
        assert (part.key[order.user] == events.key).all()
        spans = list(zip(events.start().tolist(), events.end.tolist(), strict=True))
        assert part.seq[order.first].tolist() == [events.seq[low] for low, _ in spans]
        assert part.seq[order.last].tolist() == [events.seq[high - 1] for _, high in spans]
        seqs = [events.seq[low:high].tolist() for low, high in spans]
        return list(zip(events.key.tolist(), events.known.tolist(), seqs, strict=True))

    by_key: dict[int, tuple[str, list[list[int]]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_order, "_BLOCK", block)
        found = visitors(rows, each).in_user_order(step)
    for key, known, seqs in chain.from_iterable(found):
        by_key.setdefault(key, ("person" if known else "nobody", []))[1].append(seqs)
    expected = [(kind, [[seq for seq, _ in one] for one in mine]) for (kind, _), mine in visits(rows).items()]
    assert sorted(by_key.values()) == sorted(expected)


def expected_rows(rows: list[Row], groups: Callable[[Row], str]) -> dict[tuple[date, str], dict[str, Any]]:
    found: dict[tuple[date, str], list[tuple[tuple[str, str], list[Row]]]] = defaultdict(list)
    for visitor, mine in visits(rows).items():
        for session in mine:
            events = [row for _, row in session]
            day = events[0]["timestamp"].astimezone(ZoneInfo(RANGE.timezone)).date()
            found[day, groups(events[0])].append((visitor, events))
    return {key: figures(some) for key, some in found.items()}


def figures(some: list[tuple[tuple[str, str], list[Row]]]) -> dict[str, Any]:
    seconds = sorted((events[-1]["timestamp"] - events[0]["timestamp"]).total_seconds() for _, events in some)
    place = 0.9 * (len(seconds) - 1)
    low, high = seconds[int(place)], seconds[min(int(place) + 1, len(seconds) - 1)]
    return {
        "sessions": len(some),
        "users": len({visitor for visitor, _ in some if visitor[0] == "person"}),
        "median_duration": pytest.approx(statistics.median(seconds)),
        "mean_duration": pytest.approx(statistics.fmean(seconds)),
        "p90_duration": pytest.approx(low + (high - low) * (place - int(place))),
        "events_per_session": pytest.approx(sum(len(events) for _, events in some) / len(some)),
        "bounce_rate": pytest.approx(sum(len(events) == 1 for _, events in some) / len(some)),
    }


@settings(max_examples=40, deadline=None)
@given(rows_within(4000), st.integers(1, 3))
def test_figures_per_day_equal_the_definition(visitors: Any, rows: list[Row], each: int) -> None:
    expected = expected_rows(rows, lambda _: "")
    for row in sessions(visitors(rows, each), RANGE, GAP).table.to_pylist():
        day = row.pop("day")
        if (day, "") in expected:
            assert row == expected[day, ""]
        else:
            assert (row["sessions"], row["users"], row["median_duration"], row["bounce_rate"]) == (0, 0, None, None)


@settings(max_examples=40, deadline=None)
@given(rows_within(4000), st.integers(1, 3), st.integers(1, 3))
def test_a_breakdown_is_by_the_first_event(visitors: Any, rows: list[Row], each: int, limit: int) -> None:
    every = [session[0][1] for mine in visits(rows).values() for session in mine]
    counts = Counter(row["properties"]["os"] for row in every if row["properties"])
    top = [value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))][:limit]

    def group(row: Row) -> str:
        os = row["properties"].get("os", "(none)")
        return os if os in top or os == "(none)" else "(other)"

    expected = expected_rows(rows, group)
    found = {}
    for row in sessions(
        visitors(rows, each), RANGE, GAP, {"breakdown": "properties.os", "top": limit}
    ).table.to_pylist():
        key = (row.pop("day"), row.pop("breakdown"))
        if row["sessions"]:
            found[key] = row
    assert found == expected


def test_the_host_asks_for_sessions(ask: Ask) -> None:
    rows = [
        {"event": "view", "user_id": "u", "timestamp": START, "properties": {"os": "ios"}},
        {"event": "view", "user_id": "u", "timestamp": START + timedelta(minutes=3)},
        {"event": "view", "session_id": "s", "timestamp": START},
    ]
    table = ask(rows, "sessions", RANGE, breakdown="properties.os").table.to_pylist()[:2]
    assert [(row["breakdown"], row["sessions"], row["users"]) for row in table] == [("ios", 1, 1), ("(none)", 1, 0)]
    assert ask(rows, "sessions", RANGE).table.to_pylist()[0]["median_duration"] == 90


def many(value: str, count: int, events: int) -> list[Row]:
    return [
        {
            "event": "view",
            "user_id": f"{value}{n}",
            "timestamp": START + timedelta(minutes=k),
            "properties": {"os": value},
        }
        for n in range(count)
        for k in range(events)
    ]


def test_many_bounces_are_told_when_there_is_no_doubt(visitors: Any) -> None:
    advice = sessions(visitors(many("ios", 60, 1) + many("linux", 30, 2), 7), RANGE, GAP).recommendations
    assert [each.insight for each in advice] == ["sessions"]
    assert not sessions(visitors(many("ios", 6, 1) + many("linux", 3, 2), 7), RANGE, GAP).recommendations


def test_the_segment_that_bounces_more_is_told_with_its_interval(visitors: Any) -> None:
    reader = visitors(many("ios", 60, 1) + many("linux", 60, 2), 7)
    (_, found) = sessions(reader, RANGE, GAP, {"breakdown": "properties.os"}).insights
    assert (found.key, found.data["size"], found.data["sessions"]) == ("bounce-segment", 1.0, 60)
    assert 0.85 < found.data["low"] <= found.data["high"] == 1.0
    same = visitors([*many("ios", 60, 1), *many("linux", 60, 1)], 7)
    assert [each.key for each in sessions(same, RANGE, GAP, {"breakdown": "properties.os"}).insights] == ["sessions"]
