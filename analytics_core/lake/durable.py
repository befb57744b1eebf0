"""What makes the Delta log survive power loss: `deltalake` writes whole files, but does not wait for the disk."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

_LAST_CHECKPOINT = "_last_checkpoint"
_log = structlog.get_logger(__name__)


def commit_path(log: Path, number: int) -> Path:
    """The file of one commit in the Delta log."""
    return log / f"{number:020}.json"


def checkpoint_path(log: Path, number: int) -> Path:
    return log / f"{number:020}.checkpoint.parquet"


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive power loss."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Make a written file survive power loss."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite_durably(path: Path) -> None:
    """Make a small file survive power loss, also when an earlier fsync of it failed.

    The content is written anew: after a failed fsync the kernel may take pages for clean that never reached the disk.
    """
    copy = path.with_name(f"_{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        copy.write_bytes(path.read_bytes())
        sync_file(copy)
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_checkpoint(log: Path, number: int) -> None:
    """Make a checkpoint survive power loss. Only then may the commits before it be deleted."""
    sync_file(checkpoint_path(log, number))
    sync_file(log / _LAST_CHECKPOINT)
    sync_directory(log)


def last_checkpoint(log: Path) -> int:
    """The number of the newest checkpoint, -1 without one."""
    return max((int(path.name[:20]) for path in log.glob("*.checkpoint.parquet")), default=-1)


def mend(log: Path) -> None:
    """Take back what power loss left half written: the newest commit, and checkpoints.

    Neither was told to anybody: a commit counts only once it is on disk, and commits are deleted only after the
    checkpoint that replaces them is.
    """
    commits = sorted(log.glob("[0-9]*.json"))
    if commits and not _complete(commits[-1]):
        _log.warning("lake_torn_commit_removed", file=str(commits[-1]))
        commits[-1].unlink()
    torn = [path for path in log.glob("*.checkpoint.parquet") if not _readable(path)]
    for path in torn:
        _log.warning("lake_torn_checkpoint_removed", file=str(path))
        path.unlink()
    pointer = log / _LAST_CHECKPOINT
    if pointer.exists() and (torn or not _complete(pointer)):
        pointer.unlink()
    if commits or torn:
        sync_directory(log)


def _complete(path: Path) -> bool:
    text = path.read_text(errors="replace")
    try:
        return bool(text.strip()) and all(isinstance(json.loads(line), dict) for line in text.splitlines() if line)
    except ValueError:
        return False


def _readable(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True
