"""Which of the installed plugins the operator lets in: by the lists of names, and under ``locked`` by the lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple, get_args

from packaging.utils import canonicalize_name

from analytics_core.config import Plugins, Settings
from analytics_core.host.installed.contents import Seal
from analytics_core.host.installed.discovery import Found
from analytics_core.host.installed.provenance import (
    Drift,
    Installed,
    LockError,
    drift,
    installed,
    lock_file,
    read_lock,
)

Standing = Literal[
    "admitted",  # its code may run
    "altered",  # in the lock, as another copy; or the lock cannot be used
    "replaced",  # the lock has its name, of another distribution
    "unaccepted",  # the lock has neither
    "unlisted",  # the lists of names keep it out
]
"""How a plugin stands with the operator, from the best claim on its name to none."""
RANK: Final = {standing: rank for rank, standing in enumerate(get_args(Standing))}


class Verdict(NamedTuple):
    """How a plugin stands, and why; ``reason`` is empty for what is admitted."""

    standing: Standing
    reason: str = ""


class Gate:
    """What the lists, and under ``locked`` the lock, say of all that is installed.

    A lock that cannot be used keeps every plugin out.
    """

    def __init__(self, settings: Settings, found: Sequence[Found]) -> None:
        self._lists = settings.plugins
        self._problem = ""
        self._drifts: dict[str, Drift] = {}
        self._plugins: set[str] = set()
        self._there: dict[str, Installed] = {}
        if not settings.plugins.locked:
            return
        path = lock_file(settings)
        try:
            lock = read_lock(path)
        except LockError as error:
            self._problem = str(error)
            return
        self._there = installed(found)
        self._drifts = {one.distribution: one for one in drift(lock, self._there, path)}
        self._plugins = {plugin for each in lock.distributions.values() for plugin in each.plugins}

    def verdict(self, found: Found) -> Verdict:
        """Denial comes first."""
        if reason := unlisted(found.name, found.distribution, self._lists):
            return Verdict("unlisted", reason)
        if self._problem:
            return Verdict("altered", self._problem)
        one = self._drifts.get(canonicalize_name(found.distribution))
        if one is None:
            return Verdict("admitted")
        if one.change != "added":
            return Verdict("altered", one.reason)
        return Verdict("replaced" if found.name in self._plugins else "unaccepted", one.reason)

    def seal(self, found: Found) -> Seal | None:
        """What the files of the plugin's package were when they were compared with the lock; None without one."""
        there = self._there.get(canonicalize_name(found.distribution))
        return there.seals.get(found.package) if there is not None else None

    def missing(self) -> Iterator[tuple[str, Drift]]:
        """The plugins of distributions that are locked and not installed."""
        for one in self._drifts.values():
            if one.change == "removed":
                yield from ((plugin, one) for plugin in one.plugins)


def unlisted(name: str, distribution: str, plugins: Plugins) -> str:
    """Why the lists keep the plugin ``name`` of ``distribution`` out; empty when they do not. Denial comes first."""
    names = _names(name, distribution)
    for pattern in plugins.deny:
        if _matches(pattern, names):
            return f"plugins.deny (PLUGINS_DENY) has {pattern!r}"
    if plugins.allow is None or any(_matches(pattern, names) for pattern in plugins.allow):
        return ""
    allowed = ", ".join(map(repr, plugins.allow)) or "nothing"
    return f"plugins.allow (PLUGINS_ALLOW) has nothing that matches it; it has: {allowed}"


def idle_patterns(found: Iterable[Found], plugins: Plugins) -> list[tuple[str, str]]:
    """Each entry of the lists that matches nothing installed, as (``allow`` or ``deny``, pattern): a typing error?"""
    known = [_names(one.name, one.distribution) for one in found]
    listed = [("allow", each) for each in plugins.allow or ()] + [("deny", each) for each in plugins.deny]
    return [(which, pattern) for which, pattern in listed if not any(_matches(pattern, names) for names in known)]


def _names(name: str, distribution: str) -> set[str]:
    return {name.lower(), distribution.lower(), canonicalize_name(name), canonicalize_name(distribution)}


def _matches(pattern: str, names: Iterable[str]) -> bool:
    spelt = {pattern.lower(), canonicalize_name(pattern)}
    return any(fnmatchcase(name, each) for name in names for each in spelt)
