"""The examination of all installed plugins, or of those that are named, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from analytics_core.config import Settings
from analytics_core.errors import NotFoundError
from analytics_core.host.examining.examination import Examination, examine_choice
from analytics_core.host.examining.judging import named
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.selection import Choice, choose
from analytics_core.manifest import read_deployment


def examinations(
    names: Sequence[str], settings: Settings, environ: Mapping[str, str], seconds: float
) -> Iterator[Examination]:
    """Each in a process of its own, which is ended after so many ``seconds``.

    :raises NotFoundError: for a name that neither a plugin nor a distribution has.
    :raises ManifestError: for deployment manifests that cannot be read.
    """
    deployment = read_deployment(settings.manifests_dir, environ)
    choices = choose(discover(), settings, deployment)
    wanted = _wanted(names, choices) if names else choices
    return (examine_choice(choice, deployment, choices, seconds) for choice in wanted)


def _wanted(names: Sequence[str], choices: Sequence[Choice]) -> list[Choice]:
    wanted: list[Choice] = []
    for name in names:
        found = named(name, choices)
        if not found:
            raise NotFoundError("plugin", name, (choice.name for choice in choices))
        wanted += (choice for choice in found if choice not in wanted)
    return wanted
