"""``analytics users merge``."""

from __future__ import annotations

import click

from analytics_core.cli.asking import Server, asking_options
from analytics_core.cli.users.changing import change


@click.command("merge")
@click.argument("former", metavar="FROM")
@click.argument("into")
@click.option("--force", is_flag=True, help="Although both are known users.")
@asking_options("The merge, as one JSON object.")
def command(former: str, into: str, force: bool, as_json: bool, server: Server) -> None:
    """Make FROM and INTO one person, for whom INTO stands: all that FROM did and will do is INTO's.

    Two known users are joined only with --force. A merge can be undone with `analytics users unmerge`. It takes the key
    of an operator. The exit code is 2 when the merge is refused.
    """
    change(server, "POST", "", {"from": former, "into": into, "force": force}, as_json=as_json)
