"""``analytics users export``: a file is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analytics_core import cli
from analytics_core.cli.asking import Server
from analytics_core.errors import NoServerError


def export(file: Path) -> tuple[int, str]:
    done = CliRunner().invoke(cli.main, ["users", "export", "ada", "-o", str(file), "--url", "http://127.0.0.1:1"])
    return done.exit_code, done.stderr


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def stream(*_: Any) -> Iterator[bytes]:
        yield b'{"user":"ada"}\n'
        if broken:
            raise NoServerError("http://127.0.0.1:1", "its answer broke off")
        yield b'{"event":"a"}\n'

    monkeypatch.setattr(Server, "stream", stream)
    file = tmp_path / "ada.ndjson"
    code, said = export(file)
    assert (code, "its answer broke off" in said, file.exists()) == (1, True, False)
    broken = False
    assert (export(file)[0], file.read_bytes()) == (0, b'{"user":"ada"}\n{"event":"a"}\n')
    assert export(file) == (2, f"analytics: {file} exists; name a new file with -o\n")
    nowhere = tmp_path / "no" / "ada.ndjson"
    assert export(nowhere) == (2, f"analytics: {nowhere} cannot be written: No such file or directory\n")
