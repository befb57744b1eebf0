"""The command line. A command's module, and all that it needs, is imported when the command is run."""

from __future__ import annotations

from typing import Any, Final

import click

from analytics_core import __version__
from analytics_core.cli.lazy import LazyGroup
from analytics_core.errors import AnalyticsError, ConfigError, ManifestError

_COMMANDS: Final = {
    "serve": ("serve", "The server alone, until Ctrl-C."),
    "demo": ("demo", "The server with a simulated shop as traffic, shown as a live table."),
    "import": ("importing", "Bring the events of FILE into a running server."),
    "export": ("exporting", "Write the events of a running server to FILE, oldest first."),
    "ask": ("ask", "Ask the running server an analysis, or list what can be asked."),
    "cohorts": ("cohorts", "The cohorts that the manifests declare, and how many people are in each."),
    "insights": ("insights", "What stands out in a time range, the gravest first."),
    "plugins": ("plugins", "What is installed, and how it does."),
    "users": ("users", "What is known of single users: who is who, erase it, export it."),
    "schemas": ("schemas", "Write the JSON Schemas of all manifest kinds to FOLDER."),
}


class Commands(LazyGroup):
    """Shows the core's errors as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AnalyticsError as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"analytics: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | ManifestError) else 1)


@click.group(
    cls=Commands, package=__name__, modules=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="analytics")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """A plugin host for real-time analytics: events in, durable, through plugins, out live."""
