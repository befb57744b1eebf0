"""Keeps a running host like what is on the disk: manifests, and its plugins' sources and installed distributions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import structlog
from msgspec import Struct

from analytics_core.config import Settings
from analytics_core.errors import AnalyticsError, ManifestError
from analytics_core.host.installed.watcher import Reason, Watcher
from analytics_core.host.plugins import PluginHost
from analytics_core.host.restart import restart_required
from analytics_core.manifest import Deployment, read_deployment

_log = structlog.get_logger(__name__)


class ManifestsView(Struct, frozen=True):
    """What became of the manifests as they were read last.

    ``refused``: why nothing of them was taken in; empty when all was. ``restart_required``: the keys of those that were
    taken in last which wait for a restart of the host, with both values.
    """

    refused: str = ""
    restart_required: tuple[str, ...] = ()


class Reloader:
    """Refreshes ``host`` when something has changed. `start` and `stop` frame the watching; `look` needs neither. None
    of them is for the event loop.

    All manifests are taken in together or not at all: ``apply`` lets metrics, tenants and cohorts hold, then ``host``
    gets the plugin-settings. ``load`` reads the settings anew, as they were at the start; what differs in them from the
    running ``settings`` is applied by a restart alone, and `view` says so.
    """

    def __init__(
        self,
        host: PluginHost,
        settings: Settings,
        deployment: Deployment,
        *,
        environ: Mapping[str, str],
        load: Callable[[], Settings],
        apply: Callable[[Deployment], None],
    ) -> None:
        self._host = host
        self._settings = settings
        self._deployment = deployment
        self._environ = environ
        self._load = load
        self._apply = apply
        self._view = ManifestsView()
        polling = settings.plugins.watch == "poll"
        self._watcher = Watcher(settings.manifests_dir, self._changed, polling=polling)
        self._looking = threading.Lock()

    def start(self) -> None:
        self._watcher.watch(self._host.places())
        self._watcher.start()
        self.look()  # what came between the host's look and the watcher's first

    def stop(self, timeout: float = 10.0) -> None:
        self._watcher.stop(timeout)

    def look(self) -> str:
        """Read the manifests and refresh now. Returns when each change has begun: why the manifests were not taken in,
        empty when they were."""
        self._changed(frozenset({"manifests"}))
        return self._view.refused

    def view(self) -> ManifestsView:
        return self._view

    def _changed(self, reasons: frozenset[Reason]) -> None:
        with self._looking:
            if "manifests" in reasons:
                self._read()
            names = self._host.refresh(self._deployment)
            self._watcher.watch(self._host.places())
        if names:
            _log.info("plugins_refreshed", plugins=names, reasons=sorted(reasons))

    def _read(self) -> None:
        before = self._deployment
        try:
            found, settings = self._found(), self._load()
            if (before.metrics, before.tenants, before.cohorts) != (found.metrics, found.tenants, found.cohorts):
                self._apply(found)
        except AnalyticsError as error:
            self._refuse(str(error))
            return
        self._deployment = found
        if changes := list(_changes(before, found)):
            _log.info("manifests_applied", changes=changes)
        elif self._view.refused:
            _log.info("manifests_mended")
        self._wait_for_restart(restart_required(self._settings, settings))

    def _found(self) -> Deployment:
        """A folder that is gone says nothing: what the operator has disabled must not begin to run by that."""
        directory = self._settings.manifests_dir
        if self._deployment.sources and not directory.exists():
            raise ManifestError(directory, "", "does not exist any more; what it said holds until it is back")
        return read_deployment(directory, self._environ)

    def _refuse(self, problem: str) -> None:
        if problem != self._view.refused:
            _log.error("manifests_refused", problem=problem)
        self._view = ManifestsView(problem, self._view.restart_required)

    def _wait_for_restart(self, keys: tuple[str, ...]) -> None:
        before, self._view = self._view.restart_required, ManifestsView("", keys)
        if keys and keys != before:
            _log.warning("restart_required", waiting=list(keys))
        elif before and not keys:
            _log.info("restart_not_required", back=list(before))


def _changes(before: Deployment, after: Deployment) -> Iterator[str]:
    """``metric signups added`` and the like."""
    kinds: tuple[tuple[str, Mapping[str, object], Mapping[str, object]], ...] = (
        ("cohort", before.cohorts, after.cohorts),
        ("metric", before.metrics, after.metrics),
        ("plugin-settings", before.plugins, after.plugins),
        ("tenant", before.tenants, after.tenants),
    )
    for kind, old, new in kinds:
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                what = "added" if name not in old else "removed" if name not in new else "changed"
                yield f"{kind} {name} {what}"
