"""Bytes to events: every accepted form, and every bad input with its text."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from analytics_core.errors import BodyTooLargeError, MalformedBodyError, UnsupportedTypeError
from analytics_core.intake.decode import decode, inflate

JSON = "application/json"
NDJSON = "application/x-ndjson"
GOOD = {"event": "page_view", "userId": "u1", "properties": {"path": "/"}}


def bad(body: bytes, content_type: str = JSON) -> list[tuple[int, str, str]]:
    return [(e.index, e.field, e.message) for e in decode(body, content_type).bad]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps(GOOD).encode(), JSON),
        (json.dumps([GOOD]).encode(), JSON),
        (json.dumps({"events": [GOOD]}).encode(), JSON),
        (json.dumps(GOOD).encode() + b"\n", NDJSON),
        (json.dumps(GOOD).encode(), "application/json; charset=utf-8"),
        (b"  \n " + json.dumps([GOOD]).encode(), "text/plain"),
        (json.dumps(GOOD).encode(), ""),
    ],
)
def test_every_form_gives_the_same_event(body: bytes, content_type: str) -> None:
    decoded = decode(body, content_type)
    assert [e.name for e in decoded.events] == ["page_view"]
    assert bytes(decoded.events[0].properties) == b'{"path": "/"}'
    assert not decoded.bad


def test_an_envelope_carries_the_clients_clock() -> None:
    decoded = decode(b'{"events": [], "sentAt": "2025-01-01T00:00:00Z"}', JSON)
    assert decoded.sent_at == 1_735_689_600_000_000


def test_a_bad_event_leaves_its_neighbours_alone() -> None:
    body = b'[{"event": "a"}, {"event": 5}, {"properties": {}}, {"event": "b"}, {"event": "c", "userId": []}, 7]'
    decoded = decode(body, JSON)
    assert [(e.name, i) for e, i in zip(decoded.events, decoded.index, strict=True)] == [("a", 0), ("b", 3)]
    assert [(e.index, e.field) for e in decoded.bad] == [(1, "event"), (2, "event"), (4, "userId"), (5, "")]
    assert decoded.bad[1].message == "is required"


def test_bad_utf8_is_an_error_of_its_event() -> None:
    body = b'[{"event": "a"}, {"event": "b", "properties": {"x": "\xff"}}]'
    assert bad(body) == [(1, "", "not UTF-8 at byte 36 of the event")]


@pytest.mark.parametrize("unfit", ['{"x": "cut \\ud83d"}', '{"x": NaN}', '{"x": "\\udc00\\ud800"}'])
@pytest.mark.parametrize(
    "form", ["[%s]", '{"events": [%s], "sentAt": 1735689600}', '{"sentAt": 1735689600, "events":[ %s ] }']
)
def test_text_that_no_decoder_takes_is_an_error_of_its_event(unfit: str, form: str) -> None:
    items = [
        '{"event": "a", "properties": {"n": 1.0}}',
        '{"event": "b", "properties": ' + unfit + "}",
        '{"event": "c"}',
    ]
    decoded = decode((form % ", ".join(items)).encode(), JSON)
    assert [(e.name, bytes(e.properties)) for e in decoded.events] == [("a", b'{"n": 1.0}'), ("c", b"{}")]
    assert [e.index for e in decoded.bad] == [1]
    assert "malformed" in decoded.bad[0].message
    assert bad(items[1].encode())[0][0] == 0


def test_an_empty_list_of_lines_is_refused_and_an_empty_array_is_not() -> None:
    with pytest.raises(MalformedBodyError, match="it is empty"):
        decode(b" \n\n", NDJSON)
    assert decode(b"[]", JSON).events == []


def test_a_broken_line_leaves_the_other_lines_alone() -> None:
    decoded = decode(b'{"event": "a"}\n{"event": \n\n{"event": "b"}', NDJSON)
    assert [e.name for e in decoded.events] == ["a", "b"]
    assert [e.index for e in decoded.bad] == [1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is empty"),
        (b"   ", "it is empty"),
        (b'"text"', "neither a JSON object nor a JSON array"),
        (b"[{", "invalid JSON"),
        (b'[{"event": "a"} {"event": "b"}]', "',' is missing"),
        (b'[{"event": "a"}] 5', "there is more after the end"),
        (b'{"event": "a", "events": [', "invalid JSON"),
        (b'{"event" "a"}', "':' is missing"),
        (b'{"events": 5}', "events: Expected `array`"),
        (b'{"events": [], "sentAt": "yesterday"}', "sentAt: 'yesterday' is no time"),
        (b'{"event": "a", "properties": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_whole(body: bytes, says: str) -> None:
    with pytest.raises(MalformedBodyError, match=says):
        decode(body, JSON)


def test_another_content_type_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UnsupportedTypeError, match="'application/xml' is not supported; valid are: application/json"):
        decode(b"<a/>", "application/xml")


@given(st.lists(st.sampled_from(['{"event":"a"}', '{"event":5}', "{}", "7", '{"event":"b","timestamp":[]}'])))
def test_index_and_errors_cover_the_request_exactly(items: list[str]) -> None:
    decoded = decode(("[" + ",".join(items) + "]").encode(), JSON)
    assert sorted([*decoded.index, *(e.index for e in decoded.bad)]) == list(range(len(items)))


RAW_DEFLATE = zlib.compressobj(wbits=-15)
ENCODED = {
    "gzip": gzip.compress(b"x" * 1000),
    "deflate": zlib.compress(b"x" * 1000),
    "zstd": zstd.compress(b"x" * 1000),
    "": b"x" * 1000,
    "identity": b"x" * 1000,
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_encoding_is_undone(name: str) -> None:
    assert inflate(ENCODED[name], name, 1000) == b"x" * 1000


def test_raw_deflate_is_read_too() -> None:
    body = RAW_DEFLATE.compress(b"y" * 500) + RAW_DEFLATE.flush()
    assert inflate(body, "deflate", 1000) == b"y" * 500


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_a_truncated_stream_is_malformed(name: str) -> None:
    with pytest.raises(MalformedBodyError, match=f"{name} stream is broken"):
        inflate(ENCODED[name][:-6], name, 10_000)


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)]
)
def test_a_bomb_stops_at_the_cap(name: str, pack: type) -> None:
    bomb = pack(bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(BodyTooLargeError, match="after inflation is larger than 100000 bytes"):
        inflate(bomb, name, 100_000)


def test_an_unknown_encoding_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UnsupportedTypeError, match="'br' is not supported; valid are: gzip, deflate, zstd, identity"):
        inflate(b"", "br", 10)
