"""Which of the installed plugins are to run, under what settings, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from analytics_core.config import Settings
from analytics_core.errors import ClashError, PluginSettingsError, near
from analytics_core.host.health import State
from analytics_core.host.installed.admission import RANK, Gate, Verdict, unlisted
from analytics_core.host.installed.contents import Seal
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import Deployment, Limits, PluginManifest, PluginSettingsManifest, checked_settings

Isolation = Literal["thread", "process"]

_UNDECLARED: Final = PluginSettingsManifest(name="undeclared")


class Rival(NamedTuple):
    """Another distribution that claims a plugin's name, and why it has no say in it; empty when it has as much as the
    plugin's own, so that neither runs."""

    found: Found
    kept_out: str


class Choice(Struct, frozen=True, kw_only=True):
    """What is to become of one plugin. ``state`` is ``discovered`` when it is to run, else where it ends. Of one that
    the ``verdict`` keeps out no code is to be run at all. With a ``seal`` it may run of just these files."""

    name: str
    version: str = ""
    found: Found | None = None
    manifest: PluginManifest | None = None
    state: State = "discovered"
    reason: str = ""
    isolation: Isolation = "process"
    settings: dict[str, Any] = {}
    limits: Limits = Limits()
    verdict: Verdict = Verdict("admitted")
    seal: Seal | None = None
    rivals: tuple[Rival, ...] = ()

    @property
    def guards(self) -> bool:
        """Whether no event may be stored without its ``enrich``, whatever has become of it. Only the operator, who
        disables it or has not accepted it, says otherwise."""
        if self.state == "disabled" or self.verdict.standing == "unaccepted":
            return False
        if self.manifest is None:
            return self.found is not None and self.found.guards
        return self.lists("enrich") and self.manifest.on_failure == "reject"

    def lists(self, hook: str) -> bool:
        """Whether the manifest lists ``hook``."""
        return self.manifest is not None and hook in self.manifest.hooks

    def ends(self, state: State, reason: str) -> Choice:
        return _changed(self, state=state, reason=reason)

    def confirmed(self, sources: Iterable[tuple[str, bytes]] | None) -> Choice:
        """The same, unless the lock speaks of other files than those of which it would run: ``sources`` are all of them
        by their paths in the package, None when they cannot be read."""
        if self.seal is None or self.state != "discovered":
            return self
        if sources is None:
            return self.ends("invalid", "its files cannot be read just now, as if they were being installed")
        if broken := next(self.seal.broken(sources), ""):
            return self.ends(
                "invalid", f"{broken} was changed while it was compared with the lock; it is looked at again"
            )
        return self


def choose(
    found: Sequence[Found],
    settings: Settings,
    deployment: Deployment,
    screen: Callable[[Sequence[Choice]], Sequence[Choice]] = lambda choices: choices,
) -> list[Choice]:
    """A choice for each installed plugin, and for each that the operator names but nobody provides; sorted by name, of
    which no two are one by the rules of distribution names.

    ``screen`` may end some of those that the operator and their authors would let run, before others require them.
    Reads the lock, and the files that it speaks of, when the settings say ``locked``.
    """
    gate = Gate(settings, found)
    installed = screen(list(map(_settled, _by_name(_judged(one, settings, deployment, gate) for one in found))))
    known = {choice.name for choice in installed}
    missing = {name: _missing(name, who, known) for name, who in _named(settings, deployment)}
    for name, drift in gate.missing():
        if not _disabled(name, drift.distribution, settings, deployment):
            missing[name] = Choice(name=name, state="unresolved", reason=drift.reason)
    absent = [choice for name, choice in missing.items() if name not in known]
    return sorted([*_with_requirements(_without_clashes(installed)), *absent], key=lambda choice: choice.name)


def _judged(found: Found, settings: Settings, deployment: Deployment, gate: Gate) -> Choice:
    manifest = found.manifest
    intent = deployment.plugins.get(found.name, _UNDECLARED)
    isolation = intent.isolation or (manifest.isolation if manifest is not None else "process")
    verdict = gate.verdict(found)
    choice = Choice(
        name=found.name,
        version=found.version,
        found=found,
        manifest=manifest,
        isolation=isolation,
        verdict=verdict,
        seal=gate.seal(found),
    )
    if reason := _disabled(found.name, found.distribution, settings, deployment):
        return choice.ends("disabled", reason)
    if manifest is None or found.problem is not None:
        return choice.ends(found.state, found.problem or "its manifest was not read")
    if verdict.reason:
        return choice.ends("invalid", verdict.reason)
    try:
        checked = checked_settings(manifest, intent.settings)
    except PluginSettingsError as error:
        return choice.ends("unresolved", str(error))
    return _changed(
        choice,
        settings=checked,
        limits=_limits(intent.limits, manifest.limits),
    )


def _by_name(choices: Iterable[Choice]) -> Iterable[list[Choice]]:
    named: dict[str, list[Choice]] = {}
    for choice in choices:
        named.setdefault(canonicalize_name(choice.name), []).append(choice)
    return named.values()


def _settled(same: list[Choice]) -> Choice:
    """One choice of all that claim a name. The one with the best standing has it; of several such ones, none."""
    first, *others = sorted(same, key=lambda choice: (RANK[choice.verdict.standing], not choice.guards))
    tied = [choice for choice in same if choice.verdict.standing == first.verdict.standing]
    rivals = [Rival(other.found, "" if other in tied else other.verdict.reason) for other in others if other.found]
    settled = _changed(first, rivals=tuple(rivals))
    if len(tied) == 1 or first.state == "disabled":
        return settled
    holders = " and ".join(sorted(f"{each.found.distribution} {each.version}" for each in tied if each.found))
    problem = f"the plugin name {first.name!r} is claimed by {holders}; uninstall, rename or deny one of them"
    return settled.ends("invalid", problem)


def _disabled(name: str, distribution: str, settings: Settings, deployment: Deployment) -> str:
    """Why the operator does not want it; empty when it may run. Of those that the lists let in, PLUGINS_ENABLED decides
    alone when it is set."""
    if reason := unlisted(name, distribution, settings.plugins):
        return reason
    intent = deployment.plugins.get(name)
    if settings.plugins.enabled is not None:
        return "" if name in settings.plugins.enabled else "PLUGINS_ENABLED does not list it"
    if intent is None:
        return "" if settings.plugins.auto_load else "PLUGINS_AUTO_LOAD is off and no plugin-settings enable it"
    return "" if intent.enabled else "plugin-settings say 'enabled: false'"


def _limits(operator: Limits, author: Limits) -> Limits:
    return Limits(
        memory_mb=operator.memory_mb or author.memory_mb,
        cpu_seconds=operator.cpu_seconds or author.cpu_seconds,
        call_seconds=operator.call_seconds or author.call_seconds,
    )


def _named(settings: Settings, deployment: Deployment) -> Iterable[tuple[str, str]]:
    for name in settings.plugins.enabled or ():
        yield name, "PLUGINS_ENABLED"
    for name, intent in deployment.plugins.items():
        if intent.enabled and settings.plugins.enabled is None:
            yield name, "a plugin-settings manifest"


def _missing(name: str, who: str, known: Iterable[str]) -> Choice:
    return Choice(name=name, state="unresolved", reason=f"{who} names it, but it is not installed{near(name, known)}")


def _without_clashes(choices: Sequence[Choice]) -> list[Choice]:
    """Of two runnable plugins that claim one route or analysis neither runs: which one is meant cannot be known."""
    holders: dict[tuple[str, str], list[str]] = {}
    for choice in choices:
        for claim in _claims(choice):
            holders.setdefault(claim, []).append(choice.name)
    clashes = {claim: names for claim, names in holders.items() if len(names) > 1}
    judged = []
    for choice in choices:
        clash = next((claim for claim in _claims(choice) if claim in clashes), None)
        judged.append(choice.ends("invalid", str(ClashError(*clash, clashes[clash]))) if clash else choice)
    return judged


def _claims(choice: Choice) -> Iterable[tuple[str, str]]:
    if choice.state == "discovered" and choice.manifest is not None:
        yield from (("route", route) for route in choice.manifest.provides.routes)
        yield from (("analysis", analysis.name) for analysis in choice.manifest.provides.analyses)


def _with_requirements(choices: Sequence[Choice]) -> list[Choice]:
    """Block what requires a plugin that is absent, of another version, or not to run itself; then who needs those."""
    by_name = {choice.name: choice for choice in choices}
    changed = True
    while changed:
        changed = False
        for choice in list(by_name.values()):
            reason = _unmet(choice, by_name) if choice.state == "discovered" else ""
            if reason:
                by_name[choice.name] = choice.ends("blocked", reason)
                changed = True
    return [by_name[choice.name] if choice.state == "discovered" else choice for choice in choices]


def _unmet(choice: Choice, by_name: dict[str, Choice]) -> str:
    for name, specifier in _requirements(choice):
        other = by_name.get(name)
        if other is None:
            return f"requires {name!r}, which is not installed{near(name, by_name)}"
        if other.state != "discovered":
            return f"requires {name!r}, which is {other.state}: {other.reason}"
        if not _fits(specifier, other.version):
            return f"requires {name!r} {specifier}, installed is {other.version}"
    cycle = _cycle(choice.name, by_name)
    return f"requires itself by way of {' -> '.join(cycle)}" if cycle else ""


def meets(choice: Choice, other: Choice) -> bool:
    """Whether ``other`` has the version in which ``choice`` requires it."""
    return all(_fits(specifier, other.version) for name, specifier in _requirements(choice) if name == other.name)


def _fits(specifier: str, version: str) -> bool:
    return SpecifierSet(specifier).contains(version, prereleases=True)


def _requirements(choice: Choice) -> list[tuple[str, str]]:
    return sorted(choice.manifest.requires.plugins.items()) if choice.manifest is not None else []


def _cycle(name: str, by_name: dict[str, Choice]) -> list[str]:
    """The way from ``name`` back to it over requirements; empty when there is none."""
    seen: set[str] = set()
    ways = [[name]]
    while ways:
        way = ways.pop()
        for following, _ in _requirements(by_name[way[-1]]) if way[-1] in by_name else []:
            if following == name:
                return [*way, name]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def _changed(choice: Choice, **fields: Any) -> Choice:
    return Choice(**{name: getattr(choice, name) for name in choice.__struct_fields__} | fields)
