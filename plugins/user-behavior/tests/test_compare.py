"""The comparison against plain Python, and its intervals against what they promise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core import Answer, ParameterError, TimeRange
from analytics_core.testing import MemoryReader, batch
from analytics_user_behavior.compare import compare
from analytics_user_behavior.compare_figures import EVENTS, FIGURES, PERSONS, PERSONS_EVENTS, Sums, rows_of
from analytics_user_behavior.intervals import Interval, newcombe, normal_cdf, risk_ratio, wilson

START = datetime(2025, 3, 10, tzinfo=UTC)
HOURS = 10
RANGE = TimeRange(START, START + timedelta(hours=HOURS))
GAP = 30
Row = dict[str, Any]


def event(user: str | None, hour: float, name: str = "a", **more: Any) -> Row:
    """``hour`` 0 is when the asked range begins."""
    return {"event": name, "user_id": user, "timestamp": START + timedelta(hours=hour), **more}


def ask(rows: Sequence[Row], asked: TimeRange = RANGE, **given: Any) -> Answer:
    with MemoryReader([batch(rows, watermark=asked.end)], asked) as reader:
        return compare(reader, asked, given, GAP)


def table(answer: Answer) -> dict[str, Row]:
    return {row["metric"]: row for row in answer.table.to_pylist()}


# --- the figures -----------------------------------------------------------------------------------------------------


def history(seed: int, visitors: int) -> list[Row]:
    """Of two ranges, with what is before and after them; every fifth visitor is nobody."""
    draw = random.Random(seed)
    return [
        event(
            f"u{visitor}" if visitor % 5 != 4 else None,
            draw.randint(-13 * 4, 11 * 4) / 4,
            draw.choice("ab"),
            session_id=draw.choice([None, "s"]) if visitor % 5 != 4 else f"s{visitor}",
            properties={"plan": draw.choice(["pro", "free"]), "n": draw.choice([1, 2.5, "3", "many", None, True])},
        )
        for visitor in range(visitors)
        for _ in range(draw.randint(1, 9))
    ]


def sides(rows: Sequence[Row], by: str) -> list[Callable[[Row], bool]]:
    if by == "segments":
        inside = RANGE.start, RANGE.end
        return [
            lambda row, plan=plan: inside[0] <= row["timestamp"] < inside[1] and row["properties"]["plan"] == plan
            for plan in ("pro", "free")
        ]
    before = RANGE.start - timedelta(hours=HOURS)
    return [
        lambda row, span=span: span[0] <= row["timestamp"] < span[1]
        for span in ((RANGE.start, RANGE.end), (before, RANGE.start))
    ]


def visits(own: Sequence[Row]) -> list[list[Row]]:
    named: dict[str, list[Row]] = {}
    unnamed: list[list[Row]] = []
    for row in own:
        if row["session_id"]:
            named.setdefault(row["session_id"], []).append(row)
        elif unnamed and row["timestamp"] - unnamed[-1][-1]["timestamp"] <= timedelta(minutes=GAP):
            unnamed[-1].append(row)
        else:
            unnamed.append([row])
    return [*named.values(), *unnamed]


def figures(own: Sequence[Row], mine: Callable[[Row], bool], window: timedelta) -> dict[str, float]:
    """The figures of one visitor on one side."""
    rows = [row for row in own if mine(row)]
    person = rows[0]["user_id"] is not None if rows else False
    converted = any(
        first["event"] == "a" and later["event"] == "b" and later["timestamp"] - first["timestamp"] <= window
        for place, first in enumerate(rows)
        for later in rows[place + 1 :]
    )
    numbers = [
        float(row["properties"]["n"])
        for row in rows
        if row["event"] == "b" and type(row["properties"]["n"]) in (int, float)
    ]
    return {
        "events": len(rows),
        "persons_events": len(rows) if person else 0,
        "persons": person,
        "sessions": sum(any(map(mine, visit)) for visit in visits(own)),
        "began": person and any(row["event"] == "a" for row in rows),
        "converted": person and converted,
        "sum": sum(numbers),
        "values": len(numbers),
    }


def naive(rows: Sequence[Row], by: str, window: timedelta) -> list[tuple[list[dict[str, float]], ...]]:
    """By side, the figures of each visitor."""
    visitors: dict[Any, list[Row]] = {}
    seen = [row for row in rows if row["timestamp"] < RANGE.end]
    if by == "segments":
        seen = [row for row in seen if row["timestamp"] >= RANGE.start]
    else:
        seen = [row for row in seen if row["timestamp"] >= RANGE.start - timedelta(hours=HOURS)]
    for row in sorted(seen, key=lambda row: row["timestamp"]):
        visitors.setdefault(row["user_id"] or ("nobody", row["session_id"]), []).append(row)
    one, other = sides(rows, by)
    return [(figures(own, one, window), figures(own, other, window)) for own in visitors.values()]


RATIOS = {
    "events": ("events", None),
    "visitors": ("persons", None),
    "events_per_visitor": ("persons_events", "persons"),
    "sessions": ("sessions", None),
    "conversion": ("converted", "began"),
    "mean": ("sum", "values"),
}


@given(
    st.builds(history, st.integers(0, 1 << 30), st.integers(1, 40)),
    st.sampled_from(["periods", "segments"]),
    st.integers(1, 12),
)
@settings(max_examples=15, deadline=None)
def test_every_figure_is_what_visitor_by_visitor_adds_up_to(rows: list[Row], by: str, hours: int) -> None:
    given: dict[str, Any] = {
        "conversion": {"from": {"event": "a"}, "to": "b", "window": f"{hours}h"},
        "mean": {"property": "properties.n", "event": "b"},
    }
    if by == "segments":
        given["segments"] = [{"name": plan, "where": {"properties.plan": plan}} for plan in ("pro", "free")]
    found = table(ask(rows, **given))
    pairs = naive(rows, by, timedelta(hours=hours))
    seen = sum(one["events"] + other["events"] > 0 for one, other in pairs)
    for metric, (part, whole) in RATIOS.items():
        row = found[metric]
        sums = [[sum(pair[side][f] for pair in pairs) if f else 1 for f in (part, whole)] for side in (0, 1)]
        values = [top / bottom if bottom else None for top, bottom in sums]
        assert [row["value"], row["other"]] == [None if v is None else pytest.approx(v) for v in values], metric
        if None in values or metric == "conversion" or seen < 10:
            continue
        pulls = [
            [(pair[side][part] - (values[side] * pair[side][whole] if whole else 0)) / sums[side][1] for pair in pairs]
            for side in (0, 1)
        ]
        variance = sum((a - b) ** 2 for a, b in zip(*pulls, strict=True))
        if variance < 1e-9:
            continue
        half = 1.959964 * math.sqrt(variance)
        difference = values[0] - values[1]
        assert row["difference"] == pytest.approx(difference)
        assert [row["difference_low"], row["difference_high"]] == pytest.approx(
            [difference - half, difference + half], abs=1e-5
        )
        assert row["p_value"] == pytest.approx(
            2 * (1 - normal_cdf(abs(difference) / math.sqrt(variance))), rel=1e-4, abs=1e-9
        )
        if min(values) > 0:
            logs = sum((a / values[0] - b / values[1]) ** 2 for a, b in zip(*pulls, strict=True))
            assert row["ratio_high"] == pytest.approx(row["ratio"] * math.exp(1.959964 * math.sqrt(logs)))
    began = [int(sum(pair[side]["began"] for pair in pairs)) for side in (0, 1)]
    converted = [int(sum(pair[side]["converted"] for pair in pairs)) for side in (0, 1)]
    expected = newcombe(converted[0], began[0], converted[1], began[1]) if sum(began) >= 10 else None
    assert found["conversion"]["difference_low"] == (expected and expected.interval.low)


def test_the_range_before_is_as_long_by_the_wall_clock() -> None:
    berlin = "Europe/Berlin"  # its clocks go forward on 30 March 2025
    asked = TimeRange(datetime(2025, 3, 30, 22, tzinfo=UTC), datetime(2025, 3, 31, 22, tzinfo=UTC), berlin)
    rows = [event("u", 0, timestamp=datetime(2025, 3, 29, 22, 30, tzinfo=UTC)), event("u", 0, timestamp=asked.start)]
    found = table(ask(rows, asked))["events"]
    assert (found["value"], found["other"], found["against"]) == (1, 0, "2025-03-30T00:00/2025-03-31T00:00")
    rows.append(event("u", 0, timestamp=datetime(2025, 3, 29, 23, tzinfo=UTC)))
    assert table(ask(rows, asked))["events"]["other"] == 1


def test_a_range_to_compare_with_can_be_named() -> None:
    rows = [event("u", 1), event("u", -100), event("v", -100), event("v", -10)]
    for start in ("2025-03-05T20:00:00", "2025-03-05T20:00:00Z", "2025-03-05T21:00:00+01:00"):
        found = table(ask(rows, against={"start": start}))["events"]
        assert (found["value"], found["other"], found["difference"], found["ratio"]) == (1, 2, -1, 0.5)
        assert found["difference_low"] is None, "two visitors say nothing"


@pytest.mark.parametrize(
    ("given", "parameter", "problem"),
    [
        ({"against": {"start": "soon"}}, "against.start", "'soon' is no time; valid are such as 2025-01-31"),
        ({"against": {"start": "2025-03-09T20:00:00"}}, "against.start", "valid is 2025-03-09T14:00:00 or earlier"),
        ({"against": {"start": "2025-01-01"}, "segments": [{"name": "a", "where": {}}] * 2}, "against", "leave out"),
        ({"segments": [{"name": "a", "where": {"plan": 1}}] * 2}, "segments[0].where", "properties.plan"),
        ({"conversion": {"from": "a", "to": "b", "window": "0d"}}, "conversion.window", "'0d' is not valid"),
        ({"conversion": {"from": {"where": {"x": 1}}, "to": "b"}}, "conversion.from.where", "properties.x"),
        ({"against": {"start": "0001-01-01T00:00:00+14:00"}}, "against.start", "is outside 2000-01-01 to 2100-01-01"),
        ({"against": {"start": "9999-12-31"}}, "against.start", "is outside 2000-01-01 to 2100-01-01"),
        ({"mean": {"property": "amount"}}, "mean.property", "properties.amount"),
        ({"mean": {"property": "timestamp"}}, "mean.property", "valid are properties.timestamp and context.x"),
        ({"mean": {"property": "properties.n", "where": {"n": 1}}}, "mean.where", "properties.n"),
    ],
)
def test_a_wrong_question_names_its_parameter(given: dict[str, Any], parameter: str, problem: str) -> None:
    with pytest.raises(ParameterError) as raised:
        ask([event("u", 1)], **given)
    assert raised.value.parameter.startswith(parameter)
    assert problem in str(raised.value)


def test_nothing_at_all_is_an_answer() -> None:
    answer = ask([], conversion={"from": "a", "to": "b"}, mean={"property": "properties.n"})
    assert {metric: (row["value"], row["ratio"]) for metric, row in table(answer).items()} == {
        "events": (0, None),
        "visitors": (0, None),
        "events_per_visitor": (None, None),
        "sessions": (0, None),
        "conversion": (None, None),
        "mean": (None, None),
    }
    assert answer.insights == []


def test_a_number_beyond_measure_spoils_no_other_figure() -> None:
    rows = [*crowd(30, 20), event("u1", 2, properties={"n": 1e300}), event("u2", 2, properties={"n": 1})]
    found = table(ask(rows, mean={"property": "properties.n"}))
    assert (found["mean"]["value"], found["mean"]["difference_low"]) == (5e299, None)
    assert found["events"]["difference_low"] < 12 < found["events"]["difference_high"]


# --- findings --------------------------------------------------------------------------------------------------------


def crowd(now: int, before: int, each: int = 1) -> list[Row]:
    return [
        event(f"u{n}", hour + i / 60)
        for hour, count in ((1, now), (-9, before))
        for n in range(count)
        for i in range(each)
    ]


def test_a_change_is_told_with_its_interval() -> None:
    answer = ask([event("first", -HOURS), *crowd(300, 150)])
    told = {insight.key: insight.data for insight in answer.insights}
    assert set(told) == {"compare:events", "compare:visitors", "compare:sessions"}
    assert told["compare:visitors"]["ratio"] == pytest.approx(300 / 151)
    assert told["compare:visitors"]["low"] > 1.5
    assert answer.recommendations[0].insight == answer.insights[0].key
    assert all("different weekdays" in insight.description for insight in answer.insights), "ten hours before"
    rows = [event("first", -168), *crowd(300, 0), *(event(f"v{n}", -167) for n in range(150))]
    week = ask(rows, against={"start": (START - timedelta(days=7)).isoformat()})
    assert week.insights
    assert not any("weekdays" in insight.description for insight in week.insights)


@pytest.mark.parametrize(
    "rows",
    [
        [event("first", -HOURS), *crowd(100, 100, 20)],
        [event("first", -HOURS), *crowd(29, 10)],  # few
        crowd(300, 150),  # nothing is stored of the first hour before
    ],
)
def test_what_may_be_chance_or_ignorance_is_not_told(rows: list[Row]) -> None:
    assert ask(rows).insights == []


def test_a_few_visitors_with_many_events_are_no_change() -> None:
    """20 visitors of 300 have 100 events each in one range: a Poisson test of the events would be sure."""
    rows = [event("first", -HOURS), *crowd(150, 150)]
    rows += [event(f"u{n}", 2 + i / 60) for n in range(3) for i in range(100)]
    found = table(ask(rows))["events"]
    assert found["value"] > 2.5 * found["other"]
    assert found["p_value"] > 0.05


# --- the intervals ---------------------------------------------------------------------------------------------------


def test_intervals_of_proportions_as_published() -> None:
    assert newcombe(56, 70, 48, 80) == pytest.approx(
        (0.2, pytest.approx((0.0524, 0.3339), abs=1e-4), 0.00805), abs=1e-4
    )
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert newcombe(0, 10, 0, 10) == (0, pytest.approx((-0.2775, 0.2775), abs=1e-4), 1)
    assert (wilson(0, 0), newcombe(0, 0, 1, 2), risk_ratio(0, 5, 1, 5)) == (None, None, None)


def covers(interval: Interval, value: float) -> bool:
    return not interval.excludes(value)


@pytest.mark.parametrize(("p", "n", "q", "m"), [(0.1, 60, 0.1, 90), (0.02, 200, 0.08, 150), (0.6, 30, 0.9, 40)])
def test_intervals_of_proportions_cover_the_truth(p: float, n: int, q: float, m: int) -> None:
    draw = np.random.default_rng(1)
    drawn = list(zip(draw.binomial(n, p, 2000).tolist(), draw.binomial(m, q, 2000).tolist(), strict=True))
    alone = [interval for hits, _ in drawn if (interval := wilson(hits, n))]
    apart = [found.interval for hits, others in drawn if (found := newcombe(hits, n, others, m))]
    times = [found.interval for hits, others in drawn if (found := risk_ratio(hits, n, others, m))]
    for intervals, truth in ((alone, p), (apart, p - q), (times, p / q)):
        assert 0.92 < sum(covers(interval, truth) for interval in intervals) / len(intervals) < 0.99


def drawn_sums(draw: np.random.Generator) -> Sums:
    """Visitors who come in one or both ranges with many events or few; the truth: 1.25 times as many visitors, with as
    many events each."""
    count = draw.poisson(400)
    weight = draw.gamma(0.7, 4, count)
    found = np.zeros((2 * FIGURES, count))
    for start, chance in ((0, 0.75), (FIGURES, 0.6)):
        events = np.where(draw.random(count) < chance, 1 + draw.poisson(weight), 0)
        found[start + EVENTS] = found[start + PERSONS_EVENTS] = events
        found[start + PERSONS] = events > 0
    return Sums.of(found, 0)


def test_intervals_of_sums_cover_the_truth_though_visitors_come_again() -> None:
    draw = np.random.default_rng(2)
    each = [{row.metric: row for row in rows_of(drawn_sums(draw), conversion=False, mean=False)} for _ in range(600)]
    for metric, truth in (("events", 1.25), ("visitors", 1.25), ("events_per_visitor", 1.0)):
        found = [rows[metric].ratio for rows in each]
        share = sum(covers(ratio.interval, truth) for ratio in found if ratio is not None) / len(found)
        assert 0.92 < share < 0.98, metric
    same = [rows["events_per_visitor"].difference for rows in each]
    assert 0.02 < sum(found.p_value < 0.05 for found in same if found is not None) / len(same) < 0.08
