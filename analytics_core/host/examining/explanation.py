"""Why a plugin does or does not run, in the words of whoever knows: a running host, or else what is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from analytics_core.config import Settings
from analytics_core.errors import ManifestError, NotFoundError
from analytics_core.host.examining.judging import RUNS, advice, judge, named, undeclared
from analytics_core.host.health import RUNNING
from analytics_core.host.installed.discovery import Found
from analytics_core.host.installed.selection import Choice
from analytics_core.manifest.switching import line_that_disables


class Holder(Struct, frozen=True):
    """A distribution that declares the plugin, and where the sources are; empty when they are nowhere. ``kept_out``
    says of what is installed why it has no say in it, if it has none."""

    distribution: str
    version: str
    directory: str
    kept_out: str = ""


class Explanation(Struct, frozen=True, kw_only=True):
    """The answer. ``source`` says who gave it: the address of a server, ``host``, or ``installed`` without either, of
    which ``runs`` says that a server would try to.

    ``line`` is the operator's own that disables the plugin, with its place, where that is known.
    """

    name: str
    runs: bool
    state: str
    reason: str
    source: str
    since: str | None = None
    generation: int | None = None
    errors: int | None = None
    holders: tuple[Holder, ...] = ()
    advice: str = ""
    line: str = ""


def explain_row(row: Mapping[str, Any], source: str, found: Iterable[Found] = ()) -> Explanation:
    """What a running host says of a plugin in its ``row`` of GET /api/v1/plugins; ``found`` is where it comes from."""
    hidden = "the server tells it to the key of an operator only" if row.get("reason") is None else ""
    listed = list(found)
    return Explanation(
        name=row["name"],
        runs=row["state"] in RUNNING,
        state=row["state"],
        reason=row.get("reason") or hidden,
        source=source,
        since=row.get("since"),
        generation=row.get("generation"),
        errors=row.get("errors"),
        holders=tuple(map(_holder, listed)),
        advice=_advice(listed),
    )


def explain_installed(
    name: str, settings: Settings, environ: Mapping[str, str], also: Iterable[str] = ()
) -> Explanation:
    """What a host that starts now would do with the plugin, or the distribution, ``name``. Nothing is imported.

    ``also`` are further names that would have been valid.

    :raises NotFoundError: when nothing that is installed has this name.
    :raises ManifestError: for deployment manifests that cannot be read.
    """
    choices = judge(settings, environ)
    same = named(name, choices)
    if same:
        return _of_choice(next((choice for choice in same if choice.state not in RUNS), same[0]))
    if not (reason := undeclared(name)):
        raise NotFoundError("plugin", name, {*(choice.name for choice in choices), *also})
    return Explanation(name=name, runs=False, state="undeclared", reason=reason, source="installed")


def with_line(told: Explanation, settings: Settings, environ: Mapping[str, str]) -> Explanation:
    """``told`` with the line of these manifests that disables the plugin, if one does."""
    if told.state != "disabled":
        return told
    with suppress(ManifestError):  # what was told is so whatever stands there now
        return replace(told, line=line_that_disables(settings.manifests_dir, told.name, environ))
    return told


def _of_choice(choice: Choice) -> Explanation:
    found = [choice.found] if choice.found is not None else []
    rivals = (_holder(rival.found, rival.kept_out) for rival in choice.rivals)
    return Explanation(
        name=choice.name,
        runs=choice.state in RUNS,
        state=choice.state,
        reason=choice.reason,
        source="installed",
        holders=(*map(_holder, found), *rivals),
        advice=_advice(found),
    )


def _holder(found: Found, kept_out: str = "") -> Holder:
    directory = "" if found.directory == Path() else str(found.directory)
    return Holder(found.distribution, found.version, directory, kept_out)


def _advice(found: Iterable[Found]) -> str:
    return next(filter(None, map(advice, found)), "")
