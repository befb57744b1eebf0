"""How far an import came, kept in ``<data dir>/imports/<file hash>-<target hash>.json``: a rerun goes on from there.

Nothing depends on it being exact: rows that are sent again carry the same ``messageId`` and are dropped as duplicates.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from analytics_core.errors import ImportFileError
from analytics_core.importing.mapping import Mapping


class Progress(Struct, kw_only=True):
    """Every row up to ``rows`` was answered for by ``target``; ``complete`` when there are no more."""

    file: str
    target: str
    mapping: Mapping
    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    complete: bool = False


def fingerprint(path: Path) -> str:
    """96 bits of the SHA-256 of the file's bytes, as hex: the name of its content.

    :raises ImportFileError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:24]
    except OSError as error:
        raise ImportFileError(path, 0, error.strerror or str(error)) from error


class ProgressFile:
    """The record of one file's content, sent to one server by one caller: another key may be of another tenant."""

    def __init__(self, data_dir: Path, content: str, target: str, api_key: str = "") -> None:
        whom = hashlib.sha256(f"{target}\n{api_key}".encode()).hexdigest()[:8]
        self.path = data_dir / "imports" / f"{content}-{whom}.json"

    def read(self) -> Progress | None:
        """What an earlier run left; None when there is nothing that can be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Progress)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def write(self, progress: Progress) -> None:
        """Replace the record in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(progress)))
        fresh.replace(self.path)


Report = Callable[[Progress, int], None]
"""Called at the start and after each acknowledged request: the progress so far, and the file position it stands for."""
