"""``analytics export``: what it asks, a file that is whole or not there, and what it says when neither can be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner, Result

from analytics_core.cli import main
from analytics_core.cli.exporting import _SUFFIXES
from analytics_core.queries.export_formats import FORMATS

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Total-Events: 2\r\n\r\n"
PROBLEM = b'{"title":"Invalid parameter","detail":"filter[0].op: is no operator"}'
REFUSED = b"HTTP/1.1 422 Unprocessable\r\nContent-Length: %d\r\n\r\n%s" % (len(PROBLEM), PROBLEM)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


WHOLE = HEAD + chunk(b'{"event":"a"}\n') + chunk(b'{"event":"b"}\n') + chunk(b"")
TORN = HEAD + chunk(b'{"event":"a"}\n')
TORN_INSIDE = TORN + b"e\r\n{'ev"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that sends these bytes and closes; its URL, and the paths that it was asked for."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[str] = []

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # nobody came
            return
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            asked.append(request.split(b" ", 2)[1].decode())
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def test_the_formats_and_suffixes_are_those_of_the_server() -> None:
    known = {suffix: one.name for one in FORMATS.values() for suffix in one.suffixes}
    assert known == _SUFFIXES


def test_what_comes_goes_to_the_output() -> None:
    with answering(WHOLE) as (url, asked):
        done = run("--url", url)
    assert (done.exit_code, done.stdout, done.stderr) == (0, '{"event":"a"}\n{"event":"b"}\n', "")
    assert asked == ["/api/v1/events/export?format=ndjson"]


def test_options_become_the_parameters_of_the_question(tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    told = (
        "--since",
        "7d",
        "--timezone",
        "UTC",
        "--event",
        "a b",
        "--event",
        "c",
        "--user",
        "u&1",
        "--fields",
        "event",
    )
    with answering(WHOLE) as (url, asked):
        done = run("--url", url, "-o", str(file), *told, "--filter", "event~^ä", "--filter", "properties.n>1")
    assert done.exit_code == 0, done.output
    assert urlsplit(asked[0]).path == "/api/v1/events/export"
    assert sorted(parse_qsl(urlsplit(asked[0]).query)) == sorted(
        [
            ("format", "parquet"),
            ("timeRange", "7d"),
            ("timezone", "UTC"),
            ("user", "u&1"),
            ("fields", "event"),
            ("event", "a b"),
            ("event", "c"),
            ("filter", "event~^ä"),
            ("filter", "properties.n>1"),
        ]
    )


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    file.write_text("what was there")
    with answering(WHOLE) as (url, _):
        done = run("--url", url, "--output", str(file))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"2 events, 28 bytes in {file}\n"
    assert file.read_text() == '{"event":"a"}\n{"event":"b"}\n'
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("answer", [TORN, TORN_INSIDE], ids=["between two chunks", "inside one"])
def test_an_answer_that_breaks_off_leaves_no_file(tmp_path: Path, answer: bytes) -> None:
    file = tmp_path / "out.ndjson"
    with answering(answer) as (url, _):
        done = run("--url", url, "-o", str(file))
    assert done.exit_code == 1
    assert done.stderr.startswith("analytics: the export broke off after ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with answering(answer) as (url, _):
        assert run("--url", url).exit_code == 1


def test_a_refusal_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("what was there")
    with answering(REFUSED) as (url, _):
        done = run("--url", url, "-o", str(file))
    assert (done.exit_code, done.stderr) == (2, "analytics: filter[0].op: is no operator\n")
    assert file.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [file]


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run("--url", f"http://127.0.0.1:{port}", "-o", str(tmp_path / "a.csv"))
    assert done.exit_code == 1
    assert "no server answers at" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("out.xlsx", "the suffix '.xlsx' names no format"),
        ("out.parqet", "did you mean '.parquet'?"),
        ("none/out.csv", "cannot be written: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, file: str, text: str) -> None:
    with answering(WHOLE) as (url, _):
        done = run("--url", url, "-o", str(tmp_path / file))
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.startswith("analytics: ")
