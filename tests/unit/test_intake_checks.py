"""The checks over whole columns say of each row what they would say of it alone."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from analytics_core.events import MAX_DEPTH, MAX_ID, MAX_NAME, Event
from analytics_core.events.columns import Columns
from analytics_core.intake.checks import Errors, id_texts, json_objects, name_words

MOST = 600


def nested(depth: int) -> Raw:
    return Raw(b'{"a":' * depth + b"1" + b"}" * depth)


VALUE = st.one_of(
    st.builds(nested, st.integers(1, MAX_DEPTH + 6)),
    st.builds(lambda n: Raw(b'{"a":"' + b"[" * n + b'"}'), st.integers(0, MOST)),
    st.builds(lambda n: Raw(b'{"a":[' + b",".join([b"{}"] * n) + b"]}"), st.integers(0, 2 * MAX_DEPTH)),
    st.sampled_from([Raw(text) for text in (b"{}", b"null", b"[]", b'"a"', b"true", b"-1")]),
)


def depth(value: object) -> int:
    if isinstance(value, dict | list):
        return 1 + max((depth(v) for v in (value.values() if isinstance(value, dict) else value)), default=0)
    return 0


def problem(text: Raw) -> str | None:
    value = msgspec.json.decode(text)
    if value is not None and not isinstance(value, dict):
        return "must be a JSON object, not "
    if len(text) > MOST:
        return f"is larger than {MOST} bytes"
    return f"is nested deeper than {MAX_DEPTH} levels" if depth(value) > MAX_DEPTH else None


@given(st.lists(VALUE, min_size=1, max_size=12))
def test_objects_are_judged_each_for_itself(values: list[Raw]) -> None:
    errors: Errors = {}
    column = json_objects("properties", values, MOST, errors)
    expected = {row: text for row, value in enumerate(values) if (text := problem(value))}
    assert errors.keys() == expected.keys()
    assert all(field == "properties" and text.startswith(expected[row]) for row, (field, text) in errors.items())
    assert column.to_pylist() == [bytes(value).decode() if bytes(value).startswith(b"{") else "{}" for value in values]


NAME = st.sampled_from(["a", "b", "", "é" * MAX_NAME, "x" * (MAX_NAME + 1), "y" * (MAX_NAME + 1)])


@given(st.lists(NAME, min_size=1, max_size=8))
def test_names_are_judged_each_for_itself(values: list[str]) -> None:
    errors: Errors = {}
    assert name_words(values, errors).to_pylist() == values
    long = ("event", f"is longer than {MAX_NAME} characters")
    unfit = {row: name for row, name in enumerate(values) if not name or len(name) > MAX_NAME}
    assert errors == {row: long if name else ("event", "is empty") for row, name in unfit.items()}


LONG = st.sampled_from(["i" * MAX_ID, "i" * (MAX_ID + 1), "é" * (MAX_ID // 2), "é" * (MAX_ID // 2 + 1)])
OPTIONAL = st.none() | st.just("a") | st.just(7) | LONG
EVENT = st.builds(
    lambda *ids: Event(name="a", message_id=ids[0], user_id=ids[1], anonymous_id=ids[2], session_id=ids[3]),
    st.just("m") | LONG,
    OPTIONAL,
    OPTIONAL,
    OPTIONAL,
)


@given(st.lists(EVENT, min_size=1, max_size=8))
def test_the_first_id_that_is_too_long_is_the_error_of_its_row(events: list[Event]) -> None:
    errors: Errors = {}
    id_texts(Columns.of(events), errors)
    fields = {"message_id": "messageId", "user_id": "userId", "anonymous_id": "anonymousId", "session_id": "sessionId"}
    expected: Errors = {}
    for row, event in enumerate(events):
        for name, field in fields.items():
            if len(str(getattr(event, name) or "").encode()) > MAX_ID:
                expected.setdefault(row, (field, f"is longer than {MAX_ID} bytes"))
    assert errors == expected
