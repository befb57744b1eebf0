"""Plugins written on the spot for a benchmark."""

from __future__ import annotations

from pathlib import Path


def install(site: Path, name: str, code: str, manifest: str) -> None:
    """A distribution in ``site`` as pip leaves it: a package with ``plugin.yaml`` and ``plugin.py``, and its metadata.

    ``manifest`` lacks ``name`` and ``entry``; the class of ``code`` is ``Plugin``.
    """
    package = site / f"bench_{name.replace('-', '_')}"
    package.mkdir(parents=True)
    declared = f"kind: plugin\nmanifest: 1\nname: {name}\nentry: {package.name}.plugin:Plugin\n{manifest}"
    for file, text in {"__init__.py": "", "plugin.py": code, "plugin.yaml": declared}.items():
        (package / file).write_text(text)
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[analytics_core.plugins]\n{name} = {package.name}:plugin.yaml\n")
    (info / "RECORD").write_text("".join(f"{package.name}/{file.name},,\n" for file in package.iterdir()))
