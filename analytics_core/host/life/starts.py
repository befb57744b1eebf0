"""What is known of the host's starts: which have failed, whose code they were in then, and what ran when all went
well. Plain records and the decisions on them; `BootGuard` keeps them on disk and acts on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from analytics_core.host.installed.selection import Choice

FAILURES: Final = 3
"""So many failed starts in a row bring safe mode."""

Phase = Literal["loading", "starting", "running"]


class Identity(Struct, frozen=True):
    """What a plugin ran as; equal ones are the same code under the same settings on the same third-party code.

    ``code`` is the fingerprint of its sources, ``settings`` a digest of all that the operator may say, ``stands_on``
    one of the third-party code: 32 hex digits each.
    """

    distribution: str
    version: str
    code: str
    settings: str
    stands_on: str = ""

    def resembles(self, other: Identity | None) -> bool:
        """Whether the two differ in the third-party code at most."""
        return other is not None and replace(other, stands_on=self.stands_on) == self


class Part(Struct, frozen=True):
    """What one plugin was at in a start."""

    phase: Phase
    identity: Identity
    isolation: str


class Mark(Struct, frozen=True, omit_defaults=True):
    """One thing that happened in a start: the server was ``ready``, the start had ``lived`` for a while, or the
    ``plugin`` took this ``part``; None ends it."""

    ready: bool = False
    lived: bool = False
    plugin: str = ""
    part: Part | None = None


class Start(Struct, frozen=True):
    """One start of the host, of which no end is known yet. ``began`` is shown to people and decides nothing.

    ``calls``: in whose code its process was when it ended, which only the next start knows.
    """

    began: datetime
    ready: bool = False
    lived: bool = False
    parts: dict[str, Part] = {}
    calls: frozenset[str] = frozenset()

    @property
    def activating(self) -> dict[str, Identity]:
        """Those on their way up that can bring down the host: the ones in its own process."""
        return {name: part.identity for name, part in self._own().items() if part.phase != "running"}

    @property
    def suspects(self) -> dict[str, Identity]:
        """Those in whose code it has ended; when that was in no plugin's, those that were activating."""
        called = {name: part.identity for name, part in self._own().items() if name in self.calls}
        return called if called and not self.lived else self.activating

    @property
    def called(self) -> frozenset[str]:
        """The suspects that were up already."""
        return frozenset(name for name in self.suspects if self.parts[name].phase == "running")

    @property
    def failed(self) -> bool:
        """Whether it would have failed, did the process die now. Else its death is nobody's fault."""
        return bool(self.suspects) or not self.ready

    def marked(self, mark: Mark) -> Start:
        others = {name: each for name, each in self.parts.items() if name != mark.plugin}
        new = {mark.plugin: mark.part} if mark.part is not None else {}
        ready, lived = self.ready or mark.ready, self.lived or mark.lived
        return replace(self, ready=ready, lived=lived, parts=others | new)

    def _own(self) -> dict[str, Part]:
        return {name: part for name, part in self.parts.items() if part.isolation == "thread"}


class SafeMode(Struct, frozen=True):
    """Why only proven plugins run: ``failures`` starts failed at the ``culprits``, which may be none. Those ``called``
    were up already."""

    failures: int
    culprits: dict[str, Identity]
    called: frozenset[str] = frozenset()

    @property
    def reason(self) -> str:
        return f"safe mode: {self.failures} starts in a row failed {during(self.culprits, self.called)}"

    def holds(self, present: Mapping[str, Identity]) -> bool:
        """Whether it goes on when ``present`` are to run: while some culprit is what it was."""
        return not self.culprits or any(present.get(name) == culprit for name, culprit in self.culprits.items())

    def bars(self, name: str, identity: Identity, worked: Mapping[str, Identity]) -> str:
        """Why this plugin may not run; empty when it may."""
        if self.culprits.get(name) == identity:
            return (
                f"{self.reason}; it runs again once its code, version, settings, isolation or what it depends on is "
                "another one, or when the host is started with --no-safe-mode"
            )
        if not identity.resembles(worked.get(name)):
            changed = f"has changed, is disabled or removed: {_listed(self.culprits)}"
            end = f"once this {changed}" if self.culprits else "in the start after one that goes well"
            return (
                f"{self.reason}, and it did not run like this in the last start that went well; it runs {end}; or when "
                "the host is started with --no-safe-mode"
            )
        return ""


class Record(Struct, frozen=True):
    """All that is kept. ``worked``: the plugins that ran in the last start that went well. ``failed``: the starts in a
    row that have failed, the oldest first. ``start``: the present one, None once it has gone well or ended in order.
    """

    worked: dict[str, Identity] = {}
    failed: tuple[Start, ...] = ()
    safe: SafeMode | None = None
    start: Start | None = None


def identify(choice: Choice, code: str, stands_on: str) -> Identity:
    """That of a plugin that is to run, with these digests."""
    assert choice.found is not None
    told = msgspec.json.encode([choice.settings, choice.limits, choice.isolation], order="deterministic")
    settings = blake2b(told, digest_size=16).hexdigest()
    return Identity(choice.found.distribution, choice.version, code, settings, stands_on)


def begun(record: Record, now: datetime) -> Record:
    """The record as a start begins: the one before it is judged, unless it went well or ended in order."""
    last, failed, safe = record.start, record.failed, record.safe
    if last is not None:
        failed = (*failed, last) if last.failed else ()
    if safe is not None and failed:
        culprits, called = safe.culprits | failed[-1].suspects, safe.called | failed[-1].called
        safe, failed = SafeMode(safe.failures + 1, culprits, called), ()
    elif len(failed) >= FAILURES:
        called = frozenset[str]().union(*(start.called for start in failed))
        safe, failed = SafeMode(len(failed), _culprits(failed, record.worked), called), ()
    return Record(record.worked, failed, safe, Start(now))


def gone_well(record: Record, running: Mapping[str, Identity]) -> Record:
    """The record when a start has proven good with these plugins. Safe mode proves nothing of its culprits, which stay
    out; one without culprits is over."""
    if record.safe is None:
        return Record(worked=dict(running))
    return Record(worked=record.worked, safe=record.safe if record.safe.culprits else None)


def screened(choices: Sequence[Choice], present: Mapping[str, Identity], record: Record) -> list[Choice]:
    """The choices under ``record.safe``; ``present`` identifies those that are to run."""
    assert record.safe is not None
    judged = []
    for choice in choices:
        identity = present.get(choice.name)
        reason = record.safe.bars(choice.name, identity, record.worked) if identity is not None else ""
        judged.append(choice.ends("blocked", reason) if reason else choice)
    return judged


def during(suspects: Collection[str], called: Collection[str]) -> str:
    """When a start failed, in words. Of the ``suspects`` those ``called`` were up already."""
    if not suspects:
        return "before the server was ready"
    rising, up = set(suspects) - set(called), set(suspects) & set(called)
    words = [f"in a call of {_listed(up)}"] if up else []
    if rising:
        words.append(f"while {_listed(rising)} {'was' if len(rising) == 1 else 'were'} activating")
    return " or ".join(words)


def _culprits(failed: Sequence[Start], worked: Mapping[str, Identity]) -> dict[str, Identity]:
    """Who was suspected in each of these starts, or else in the last of them that has anybody; of those whoever is
    not known to work, if there is such a one."""
    suspected = [start.suspects for start in failed if start.suspects]
    if not suspected:
        return {}
    last = suspected[-1]
    always = {name: last[name] for name in last if all(name in each for each in suspected)} or last
    return {name: each for name, each in always.items() if worked.get(name) != each} or always


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, sorted(names)))
