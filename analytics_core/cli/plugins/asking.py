"""How a plugin that nobody has is refused."""

from __future__ import annotations

from collections.abc import Iterable

from analytics_core.cli.asking import RefusedError
from analytics_core.errors import near


class UnknownPluginError(RefusedError):
    """Nothing that is installed or running has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no plugin is named {name!r}{near(name, known) or '; none is installed'}")
