"""Files as events: which column goes where, what the events say, and which row is which."""

from __future__ import annotations

import gzip
import json
from collections import deque
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.errors import ConfigError, ImportFileError
from analytics_core.events import Event
from analytics_core.events.times import Times, read_times
from analytics_core.importing import ABSENT, FileImport, Wanted

CLICKS = "user_id,session_id,event,timestamp,platform,clicks,paid\n"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def events(path: Path, wanted: Wanted | None = None, *, skip: int = 0, **told: Any) -> list[dict[str, Any]]:
    opened = FileImport(path, wanted or Wanted(), **told)
    lines = [line for chunk in opened.chunks(skip) for line in chunk.body().splitlines()]
    msgspec.json.decode(b"[" + b",".join(lines) + b"]", type=list[Event])  # what the server makes of them
    return [json.loads(line) for line in lines]


def bad_rows(path: Path, **told: Any) -> list[tuple[int, str]]:
    return [one for chunk in FileImport(path, **told).chunks() for one in chunk.bad]


def understood(stamps: list[Any]) -> Times:
    """What the server makes of them."""
    return read_times(stamps, received_at=np.full(len(stamps), 1_800_000_000_000_000))


# --- mapping


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("user_id,session_id,event,timestamp", {"userId": "user_id", "sessionId": "session_id", "event": "event"}),
        ("userId,event_name,time", {"userId": "userId", "event": "event_name", "timestamp": "time"}),
        ("Name,TS,Visitor ID,customer", {"event": "Name", "anonymousId": "Visitor ID", "userId": "customer"}),
        ("event,name,ts,date", {"event": "event", "timestamp": "ts"}),
        ("event_type,event_time,user_session", {"event": "event_type", "sessionId": "user_session"}),
        ("event,time,messageId", {"messageId": "messageId"}),
    ],
)
def test_columns_are_recognised_by_their_names(tmp_path: Path, header: str, expected: dict[str, str]) -> None:
    fields = FileImport(written(tmp_path / "a.csv", header + "\n")).mapping.fields()
    assert expected.items() <= fields.items()


@pytest.mark.parametrize(
    ("header", "wanted", "problem"),
    [
        (
            "what,when",
            Wanted(),
            "cannot tell which column holds the event; name it with --event-column. The columns are: what, when",
        ),
        ("event,when", Wanted(), "cannot tell which column holds the timestamp; name it with --timestamp-column (or"),
        ("event,time", Wanted(user="usr"), "--user-column: there is no column 'usr'; valid are: event, time"),
        ("event,time", Wanted(timestamp="tme"), "--timestamp-column: there is no column 'tme'; did you mean 'time'?"),
        ("event,time", Wanted(properties=("x",)), "--properties: there is no column 'x'; valid are: event, time"),
        (
            "event,time",
            Wanted(event="time", timestamp="time"),
            "'time' is named by both --event-column and --timestamp",
        ),
        ("event,time", Wanted(event=ABSENT), "cannot tell which column holds the event"),
    ],
)
def test_a_mapping_that_does_not_fit_names_what_is_there(
    tmp_path: Path, header: str, wanted: Wanted, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        FileImport(written(tmp_path / "a.csv", header + "\n"), wanted)
    assert problem in str(caught.value)


def test_a_file_without_times_is_taken_only_when_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "event\nhome\n")
    (event,) = events(path, Wanted(timestamp=ABSENT))
    assert event["event"] == "home"
    assert "timestamp" not in event


def test_an_unknown_zone_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Mars/Olympus' is no IANA time zone"):
        FileImport(written(tmp_path / "a.csv", "event,time\n"), timezone="Mars/Olympus")
    with pytest.raises(ConfigError, match=r"cannot tell its format.*--format.*\.csv"):
        FileImport(written(tmp_path / "a.dat", "event,time\n"))
    assert FileImport(tmp_path / "a.dat", format="csv").columns == ["event", "time"]


# --- what the events say


def test_a_csv_row_becomes_an_event(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CLICKS + "u1,s1,home,2024-03-13 10:21:14,desktop,3,true\n")
    (event,) = events(path)
    assert event.pop("messageId").endswith("-1")
    assert event == {
        "event": "home",
        "userId": "u1",
        "sessionId": "s1",
        "timestamp": "2024-03-13 10:21:14",
        "properties": {"platform": "desktop", "clicks": 3, "paid": True},
    }


def test_missing_values_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CLICKS + ",NULL,home,2024-03-13,,,\nu,s,home,2024-03-13,web,1,false\n")
    first, _ = events(path)
    assert first["properties"] == {}
    assert not {"userId", "sessionId"} & first.keys()


def test_chosen_properties_only(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", CLICKS + "u1,s1,home,2024-03-13,desktop,3,true\n")
    assert events(path, Wanted(properties=("clicks",)))[0]["properties"] == {"clicks": 3}
    assert events(path, Wanted(properties=()))[0]["properties"] == {}


def test_a_column_keeps_the_type_that_its_first_rows_have(tmp_path: Path) -> None:
    """Codes with leading zeros stay text; a letter in a column of numbers is text in that row alone."""
    rows = "a,2024-01-01,007,1.5\nb,2024-01-01,12,2\n"
    path = written(tmp_path / "a.csv", "event,time,code,price\n" + rows)
    assert [e["properties"] for e in events(path)] == [{"code": "007", "price": 1.5}, {"code": "12", "price": 2}]
    wide = f"a,2024-01-01,1,{'x' * 4_000}\n" * 1_100  # more than the first block
    long = f"event,time,n,wide\n{wide}a,2024-01-01,n/a,\na,2024-01-01,7,\n"
    last = events(written(tmp_path / "b.csv", long))[-3:]
    assert [e["properties"]["n"] for e in last] == [1, "n/a", 7]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    encodable = [(a, b) for a, b in pairs if not any("\ud800" <= c <= "\udfff" for c in a + b)]
    rows = [{"event": f"e{a}", "time": "2024-01-01", "note": b} for a, b in encodable]
    path = tmp_path_factory.mktemp("text") / "a.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema({n: pa.string() for n in ("event", "time", "note")})), path
    )
    assert [(e["event"], e["properties"]["note"]) for e in events(path)] == [(f"e{a}", b) for a, b in encodable]


def test_csv_dialects(tmp_path: Path) -> None:
    quoted = '\ufeffevent;time;note\r\n"ho""me";2024-01-01;"two\nlines"\r\n'
    (event,) = events(written(tmp_path / "a.csv", quoted))
    assert (event["event"], event["properties"]) == ('ho"me', {"note": "two\nlines"})
    latin = written(tmp_path / "b.tsv", "event\ttime\nGröße\t2024-01-01\n".encode("latin-1"))
    assert events(latin, encoding="latin-1")[0]["event"] == "Größe"
    with pytest.raises(ImportFileError, match="--encoding"):
        events(latin)


def test_a_native_event_keeps_its_form(tmp_path: Path) -> None:
    line = {
        "event": "buy",
        "userId": 5,
        "timestamp": 1710325274,
        "messageId": "m1",
        "properties": {"a": [1, {"b": None}], "é": '"'},
        "context": {"k": 1},
    }
    (event,) = events(written(tmp_path / "a.ndjson", json.dumps(line) + "\n"))
    assert event == line


def test_other_members_of_an_ndjson_object_become_properties(tmp_path: Path) -> None:
    lines = [
        {"event": "a", "time": "2024-01-01", "properties": {"x": 1}, "z": [1, 2]},
        {"event": "a", "time": "2024-01-01", "properties": {}, "late": {"deep": True}},
        {"event": "a", "time": "2024-01-01", "properties": 5, "z": None},
    ]
    path = written(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, lines)))
    assert [e["properties"] for e in events(path)] == [
        {"x": 1, "z": [1, 2]},
        {"late": {"deep": True}},
        {"properties": 5},
    ]


def test_a_source_is_kept_in_the_context(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.ndjson", '{"event":"a","time":1,"context":{"k":1}}\n{"event":"a","time":1,"context":{}}'
    )
    assert [e["context"] for e in events(path, source="crm")] == [{"k": 1, "source": "crm"}, {"source": "crm"}]
    csv = written(tmp_path / "a.csv", "event,time\nhome,2024-01-01\n")
    assert events(csv, source='"q"')[0]["context"] == {"source": '"q"'}
    assert "context" not in events(csv)[0]


def test_parquet_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "event": pa.array(["a", "b"]).dictionary_encode(),
            "time": pa.array([1710324000000000000] * 2, pa.timestamp("ns")),
            "user_id": [1, None],
            "nan": [1.5, float("nan")],
            "nested": [{"a": [1]}, None],
            "long": pa.array(["007", None], pa.large_string()),
            "day": [date(2024, 1, 2), None],
            "when": pa.array([datetime(2024, 1, 2, tzinfo=UTC), None], pa.timestamp("ms", "Europe/Berlin")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = events(tmp_path / "a.parquet", timezone="Europe/Berlin")
    assert first["userId"] == "1"
    assert first["timestamp"] == "2024-03-13 09:00:00.000000Z"
    assert first["properties"] == {
        "nan": 1.5,
        "nested": {"a": [1]},
        "long": "007",
        "day": "2024-01-02",
        "when": "2024-01-02 00:00:00.000000Z",
    }
    assert second["properties"] == {}


# --- time


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2024-07-01 12:00:00", "UTC", "2024-07-01T12:00:00"),
        ("2024-07-01 12:00:00", "Europe/Berlin", "2024-07-01T10:00:00"),
        ("2024-01-01", "Europe/Berlin", "2023-12-31T23:00:00"),
        ("2024-07-01T12:00:00Z", "Europe/Berlin", "2024-07-01T12:00:00"),
        ("2024-07-01T12:00:00+05:30", "Europe/Berlin", "2024-07-01T06:30:00"),
        ("2024-07-01 12:00:00 UTC", "Europe/Berlin", "2024-07-01T12:00:00"),
        ("2024-10-27 02:30:00", "Europe/Berlin", "2024-10-27T00:30:00"),  # happens twice: the first
        ("2024-03-31 02:30:00", "Europe/Berlin", "2024-03-31T01:00:00"),  # never happens: the next moment
        ("1719835200", "Europe/Berlin", "2024-07-01T12:00:00"),
        ("1719835200000", "UTC", "2024-07-01T12:00:00"),
        ("1719835200000000", "UTC", "2024-07-01T12:00:00"),
        ("1719835200000000000", "UTC", "2024-07-01T12:00:00"),
    ],
)
@pytest.mark.parametrize("other", [None, "2024-07-01T12:00:00+02:00", "2024-07-01 12:00"])
@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_times_mean_what_they_say(
    tmp_path: Path, text: str, zone: str, expected: str, other: str | None, suffix: str
) -> None:
    """Alone, and beside times of another form; read by the server's own rules."""
    texts = [text] if other is None else [text, other]
    lines = [f"a,{t}" for t in texts] if suffix == "csv" else [json.dumps({"event": "a", "time": t}) for t in texts]
    path = written(tmp_path / f"a.{suffix}", "\n".join(["event,time", *lines] if suffix == "csv" else lines))
    stamps = [e["timestamp"] for e in events(path, timezone=zone)]
    times = understood(stamps)
    assert not times.errors
    moment = datetime(1970, 1, 1) + timedelta(microseconds=int(times.at[0]))  # noqa: DTZ001
    assert moment.isoformat() == expected


def test_what_is_no_time_is_left_to_the_server_to_refuse(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "event,time\na,yesterday\na,2024-01-01\n")
    for zone in ("UTC", "Europe/Berlin"):
        stamps = [e["timestamp"] for e in events(path, timezone=zone)]
        assert list(understood(stamps).errors) == [0]


# --- rows


def test_ids_come_from_content_and_row(tmp_path: Path) -> None:
    text = CLICKS + "".join(f"u{i},s,home,2024-03-13,web,1,true\n" for i in range(20))
    first, again = written(tmp_path / "a.csv", text), written(tmp_path / "copy.csv", text)
    ids = [e["messageId"] for e in events(first)]
    assert len(set(ids)) == 20
    assert ids == [e["messageId"] for e in events(again, batch=7)]
    other = written(tmp_path / "b.csv", text.replace("home", "away"))
    assert not set(ids) & {e["messageId"] for e in events(other)}


def test_an_id_column_is_taken_where_it_has_a_value(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "event,time,key\na,2024-01-01,k1\na,2024-01-01,\n")
    first, second = events(path, Wanted(id="key"))
    assert first["messageId"] == "k1"
    assert second["messageId"].endswith("-2")
    assert first["properties"] == {}


def _csv(path: Path, count: int) -> Path:
    return written(path, CLICKS + "".join(f"u{i},s{i},home,2024-03-13,web,{i},true\n" for i in range(count)))


def _ndjson(path: Path, count: int) -> Path:
    return written(path, "".join(json.dumps({"event": "home", "time": 1, "n": i}) + "\n" for i in range(count)))


def _parquet(path: Path, count: int) -> Path:
    rows = {"event": ["home"] * count, "time": [1] * count, "n": range(count)}
    pq.write_table(pa.table({k: list(v) for k, v in rows.items()}), path, row_group_size=30)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda d: _csv(d / "a.csv", 100),
        lambda d: _ndjson(d / "a.ndjson", 100),
        lambda d: _parquet(d / "a.parquet", 100),
    ],
    ids=["csv", "ndjson", "parquet"],
)
@pytest.mark.parametrize("skip", [0, 1, 29, 30, 31, 99, 100])
def test_a_rerun_goes_on_after_the_rows_that_are_done(tmp_path: Path, make: Any, skip: int) -> None:
    opened = FileImport(make(tmp_path), batch=13)
    everything = [line for chunk in opened.chunks() for line in chunk.body().splitlines()]
    chunks = list(opened.chunks(skip))
    assert [line for chunk in chunks for line in chunk.body().splitlines()] == everything[skip:]
    assert [row for chunk in chunks for row in chunk.rows] == list(range(skip + 1, 101))
    assert all(len(chunk.rows) <= 13 for chunk in chunks)
    assert all(chunk.rows[-1] == chunk.upto for chunk in chunks)


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.zst", ".ndjson.gz", ".ndjson.zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    plain = _csv(tmp_path / "p.csv", 9) if "csv" in suffix else _ndjson(tmp_path / "p.ndjson", 9)
    squeeze = gzip.compress if suffix.endswith("gz") else zstd.compress
    half = plain.stat().st_size // 2
    data = plain.read_bytes()
    packed = written(tmp_path / f"a{suffix}", squeeze(data[:half]) + squeeze(data[half:]))  # two members, one file
    strip = [{k: v for k, v in e.items() if k != "messageId"} for e in events(packed)]
    assert strip == [{k: v for k, v in e.items() if k != "messageId"} for e in events(plain)]


def test_bad_rows_are_named_and_shift_no_other(tmp_path: Path) -> None:
    rows = [
        "u,s,home,2024-03-13,web,1,true",
        "u,s",
        "u,s,,2024-03-13,web,1,true",
        "u,s,away,2024-03-13,web,2,true",
        "x,y",
    ]
    path = written(tmp_path / "a.csv", CLICKS + "\n".join(rows) + "\n")
    assert bad_rows(path) == [
        (2, "2 values where the header has 7 columns"),
        (3, "no value in the event column"),
        (5, "2 values where the header has 7 columns"),
    ]
    assert [e["messageId"].rpartition("-")[2] for e in events(path)] == ["1", "4"]
    assert [e["messageId"].rpartition("-")[2] for e in events(path, skip=2)] == ["4"]


def test_bad_lines_are_named_and_shift_no_other(tmp_path: Path) -> None:
    good = b'{"event":"a","time":1}'
    lines = [good, b"not json", b"[1]", good, b'{"event":null,"time":1}', b'{"event":"\xff"}', good + b"," + good, good]
    path = written(tmp_path / "a.ndjson", b"\n".join(lines))
    assert [row for row, _ in bad_rows(path)] == [2, 3, 5, 6, 7]
    assert [e["messageId"].rpartition("-")[2] for e in events(path)] == ["1", "4", "8"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"event,event,time\n", "must name each column once"),
        ("a.ndjson", b"\n\n", "no line holds a JSON object"),
        ("a.json", b'[{"event":"a"}]', "no line holds a JSON object: not a JSON object"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv.gz", b"no gzip at all", "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_seems(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    with pytest.raises(ImportFileError, match=problem) as caught:
        FileImport(written(tmp_path / name, content))
    assert name in str(caught.value)


def test_a_truncated_archive_gives_what_it_holds_and_says_where_it_ends(tmp_path: Path) -> None:
    lines = (json.dumps({"event": "a", "time": 1, "pad": f"{i:04}" * 1_000}) for i in range(4_000))
    whole = gzip.compress("\n".join(lines).encode(), 1)
    opened = FileImport(written(tmp_path / "cut.ndjson.gz", whole[: len(whole) * 2 // 3]))
    chunks = opened.chunks()
    first = next(chunks)
    with pytest.raises(ImportFileError, match="near row") as caught:
        deque(chunks, maxlen=0)
    assert 0 < first.upto < caught.value.row


def test_compressed_parquet_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compressed inside"):
        FileImport(written(tmp_path / "a.parquet.gz", b""))


def test_the_preview_shows_the_first_events(tmp_path: Path) -> None:
    opened = FileImport(_csv(tmp_path / "a.csv", 100))
    preview = opened.preview()
    assert len(preview) == 5
    assert json.loads(preview[4])["userId"] == "u4"
