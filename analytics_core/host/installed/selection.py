"""Which of the installed plugins are to run, under what settings, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

from msgspec import Struct
from packaging.specifiers import SpecifierSet

from analytics_core.config import Settings
from analytics_core.errors import ClashError, PluginSettingsError, near
from analytics_core.host.health import State
from analytics_core.host.installed.admission import Gate, unlisted
from analytics_core.host.installed.discovery import Found
from analytics_core.manifest import Deployment, Limits, PluginManifest, PluginSettingsManifest, checked_settings

Isolation = Literal["thread", "process"]

_UNDECLARED: Final = PluginSettingsManifest(name="undeclared")


class Choice(Struct, frozen=True, kw_only=True):
    """What is to become of one plugin. ``state`` is ``discovered`` when it is to run, else where it ends. One that is
    not ``accepted`` is installed, and the lock does not have it."""

    name: str
    version: str = ""
    found: Found | None = None
    manifest: PluginManifest | None = None
    state: State = "discovered"
    reason: str = ""
    isolation: Isolation = "process"
    settings: dict[str, Any] = {}
    limits: Limits = Limits()
    accepted: bool = True

    @property
    def guards(self) -> bool:
        """Whether no event may be stored without its ``enrich``, whatever has become of it. Only the operator, who
        disables it or has not accepted it, says otherwise."""
        if self.state == "disabled" or not self.accepted:
            return False
        if self.manifest is None:
            return self.found is not None and self.found.guards
        return self.lists("enrich") and self.manifest.on_failure == "reject"

    def lists(self, hook: str) -> bool:
        """Whether the manifest lists ``hook``."""
        return self.manifest is not None and hook in self.manifest.hooks

    def ends(self, state: State, reason: str) -> Choice:
        return _changed(self, state=state, reason=reason)


def choose(
    found: Sequence[Found],
    settings: Settings,
    deployment: Deployment,
    screen: Callable[[Sequence[Choice]], Sequence[Choice]] = lambda choices: choices,
) -> list[Choice]:
    """A choice for each installed plugin, and for each that the operator names but nobody provides; sorted by name.

    ``screen`` may end some of those that the operator and their authors would let run, before others require them.
    Reads the lock, and the files that it speaks of, when the settings say ``locked``.
    """
    gate = Gate(settings, found)
    installed = screen([_judged(one, settings, deployment, gate) for one in found])
    known = {choice.name for choice in installed}
    missing = {name: _missing(name, who, known) for name, who in _named(settings, deployment)}
    for name, drift in gate.missing():
        if not _disabled(name, drift.distribution, settings, deployment):
            missing[name] = Choice(name=name, state="unresolved", reason=drift.reason)
    absent = [choice for name, choice in missing.items() if name not in known]
    unclashed = _without_clashes(installed)
    return sorted([*_with_requirements(unclashed), *absent], key=lambda choice: choice.name)


def _judged(found: Found, settings: Settings, deployment: Deployment, gate: Gate) -> Choice:
    manifest = found.manifest
    intent = deployment.plugins.get(found.name, _UNDECLARED)
    isolation = intent.isolation or (manifest.isolation if manifest is not None else "process")
    choice = Choice(name=found.name, version=found.version, found=found, manifest=manifest, isolation=isolation)
    if reason := _disabled(found.name, found.distribution, settings, deployment):
        return choice.ends("disabled", reason)
    verdict = gate.verdict(found)
    if verdict is not None:
        choice = _changed(choice, accepted=verdict.accepted)
    if manifest is None or found.problem is not None:
        return choice.ends(found.state, found.problem or "its manifest was not read")
    if verdict is not None:
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
