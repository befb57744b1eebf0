"""The command line. A command's module, and all that it needs, is imported when the command is run."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from analytics_core import __version__
from analytics_core.errors import AnalyticsError, ConfigError, ManifestError, near

_COMMANDS: Final = {
    "serve": ("serve", "The server alone, until Ctrl-C."),
    "demo": ("demo", "The server with a simulated shop as traffic, shown as a live table."),
    "import": ("importing", "Bring the events of FILE into a running server."),
    "plugins": ("plugins", "What is installed, and how it does."),
    "schemas": ("schemas", "Write the JSON Schemas of all manifest kinds to FOLDER."),
}
"""Command -> its module here and the first line of its help, so that ``--help`` imports none of them."""


class Commands(click.Group):
    """Finds a command's module when it is called, and shows the core's errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"analytics_core.cli.{_COMMANDS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"No such command {args[0]!r}{near(args[0], _COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AnalyticsError as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"analytics: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | ManifestError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="analytics")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """A plugin host for real-time analytics: events in, durable, through plugins, out live."""
