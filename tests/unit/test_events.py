"""The batch and the rules of time (DESIGN §4)."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.events import DAY, MINUTE, SCHEMA, Event, EventBatch, micros, moment, placed
from analytics_core.events.columns import Columns, empty_objects, identifiers, texts, to_batch, word, words
from analytics_core.events.times import EARLIEST, clock_skew, parse_time, read_times
from analytics_core.properties import extract_property

NOW = micros(datetime(2025, 6, 1, 12, tzinfo=UTC))


def at(*values: str | float | None, shift: int = 0) -> list[int]:
    received = np.full(len(values), NOW)
    return read_times(values, received, np.full(len(values), shift) if shift else None).at.tolist()


def errors(*values: str | float | None) -> dict[int, str]:
    return read_times(values, np.full(len(values), NOW)).errors


def batch(events: list[Event], first_seq: int = 0) -> EventBatch:
    columns = Columns.of(events)
    received = np.full(len(events), NOW)
    made = to_batch(
        columns,
        tenant="default",
        event_ids=pa.array([f"e{i}" for i in range(len(events))]),
        properties=texts(columns.properties),
        context=texts(columns.context),
        at=read_times(columns.timestamp, received).at,
        received_at=received,
        source="native",
    )
    return EventBatch(placed(made, first_seq), "default", moment(NOW))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-06-01T11:00:00Z", NOW - 60 * MINUTE),
        ("2025-06-01T13:00:00+02:00", NOW - 60 * MINUTE),
        ("2025-06-01 11:00:00", NOW - 60 * MINUTE),
        ("2025-06-01T11:00:00.123456Z", NOW - 60 * MINUTE + 123_456),
        (1_748_775_600, NOW - 60 * MINUTE),
        (1_748_775_600_000, NOW - 60 * MINUTE),
        (1_748_775_600.5, NOW - 60 * MINUTE + 500_000),
        (None, NOW),
    ],
)
@pytest.mark.parametrize("many", [1, 40])
def test_a_time_reads_the_same_alone_and_in_a_column(value: str | float | None, expected: int, many: int) -> None:
    assert at(*[value] * many) == [expected] * many


def test_before_2000_is_an_error_of_its_row() -> None:
    assert list(errors("2025-01-01T00:00:00Z", 0, "1999-12-31T23:59:59Z")) == [1, 2]
    assert "is before 2000-01-01" in errors(0)[0]


@pytest.mark.parametrize("value", ["yesterday", "", "2025-13-01", float("1e300"), float("-1e18")])
def test_no_time_is_an_error_that_shows_valid_ones(value: str | float) -> None:
    text = errors("2025-01-01", value)[1]
    assert "is no time; valid are ISO 8601" in text or "is before 2000-01-01" in text


def test_the_far_future_is_clamped_to_the_receipt() -> None:
    times = read_times(["2099-01-01T00:00:00Z", None], np.full(2, NOW))
    assert times.at.tolist() == [NOW, NOW]
    assert times.clamped.tolist() == [True, False]
    assert at("2025-06-02T11:59:00Z") == [NOW + DAY - MINUTE]


@given(st.integers(-(10**13), 10**13))
def test_skew_is_corrected_in_whole_minutes_and_only_above_ten(skew: int) -> None:
    shift = clock_skew(NOW - skew, NOW)
    assert shift % MINUTE == 0
    if abs(skew) <= 10 * MINUTE:
        assert shift == 0
    else:
        assert abs(skew - shift) <= MINUTE / 2


def test_skew_moves_given_times_alone() -> None:
    assert at("2025-06-01T11:00:00Z", None, shift=30 * MINUTE) == [NOW - 30 * MINUTE, NOW]


@given(st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1)))  # noqa: DTZ001
def test_micros_and_moment_are_inverse(naive: datetime) -> None:
    value = naive.replace(tzinfo=UTC)
    assert moment(micros(value)) == value
    assert parse_time(value.isoformat()) == micros(value)
    assert micros(value) >= EARLIEST


def test_a_batch_has_the_columns_of_the_design() -> None:
    made = batch([Event.of("page_view", {"path": "/"}, user_id=7), Event.of("click", session_id="")], first_seq=5)
    assert made.record_batch.schema == SCHEMA
    assert made.column("seq").to_pylist() == [5, 6]
    assert made.column("user_id").to_pylist() == ["7", None]
    assert made.column("session_id").to_pylist() == [None, None]
    row = made.rows()[0]
    assert (row.name, row.properties, row.timestamp) == ("page_view", {"path": "/"}, moment(NOW))


ID = st.none() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=4)


@given(st.integers(0, 20).flatmap(lambda n: st.lists(st.lists(ID, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_ids_are_the_same_whatever_other_ids_they_are_converted_with(ids: list[list[str | int | None]]) -> None:
    made, whole = identifiers(*ids)
    assert [column.to_pylist() for column in made] == [
        [None if value in (None, "") else str(value) for value in column] for column in ids
    ]
    assert all(column.type == pa.string() for column in [*made, whole])


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=2)))
def test_words_are_coded_in_the_order_of_their_first_use(values: list[str]) -> None:
    column, distinct = words(values)
    column.validate(full=True)
    assert column.to_pylist() == values
    assert column.dictionary.to_pylist() == distinct == list(dict.fromkeys(values))


@pytest.mark.parametrize("length", [0, 1, 1 << 14, (1 << 14) + 1])
def test_a_column_of_one_value_may_be_of_any_length(length: int) -> None:
    for text in ("a", "b" * 1000):
        made = word(text, length)
        made.validate(full=True)
        assert made.to_pylist() == [text] * length
    assert empty_objects(length).to_pylist() == ["{}"] * length
    assert texts([msgspec.Raw(b"{}")] * length).to_pylist() == ["{}"] * length


def test_a_property_is_a_typed_column_with_nulls_where_it_does_not_fit() -> None:
    made = batch(
        [
            Event.of("a", {"n": 1, "s": "x", "b": True, "deep": {"k": 2.5}}),
            Event.of("a", {"n": 1.5, "s": 3}),
            Event.of("a", {"n": 2**80, "b": 1}),
            Event.of("a"),
        ]
    )
    assert made.property("n", float).to_pylist() == [1.0, 1.5, float(2**80), None]
    assert made.property("n", int).to_pylist() == [1, None, None, None]
    assert made.property("s", str).to_pylist() == ["x", None, None, None]
    assert made.property("b", bool).to_pylist() == [True, None, None, None]
    assert made.property("deep.k", float).to_pylist() == [2.5, None, None, None]
    with pytest.raises(TypeError, match="must be str, float, int or bool"):
        made.property("n", list)  # type: ignore[type-var]


def test_a_number_that_python_cannot_hold_spoils_only_its_own_row() -> None:
    events = [
        Event.of("a", {"n": 1}),
        Event(name="a", properties=msgspec.Raw(b'{"n": 1e999}')),
        Event.of("a", {"n": 3}),
    ]
    assert batch(events).property("n", float).to_pylist() == [1.0, None, 3.0]
    assert [row.properties for row in batch(events).rows()] == [{"n": 1}, {"n": float("inf")}, {"n": 3}]


def test_an_integer_of_any_length_can_be_read() -> None:
    digits = "1" + "0" * 5_000
    event = Event(name="a", properties=msgspec.Raw(f'{{"n": {digits}, "m": 2}}'.encode()))
    assert batch([event]).rows()[0].properties == {"n": float("inf"), "m": 2}
    assert batch([event]).property("m", int).to_pylist() == [2]


@given(
    st.lists(st.sampled_from(['{"n":1}', "{}", '{"m":{"n":2}}', '{"\\u006e":3}', '{"m":"n"}', '{"n":"x"}', '{"nn":4}']))
)
def test_a_property_is_found_however_its_key_is_written(texts_: list[str]) -> None:
    column = pa.array(texts_, pa.string())
    expected = [{'{"n":1}': 1.0, '{"\\u006e":3}': 3.0}.get(text) for text in texts_]
    assert extract_property(column, "n", float).to_pylist() == expected


def test_concat_keeps_order_and_the_last_watermark() -> None:
    first = batch([Event.of("a"), Event.of("b")])
    second = EventBatch(batch([Event.of("c")], 2).record_batch, "default", moment(NOW + MINUTE))
    joined = EventBatch.concat([first, second])
    assert joined.column("name").to_pylist() == ["a", "b", "c"]
    assert joined.column("seq").to_pylist() == [0, 1, 2]
    assert joined.watermark == moment(NOW + MINUTE)
    assert len(EventBatch.empty("t", moment(NOW))) == 0


def test_filter_takes_arrow_and_numpy_masks() -> None:
    made = batch([Event.of("a"), Event.of("b")])
    for mask in (pa.array([False, True]), np.array([False, True])):
        assert made.filter(mask).column("name").to_pylist() == ["b"]
