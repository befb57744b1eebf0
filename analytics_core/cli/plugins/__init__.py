"""``analytics plugins``. Like the commands above it, each one's module is imported when it is run."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from analytics_core.cli.lazy import LazyGroup
from analytics_core.errors import AnalyticsError

_COMMANDS: Final = {
    "list": (
        "listing",
        "Every plugin with its state, as the running server sees it; without a server, as it is installed.",
    ),
    "why": ("why", "Why the plugin NAME does or does not run."),
    "inspect": ("inspection", "All that the manifest of the plugin NAME says, and what became of it."),
    "doctor": ("doctor", "Load each plugin in a process of its own and show all that is wrong."),
    "validate": ("validation", "Check a plugin before it is published: PATH is its project or its wheel."),
    "reload": (
        "reloading",
        "Make a new generation of the running plugin NAME, changed or not, and hand it the state.",
    ),
    "replay": (
        "replaying",
        "Rebuild what the running plugin NAME has found, from history with its present code, and show the difference.",
    ),
    "enable": ("enabling", "Let the plugin NAME run: its 'enabled' becomes true in the manifests."),
    "disable": ("disabling", "Let the plugin NAME run no more: its 'enabled' becomes false in the manifests."),
    "lock": (
        "locking",
        "Write plugins.lock: which plugin distributions are accepted, in which version, with which contents.",
    ),
    "install": ("installing", "Install plugins with pip, unless that would change the host's own dependencies."),
    "new": ("new", "Make a new plugin: a package that installs, runs and passes its tests."),
}


class PluginCommands(LazyGroup):
    """With ``--json`` a command that comes to no answer says so on the standard output as well: ``{"error": "..."}``.

    An answer that is not what was hoped for, such as a refused plan or a drift, has the command's own shape.
    """

    def invoke(self, ctx: click.Context) -> Any:
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except (AnalyticsError, click.ClickException) as error:
            if as_json:
                text = error.format_message() if isinstance(error, click.ClickException) else str(error)
                click.echo(json.dumps({"error": text}, indent=2, ensure_ascii=False))
            raise


@click.group("plugins", cls=PluginCommands, package=__name__, modules=_COMMANDS)
def command() -> None:
    """What is installed, and how it does."""
