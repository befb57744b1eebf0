"""``python -m analytics_core.cli``: the command line without its script."""

from analytics_core.cli import main

main(prog_name="analytics")
