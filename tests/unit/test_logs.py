"""Log lines: JSON or readable, with the request id, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from analytics_core.config import Logging
from analytics_core.logs import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_of_structlog_and_the_standard_library() -> None:
    out = io.StringIO()
    configure_logging(Logging(), out)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("a").info("done", n=5)
        logging.getLogger("b").warning("std %s", "lib")
    structlog.get_logger("a").debug("too quiet")
    first, second = lines(out)
    assert first.items() >= {"event": "done", "n": 5, "request_id": "r1", "level": "info", "logger": "a"}.items()
    assert second.items() >= {"event": "std lib", "request_id": "r1", "level": "warning", "logger": "b"}.items()
    assert "timestamp" in first


@pytest.mark.parametrize(
    "name", ["token", "api_key", "key", "keys", "jwt_secret", "Authorization", "password", "X-API-Key", "cookie"]
)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_secrets_are_masked_at_any_depth(name: str, stream: type[io.StringIO], tmp_path: Path) -> None:
    out = stream()
    configure_logging(Logging(dir=tmp_path), out)
    log = structlog.get_logger()
    log.warning("a", **{name: "hunter2"})
    log.warning("b", settings={"auth": [{name: "hunter2", "kept": "visible"}]})
    shown = out.getvalue() + (tmp_path / "analytics.log").read_text()
    assert "hunter2" not in shown
    assert "visible" in shown
    assert "***" in shown


@pytest.mark.parametrize("name", ["monkey", "metric", "keyboard", "turkey"])
def test_plain_names_are_not_masked(name: str) -> None:
    out = io.StringIO()
    configure_logging(Logging(), out)
    structlog.get_logger().info("a", **{name: "seen"})
    assert lines(out)[0][name] == "seen"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_tracebacks_are_there_without_local_variables(stream: type[io.StringIO]) -> None:
    out = stream()
    configure_logging(Logging(), out)
    try:
        hidden = "hunter" + "2"
        int(hidden)
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "test_logs.py" in out.getvalue()
    assert "hidden = 'hunter2'" not in out.getvalue()
    assert "ValueError" in out.getvalue()


def test_a_terminal_gets_readable_lines() -> None:
    out = Terminal()
    configure_logging(Logging(level="DEBUG"), out)
    structlog.get_logger().debug("looks good", n=5)
    assert "looks good" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_last_configuration_holds(tmp_path: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(Logging(dir=tmp_path / "new" / "logs"), first)
    structlog.get_logger().info("one")
    configure_logging(Logging(level="ERROR"), second)
    structlog.get_logger().info("two")
    structlog.get_logger().error("three")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["three"]
    assert len((tmp_path / "new" / "logs" / "analytics.log").read_text().splitlines()) == 1
