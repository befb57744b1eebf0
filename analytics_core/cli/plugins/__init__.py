"""``analytics plugins``. Like the commands above it, each one's module is imported when it is run."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from analytics_core.errors import near

_COMMANDS: Final = {
    "list": (
        "listing",
        "Every plugin with its state, as the running server sees it; without a server, as it is installed.",
    ),
    "why": ("why", "Why the plugin NAME does or does not run."),
    "inspect": ("inspection", "All that the manifest of the plugin NAME says, and what became of it."),
    "doctor": ("doctor", "Load each plugin in a process of its own and show all that is wrong."),
    "validate": ("validation", "Check a plugin before it is published: PATH is its project or its wheel."),
    "new": ("new", "Make a new plugin: a package that installs, runs and passes its tests."),
}
"""Command -> its module here and what the overview says of it."""


class PluginCommands(click.Group):
    """Finds a command's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        found = import_module(f"{__name__}.{_COMMANDS[cmd_name][0]}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"No such command {args[0]!r}{near(args[0], _COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group("plugins", cls=PluginCommands)
def command() -> None:
    """What is installed, and how it does."""
