"""What the operator wants of a plugin, changed where a host reads it."""

from __future__ import annotations

from collections.abc import Mapping

from analytics_core.config import Settings
from analytics_core.errors import NotSwitchedError
from analytics_core.manifest.switching import Switched, switch


def set_enabled(
    name: str, enabled: bool, settings: Settings, environ: Mapping[str, str], *, reason: str = ""
) -> Switched:
    """Enable or disable a plugin in the manifests of the deployment. Blocks until that is on the disk.

    :raises NotSwitchedError: while PLUGINS_ENABLED decides, and as `switch` does.
    """
    only = settings.plugins.enabled
    if only is not None:
        listed = f"lists {', '.join(only)}" if only else "lists none"
        raise NotSwitchedError(
            name,
            f"PLUGINS_ENABLED ('plugins.enabled' of host.yaml) {listed} and beats every 'enabled'; "
            f"{'add it to' if enabled else 'take it off'} that list and start the server again, or unset it",
        )
    return switch(settings.manifests_dir, name, enabled, environ, otherwise=settings.plugins.auto_load, reason=reason)
