"""Keeps the plugins of a running host like what is on the disk: manifests, sources and installed distributions."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import structlog

from analytics_core.errors import AnalyticsError
from analytics_core.host.plugins import PluginHost
from analytics_core.host.watcher import Reason, Watcher
from analytics_core.manifest import Deployment, read_deployment

_log = structlog.get_logger(__name__)


class Reloader:
    """Refreshes ``host`` when something has changed. `start` and `stop` frame the watching; `look` needs neither. None
    of them is for the event loop.

    A manifest that cannot be read changes nothing and is named in the log. Of the deployment only plugin-settings are
    applied; a change of another kind is said to need a restart.
    """

    def __init__(
        self,
        host: PluginHost,
        manifests: Path,
        environ: Mapping[str, str],
        deployment: Deployment,
        *,
        polling: bool = False,
    ) -> None:
        self._host = host
        self._manifests = manifests
        self._environ = environ
        self._deployment = deployment
        self._watcher = Watcher(manifests, self._changed, polling=polling)
        self._looking = threading.Lock()

    def start(self) -> None:
        self._watcher.watch(self._host.places())
        self._watcher.start()
        self.look()  # what came between the host's look and the watcher's first

    def stop(self, timeout: float = 10.0) -> None:
        self._watcher.stop(timeout)

    def look(self) -> None:
        """Read the manifests and refresh now. Returns when each change has begun."""
        self._changed(frozenset({"manifests"}))

    def _changed(self, reasons: frozenset[Reason]) -> None:
        with self._looking:
            if "manifests" in reasons:
                self._read()
            names = self._host.refresh(self._deployment)
            self._watcher.watch(self._host.places())
        if names:
            _log.info("plugins_refreshed", plugins=names, reasons=sorted(reasons))

    def _read(self) -> None:
        try:
            found = read_deployment(self._manifests, self._environ)
        except AnalyticsError as error:
            _log.error("manifests_refused", problem=str(error))
            return
        before, self._deployment = self._deployment, found
        kinds = ("host", "metrics", "tenants")
        changed = [kind for kind in kinds if getattr(before, kind) != getattr(found, kind)]
        if changed:
            _log.warning("restart_required", manifests=changed)
