"""``analytics serve``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from analytics_core.app import serve
from analytics_core.cli.options import server_options, settings


@click.command("serve")
@server_options
@click.option("--locked", is_flag=True, default=None, help="Run only the plugins of plugins.lock; else PLUGINS_LOCKED.")
@click.option(
    "--no-safe-mode",
    "safe_mode",
    is_flag=True,
    flag_value=False,
    default=None,
    help="Run every plugin, whatever starts have failed; else PLUGINS_SAFE_MODE.",
)
def command(**told: Any) -> None:
    """The server alone, until Ctrl-C."""
    serve(partial(settings, **told))
