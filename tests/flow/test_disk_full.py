"""A full disk under a real server: it refuses what it could not keep, goes on answering, and recovers by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.server_house import EVENTS, Answer, ServerHouse, equals, house, until

pytestmark = pytest.mark.server

MB = 1 << 20
RESERVE = 4 * MB
SETTINGS: dict[str, dict[str, Any]] = {
    "lanes": {"checkpoint_seconds": 0.1},
    "storage": {
        "disk_reserve_bytes": RESERVE,
        "log_max_bytes": 1 << 30,
        "store_commit_seconds": 0.3,
        "maintenance_seconds": 0.5,
    },
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount(8) to make a small file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def server(tmp_path: Path, small_disk: Path) -> Iterator[ServerHouse]:
    with house(tmp_path, host=SETTINGS, data=small_disk / "data") as made:
        yield made.start()


class Clients:
    """They post batches, and remember which were acknowledged."""

    def __init__(self, server: ServerHouse) -> None:
        self._server = server
        self._numbers = 0
        self.acknowledged: set[str] = set()

    def post(self) -> Answer:
        self._numbers += 1
        ids = [f"{self._numbers}-{n}" for n in range(100)]
        events = [{"event": "e", "messageId": id_, "properties": {"pad": "x" * 200}} for id_ in ids]
        answer = self._server.ask("POST", EVENTS, events)
        if answer.status == 202:
            self.acknowledged.update(ids)
        return answer

    def check(self) -> None:
        """History holds what was acknowledged, each event once, and nothing that was refused."""
        rows = [row["messageId"] for row in self._server.history()]
        assert len(rows) == len(set(rows))
        assert set(rows) == self.acknowledged


def fill(disk: Path, leave: int) -> Path:
    """Take all space but ``leave`` bytes, from outside of the server, which goes on writing meanwhile."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave) > 0:
            with contextlib.suppress(OSError):  # the server was quicker
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + free)
    return filler


def is_refused(answer: Answer) -> bool:
    """Whether it is the refusal of a full disk, complete. Anything but that and 202 fails."""
    if answer.status == 202:
        return False
    assert answer.status == 503, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.body["title"] == "Storage full"
    assert "nothing was stored" in answer.body["detail"]
    return True


def test_a_full_disk_is_refused_and_recovers(server: ServerHouse, small_disk: Path) -> None:
    clients = Clients(server)
    for leave in (RESERVE // 2, 0):  # the reserve is reached; not one byte is left
        fill_and_free(server, small_disk, clients, leave)
    server.kill()
    server.start()
    clients.check()
    equals(lambda: server.total("user-behavior.events"), len(clients.acknowledged), "the same after a kill")


def fill_and_free(server: ServerHouse, small_disk: Path, clients: Clients, leave: int) -> None:
    for _ in range(10):
        assert not is_refused(clients.post())
    filler = fill(small_disk, leave)
    until(lambda: is_refused(clients.post()), "a refusal")
    for _ in range(5):
        assert is_refused(clients.post())
    clients.check()  # queries answer while the disk is full
    assert server.total("e") == len(clients.acknowledged)
    assert server.get("/api/analytics/health")["success"]
    assert {row["state"] for row in server.get("/api/v1/plugins")["plugins"]} == {"active"}

    filler.unlink()
    until(lambda: not is_refused(clients.post()), "an acknowledgement after space was freed")
    for _ in range(5):
        assert not is_refused(clients.post())
    clients.check()
    for plugin in ("user-behavior", "performance"):
        equals(
            lambda name=plugin: server.plugin(name)["events_processed"],
            len(clients.acknowledged),
            f"events of {plugin}",
        )
    equals(lambda: server.total("user-behavior.events"), len(clients.acknowledged), "user-behavior.events")


def test_a_disk_that_fills_under_load_loses_nothing(server: ServerHouse, small_disk: Path) -> None:
    """The log, the lake and the state fill it themselves; the server also starts again on the full disk."""
    clients = Clients(server)
    filler = fill(small_disk, RESERVE + 2 * MB)
    until(lambda: is_refused(clients.post()), "a refusal")
    assert clients.acknowledged
    clients.check()
    server.kill()
    server.start()
    clients.check()
    filler.unlink()
    until(lambda: not is_refused(clients.post()), "an acknowledgement after space was freed")
    clients.check()
