"""Which manifests a host is given, and which not: those of a folder that is gone are none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from analytics_core.config import Settings
from analytics_core.host.reloader import Reloader
from analytics_core.manifest import Deployment, read_deployment

DISABLED = "kind: plugin-settings\nname: shop\nenabled: false\n"


class Host:
    """Stands in for a plugin host: what it was given last."""

    given: Deployment | None = None
    applied: Deployment | None = None

    def apply(self, deployment: Deployment) -> None:
        """What answers questions would be given."""
        self.applied = deployment

    def refresh(self, deployment: Deployment) -> list[str]:
        self.given = deployment
        return []

    def places(self) -> frozenset[Path]:
        return frozenset()

    @property
    def disabled(self) -> list[str]:
        assert self.given is not None
        return [name for name, said in self.given.plugins.items() if not said.enabled]


def reloader(manifests: Path) -> tuple[Reloader, Host]:
    host: Any = Host()
    settings = Settings(manifests_dir=manifests)
    deployment = read_deployment(manifests, {})
    return Reloader(host, settings, deployment, environ={}, load=lambda: settings, apply=host.apply), host


def test_a_folder_that_is_gone_enables_nothing(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "shop.yaml").write_text(DISABLED)
    looks, host = reloader(manifests)
    shutil.move(manifests, tmp_path / "elsewhere")
    with capture_logs() as logs:
        assert "does not exist any more" in looks.look()
    assert host.disabled == ["shop"]
    assert [line["event"] for line in logs] == ["manifests_refused"]
    shutil.move(tmp_path / "elsewhere", manifests)
    assert looks.look() == ""
    (manifests / "shop.yaml").unlink()
    assert looks.look() == ""
    assert host.disabled == []


def test_a_folder_may_come_later(tmp_path: Path) -> None:
    looks, host = reloader(tmp_path / "manifests")
    assert looks.look() == ""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "shop.yaml").write_text(DISABLED)
    assert looks.look() == ""
    assert host.disabled == ["shop"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("metric", "kind: metric\nname: shop\nevent: buy\n"),
        ("tenant", "kind: tenant\nname: shop\ntimezone: Europe/Berlin\n"),
        ("cohort", "kind: cohort\nname: shop\nall: [{did: {event: buy}}]\n"),
    ],
)
def test_what_questions_depend_on_is_applied_and_logged(tmp_path: Path, kind: str, text: str) -> None:
    looks, host = reloader(tmp_path)
    with capture_logs() as logs:
        (tmp_path / "shop.yaml").write_text(text)
        looks.look()
        added = host.applied
        (tmp_path / "shop.yaml").unlink()
        looks.look()
    assert added is not None
    assert (list(added.sources), host.applied) == ([(kind, "shop")], Deployment())
    assert [line["changes"] for line in logs] == [[f"{kind} shop added"], [f"{kind} shop removed"]]
    (tmp_path / "plugin.yaml").write_text(DISABLED)
    looks.look()
    assert host.applied == Deployment(), "plugin settings are the plugin host's alone"
