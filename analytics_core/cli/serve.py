"""``analytics serve``."""

from __future__ import annotations

from typing import Any

import click

from analytics_core.app import serve
from analytics_core.cli.options import server_options, settings


@click.command("serve")
@server_options
def command(**told: Any) -> None:
    """The server alone, until Ctrl-C."""
    serve(settings(**told))
