"""What the operator of a running host asks about its plugins and does to them: the commands, without a command line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import structlog

from analytics_core.config import Settings
from analytics_core.errors import BusyError, NotFoundError
from analytics_core.host.examining.doctor import examinations
from analytics_core.host.examining.examination import Examination
from analytics_core.host.examining.explanation import Explanation, explain_installed, explain_row, with_line
from analytics_core.host.examining.inspection import Inspection, as_seen, inspected
from analytics_core.host.installed.discovery import discover
from analytics_core.host.installed.selection import choose
from analytics_core.host.intent import set_enabled
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.plugins import PluginHost
from analytics_core.host.views import PluginView
from analytics_core.manifest import read_deployment
from analytics_core.manifest.switching import Switched

_log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """What was written, and what became of it: the plugin, None when it is not installed, and why the host has not
    taken the manifests in, empty when it has."""

    switched: Switched
    view: PluginView | None
    refused: str


class Caretaker:
    """Looks after the plugins of ``host``. Every method blocks and none is for the event loop.

    ``look`` lets the host take in what the manifests say now, and says why it does not; empty when it does. A name that
    nothing has is a `NotFoundError` with the nearest one.
    """

    def __init__(
        self, host: PluginHost, settings: Settings, environ: Mapping[str, str], look: Callable[[], str]
    ) -> None:
        self._host = host
        self._settings = settings
        self._environ = environ
        self._look = look
        self._examining = threading.Lock()

    def why(self, name: str) -> Explanation:
        """Why a plugin does or does not run; also of a distribution that declares none, or that the host has not seen.

        :raises ManifestError: for a plugin that the host does not know, when the manifests cannot be read.
        """
        views = {view.name: view for view in self._host.views()}
        if name not in views:
            explained = explain_installed(name, self._settings, self._environ, views)
            if explained.name not in views:
                return explained
            name = explained.name
        found = (one for one in discover() if one.name == name)
        explained = explain_row(msgspec.to_builtins(views[name]), "host", found)
        return with_line(explained, self._settings, self._environ)

    def inspect(self, name: str) -> tuple[Inspection, PluginView | None]:
        """All that a plugin's manifest says as it is installed now, and what became of it; None before the host's look.

        :raises ManifestError: for deployment manifests that cannot be read.
        """
        view = self._view(name)
        deployment = read_deployment(self._settings.manifests_dir, self._environ)
        choices = {choice.name: choice for choice in choose(discover(), self._settings, deployment)}
        if name not in choices:
            raise NotFoundError("plugin", name, choices)
        plain = inspected(choices[name], deployment, self._settings)
        return (plain if view is None else as_seen(plain, msgspec.to_builtins(view), "host")), view

    def switch(self, name: str, enabled: bool, *, by: str, reason: str = "") -> Taken:
        """Enable or disable a plugin in the manifests and at once.

        ``by`` is who wants it, for the log. Raises as `set_enabled` does, and has changed nothing then.
        """
        known = {view.name for view in self._host.views()}
        if name not in known:
            known |= set(read_deployment(self._settings.manifests_dir, self._environ).plugins)
            known |= {found.name for found in discover()}  # the host may not have looked since it was installed
        if name not in known:
            raise NotFoundError("plugin", name, known)
        done = set_enabled(name, enabled, self._settings, self._environ, reason=reason)
        if done.changed:
            _log.info("plugin_switched", plugin=name, enabled=enabled, by=by, reason=reason, file=done.file)
        refused = self._look()
        return Taken(done, self._view(name), refused)

    def reload(self, name: str) -> ReloadReceipt:
        """As `PluginHost.reload`."""
        return self._host.reload(name)

    def receipts(self, name: str) -> list[ReloadReceipt]:
        """What the latest reloads of a plugin have done, the newest last."""
        known = [view.name for view in self._host.views()]
        if name not in known:
            raise NotFoundError("plugin", name, known)
        return self._host.receipts(name)

    def examine(self, names: Sequence[str], seconds: float) -> list[Examination]:
        """Load each named plugin, or all of them, in a process of its own, which has so many ``seconds``.

        :raises BusyError: while another call is at it.
        :raises ManifestError: for deployment manifests that cannot be read.
        """
        with self._alone():
            return list(examinations(names, self._settings, self._environ, seconds))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._examining.acquire(blocking=False):
            raise BusyError("the plugins are being examined")
        try:
            yield
        finally:
            self._examining.release()

    def _view(self, name: str) -> PluginView | None:
        return next((view for view in self._host.views() if view.name == name), None)
