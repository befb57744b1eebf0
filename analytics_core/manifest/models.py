"""The models of every manifest kind. JSON Schemas and messages come from these and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import UNSET, Meta, Struct, UnsetType
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from analytics_core.manifest.cohorts import CohortManifest
from analytics_core.manifest.json_schema import fit_schema, schema_problem
from analytics_core.manifest.source import Key

TENANT: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$"
PLUGIN: Final = r"^[a-z][a-z0-9-]*$"

TenantId = Annotated[str, Meta(pattern=TENANT)]
PluginName = Annotated[str, Meta(pattern=PLUGIN, max_length=64)]
Word = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]
"""The name of a metric, an analysis, a channel kind, ...: it appears in URLs and after ``plugin.``."""

Isolation = Literal["thread", "process"]
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
JsonSchema = dict[str, Any]
Aggregate = Literal["count", "sum", "avg", "min", "max", "unique", "p50", "p75", "p90", "p95", "p99"]
Problems = Iterator[tuple[Key, str]]
"""What the types alone cannot say: pairs of the key and what is wrong with it."""


class Requires(Struct, frozen=True, forbid_unknown_fields=True):
    """What the plugin needs, as version specifiers (``>=0.1,<1``). ``plugins`` maps a plugin's name to one."""

    host: str = ""
    python: str = ""
    plugins: dict[str, str] = {}

    def problems(self) -> Problems:
        for name, specifier in self.plugins.items():
            if not re.search(PLUGIN, name):
                yield ("plugins", name), f"the plugin name does not match {PLUGIN}"
            if problem := specifier_problem(specifier):
                yield ("plugins", name), problem


class AnalysisManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """One question that the plugin's ``insight`` answers. ``parameters`` is the JSON Schema of what may be asked.

    ``insights`` marks it to be asked when insights are wanted: ``true``, or the parameters to ask it with.
    """

    name: Word
    title: str = ""
    description: str = ""
    parameters: JsonSchema = {}
    insights: bool | dict[str, Any] = False

    @property
    def asked_with(self) -> dict[str, Any] | None:
        """The parameters with which it is asked for insights; None when it is not."""
        if isinstance(self.insights, dict):
            return self.insights
        return {} if self.insights else None

    def problems(self) -> Problems:
        if problem := schema_problem(self.parameters):
            yield ("parameters", *problem[0]), problem[1]
        elif self.asked_with or (self.asked_with is not None and self.parameters.get("required")):
            for key, text in fit_schema(self.parameters, self.asked_with)[1]:
                yield ("insights",), f"cannot be asked so: {f'{key}: ' if key else ''}{text}"


class ProvidedMetric(Struct, frozen=True, forbid_unknown_fields=True):
    """A metric that ``process`` gives; others see it as ``plugin.name``."""

    name: Word
    description: str = ""
    unit: str = ""


class ChannelManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of channel that ``deliver`` sends over. ``settings`` is the JSON Schema of one channel."""

    kind: Word
    description: str = ""
    settings: JsonSchema = {}


class Provides(Struct, frozen=True, forbid_unknown_fields=True):
    """What the plugin adds. ``routes`` are ``METHOD /path`` of foreign protocols that ``ingest`` understands."""

    routes: tuple[Annotated[str, Meta(pattern=r"^(GET|POST|PUT|PATCH|DELETE) /[^\s?#]*$")], ...] = ()
    analyses: tuple[AnalysisManifest, ...] = ()
    metrics: tuple[ProvidedMetric, ...] = ()
    channels: tuple[ChannelManifest, ...] = ()
    model_types: tuple[Word, ...] = ()
    detectors: tuple[Word, ...] = ()

    def problems(self) -> Problems:
        named: dict[str, list[str]] = {
            "routes": list(self.routes),
            "analyses": [a.name for a in self.analyses],
            "metrics": [m.name for m in self.metrics],
            "channels": [c.kind for c in self.channels],
            "model_types": list(self.model_types),
            "detectors": list(self.detectors),
        }
        for key, names in named.items():
            for index, name in enumerate(names):
                if name in names[:index]:
                    yield (key, index), f"{name!r} is provided twice"
        for index, analysis in enumerate(self.analyses):
            yield from ((("analyses", index, *path), problem) for path, problem in analysis.problems())
        for index, channel in enumerate(self.channels):
            if problem := schema_problem(channel.settings):
                yield ("channels", index, "settings", *problem[0]), problem[1]


DEFAULT_MEMORY_MB: Final = 1024
"""What the process of a plugin may take when neither its author nor the operator says so."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one plugin; None takes the host's. Memory and CPU hold for ``isolation: process`` only."""

    memory_mb: Annotated[int, Meta(ge=16)] | None = None
    cpu_seconds: Annotated[float, Meta(gt=0)] | None = None
    call_seconds: Annotated[float, Meta(gt=0)] | None = None


class Reload(Struct, frozen=True, forbid_unknown_fields=True):
    """How the next generation of the plugin comes in: ``side_by_side`` with the running one until it is swapped in,
    ``stop_first`` after the running one has ended, ``restart`` with the host alone. Raise ``state_version`` when
    ``export_state`` changes its shape."""

    state_version: Annotated[int, Meta(ge=1)] = 1
    strategy: Literal["side_by_side", "stop_first", "restart"] = "side_by_side"


class PluginManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``plugin.yaml``: the author's contract. ``entry`` is ``package.module:Class``, called without arguments."""

    manifest: Literal[1]
    name: PluginName
    title: str = ""
    description: str = ""
    entry: Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
    hooks: tuple[str, ...]
    requires: Requires = Requires()
    after: tuple[PluginName, ...] = ()
    provides: Provides = Provides()
    settings: JsonSchema = {}
    isolation: Isolation = "process"
    limits: Limits = Limits()
    on_failure: Literal["pass", "reject"] = "pass"
    reload: Reload = Reload()

    def problems(self) -> Problems:
        yield from ((("requires", *path), problem) for path, problem in self.requires.problems())
        yield from ((("provides", *path), problem) for path, problem in self.provides.problems())
        if problem := schema_problem(self.settings, defaults=True):
            yield ("settings", *problem[0]), problem[1]
        if not self.hooks:
            yield ("hooks",), "lists no hook, so the plugin would do nothing"
        if self.name in self.after:
            yield ("after",), f"{self.name!r} cannot come after itself"


class PluginSettingsManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind: plugin-settings``: the operator's will for the plugin ``name``. What is not given is the plugin's."""

    name: PluginName
    enabled: bool = True
    settings: dict[str, Any] = {}
    limits: Limits = Limits()
    isolation: Isolation | None = None

    def problems(self) -> Problems:
        yield from ()


class MetricManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind: metric``: one number over events.

    ``event`` or ``events`` name the events (none: all of them); ``where`` maps ``properties.x`` or a column of the
    batch to the one value or the list of values that it must have, or to operators, ``{">": 10}``; ``property`` and
    ``breakdown`` are named likewise.
    """

    name: Word
    description: str = ""
    aggregate: Aggregate = "count"
    event: str | None = None
    events: tuple[str, ...] = ()
    property: str | None = None
    where: dict[str, Any] | None = None
    breakdown: tuple[str, ...] = ()
    unit: str = ""

    def problems(self) -> Problems:
        if self.event is not None and self.events:
            yield ("events",), "'event' and 'events' are both given; keep one"
        if self.aggregate == "count" and self.property is not None:
            yield (
                ("property",),
                "aggregate 'count' counts events and takes no property; did you mean 'unique' or 'sum'?",
            )
        if self.aggregate != "count" and self.property is None:
            yield ("aggregate",), f"{self.aggregate!r} needs a 'property'"
        for key, value in (self.where or {}).items():
            if isinstance(value, dict) and value:
                continue  # operators, which are checked with their values when the metric is defined
            values = value if isinstance(value, list) else [value]
            if not values or not all(v is None or isinstance(v, str | int | float) for v in values):
                yield (
                    ("where", key),
                    "is neither one value nor a list of values (text, number, true, false, null), nor operators such "
                    'as {">": 10}',
                )


class TenantManifest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``kind: tenant``. ``timezone`` and ``week_start`` hold where a question names none. ``retention_days`` null keeps
    events for ever; not given, the host's holds."""

    name: TenantId
    timezone: str = "UTC"
    week_start: Weekday = "monday"
    retention_days: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET

    def problems(self) -> Problems:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            yield ("timezone",), f"{self.timezone!r} is no IANA time zone; valid are names such as 'Europe/Berlin'"


class HostManifest(Struct, frozen=True):
    """``kind: host`` as written, environment filled in; `analytics_core.config` makes `Settings` of it."""

    values: dict[str, Any]


Manifest = PluginManifest | PluginSettingsManifest | MetricManifest | TenantManifest | CohortManifest | HostManifest


def specifier_problem(text: str) -> str:
    """Why ``text`` is no version specifier; empty when it is one."""
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        return f"{text!r} is no version specifier; valid are such as '>=0.1,<1'"
    return ""
