"""``analytics users``. Like the commands above it, each one's module is imported when it is run."""

from __future__ import annotations

from typing import Final

import click

from analytics_core.cli.lazy import LazyGroup

_COMMANDS: Final = {
    "show": ("showing", "Who the ID is: all ids of the person, how many events, and the merges."),
    "merge": ("merging", "Make FROM and INTO one person, for whom INTO stands."),
    "unmerge": ("unmerging", "Undo MERGE: what it joined is parted again."),
    "merges": ("merges", "Links between ids that were made, refused or undone."),
    "erase": ("erasing", "Erase all events of the users with these IDs, and what names them, for good."),
    "erasures": ("erasures", "The receipts of erasures; drop what a plugin that cannot be told has stored."),
    "export": ("exporting", "Write all that is stored about the user ID, one JSON object a line."),
}


@click.group("users", cls=LazyGroup, package=__name__, modules=_COMMANDS)
def command() -> None:
    """What is known of single users: who is who, erase it, export it."""
