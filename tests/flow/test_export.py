"""An export holds every event of one snapshot once, oldest first, in windows, and reads back as what was sent."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analytics_core.errors import BusyError, ParameterError, StoppingError
from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.queries import export
from analytics_core.queries.export_formats import FORMATS
from analytics_core.queries.filters import parse_filters
from analytics_core.queries.history import ALL_TIME, MAX_EXPORTS
from analytics_core.queries.projection import WIRE, parse_fields
from analytics_core.testing import batch
from tests.flow.history_house import NOW, House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def exported(house: House, format_: str = "ndjson", fields: Sequence[str] | None = None, **asked: Any) -> bytes:
    opened = house.history.export(
        "default", asked.get("range", ALL_TIME), asked.get("filters", ()), parse_fields(fields), FORMATS[format_]
    )
    try:
        return b"".join(opened.chunks())
    finally:
        opened.close()


def lines(house: House, fields: Sequence[str] | None = None, **asked: Any) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in exported(house, "ndjson", fields, **asked).splitlines()]


ODD = [
    {"event": 'say "hi"', "user_id": "a,b", "properties": {"s": 'x"\n\\', "n": 1.5, "o": {"k": [1, None]}}},
    {"event": "é\u2028😀", "user_id": None, "session_id": "", "properties": {"n": -(2**40), "s": "", "t": True}},
    {"event": "\x00tab\t", "anonymous_id": "a1", "properties": {"o": None}, "context": {"page": "/"}},
]


def test_ndjson_has_the_rows_of_the_pages_oldest_first(house: House) -> None:
    house.post(*ODD)
    house.store_all(upto=2)
    pages = msgspec.json.decode(msgspec.json.encode(house.history.page("default")["rows"]))
    found = lines(house)
    assert [list(row) for row in found] == [list(WIRE)] * 3
    times = ("timestamp", "receivedAt")
    for row in (*pages, *found):
        row.update({name: datetime.fromisoformat(row[name]) for name in times})
    assert found == pages[::-1]
    assert [row["properties"] for row in found] == [one["properties"] for one in ODD]


def test_a_document_that_was_sent_on_several_lines_takes_one(house: House) -> None:
    made = batch([{"event": "a", "event_id": "e"}])
    text = '{"a":\r\n "x\\ny", "big": 12345678901234567890123}'
    columns = [pa.array([text]) if name == "properties" else made.column(name) for name in UNPLACED_SCHEMA.names]
    house.log.append([pa.RecordBatch.from_arrays(columns, schema=UNPLACED_SCHEMA)], NOW)
    assert (
        exported(house, fields=["properties"]) == b'{"properties":{"a":   "x\\ny", "big": 12345678901234567890123}}\n'
    )
    assert exported(house, fields=["properties.big"]) == b'{"properties.big":12345678901234567890123}\n'


def test_every_format_says_the_same(house: House) -> None:
    house.post(*ODD)
    fields = [
        "event",
        "timestamp",
        "userId",
        "sessionId",
        "properties.s",
        "properties.n",
        "properties.o",
        "context",
        "seq",
    ]
    typed = pq.read_table(io.BytesIO(exported(house, "parquet", fields)))
    assert typed == pa.ipc.open_stream(exported(house, "arrow", fields)).read_all()
    assert typed.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    text = exported(house, "csv", fields).decode()
    assert text.split("\n", 1)[0] == ",".join(f'"{name}"' for name in fields)
    assert ',"",' in text.splitlines()[-2]  # an empty text is not an absent one
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [{**row, "timestamp": datetime.fromisoformat(row["timestamp"])} for row in rows] == [
        {name: value if name == "timestamp" else str(value) if value is not None else "" for name, value in row.items()}
        for row in typed.to_pylist()
    ]
    exact = lines(house, fields)
    assert [row["properties.n"] for row in exact] == [1.5, -(2**40), None]
    assert [row["properties.n"] for row in typed.to_pylist()] == ["1.5", str(-(2**40)), None]
    assert exact[0]["properties.o"] == {"k": [1, None]}


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_of_nothing_is_a_whole_one(house: House, format_: str) -> None:
    content = exported(house, format_, ["event", "properties.x"])
    match format_:
        case "ndjson":
            assert content == b""
        case "csv":
            assert content == b'"event","properties.x"\n'
        case "parquet":
            assert pq.read_table(io.BytesIO(content)).column_names == ["event", "properties.x"]
        case "arrow":
            assert pa.ipc.open_stream(content).read_all().column_names == ["event", "properties.x"]


def test_range_filters_and_the_snapshot_bound_it(house: House) -> None:
    house.post(*({"event": name, "properties": {"n": i}} for i, name in enumerate("abab")))
    house.store_all(upto=2)
    opened = house.history.export(
        "default",
        msgspec.structs.replace(ALL_TIME, end=NOW + timedelta(seconds=3)),
        parse_filters({"event": {"regex": "^a$"}}),
        parse_fields(["messageId"]),
        FORMATS["ndjson"],
    )
    house.post({"event": "a", "timestamp": NOW})  # is not in the snapshot
    house.store_all()
    assert opened.rows == 2
    assert b"".join(opened.chunks()) == b'{"messageId":"e0"}\n{"messageId":"e2"}\n'
    opened.close()


# --- windows ---------------------------------------------------------------------------------------------------------

STEPS = [0, 1, 2, 999, 1_000, 1_000_001, 61_000_000, 3_600_000_000, 5 * 86_400_000_000]
CHANCE = random.Random(7)
TIMES = [NOW + timedelta(days=-CHANCE.randint(0, 3), microseconds=CHANCE.choice(STEPS)) for _ in range(24)]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Events that share days, hours, seconds and instants, half of them in the lake."""
    made = House(tmp_path_factory.mktemp("crowded"))
    made.post(*({"event": "a", "timestamp": at} for at in TIMES))
    made.store_all(upto=len(TIMES) // 2)
    yield made
    made.close()


@pytest.mark.parametrize(("window", "places"), [(1, 1), (450, 5), (1_300, 3), (10**6, 1)])
def test_windows_part_nothing_and_repeat_nothing(
    crowded: House, monkeypatch: pytest.MonkeyPatch, window: int, places: int
) -> None:
    monkeypatch.setattr(export, "WINDOW", window)
    monkeypatch.setattr(export, "_PLACES", places)
    expected = [f"e{i}" for i in sorted(range(len(TIMES)), key=lambda i: (TIMES[i], i))]
    opened = crowded.history.export("default", ALL_TIME, (), parse_fields(["messageId"]), FORMATS["arrow"])
    windows = [len(opened._read(part)) for part in opened._windows()]
    assert sum(windows) == opened.rows == len(TIMES)
    assert max(windows) <= max(places, window // 200)
    assert (len(windows) > 1) == (window < 10**6)
    found = pa.ipc.open_stream(b"".join(opened.chunks())).read_all()
    opened.close()
    assert found.column("messageId").to_pylist() == expected


# --- ends ------------------------------------------------------------------------------------------------------------


def test_so_many_exports_at_once_and_a_closed_one_makes_room(house: House) -> None:
    def begin() -> export.Export:
        return house.history.export("default", ALL_TIME, (), parse_fields(None), FORMATS["ndjson"])

    house.post({"event": "a"})
    house.store_all()
    running = [begin() for _ in range(MAX_EXPORTS)]
    with pytest.raises(BusyError, match="2 exports are under way already"):
        begin()
    assert house.store._leases
    for one in running:
        one.close()
        one.close()
    assert not house.store._leases
    begin().close()


def test_it_ends_when_the_host_stops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.post({"event": "a"}, {"event": "b", "timestamp": NOW + timedelta(days=9)})
    monkeypatch.setattr(export, "WINDOW", 1)
    opened = house.history.export("default", ALL_TIME, (), parse_fields(None), FORMATS["csv"])
    chunks = opened.chunks()
    assert next(chunks).startswith(b'"event"')
    house.history.interrupt()
    with pytest.raises(StoppingError):
        list(chunks)
    opened.close()
    with pytest.raises(StoppingError):
        house.history.export("default", ALL_TIME, (), parse_fields(None), FORMATS["csv"])
    assert house.history._exports.acquire(blocking=False)  # the refused one holds no room


# --- fields ----------------------------------------------------------------------------------------------------------


def test_a_page_shows_the_fields_that_are_asked_for(house: House) -> None:
    house.post(*ODD)
    fields = ["properties.n", "event", "user_id", "properties.o.k", "context", "timestamp", "partition"]
    rows = house.history.page("default", fields=parse_fields([*fields, "event"]), limit=2)["rows"]
    assert [list(row) for row in rows] == [fields] * 2
    assert msgspec.json.decode(msgspec.json.encode(rows[1])) == {
        "properties.n": -(2**40),
        "event": ODD[1]["event"],
        "user_id": None,
        "properties.o.k": None,
        "context": {},
        "timestamp": (NOW + timedelta(seconds=1)).astimezone(UTC).isoformat(),
        "partition": 0,
    }


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("evnt", "did you mean 'event'?"),
        ("plan", "did you mean 'properties.plan'?"),
        ("propertis.plan", "did you mean 'properties"),
        ("properties.", "is no field"),
        ("tenant", "is no field"),
        ("", "valid are"),
    ],
)
def test_a_field_that_is_none_is_refused_with_near_names(field: str, text: str) -> None:
    with pytest.raises(ParameterError, match="fields") as caught:
        parse_fields(["event", field])
    assert text in str(caught.value)


def test_no_field_and_too_many_are_refused() -> None:
    with pytest.raises(ParameterError, match="is empty; valid are: event, userId"):
        parse_fields([])
    with pytest.raises(ParameterError, match="201 fields are more than 200"):
        parse_fields([f"properties.p{i}" for i in range(201)])


# --- names that nobody knows -----------------------------------------------------------------------------------------


def test_an_empty_page_says_which_names_nobody_knows(house: House) -> None:
    assert house.history.page("default", filters=parse_filters({"properties.plan": "pro"}))["notes"] == [
        "no event has come yet"
    ]
    house.post({"event": "purchase", "properties": {"plan": "pro", "cart": {"items": 3}}}, {"event": "view"})

    def notes(given: Any, **asked: Any) -> list[str]:
        found: list[str] = house.history.page("default", filters=parse_filters(given), **asked)["notes"]
        return found

    assert notes({"event": "purchse"}) == ["no event is named 'purchse'; did you mean 'purchase'?"]
    assert notes({}, names=["zzz", "view"]) == []  # the page is not empty
    assert notes({}, names=["zzz"]) == ["no event is named 'zzz'; valid are: purchase, view"]
    looked = "in the 2 events that were looked at"
    assert notes({"properties.plann": "pro"}) == [f"no 'properties.plann' {looked}; did you mean 'properties.plan'?"]
    assert notes({"properties.cart.item": 3}) == [
        f"no 'properties.cart.item' {looked}; did you mean 'properties.cart.items'?"
    ]
    assert notes({"event": "purchase", "properties.plan": "free"}) == []
    assert notes({"event": "view", "properties.plan": "free"}) == [
        "no 'properties.plan' in the 1 events that were looked at"
    ]
    assert notes({"userId": "nobody"}) == []


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"properties.zip": 10115}, "'properties.zip' holds texts, and 10115 is a number"),
        ({"properties.n": {">": "2"}}, "'properties.n' holds numbers, and \"2\" is a text"),
        ({"properties.n": ["1", None]}, "'properties.n' holds numbers, and \"1\" is a text"),
        ({"properties.n": True}, "'properties.n' holds numbers, and true is a truth value"),
        ({"properties.cart": {"contains": "x"}}, "'properties.cart' holds objects, and \"x\" is a text"),
        ({"properties.n": [7, "1"]}, None),
        ({"properties.n": None}, None),
        ({"properties.n": {"!=": "1", "<": 0}}, None),
    ],
)
def test_an_empty_page_says_when_a_property_holds_another_type(
    house: House, given: dict[str, Any], note: str | None
) -> None:
    house.post({"event": "a", "properties": {"zip": "10115", "n": 1, "cart": {"items": 3}}})
    notes = house.history.page("default", filters=parse_filters(given))["notes"]
    assert notes == ([] if note is None else [note])


def test_notes_name_the_most_frequent_of_many_names(house: House) -> None:
    house.post(*({"event": f"e{i}"} for i in range(30)), *({"event": "often"} for _ in range(2)))
    (note,) = house.history.page("default", names=["xyzzy"])["notes"]
    assert note.endswith(", often, ...")
    assert note.count(",") == 20
