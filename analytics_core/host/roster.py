"""Who is in the house: every plugin that is installed or asked for, and what a change of either makes of it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from analytics_core.host.fingerprint import fingerprint
from analytics_core.host.health import RUNNING, Health, Transition
from analytics_core.host.reload import ReloadReceipt, refused
from analytics_core.host.runtime import Runtime
from analytics_core.host.selection import Choice
from analytics_core.host.supervise import Life
from analytics_core.lanes.lane import Lane

_BROKEN: Final = frozenset({"invalid", "incompatible", "unresolved"})
"""What a change may come to that is a mistake: whatever runs goes on to run."""
_CLOSE_SECONDS: Final = 10.0
_RECEIPTS: Final = 20

_log = structlog.get_logger(__name__)


class Makers(Protocol):
    """What the roster needs of the host to make a plugin run."""

    def life(self, choice: Choice, health: Health, runtime: Runtime, needs: Sequence[Life]) -> Life: ...

    def runtime(self, choice: Choice, generation: int) -> Runtime: ...


class Member:
    """One plugin: what was decided of it, how it does, and its life when it is to run.

    ``choice`` is the one that runs. ``identity`` is that of the latest, which may be one that has failed.
    """

    def __init__(self, choice: Choice, health: Health) -> None:
        self.choice = choice
        self.health = health
        self.life: Life | None = None
        self.identity = _identity(choice)
        self.tried = 0
        """The number of the latest generation that was made or tried."""
        self.receipts: deque[ReloadReceipt] = deque(maxlen=_RECEIPTS)

    @property
    def lane(self) -> Lane | None:
        return self.life.lane if self.life is not None else None


class Roster:
    """The members by name. `fill` and `refresh` belong to one thread at a time; the rest may be read from any."""

    def __init__(
        self,
        choose: Callable[[], Sequence[Choice]],
        makers: Makers,
        observe: Callable[[Transition], None],
        receive: Callable[[ReloadReceipt], None],
    ) -> None:
        self._choose = choose
        self._makers = makers
        self._observe = observe
        self._receive = receive
        self._changing = threading.Lock()
        self._members: dict[str, Member] = {}

    def members(self) -> list[Member]:
        """Sorted by name."""
        return sorted(self._members.values(), key=lambda member: member.choice.name)

    def member(self, name: str) -> Member | None:
        return self._members.get(name)

    def lives(self) -> dict[str, Life]:
        return {name: member.life for name, member in sorted(self._members.items()) if member.life is not None}

    def running(self) -> list[Choice]:
        """The choices of those that are to run, sorted by name."""
        return [member.choice for member in self.members() if member.life is not None]

    def fill(self) -> None:
        """The first look: a member for each plugin, a life for each that is to run."""
        with self._changing:
            for choice in in_order(self._choose()):
                self._add(choice)

    def tell(self) -> None:
        """Record, of those that are not to run, why."""
        for member in self.members():
            if member.choice.state != "discovered":
                member.health.move(member.choice.state, member.choice.reason)

    def refresh(self) -> list[str]:
        """Look again, and bring about what has changed and nothing else; the names of what has."""
        with self._changing:
            choices = {choice.name: choice for choice in in_order(self._choose())}
            gone = [name for name in self._members if name not in choices]
            for name in gone:
                self._remove(name)
            return sorted([*gone, *(name for name, choice in choices.items() if self._apply(choice))])

    def reload(self, name: str) -> None:
        """Make a new generation of a plugin as it is installed now, changed or not. The name is one of `lives`."""
        with self._changing:
            for choice in self._choose():
                if choice.name == name:
                    self._members[name].identity = ""
                    self._apply(choice)

    def _add(self, choice: Choice) -> None:
        member = self._members.get(choice.name)
        if member is None:
            member = self._members[choice.name] = Member(choice, Health(choice.name, self._observe))
        member.choice, member.identity = choice, _identity(choice)
        if choice.state == "discovered":
            member.tried += 1
            needs = [life for need in _needs(choice) if (life := self._life(need)) is not None]
            member.life = self._makers.life(choice, member.health, self._makers.runtime(choice, member.tried), needs)

    def _life(self, name: str) -> Life | None:
        member = self._members.get(name)
        return member.life if member is not None else None

    def _apply(self, choice: Choice) -> bool:
        member = self._members.get(choice.name)
        if member is None:
            self._add(choice)
            self._told(choice)
            return True
        identity = _identity(choice)
        if identity == member.identity or self._waits(member, choice):
            return False
        member.identity = identity
        runs = member.life is not None and member.health.state in RUNNING
        if choice.state == "discovered" and member.life is not None:
            self._succeed(member, choice)
        elif choice.state == "discovered":
            member.health.move("discovered", "it is to run now")
            self._add(choice)
        elif runs and choice.state in _BROKEN:
            member.health.move("rolled_back", f"the change is {choice.state}: {choice.reason}")
        else:
            self._end(member)
            member.choice = choice
            self._told(choice)
        return True

    def _waits(self, member: Member, choice: Choice) -> bool:
        """Whether it is blocked only because what it requires was broken on the disk and goes on to run."""
        others = [self._life(need) for need in _needs(choice)]
        return (
            choice.state == "blocked"
            and member.life is not None
            and all(life is not None and life.health.state in RUNNING for life in others)
        )

    def _succeed(self, member: Member, choice: Choice) -> None:
        assert member.life is not None
        assert choice.manifest is not None
        strategy = choice.manifest.reload.strategy
        if strategy != "side_by_side" and member.health.state in RUNNING:
            reason = f"its reload.strategy is {strategy}, which only a restart of the host carries out"
            member.health.move("restart_required", reason)
            receipt = refused(member.choice.name, member.health.generation, reason)
            member.receipts.append(receipt)
            self._receive(receipt)
            return
        member.tried += 1

        def settled(receipt: ReloadReceipt) -> None:
            if receipt.outcome == "active":
                member.choice = choice
            member.receipts.append(receipt)
            self._receive(receipt)

        member.life.reload(self._makers.runtime(choice, member.tried), settled)

    def _told(self, choice: Choice) -> None:
        if choice.state != "discovered":
            self._members[choice.name].health.move(choice.state, choice.reason)

    def _remove(self, name: str) -> None:
        self._end(self._members[name])
        self._members[name].health.move("unresolved", "it is no longer installed")
        del self._members[name]

    def _end(self, member: Member) -> None:
        """Let its lane commit and end it, on a thread of its own: it may hang."""
        life, member.life = member.life, None
        if life is not None:
            life.stop()
            closing = threading.Thread(target=life.close, args=(_CLOSE_SECONDS,), name=f"close:{member.choice.name}")
            closing.daemon = True
            closing.start()


def in_order(choices: Iterable[Choice]) -> list[Choice]:
    """Each after those that it requires; those that are not to run last."""
    ordered: dict[str, Choice] = {}
    waiting = {choice.name: choice for choice in choices}
    while waiting:
        ready = [c for c in waiting.values() if not any(need in waiting for need in _needs(c))]
        for choice in ready or list(waiting.values()):  # what is left of a cycle is not to run
            ordered[choice.name] = waiting.pop(choice.name)
    return list(ordered.values())


def _needs(choice: Choice) -> list[str]:
    return sorted(choice.manifest.requires.plugins) if choice.manifest is not None else []


def _identity(choice: Choice) -> str:
    """Everything that makes one choice another: its code, its manifest, what the operator says, and its judgement."""
    code = fingerprint(choice.found) if choice.found is not None else ""
    said = msgspec.json.encode([choice.settings, choice.limits, choice.isolation, choice.version])
    return f"{choice.state} {choice.reason} {code} {said.decode()}"
