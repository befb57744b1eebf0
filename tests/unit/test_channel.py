"""Frames between a lane and the process of its plugin, over a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from analytics_core.events import EventBatch
from analytics_core.host.running.channel import Channel
from analytics_core.host.running.wire import HEADER, LARGEST, BadFrameError, decode, encode, frame

LARGE = bytes(range(256)) * 20_000


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    mine, other = socket.socketpair()
    yield Channel(mine), other
    mine.close()
    other.close()


@pytest.mark.parametrize("body", [None, "x", {"a": [1, 2.5]}, LARGE], ids=["none", "text", "map", "large"])
def test_a_frame_arrives_as_it_was_sent(ends: tuple[Channel, socket.socket], body: object) -> None:
    here, other = ends
    sender = threading.Thread(target=Channel(other).send, args=(70_000, "export", body))
    sender.start()
    number, word, raw = here.receive(10)
    sender.join()
    assert (number, word, decode(raw, type(body) if body else None)) == (70_000, "export", body)


def test_a_tombstone_arrives_with_the_ids_that_it_names() -> None:
    sent = EventBatch.empty("acme", datetime(2025, 1, 31, tzinfo=UTC), ("ada", "ä"))
    arrived = decode(encode(sent), EventBatch)
    assert (arrived.tenant, arrived.watermark, arrived.erased) == ("acme", sent.watermark, ("ada", "ä"))
    assert not len(arrived)


@pytest.mark.parametrize("sent", [b"", HEADER.pack(5)[:2], b"".join(frame(1, "ok", LARGE))[:100_000]])
def test_silence_at_any_byte_of_a_frame_is_a_timeout(ends: tuple[Channel, socket.socket], sent: bytes) -> None:
    here, other = ends
    other.sendall(sent)
    with pytest.raises(TimeoutError):
        here.receive(0.02)


def test_a_frame_that_comes_in_pieces_is_waited_for(ends: tuple[Channel, socket.socket]) -> None:
    here, other = ends
    whole = b"".join(frame(1, "ok", "in pieces"))
    arrived: list[str] = []
    receiver = threading.Thread(target=lambda: arrived.append(decode(here.receive()[2], str)))
    receiver.start()
    for byte in whole:
        other.sendall(bytes([byte]))
    receiver.join(10)
    assert arrived == ["in pieces"]


def test_receiving_without_a_limit_waits_after_one_with_a_limit(ends: tuple[Channel, socket.socket]) -> None:
    here, other = ends
    with pytest.raises(TimeoutError):
        here.receive(0.01)
    late = threading.Timer(0.03, Channel(other).send, (1, "ok", "late"))
    late.start()
    assert decode(here.receive()[2], str) == "late"


@pytest.mark.parametrize("sent", [b"", HEADER.pack(100), b"".join(frame(1, "ok", LARGE))[:100_000]])
def test_an_end_that_goes_away_is_told(ends: tuple[Channel, socket.socket], sent: bytes) -> None:
    here, other = ends
    other.sendall(sent)
    other.close()
    with pytest.raises(EOFError):
        here.receive(10)


def test_sending_to_an_end_that_takes_nothing_is_a_timeout(ends: tuple[Channel, socket.socket]) -> None:
    here, _ = ends
    here.patience(0.02)
    with pytest.raises(TimeoutError):
        here.send(1, "restore", LARGE)


@pytest.mark.parametrize("sent", [HEADER.pack(LARGEST + 1), HEADER.pack(1) + b"\x01"], ids=["too long", "no frame"])
def test_what_is_no_frame_is_refused(ends: tuple[Channel, socket.socket], sent: bytes) -> None:
    here, other = ends
    other.sendall(sent)
    with pytest.raises(BadFrameError):
        here.receive(10)
