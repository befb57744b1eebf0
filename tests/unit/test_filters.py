"""A filter means the same as SQL, as a mask, and in plain Python; and what it refuses, it refuses in words."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.errors import ParameterError
from analytics_core.metrics.filters import OPS, Filter, make_filter
from analytics_core.metrics.patterns import MAX_STEPS
from analytics_core.queries.filters import parse_compact, parse_filters
from analytics_core.testing import START, batch

Row = dict[str, Any]
TEXTS = ("", "a", "ab", "b.a", "1", "true", "ä", "a\nb", "null")
VALUES = (*TEXTS, 0, 1, -2, 1.5, 2**40, True, False, None, {}, {"y": "a"}, {"y": {"z": 1}}, [], ["a"], [1])
PATTERNS = ("", "a", "^a$", "a.b", "(?s)a.b", "(?i)A", "^[ab]+$", r"\d", "a|1", "ä$", r"\.", "(?P<one>a)b", "l{2}")
FIELDS = ("event", "userId", "session_id", "properties.x", "properties.x.y", "properties.x.y.z", "context.x")


def held(row: Row, field: str) -> Any:
    """The value of an event at ``field``; None when there is none."""
    head, *path = field.split(".")
    value = row.get({"userId": "user_id"}.get(head, head))
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def same(left: Any, right: Any) -> bool:
    def kind(value: Any) -> str:
        return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__

    return kind(left) == kind(right) and left == right


def holds(row: Row, field: str, op: str, value: Any) -> bool:
    """What `Filter` says it means, for one event."""
    found = held(row, field)
    if "." not in field and op not in ("exists", "contains", "regex"):
        value = [str(v) if type(v) in (int, float) else v for v in value] if op == "in" else value
        value = str(value) if type(value) in (int, float) else value
    match op:
        case "exists":
            return (found is not None) == value
        case "in":
            return any(same(found, one) for one in value)
        case "=":
            return same(found, value)
        case "!=":
            return not same(found, value)
        case "contains":
            return isinstance(found, str) and value in found
        case "regex":
            return isinstance(found, str) and re.search(value.replace("$", r"\Z"), found) is not None
    if isinstance(found, bool) or isinstance(found, str) != isinstance(value, str):
        return False
    if not isinstance(found, str | int | float):
        return False
    left, right = (found.encode(), value.encode()) if isinstance(found, str) else (found, value)
    return bool({">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right}[op])


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from([text for text in TEXTS if text]),
            "user_id": st.sampled_from([None, "a", "1", "ab"]),
            "session_id": st.sampled_from([None, "1", "true"]),
            "properties": st.sampled_from([{}, {"y": 1}, *({"x": value} for value in VALUES)]),
            "context": st.sampled_from([{}, *({"x": value} for value in VALUES)]),
        }
    ),
    min_size=1,
    max_size=8,
)
SCALARS = st.sampled_from([value for value in VALUES if not isinstance(value, dict | list)])
ORDERED = st.sampled_from([v for v in VALUES if isinstance(v, str | int | float) and not isinstance(v, bool)])
ASKED = {
    **dict.fromkeys((">", ">=", "<", "<="), ORDERED),
    "in": st.lists(SCALARS, max_size=3),
    "contains": st.sampled_from(TEXTS),
    "regex": st.sampled_from(PATTERNS),
    "exists": st.booleans(),
}


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, str, Any]:
    field, op = draw(st.sampled_from(FIELDS)), draw(st.sampled_from(OPS))
    value = draw(ASKED.get(op, SCALARS))
    if "." not in field:  # a column of texts has no true and no false
        value = [v for v in value if not isinstance(v, bool)] if op == "in" else value
        value = "x" if isinstance(value, bool) and op != "exists" else value
    return field, op, value


def by_sql(filter_: Filter, events: Any) -> list[bool]:
    bound: dict[str, Any] = {}

    def bind(value: Any) -> str:
        bound[f"p{len(bound)}"] = value
        return f"$p{len(bound) - 1}"

    connection = _duckdb()
    connection.register("events", pa.table(events.record_batch))
    found = connection.execute(f"SELECT coalesce({filter_.sql(bind)}, false) FROM events ORDER BY seq", bound)
    return [bool(row[0]) for row in found.fetchall()]


@cache
def _duckdb() -> Any:
    return duckdb.connect(config={"threads": 1})


@settings(deadline=None, max_examples=100)
@given(ROWS, st.lists(conditions(), min_size=1, max_size=4))
def test_a_filter_means_the_same_in_sql_as_a_mask_and_in_plain_python(
    rows: list[Row], asked: list[tuple[str, str, Any]]
) -> None:
    events = batch([{**row, "timestamp": START} for row in rows])
    for field, op, value in asked:
        filter_ = make_filter(field, op, value, "filter")
        expected = [holds(row, field, op, value) for row in rows]
        assert filter_.mask(events).tolist() == expected, (field, op, value)
        assert by_sql(filter_, events) == expected, (field, op, value)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a", "missing ): (a; valid is the syntax of RE2"),
        (r"(a)\1", "no backreferences"),
        ("(?=a)", "no lookaround"),
        ("(?<=a)b", "'(?<' begins no group"),
        ("(?<name>a)", "a group is named (?P<name>...)"),
        ("a**", "is no pattern"),
        ("a" * 501, f"a pattern of 501 letters is too long; valid are {MAX_STEPS}"),
        ("(a{100}){6}", "stands for 606 steps"),
        ("(.{0,400}){2}", "valid are at most 500"),
        ("((a|b){30}){10}", "valid are at most 500"),
        ("a{1001}", "is no pattern"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_a_pattern_that_could_explode_or_is_none_is_refused_with_what_is_valid(pattern: str, text: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(text)) as caught:
        parse_filters([{"field": "event", "op": "regex", "value": pattern}])
    assert caught.value.parameter == "filters[0].value"


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"(?i)https?://([^/]+)/.*\?utm_(source|medium)=",
        r"\(?<a",
        "[(?<]a",
        r"\Qa{600}\E",
        "(?P<year>[0-9]{4})",
        "[[:alpha:]]{2,}",
    ],
)
def test_usual_patterns_are_taken(pattern: str) -> None:
    assert make_filter("properties.x", "regex", pattern, "filter").value == pattern


def test_a_pattern_that_explodes_elsewhere_takes_no_time_here() -> None:
    events = batch([{"event": "e", "properties": {"x": "a" * 20_000 + "!"}}])
    begun = time.monotonic()
    for pattern in ("(a+)+$", "(a|a)*b", "(x+x+)+y", "^(.*a){9}$"):
        filter_ = make_filter("properties.x", "regex", pattern, "filter")
        assert filter_.mask(events).tolist() == by_sql(filter_, events) == [False]
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("text", "field", "op", "value"),
    [
        ("properties.amount>10", "properties.amount", ">", 10),
        ("properties.amount >= 10.5", "properties.amount", ">=", 10.5),
        ("properties.plan=pro", "properties.plan", "=", "pro"),
        ("properties.plan!=pro=max", "properties.plan", "!=", "pro=max"),
        ('properties.zip="01234"', "properties.zip", "=", "01234"),
        ("properties.zip=01234", "properties.zip", "=", "01234"),
        ("properties.vip=true", "properties.vip", "=", True),
        ("properties.coupon=null", "properties.coupon", "=", None),
        ("userId=42", "userId", "=", "42"),
        ("userId=1.50", "userId", "=", "1.50"),
        ("event~^cart_(add|remove)$", "event", "regex", "^cart_(add|remove)$"),
        ("event regex ^cart", "event", "regex", "^cart"),
        ("properties.name contains 10", "properties.name", "contains", "10"),
        ("event in view, cart", "event", "in", ["view", "cart"]),
        ('properties.n in [1, "a,b"]', "properties.n", "in", [1, "a,b"]),
        ("properties.coupon exists", "properties.coupon", "exists", True),
        ("properties.coupon not exists", "properties.coupon", "exists", False),
        ("properties.in stock=1", "properties.in stock", "=", 1),
        ("timestamp>=2025-03-01", "timestamp", ">=", "2025-03-01"),
        ('{"field": "properties.a>b", "op": "=", "value": 1}', "properties.a>b", "=", 1),
    ],
)
def test_the_short_form_of_a_filter(text: str, field: str, op: str, value: Any) -> None:
    assert parse_compact([text]) == (make_filter(field, op, value, "filter"),)


@pytest.mark.parametrize(
    ("text", "parameter", "problem"),
    [
        ("properties.plan", "filter[0]", "is no filter; valid are such as 'properties.amount>10'"),
        ("=pro", "filter[0]", "is no filter"),
        ("plan=pro", "filter[0].field", "did you mean 'properties.plan'?"),
        ("evnt=a", "filter[0].field", "did you mean"),
        ("event~(a", "filter[0].value", "missing )"),
        ("timestamp>noon", "filter[0].value", "is no time"),
        ('{"field": 1}', "filter[0]", "must be an object with 'field'"),
        ('{"field": ', "filter[0]", "begins as JSON and is none"),
    ],
)
def test_a_short_filter_that_is_none_names_what_is_valid(text: str, parameter: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(problem)) as caught:
        parse_compact([text])
    assert caught.value.parameter == parameter
