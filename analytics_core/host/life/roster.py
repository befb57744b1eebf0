"""Who is in the house: every plugin that is installed or asked for, and what a change of either makes of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from analytics_core.errors import NotFoundError, PluginUnavailableError
from analytics_core.host.code.fingerprint import Copy, read_copy
from analytics_core.host.health import Health, Transition
from analytics_core.host.installed.selection import Choice, meets
from analytics_core.host.life.change import Change, Handover, Outcome, ReloadReceipt
from analytics_core.host.life.member import Member, Turn, in_order, needs
from analytics_core.host.life.reload import aside
from analytics_core.host.life.supervise import Life
from analytics_core.host.running.runtime import Runtime

_BROKEN: Final = frozenset({"invalid", "incompatible", "unresolved"})
"""What a change may come to that is a mistake: whatever runs goes on to run, as long as it is installed."""
_CLOSE_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class Makers(Protocol):
    """What the roster needs of the host to make a plugin run."""

    def life(self, choice: Choice, health: Health, runtime: Runtime, turn: Turn) -> Life: ...

    def runtime(self, choice: Choice, copy: Copy, generation: int) -> Runtime: ...

    def drift(self, choice: Choice) -> str:
        """What of the third-party code that a plugin stands on this process has in another version; empty for none."""
        ...

    def stands_on(self, choice: Choice) -> str:
        """What tells the third-party code that is installed for a plugin from any other."""
        ...


class Roster:
    """The members by name. Changes are made one at a time; the rest may be read from any thread.

    ``observe`` is told each transition, ``receive`` each receipt; ``came_in`` is called when another generation is in.
    """

    def __init__(
        self,
        choose: Callable[[], Sequence[Choice]],
        makers: Makers,
        observe: Callable[[Transition], None],
        receive: Callable[[ReloadReceipt], None],
        came_in: Callable[[], None],
    ) -> None:
        self._choose = choose
        self._makers = makers
        self._observe = observe
        self._receive = receive
        self._came_in = came_in
        self._changing = threading.Lock()
        self._members: dict[str, Member] = {}
        self._numbers: Counter[str] = Counter()
        self._apart: dict[str, str] = {}
        self._closing: list[threading.Thread] = []

    def members(self) -> list[Member]:
        """Sorted by name."""
        return [member for _, member in sorted(self._members.copy().items())]

    def member(self, name: str) -> Member:
        """:raises NotFoundError: for a name that nothing has."""
        members = self._members
        if name not in members:
            raise NotFoundError("plugin", name, members)
        return members[name]

    def runs(self, name: str) -> bool:
        """Whether calls of its concurrent hooks may be made."""
        member = self._members.get(name)
        return member is not None and member.runs

    def lives(self) -> dict[str, Life]:
        return {member.health.plugin: member.life for member in self.members() if member.life is not None}

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
        """Look again, and bring about what has changed and nothing else; the names of what has.

        What goes wrong with one is logged, and tried again at the next look; the others come nevertheless.
        """
        with self._changing:
            choices = {choice.name: choice for choice in in_order(map(self._set_apart, self._choose()))}
            changed = [name for name in self._members if name not in choices]
            for name in changed:
                self._remove(name)
            for name, choice in choices.items():
                try:
                    if self._apply(choice, choices):
                        changed.append(name)
                except Exception:
                    _log.exception("refresh_failed", plugin=name)
            return sorted(changed)

    def reload(self, name: str) -> Future[ReloadReceipt]:
        """Make a new generation of a plugin as it is installed now, changed or not.

        :raises NotFoundError: for a plugin that is not to run.
        """
        with self._changing:
            choices = {choice.name: self._set_apart(choice) for choice in self._choose()}
            member = self._members.get(name)
            if member is None or member.life is None or name not in choices:
                raise NotFoundError("running plugin", name, self.lives())
            choice, copy = _read(choices[name])
            if choice.state != "discovered" or copy is None:
                self._apply(choice, choices)
                outcome: Outcome = "rolled_back" if member.runs else "failed"
                return _settled(self._note(member, outcome, f"it is {choice.state} now: {choice.reason}"))
            return self._succeed(member, choice, copy)

    def hand_over(self, name: str, runtime: Runtime, handover: Handover) -> Future[ReloadReceipt]:
        """Bring in a generation that has run beside the present one.

        :raises NotFoundError: for what is not to run.
        :raises PluginUnavailableError: while a change is under way: it would undo that.
        """
        with self._changing:
            member = self._members.get(name)
            if member is None or member.life is None:
                raise NotFoundError("running plugin", name, self.lives())
            if member.life.succession.busy:
                raise PluginUnavailableError(name, "is being changed just now")
            change = Change(runtime, "side_by_side", self._came_in, partial(self._receipt, member), handover)
            member.life.succession.ask(change)
            return change.receipt

    def isolate(self, name: str, reason: str) -> None:
        """Give a plugin that runs on threads of the host a process of its own until the host ends."""
        with self._changing:
            member = self._members.get(name)
            if member is None or member.life is None or member.choice.isolation == "process" or name in self._apart:
                return
            if member.copy is None or member.life.succession.busy:  # who goes on to block is blamed again
                return
            self._apart[name] = reason
            standing = member.life.standing
            standing.note = f"in a process of its own, since it {reason}"

            def came_to(asked: Future[ReloadReceipt]) -> None:
                if asked.result().outcome in ("rolled_back", "restart_required"):
                    standing.note = ""  # it stays where it was

            self._succeed(member, self._set_apart(member.choice), member.copy).add_done_callback(came_to)

    def close(self, seconds: float) -> None:
        """Wait for those that were removed earlier, at most so long in all."""
        deadline = time.monotonic() + seconds
        for thread in self._closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- changes, one at a time --------------------------------------------------------------------------------------

    def _set_apart(self, choice: Choice) -> Choice:
        apart = choice.name in self._apart and choice.isolation != "process"
        return msgspec.structs.replace(choice, isolation="process") if apart else choice

    def number(self, name: str) -> int:
        """A generation's number is never given twice, however often a plugin comes and goes."""
        self._numbers[name] += 1
        return self._numbers[name]

    def _add(self, choice: Choice) -> None:
        member = self._members.get(choice.name)
        if member is None:
            member = self._members[choice.name] = Member(choice, Health(choice.name, self._observe))
        choice, copy = _read(choice)
        member.choice, member.copy = choice, copy
        member.latest = choice
        member.identity = self._identity(choice, copy)
        if choice.state == "discovered" and copy is not None:
            runtime = self._makers.runtime(choice, copy, self.number(choice.name))
            member.life = self._makers.life(choice, member.health, runtime, Turn(choice.name, self._members))

    def _apply(self, choice: Choice, choices: Mapping[str, Choice]) -> bool:
        member = self._members.get(choice.name)
        if member is None:
            self._add(choice)
            self._told(self._members[choice.name])
            return True
        choice, copy = _read(choice)
        identity = self._identity(choice, copy)
        if identity == member.identity or self._waits(member, choice, choices):
            return False
        member.latest = choice
        if choice.state == "discovered" and copy is not None and member.life is not None:
            self._succeed(member, choice, copy)
        elif choice.state == "discovered":
            member.health.move("discovered", "it is to run now")
            self._add(choice)
        elif member.runs and choice.state in _BROKEN and choice.found is not None:
            member.health.move("rolled_back", f"the change is {choice.state}: {choice.reason}")
        else:
            self._end(member)
            member.choice = choice
            self._told(member)
        member.identity = identity
        return True

    def _identity(self, choice: Choice, copy: Copy | None) -> str:
        """Everything that makes one choice another: its code and what that stands on, its manifest, what the operator
        says, and its judgement."""
        code = copy.fingerprint if copy is not None else ""
        stands_on = f"{self._makers.stands_on(choice)} {self._makers.drift(choice)}"
        said = msgspec.json.encode([choice.settings, choice.limits, choice.isolation, choice.version])
        return " ".join((choice.state, choice.reason, code, stands_on, said.decode()))

    def _waits(self, member: Member, choice: Choice, choices: Mapping[str, Choice]) -> bool:
        """Whether it is blocked only because what it requires is broken on the disk, and goes on to run."""

        def goes_on(need: str) -> bool:
            other = self._members.get(need)
            broken = need in choices and choices[need].state in _BROKEN | {"blocked"}
            return broken and other is not None and other.runs and meets(choice, other.choice)

        def met(need: str) -> bool:
            return need in choices and choices[need].state == "discovered" and meets(choice, choices[need])

        required = needs(choice) if choice.state == "blocked" and member.runs else []
        return bool(required) and all(goes_on(need) or met(need) for need in required)

    def _succeed(self, member: Member, choice: Choice, copy: Copy) -> Future[ReloadReceipt]:
        assert member.life is not None
        assert choice.manifest is not None
        member.latest = choice
        strategy = choice.manifest.reload.strategy
        reason = f"its reload.strategy is {strategy}" if strategy == "restart" else self._makers.drift(choice)
        if reason and member.runs:
            member.health.move("restart_required", reason)
            return _settled(self._note(member, "restart_required", reason))

        life = member.life

        def came_in() -> None:
            if member.life is life:
                member.choice, member.copy = choice, copy
                self._came_in()

        runtime = self._makers.runtime(choice, copy, self.number(choice.name))
        change = Change(runtime, strategy, came_in, partial(self._receipt, member))
        life.succession.ask(change)
        member.identity = self._identity(choice, copy)
        return change.receipt

    def _receipt(self, member: Member, receipt: ReloadReceipt) -> None:
        if receipt.outcome != "superseded":
            member.receipts.append(receipt)
            self._receive(receipt)

    def _note(self, member: Member, outcome: Outcome, reason: str) -> ReloadReceipt:
        """The receipt of a change that the running host does not take in."""
        number = member.health.generation
        receipt = ReloadReceipt.of(member.health.plugin, number, number, outcome, reason)
        member.receipts.append(receipt)
        self._receive(receipt)
        return receipt

    def _told(self, member: Member) -> None:
        if member.latest.state != "discovered":
            member.health.move(member.latest.state, member.latest.reason)

    def _remove(self, name: str) -> None:
        self._end(self._members[name])
        self._members[name].health.move("unresolved", "it is no longer installed")
        del self._members[name]

    def _end(self, member: Member) -> None:
        """Let its lane commit and end it, on a thread of its own: it may hang."""
        life, member.life = member.life, None
        if life is not None:
            member.leaves_until = time.monotonic() + 2 * _CLOSE_SECONDS
            life.stop()
            self._closing = [thread for thread in self._closing if thread.is_alive()]
            member.leaving = aside(lambda: life.close(_CLOSE_SECONDS), f"close:{member.health.plugin}")
            self._closing.append(member.leaving)


def _settled(receipt: ReloadReceipt) -> Future[ReloadReceipt]:
    future: Future[ReloadReceipt] = Future()
    future.set_result(receipt)
    return future


def _read(choice: Choice) -> tuple[Choice, Copy | None]:
    """What is on the disk now, and the choice with the say of its lock about just that."""
    if choice.found is None:
        return choice, None
    copy = read_copy(choice.found)
    return choice.confirmed(copy.files), copy
