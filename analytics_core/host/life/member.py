"""One plugin of the roster, and what it is to come after."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from analytics_core.host.code.fingerprint import Copy
from analytics_core.host.health import BEGINNING, RUNNING, Health
from analytics_core.host.installed.selection import Choice
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.life.supervise import Life
from analytics_core.lanes.lane import Lane

_RECEIPTS: Final = 20


class Member:
    """One plugin: what was decided of it, how it does, and its life when it is to run.

    ``choice`` is the one that runs; ``latest`` the one that was last looked at, which may have failed.
    """

    def __init__(self, choice: Choice, health: Health) -> None:
        self.copy: Copy | None = None
        self.leaving: threading.Thread | None = None
        self.leaves_until = 0.0
        self.choice = self.latest = choice
        self.health = health
        self.life: Life | None = None
        self.identity = ""
        self.receipts: deque[ReloadReceipt] = deque(maxlen=_RECEIPTS)

    @property
    def lane(self) -> Lane | None:
        return self.life.lane if self.life is not None else None

    @property
    def runs(self) -> bool:
        return self.life is not None and self.health.state in RUNNING

    def is_leaving(self) -> bool:
        """Whether an earlier life of it still ends, where no two generations may be at once."""
        manifest = self.latest.manifest
        alone = manifest is not None and manifest.reload.strategy == "stop_first"
        ends = self.leaving is not None and self.leaving.is_alive() and time.monotonic() < self.leaves_until
        return alone and ends


class Turn:
    """When the plugin ``name`` may begin, as far as the others of ``members`` are concerned."""

    def __init__(self, name: str, members: Mapping[str, Member]) -> None:
        self._name = name
        self._members = members

    def obstacle(self) -> str:
        """The plugin that it requires and that does not run; empty when there is none."""
        for need in needs(self._members[self._name].latest) if self._name in self._members else ():
            other = self._members.get(need)
            if other is None or not other.runs:
                state = f"is {other.health.state}" if other is not None else "is not installed"
                why = f": {other.health.reason}" if other is not None and other.health.reason else ""
                return f"requires {need!r}, which {state}{why}"
        return ""

    def too_early(self) -> bool:
        """Whether one that it is to come after is on its way up. Of a circle of ``after`` nobody waits."""
        if self._name not in self._members:
            return False
        if self._members[self._name].is_leaving():
            return True
        for before in _after(self._members[self._name].latest):
            other = self._members.get(before)
            rising = other is not None and other.life is not None and other.health.state in BEGINNING
            if rising and self._name not in _ahead_of(before, self._members):
                return True
        return False


def _ahead_of(name: str, members: Mapping[str, Member]) -> set[str]:
    """All that has to begin before ``name``."""
    ahead: set[str] = set()
    ways = [name]
    while ways:
        member = members.get(ways.pop())
        more = {*needs(member.latest), *_after(member.latest)} - ahead if member is not None else set()
        ahead |= more
        ways.extend(more)
    return ahead


def in_order(choices: Iterable[Choice]) -> list[Choice]:
    """Each after those that it requires; those that are not to run last."""
    ordered: dict[str, Choice] = {}
    waiting = {choice.name: choice for choice in choices}
    while waiting:
        ready = [c for c in waiting.values() if not any(need in waiting for need in needs(c))]
        for choice in ready or list(waiting.values()):  # what is left of a cycle is not to run
            ordered[choice.name] = waiting.pop(choice.name)
    return list(ordered.values())


def needs(choice: Choice) -> list[str]:
    """The plugins that it requires."""
    return sorted(choice.manifest.requires.plugins) if choice.manifest is not None else []


def _after(choice: Choice) -> list[str]:
    return sorted(choice.manifest.after) if choice.manifest is not None else []
