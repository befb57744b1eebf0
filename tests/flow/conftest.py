"""Fixtures of the tests of the plugin host. A module that has another ``house`` defines its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flow.plugin_house import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


@pytest.fixture
def no_thread_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread that the test has brought about ends in an exception."""
    failed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failed.append(f"{args.thread.name}: {args.exc_value!r}"))
    yield
    assert failed == []
