"""Each key that waits for a restart is named with both values, and no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics_core.config import ApiKey, Auth, Live, Plugins, Server, Settings, Storage
from analytics_core.host.restart import restart_required

KEYS = Auth(enabled=True, keys=(ApiKey("hush", "acme", "reader"),))


@pytest.mark.parametrize(
    ("running", "wanted", "waiting"),
    [
        (Settings(), Settings(), ()),
        (
            Settings(server=Server(port=8000)),
            Settings(server=Server(port=9000), live=Live(enabled=False)),
            ("host.server.port: 8000 -> 9000", "host.live.enabled: true -> false"),
        ),
        (
            Settings(),
            Settings(storage=Storage(data_dir=Path("/data"), retention_days=None), plugins=Plugins(enabled=("a", "b"))),
            (
                "host.storage.data_dir: data -> /data",
                "host.storage.retention_days: 90 -> null",
                "host.plugins.enabled: null -> [a, b]",
            ),
        ),
        (
            Settings(auth=KEYS),
            Settings(auth=Auth(enabled=True, keys=(ApiKey("other", "acme", "reader"),), jwt_secret="hush")),
            ("host.auth.keys: *** -> ***", "host.auth.jwt_secret: '' -> ***"),
        ),
    ],
)
def test_what_waits(running: Settings, wanted: Settings, waiting: tuple[str, ...]) -> None:
    assert restart_required(running, wanted) == waiting
